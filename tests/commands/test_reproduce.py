"""reproduce prints ours beside theirs, and writes nothing of it down unless it is asked to."""

import json
import types

import pytest

from karpjax import errors
from karpjax.commands import reproduce


@pytest.fixture
def papers(tmp_path, monkeypatch):
  """A checkout of two flagfiles, a README and no results, whose runs give test/error 0.25."""
  folder = tmp_path / 'experiments' / 'papers'
  folder.mkdir(parents=True)
  for name, theirs, more in (
    ('one_small', 'test/error = 0.2', ''),
    ('one_large', 'test/error = none', '# needs: accelerator\n'),
  ):
    lines = f'# what: {name}\n# experiment: regression\n# theirs: {theirs}\n# source: here\n{more}--seed=1\n'
    (folder / f'{name}.flags').write_text(lines)
  (folder / 'README.md').write_text(f'before\n{reproduce.MARKS[0]}\nold\n{reproduce.MARKS[1]}\nafter\n')
  monkeypatch.setattr(reproduce, 'ROOT', tmp_path)
  monkeypatch.setattr(reproduce, 'PAPERS', folder)
  monkeypatch.setattr(reproduce, 'RESULTS', folder / 'results.jsonl')
  ours = {'test/error': {'mean': 0.25, 'std': 0.01, 'values': [0.24, 0.26]}}
  result = lambda paper, *_: {'name': paper['name'], 'ours': ours, 'seeds': 2, 'seconds': 90}
  monkeypatch.setattr(reproduce, 'run', result)
  return tmp_path


def test_nothing_is_written_down_unless_asked(papers, capsys):
  before = (reproduce.PAPERS / 'README.md').read_text()
  assert reproduce.main(['one']) == 0
  out = capsys.readouterr().out
  assert '20.00 %' in out and '25.00 % ± 1.00 %' in out and '+5.00 %' in out and '1.5 min' in out
  assert (reproduce.PAPERS / 'README.md').read_text() == before and not reproduce.RESULTS.exists()


def test_a_record_goes_to_the_results_and_to_the_table_of_the_readme(papers):
  assert reproduce.main(['all', '--record']) == 0
  assert [json.loads(line)['name'] for line in reproduce.RESULTS.read_text().splitlines()] == ['one_small']
  lines = (reproduce.PAPERS / 'README.md').read_text().splitlines()
  assert lines[:2] == ['before', reproduce.MARKS[0]] and lines[-2:] == [reproduce.MARKS[1], 'after']
  assert (
    '| one_small | test/error | 20.00 % | 25.00 % ± 1.00 % | +5.00 % | 2 | 1.5 min | reproduce one_small |' in lines
  )
  assert any('| one_large | test/error | – | not run here |' in line for line in lines)


def test_a_run_that_fails_is_said_and_the_others_go_on(papers, monkeypatch, capsys):
  good = reproduce.run

  def run(paper, *rest):
    if paper['name'] == 'one_large':
      raise errors.UsageError('one_large stopped with exit code 2')
    return good(paper, *rest)

  monkeypatch.setattr(reproduce, 'run', run)
  assert reproduce.main(['one']) == 1
  captured = capsys.readouterr()
  assert captured.err == 'reproduce: one_large stopped with exit code 2\n' and 'one_small' in captured.out


def test_an_unknown_name_offers_the_nearest(papers, capsys):
  assert reproduce.main(['one_smal']) == 2
  assert 'Did you mean one_small?' in capsys.readouterr().err


def test_a_number_that_is_not_finite_has_no_difference(papers, monkeypatch, capsys):
  ours = {'test/error': {'mean': None, 'std': None, 'values': [None, 0.26]}}
  result = lambda paper, *_: {'name': paper['name'], 'ours': ours, 'seeds': 2, 'seconds': 90}
  monkeypatch.setattr(reproduce, 'run', result)
  assert reproduce.main(['one_small']) == 0 and '–' in capsys.readouterr().out


@pytest.mark.parametrize(
  'theirs, near', [('test/mse = 1', ''), ('test/msee = 1', 'Did you mean test/mse'), ('valid/mse = 1', 'Did you mean')]
)
def test_what_a_row_promises_is_measured_or_it_is_not_begun(papers, theirs, near):
  lines = f'# what: one\n# experiment: regression\n# theirs: {theirs}\n# source: here\n--seed=1\n'
  (reproduce.PAPERS / 'one_small.flags').write_text(lines)
  if not near:
    reproduce.check('one_small', [])
    return
  with pytest.raises(errors.UsageError, match=f'one_small promises .*, which this run does not measure.*{near}'):
    reproduce.check('one_small', [])


def test_a_row_that_is_refused_is_not_trained(papers, monkeypatch, tmp_path):
  monkeypatch.undo()
  commands = []
  done = lambda command, **_: commands.append(command) or types.SimpleNamespace(returncode=1)
  monkeypatch.setattr(reproduce.subprocess, 'run', done)
  with pytest.raises(errors.UsageError, match='one_small was not begun'):
    reproduce.run({'name': 'one_small', 'experiment': 'regression'}, tmp_path, ['--seed=2'])
  assert [command[-2:] for command in commands] == [['one_small', '--seed=2']]
