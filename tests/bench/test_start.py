"""`bench start`: whole commands are timed beside scripts of PyTorch, which need not be there."""

import importlib
import json
import subprocess
import sys

import pytest

from karpjax import command_line
from karpjax.bench import command, measure, start

TWIN = 'import sys, time; time.sleep(0.2); sys.argv[1:] == ["--steps=1"] or sys.exit("no such flag")'


def test_every_run_that_is_timed_has_flags_that_parse():
  rows = start.rows(start.Start(data_dir='/data'))
  assert {'default', 'one_step', 'warm', 'launch', 'help', 'ppo_cartpole', 'lecun1989', 'one_step_gan'} <= set(rows)
  configs = {}
  for name, row in rows.items():
    if row.trains:
      experiment = importlib.import_module(f'experiments.{row.ours[0]}')
      configs[name] = command_line.parse(experiment.Config, row.ours[1:])
  assert str(configs['ppo_cartpole'].steps) == '976' and configs['lecun1989'].seeds == 5
  assert configs['lecun1989'].data_dir == '/data'
  assert all(str(made.steps) == '1' for name, made in configs.items() if name.startswith('one_step'))


def test_the_command_with_a_script_that_pretends(tmp_path, monkeypatch, capsys):
  (tmp_path / 'twin.py').write_text(TWIN)
  monkeypatch.setattr(start, 'TWIN', tmp_path / 'twin.py')
  monkeypatch.setattr(measure, 'torch_lacks', lambda python, packages=(): '')
  rows = {
    'one_step': start.Row((), 'start', ('--steps=1',), trains=False),
    'default': start.Row(('nothing',), 'start', trains=False),
  }
  monkeypatch.setattr(start, 'rows', lambda flags: rows)
  assert command.main(['start', '--rounds=2', f'--json={tmp_path / "found.json"}']) == 1
  found = json.loads((tmp_path / 'found.json').read_text())['rows']
  assert len(found['one_step']['ours']) == 2 and min(found['one_step']['theirs']) > 0.2 and not found['one_step']['why']
  assert found['default']['ours'] == [] and found['default']['theirs'] == []
  said = capsys.readouterr().out
  assert (
    '\ndefault: ' in said
    and 'PyTorch stopped: no such flag' in said
    and "ours stopped: launch.py: unknown experiment 'nothing'" in said
  )


def test_without_pytorch_ours_is_timed_alone_and_the_row_says_so(capsys):
  assert command.main(['start', '--only=launch', '--rounds=1', '--torch_python=none']) == 0
  row = start.timed(start.Row((), 'start', trains=False), start.Start(rounds=1, torch_python='none'))
  assert len(row['ours']) == 1 and row['theirs'] == [] and row['why'] == 'PyTorch was not asked for'
  assert 'launch' in capsys.readouterr().out


def test_a_run_has_a_folder_and_a_cache_of_its_own_and_a_warm_one_is_kept(monkeypatch):
  seen = []
  monkeypatch.setattr(start, 'seconds', lambda given, folder: seen.append(given) or 1.0)
  for warm in (False, True):
    start.timed(start.Row(('gan',), warm=warm), start.Start(rounds=2))
  folders, caches = (
    [next(x for x in given if x.startswith(flag)) for given in seen] for flag in ('--workdir', '--comp')
  )
  assert len(set(folders)) == 5 and len(set(caches)) == 3 and len(set(caches[2:])) == 1  # one fills the warm cache


def test_the_table_has_ratios_of_medians():
  found = {'ours': [2.0, 4.0, 3.0], 'theirs': [12.0, 6.0, 6.0], 'why': ''}
  assert start.cells('warm', found, whole=6.0) == ('warm', '3.00', '2 – 4', '6.00', '2.00', '1.5 – 6', '0.50')
  alone = {'ours': [2.0], 'theirs': [], 'why': 'no'}
  assert start.cells('help', alone, whole=6.0) == ('help', '2.00', '2 – 2', '', '', '', '')


def test_the_twin_of_the_default_command_leaves_what_a_user_would_want(tmp_path):
  torch = pytest.importorskip('torch')
  for name in start.PACKAGES['start']:
    pytest.importorskip(name)
  subprocess.run([sys.executable, str(start.TWIN), '--steps=2'], cwd=tmp_path, check=True)
  assert torch.load(tmp_path / 'run' / 'last.pt')['step'] == 2
  assert {'report.txt', 'confusion.png', 'validation_loss.png'} <= {path.name for path in (tmp_path / 'run').iterdir()}
