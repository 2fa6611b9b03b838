"""What the README says runs."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def launch(*argv, **options):
  return subprocess.run(
    [sys.executable, ROOT / 'launch.py', *argv], capture_output=True, text=True, check=False, **options
  )


def test_the_complete_example_trains(tmp_path):
  code = re.search(r'<!-- example.*?```python\n(.*?)```', README, re.DOTALL)[1]
  (tmp_path / 'sine.py').write_text(code)
  flags = ['--steps=400', '--batch_size=50', '--seeds=2', '--learning_rate=0.01', f'--workdir={tmp_path / "run"}']
  environment = {'PYTHONPATH': str(ROOT), 'PATH': '/usr/bin:/bin', 'HOME': str(tmp_path)}
  done = subprocess.run(
    [sys.executable, tmp_path / 'sine.py', *flags], capture_output=True, text=True, env=environment, check=False
  )
  assert done.returncode == 0, done.stderr
  import json

  numbers = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  assert numbers['test/loss']['mean'] < 0.05  # the noise alone is 0.01, a constant guess 0.5
  assert (tmp_path / 'run' / 'index.html').exists()


def test_launch_alone_lists_every_experiment_without_importing_jax():
  done = launch()
  for path in (ROOT / 'experiments').glob('[a-z]*.py'):
    assert path.stem in done.stdout
  code = f"import sys; sys.argv = ['launch.py']; sys.path.insert(0, {str(ROOT)!r}); import launch; launch.main([]); print('jax' in sys.modules)"
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.endswith('False\n')


def test_help_shows_flags_and_imports_no_tensorflow():
  code = (
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); import launch; launch.main(['image_classification', '--help']);"
    "print([m for m in ('tensorflow', 'orbax.checkpoint', 'matplotlib', 'grain', 'sklearn', 'tensorflow_datasets') if m in sys.modules])"
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert '--learning_rate=number (default 0.001)' in done.stdout
  assert done.stdout.endswith('[]\n'), done.stdout[-300:]


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
  assert f'reproduce {name}' in README


def test_listing_takes_no_time_to_speak_of():
  """Half a second is asked for; a loaded machine gets four times as much."""
  begun = time.monotonic()
  launch()
  assert time.monotonic() - begun < 2
