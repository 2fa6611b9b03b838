"""What the README says runs."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import launch as front_door

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def launch(*argv, root=ROOT, **options):
  return subprocess.run(
    [sys.executable, root / 'launch.py', *argv], capture_output=True, text=True, check=False, **options
  )


@pytest.fixture(scope='module')
def sine(tmp_path_factory) -> Path:
  """A checkout with the README's example as experiments/sine.py, and its run of two seeds in runs/sine."""
  root = tmp_path_factory.mktemp('checkout')
  (root / 'experiments').mkdir()
  (root / 'experiments' / 'sine.py').write_text(re.search(r'<!-- example.*?```python\n(.*?)```', README, re.DOTALL)[1])
  (root / 'karpjax').symlink_to(ROOT / 'karpjax')
  shutil.copy(ROOT / 'launch.py', root)
  flags = ['--steps=400', '--seeds=2', '--parallel=seeds', '--ema=0.5', '--eval_every=0', '--workdir=runs/sine']
  done = launch('sine', *flags, root=root, cwd=root, env={**os.environ, 'XLA_FLAGS': ''})
  assert done.returncode == 0, done.stderr
  (root / 'said').write_text(done.stdout)
  return root


def test_the_complete_example_trains(sine):
  numbers = json.loads((sine / 'runs' / 'sine' / 'summary.json').read_text())
  assert numbers['test/loss']['mean'] < 0.05  # the noise alone is 0.01, a constant guess 0.5
  assert (sine / 'runs' / 'sine' / 'index.html').exists()


def test_each_core_of_a_cpu_is_a_device_for_seeds(sine):
  cores = len(os.sched_getaffinity(0))
  used = 'each of 2' if cores > 1 else '1'
  assert f'devices: {cores} × cpu ({2 // min(cores, 2)} seeds on {used})' in (sine / 'said').read_text()


@pytest.mark.slow
def test_the_complete_example_takes_all_commands(sine):
  run = lambda *argv: launch(*argv, root=sine, cwd=sine)
  assert 'The sine of a number' in run().stdout
  assert '--width=int (default 64)' in run('sine', '--help').stdout
  evaluated = run('evaluate', 'runs/sine', '--json', '--checkpoint=last')
  summary = json.loads((sine / 'runs' / 'sine' / 'summary.json').read_text())
  assert json.loads(evaluated.stdout)['test/loss'] == pytest.approx(summary['test/loss']['values'][0], rel=1e-6)
  assert 'first of 2 seeds' in evaluated.stderr
  gone_on = run('sine', '--workdir=runs/sine', '--steps=450')
  assert gone_on.returncode == 0 and 'goes on at step 400 of 450' in gone_on.stdout
  checked = run('check', 'sine')
  assert checked.returncode == 0, checked.stdout + checked.stderr
  swept = run('sweep', 'sine', '--grid', 'learning_rate=1e-5,1e-2', '--steps=100', '--workdir=runs/s')
  assert swept.returncode == 0 and 'best: trial 2' in swept.stdout, swept.stderr
  assert (sine / 'runs' / 's' / 'index.html').exists()
  of_best = run('evaluate', 'runs/s')
  assert of_best.returncode == 0 and 'of trial 2: learning_rate=1e-2' in of_best.stderr
  refused = run('predict', 'runs/sine', 'x')
  assert refused.returncode == 2
  assert refused.stderr == 'predict: runs/sine is a run of sine, which cannot predict; it can evaluate, export, card\n'
  useless = run('sine', '--dtype=bfloat16')
  assert useless.returncode == 2 and useless.stderr == 'sine: --dtype=bfloat16: the program makes no use of it\n'


def test_launch_alone_lists_every_experiment_without_importing_jax():
  done = launch()
  for path in (ROOT / 'experiments').glob('[a-z]*.py'):
    assert path.stem in done.stdout
  code = f"import sys; sys.argv = ['launch.py']; sys.path.insert(0, {str(ROOT)!r}); import launch; launch.main([]); print('jax' in sys.modules)"
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.endswith('False\n')


def test_help_shows_flags(capsys):
  assert front_door.main(['image_classification', '--help']) == 0
  assert '--learning_rate=number (default 0.001)' in capsys.readouterr().out


def test_help_imports_no_tensorflow_and_a_reader_who_has_seen_enough_ends_it_without_a_word(tmp_path):
  heavy = ('tensorflow', 'scipy.stats', 'orbax.checkpoint', 'matplotlib', 'grain', 'sklearn', 'tensorflow_datasets')
  code = f"""if 1:
    import atexit, runpy, sys
    atexit.register(lambda: print([m for m in {heavy} if m in sys.modules], file=open('imported', 'w')))
    sys.argv = ['launch.py', 'image_classification', '--help']
    runpy.run_path({str(ROOT / 'launch.py')!r}, run_name='__main__')
  """
  pipe = f'{sys.executable} -c "$CODE" | head -1'
  environment = {**os.environ, 'CODE': code}
  done = subprocess.run(pipe, shell=True, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
  assert done.stdout.count('\n') == 1 and done.stderr == ''
  assert (tmp_path / 'imported').read_text() == '[]\n'


def test_an_unknown_experiment_offers_the_nearest():
  done = launch('image_clasification')
  assert done.returncode == 2 and 'image_classification' in done.stderr and done.stderr.count('\n') == 1


@pytest.mark.parametrize('name', sorted(p.stem for p in (ROOT / 'experiments' / 'papers').glob('*.flags')))
def test_every_flagfile_parses_and_says_what_it_reproduces(name):
  import importlib

  from karpjax import command_line
  from karpjax.commands import reproduce

  paper = reproduce.read(reproduce.PAPERS / f'{name}.flags')
  experiment = importlib.import_module(f'experiments.{paper["experiment"]}')
  settings = command_line.parse(experiment.Config, [f'--flagfile={reproduce.PAPERS / name}.flags'])
  assert settings != experiment.Config()
  assert f'reproduce {name}' in (reproduce.PAPERS / 'README.md').read_text()


def test_listing_takes_no_time_to_speak_of():
  """Half a second is asked for; a loaded machine gets four times as much."""
  begun = time.monotonic()
  launch()
  assert time.monotonic() - begun < 2
