"""`bench all`, with workers that only pretend: what is measured, recorded and said where a side cannot run."""

import json
import re
import sys

import numpy as np
import pytest

from karpjax.bench import command, measure, results

WORKER = """
import time
from karpjax.bench import worker
worker.step_seconds = lambda run: 0.001

def prepare(job):
  if job.get('dies'):
    raise SystemExit(job['dies'])
  held = bytearray(job['megabytes'] * 2**20)
  facts = {'losses': [2.0, 1.0], 'versions': job['versions'], 'parameters': 7, 'flops': 1e9, 'steps_per_call': 1}
  return facts, lambda n: time.sleep(n * job['seconds'] + 0 * len(held)), lambda: time.sleep(0.001)

worker.serve(prepare)
"""
OURS = {'megabytes': 60, 'seconds': 0.001, 'versions': 'jax 1'}
FLAGS = ['all', '--only=ppo_cartpole', '--rounds=7', '--round_seconds=0.001', '--starts=1']


@pytest.fixture
def bench(tmp_path, monkeypatch):
  """(jobs, flags) -> exit code of `bench all`, whose files lie in `tmp_path`."""
  (tmp_path / 'pretended.py').write_text(WORKER)
  (tmp_path / 'README.md').write_text(f'above\n{results.MARKS[0]}\nold\n{results.MARKS[1]}\nbelow\n')
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  monkeypatch.setattr(results, 'RESULTS', tmp_path / 'results.jsonl')
  monkeypatch.setattr(results, 'README', tmp_path / 'README.md')

  def run(jobs, *flags):
    made = {name: (sys.executable, 'pretended', job) for name, job in jobs.items()}
    monkeypatch.setattr(measure, 'jobs_of', lambda setup, flags, with_torch: made)
    return command.main([*FLAGS, *flags])

  return run


def cells(page):
  """The rows of a page's tables, each a list of cells."""
  return [re.split(r' \| ', line[2:-2]) for line in page.splitlines() if line.startswith('| `')]


def test_both_sides_are_recorded_and_the_page_is_written(bench, tmp_path, monkeypatch):
  monkeypatch.setattr(measure, 'torch_lacks', lambda python: '')
  burden = np.ones(2**25)  # 256 MB of this process are none of a worker's
  theirs = {'megabytes': 90, 'seconds': 0.003, 'versions': 'torch 2'}
  assert bench({'ours': OURS, 'PyTorch': theirs}, '--machine=the old one') == 0
  assert bench({'ours': OURS, 'PyTorch': theirs}, '--machine=the new one') == 0
  assert burden.nbytes == 2**28
  line, _ = map(json.loads, (tmp_path / 'results.jsonl').read_text().splitlines())
  ours, pytorch = line['rows']['ours'], line['rows']['PyTorch']
  assert 60 * 2**20 < ours['memory'] < 90 * 2**20 < pytorch['memory'] < 200 * 2**20
  assert ours['all_in'] > 0.976 and pytorch['all_in'] > 3 * 0.976  # 976 steps are the set-up's
  assert pytorch['ratio'] == pytest.approx(pytorch['seconds'] / ours['seconds'])
  page = (tmp_path / 'README.md').read_text()
  assert page.startswith('above\n') and page.endswith('\nbelow\n') and 'old\n<!--' not in page
  assert re.findall('### (.*)', page) == ['the old one', 'the new one'] and 'jax 1; torch 2' in page
  name, _, _, ratio, *_, steps, ours_all_in, _ = cells(page)[0]
  assert (name, steps, ratio) == ('`ppo_cartpole`', '976', f'{pytorch["ratio"]:.2f}')
  assert ours_all_in == f'{ours["all_in"]:.1f}'


@pytest.mark.parametrize(
  'jobs, code, said',
  [
    ({'ours': OURS}, 0, 'PyTorch was not asked for'),
    ({'ours': OURS, 'PyTorch': {'dies': 'needs torch 3'}}, 1, 'PyTorch stopped: needs torch 3'),
    ({'ours': {'dies': 'too large'}}, 1, 'ours stopped: too large'),
  ],
)
def test_a_row_says_why_a_side_has_no_figures(bench, tmp_path, monkeypatch, jobs, code, said):
  if 'PyTorch' in jobs:
    monkeypatch.setattr(measure, 'torch_lacks', lambda python: '')
  assert bench(jobs, '--torch_python=none') == code
  assert said in cells((tmp_path / 'README.md').read_text())[0]


def test_the_newest_line_of_a_set_up_counts():
  about = {'machine': 'm', 'git': 'abc'}
  row = dict.fromkeys(results.FIGURES, 0.5) | {'versions': 'jax 1', 'peak': 2e9, 'all_in': None, 'memory': 3 * 2**20}
  lines = [
    results.entry('mlp', 5, {**about, 'date': date}, {'ours': row | {'seconds': seconds}}, {'PyTorch': 'none here'})
    for date, seconds in (('2026-01-01', 9.0), ('2026-01-02', 0.25))
  ]
  page = '\n'.join(results.pages(lines))
  assert cells(page) == [['`mlp`', '250', 'none here', '', '', '50%', '3', '', '5', '', '']]
  assert 'Measured 2026-01-02 at commit abc; jax 1. A matmul reaches 2 to 2 GFLOP/s in ours.' in page
  assert results.pages([]) == [results.EMPTY]


def test_the_page_of_the_project_has_what_its_results_say():
  page, stored = results.README.read_text('utf-8'), results.RESULTS
  lines = map(json.loads, stored.read_text('utf-8').splitlines()) if stored.exists() else ()
  assert '\n'.join([results.MARKS[0], *results.pages(lines), results.MARKS[1]]) in page


def test_an_interpreter_says_what_it_lacks(tmp_path, monkeypatch):
  assert measure.torch_lacks('none') == 'PyTorch was not asked for'
  (tmp_path / 'torch').mkdir()
  (tmp_path / 'torch' / '__init__.py').touch()
  about = tmp_path / 'torch-1.13.1.dist-info'
  about.mkdir()
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  (about / 'METADATA').write_text('Metadata-Version: 2.1\nName: torch\nVersion: 1.13.1\n')
  assert measure.torch_lacks(sys.executable) == 'PyTorch 1.13.1 is too old: 2.4 is needed'
  (about / 'METADATA').write_text('Metadata-Version: 2.1\nName: torch\nVersion: 2.10.0+cpu\n')
  assert measure.torch_lacks(sys.executable) == ''
  assert (
    measure.torch_lacks(sys.executable, ('json', 'nowhere', 'nothing')) == f'{sys.executable} has no nowhere nothing'
  )
