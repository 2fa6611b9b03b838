"""reproduce prints ours beside theirs, and writes nothing of it down unless it is asked to."""

import json
import re
import subprocess
import types

import pytest

from karpjax import errors
from karpjax.commands import reproduce
from karpjax.train import commits


@pytest.fixture
def papers(tmp_path, monkeypatch):
  """A checkout of two flagfiles, a README and no results, whose runs give test/error 0.25."""
  folder = tmp_path / 'experiments' / 'papers'
  folder.mkdir(parents=True)
  for name, theirs, more in (
    ('one_small', 'test/error = 0.2, best/test/error = none', '# differs: a | b\n'),
    ('one_large', 'test/error = none', '# needs: accelerator\n'),
  ):
    lines = f'# what: {name}\n# experiment: regression\n# theirs: {theirs}\n# source: here\n{more}--seed=1\n'
    (folder / f'{name}.flags').write_text(lines)
  (folder / 'README.md').write_text(f'before\n{reproduce.MARKS[0]}\nold\n{reproduce.MARKS[1]}\nafter\n')
  monkeypatch.setattr(reproduce, 'ROOT', tmp_path)
  monkeypatch.setattr(reproduce, 'PAPERS', folder)
  monkeypatch.setattr(reproduce, 'RESULTS', folder / 'results.jsonl')
  ours = {'test/error': {'mean': 0.25, 'std': 0.01, 'values': [0.24, 0.26]}}
  result = lambda paper, *_: {'name': paper['name'], 'ours': ours, 'seeds': 2, 'seconds': 90, 'git': 'abc1234'}
  monkeypatch.setattr(reproduce, 'run', result)
  monkeypatch.setattr(commits, 'current', lambda *_: 'abc1234')
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
  ours = '25.00 % ± 1.00 % | +5.00 % | 2 | 1.5 min | abc1234'
  assert f'| one_small | test/error | 20.00 % | {ours} | reproduce one_small | a \\| b |' in lines
  assert '| one_large | test/error | – | not run here |  |  |  |  | reproduce one_large |  |' in lines
  assert any(
    line.startswith('| one_small | best/test/error | – | not run |') and line.endswith('| ″ |') for line in lines
  )


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
  'theirs, near',
  [
    ('test/mse = 1', ''),
    ('best/test/mse = 1', ''),
    ('test/msee = 1', 'Did you mean test/mse'),
    ('valid/mse = 1', 'Did you mean'),
  ],
)
def test_what_a_row_promises_is_measured_or_it_is_not_begun(papers, theirs, near):
  lines = f'# what: one\n# experiment: regression\n# theirs: {theirs}\n# source: here\n# differs: nothing\n--seed=1\n'
  (reproduce.PAPERS / 'one_small.flags').write_text(lines)
  if not near:
    reproduce.check('one_small', [])
    return
  with pytest.raises(errors.UsageError, match=f'one_small promises .*, which this run does not measure.*{near}'):
    reproduce.check('one_small', [])


def test_a_folder_of_data_is_no_flag_of_rows_that_have_none(papers):
  lines = '# what: one\n# experiment: regression\n# theirs: test/mse = none\n# source: here\n'
  (reproduce.PAPERS / 'one_small.flags').write_text(lines)
  assert reproduce.check('one_small', ['--data_dir=/data', '--seed=1']) == [
    '--data_dir=/data',
    '--seed=1',
    '--data_dir=',
  ]
  assert reproduce.check('one_small', ['--seed=1']) == ['--seed=1']


def test_where_nothing_chooses_the_best_a_row_of_it_is_not_begun(papers):
  lines = '# what: one\n# experiment: regression\n# theirs: best/test/mse = none\n# source: here\n'
  (reproduce.PAPERS / 'one_small.flags').write_text(lines)
  reproduce.check('one_small', [])
  with pytest.raises(errors.UsageError, match='select=validation/loss: there is no such metric'):
    reproduce.check('one_small', ['--validation=0'])


def test_a_row_that_is_refused_is_not_trained(papers, monkeypatch, tmp_path):
  monkeypatch.undo()
  commands = []
  done = lambda command, **_: commands.append(command) or types.SimpleNamespace(returncode=1)
  monkeypatch.setattr(reproduce.subprocess, 'run', done)
  with pytest.raises(errors.UsageError, match='one_small was not begun'):
    reproduce.run({'name': 'one_small', 'experiment': 'regression'}, tmp_path, ['--seed=2'])
  assert [command[-2:] for command in commands] == [['one_small', '--seed=2']]


# ---- evidence ----


def test_a_dirty_checkout_records_nothing_unless_told(papers, monkeypatch, capsys):
  for revision, why in (('abc1234-dirty', 'differs from its commit abc1234;'), (None, 'is not under git;')):
    monkeypatch.setattr(commits, 'current', lambda *_: revision)
    assert reproduce.main(['one', '--record']) == 2 and not reproduce.RESULTS.exists()
    out, err = capsys.readouterr()
    assert not out and err.count('\n') == 1 and why in err and '--dirty' in err
  assert reproduce.main(['one', '--record', '--dirty']) == 0 and len(reproduce.RESULTS.read_text().splitlines()) == 2


def test_a_run_that_another_commit_began_is_no_evidence_of_this_one(papers, capsys):
  runs = papers / 'runs'
  for name, revision in (('one_small', 'abc1234'), ('one_large', 'def5678')):
    (runs / name).mkdir(parents=True)
    (runs / name / 'config.json').write_text(json.dumps({'git': revision}))
  assert reproduce.main(['one', '--record', f'--runs={runs}']) == 1
  assert 'one_large is not recorded' in capsys.readouterr().err
  assert [json.loads(line)['name'] for line in reproduce.RESULTS.read_text().splitlines()] == ['one_small']
  assert reproduce.main(['one', f'--runs={runs}']) == 0  # nothing is recorded, nothing refused


def test_a_revision_is_that_of_code_and_flagfiles(tmp_path):
  git = lambda *words: subprocess.run(['git', '-C', tmp_path, *words], check=True, capture_output=True)
  assert commits.current(tmp_path) is None
  git('init')
  for name in ('papers/a.flags', 'papers/README.md', 'karpjax/b.py'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('1')
  git('add', '.')
  git('-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '-m', 'one')
  clean = commits.current(tmp_path / 'karpjax')
  assert len(clean) >= 7 and 'dirty' not in clean
  (tmp_path / 'papers' / 'README.md').write_text('2')  # what recording writes
  (tmp_path / 'papers' / 'results.jsonl').write_text('2')
  assert commits.current(tmp_path) == clean
  for name in ('papers/a.flags', 'karpjax/b.py', 'karpjax/new.py'):
    before = (tmp_path / name).read_text() if (tmp_path / name).exists() else None
    (tmp_path / name).write_text('2')
    assert commits.current(tmp_path) == f'{clean}-dirty', name
    (tmp_path / name).write_text(before) if before else (tmp_path / name).unlink()
  assert commits.current(tmp_path) == clean


def test_a_run_that_goes_on_keeps_the_commits_it_came_from(tmp_path, monkeypatch):
  for now, known in (('abc', 'abc'), ('abc', 'abc'), ('def', 'abc, def'), (None, 'abc, def'), ('abc', 'abc, def')):
    monkeypatch.setattr(commits, 'current', lambda now=now: now)
    git = commits.of_run(tmp_path)
    assert git == known
    (tmp_path / 'config.json').write_text(json.dumps({'git': git}))
  assert commits.of_run(tmp_path / 'other') == 'abc'


def test_a_result_without_a_commit_says_so(papers):
  reproduce.RESULTS.write_text(json.dumps({'name': 'one_large', 'ours': {'test/error': {'mean': 0.1, 'std': None, 'values': [0.1]}}, 'seeds': 1}) + '\n')  # fmt: skip
  assert reproduce.main(['--record']) == 0
  table = (reproduce.PAPERS / 'README.md').read_text()
  assert '| one_large | test/error | – | 10.00 % |  | 1 |  | – | reproduce one_large |  |' in table


def test_the_table_is_what_flagfiles_and_results_say():
  known = {path.stem: reproduce.read(path) for path in sorted(reproduce.PAPERS.glob('*.flags'))}
  table = '\n'.join(reproduce.table(known))
  assert table in (reproduce.PAPERS / 'README.md').read_text(), 'write it anew: launch.py reproduce --record'


# What a `differs` says of numbers, or of a setting, and the flag that has it, or (not) that it has not.
SAID = {
  r'(\d+) seeds for': '--seeds={}', r'from ([\d,]+) transitions': '--replay_batch={}', r'from ([\d,]+) steps on': '--learning_starts={}',
  r'a buffer of ([\d,]+)': '--buffer={}', r'a discount of ([\d.]+) for [\d.]+;': '--discount={}', r'sees (\d+) whole names': '--batch_size={}',
  r'^layers of (\d+) (?:and \d+ )?units': '--widths={0},{0}', r'steps of (\d+) names': '--batch_size={}', r'cut at ± ([\d.]+)': '--clip_values={}',
  r'windows of (\d+) letters': '--context={}', r'the first (\d+) are not scored': '--overlap={}', r'limited to ([\d.]+)': '--max_norm={}',
  r'^(\d+) environments of': '--batch_size={}', r'environments of (\d+) steps': '--rollout={}', r'(\d+) epochs of': '--steps={}epochs',
  r'the rate falls to 0': '--schedule=(linear|cosine)', r'cosine schedule': '--schedule=cosine', r'<unk> is never said': 'not --unknown',
  r'decay of norms and biases too': '--decay_all', r'biases are spared': 'not --decay_all', r'advantages are normalised;': '--normalise',
  r'sources reversed': '--reverse', r'label smoothing': '--label_smoothing=.*', r'what is added alone': 'not --hidden_dropout=.*',
  r'no validation split': '--validation=0', r'the value is clipped': 'not --noclip_value', r'moments': '--normalise_observations',
}  # fmt: skip


def test_what_differs_is_as_the_flags_have_it():
  held = set()
  for path in sorted(reproduce.PAPERS.glob('*.flags')):
    paper = reproduce.read(path)
    differs, has = (
      paper.get('differs', ''),
      lambda flag, flags=paper['flags']: any(re.fullmatch(flag, x) for x in flags),
    )
    for pattern, flag in SAID.items():
      if found := re.search(pattern, differs):
        flag = flag.format(*(x.replace(',', '') for x in found.groups()))
        assert has(flag) if not flag.startswith('not ') else not has(flag[4:]), (path.stem, pattern)
        held.add(pattern)
    if any(paper['theirs'].values()) and has('--seeds=.*'):
      assert re.search('seeds for|of 5 seeds|theirs is one seed|as mlp_names', differs), path.stem
  assert held == {*SAID}


def test_what_differs_is_said_of_every_published_number(tmp_path):
  path = tmp_path / 'a.flags'
  lines = '# what: a\n# experiment: regression\n# theirs: test/mse = {}\n# source: here\n'
  path.write_text(lines.format('none'))
  assert reproduce.read(path)['theirs'] == {'test/mse': None}
  path.write_text(lines.format('1.5'))
  with pytest.raises(errors.UsageError, match='a.flags lacks the comment «# differs: …»'):
    reproduce.read(path)
  path.write_text(lines.format('1.5') + '# differs: nothing\n')
  assert reproduce.read(path)['theirs'] == {'test/mse': 1.5}


def test_a_result_of_other_flags_is_not_the_rows(papers):
  ours = {'test/error': {'mean': 0.1, 'std': None, 'values': [0.1]}}
  for flags, cell in ((['--seed=1'], '10.00 %'), (['--seed=2'], 'not run with these flags')):
    reproduce.RESULTS.write_text(json.dumps({'name': 'one_large', 'ours': ours, 'seeds': 1, 'flags': flags}) + '\n')
    assert reproduce.main(['--record']) == 0
    assert f'| one_large | test/error | – | {cell} |' in (reproduce.PAPERS / 'README.md').read_text()
