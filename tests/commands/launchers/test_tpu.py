"""`launch.py tpu` against a stand-in gcloud that notes its calls, and does on two folders what it would do on workers."""

import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from karpjax.commands import launchers
from karpjax.commands.launchers import tpu

WHERE = ['--zone=us-west4-a', '--project=lab']
FLAGS = ['--name=pod', *WHERE]
TEXT = """it's "so"  $HOME `x` \\ *;&"""  # what a shell would take apart

# A worker is a folder: its home. `--command` goes to a real shell there, files are really copied.
GCLOUD = r"""
import json, os, shutil, signal, subprocess, sys
from pathlib import Path
here, argv = Path(__file__).parent, sys.argv[1:]
with open(here / 'calls.jsonl', 'a') as file:
  file.write(json.dumps(argv) + '\n')
step = argv[3]
fail = json.loads((here / 'fail.json').read_text())
call = len((here / 'calls.jsonl').read_text().splitlines()) - 1
if str(call) in fail:
  sys.exit(print('Some chatter.', fail[str(call)][1], '', sep='\n', file=sys.stderr) or fail[str(call)][0])
workers = sorted(here.glob('worker*'))
worker = next((a[9:] for a in argv if a.startswith('--worker=')), 'all')
chosen = workers if worker == 'all' else [workers[int(worker)]]
if step == 'ssh':
  command = next(a[10:] for a in argv if a.startswith('--command='))
  run = lambda w: subprocess.Popen(['bash', '-c', command], cwd=w, env={**os.environ, 'HOME': str(w),
    'PATH': f'{w}/bin:/usr/bin:/bin'})
  sys.exit(max(process.wait() for process in [run(w) for w in chosen]))
if step == 'scp':
  *sources, target = [a for a in argv[4:] if not a.startswith('--')]
  for w in chosen:
    if target.startswith('pod:'):
      shutil.copy(sources[0], w / target[4:])
    else:
      shutil.copytree(w / sources[0][4:], Path(target) / Path(sources[0]).name, dirs_exist_ok=True)
"""

# python3 on a worker: pip and uv note what they are asked for; `uv venv` makes a venv whose python is RUN.
PYTHON = r"""
import json, os, sys
from pathlib import Path
home = Path(os.environ['HOME'])
with open(home / 'python.jsonl', 'a') as file:
  file.write(json.dumps(sys.argv[1:]) + '\n')
if sys.argv[1:4] == ['-m', 'uv', 'venv']:
  python = Path('venv/bin/python')
  python.parent.mkdir(parents=True)
  python.write_text((home / 'run').read_text())
  python.chmod(0o755)
"""

# The run: notes its arguments, prints, waits to be told, leaves a file in its workdir.
RUN = r"""
import json, os, signal, sys, time
from pathlib import Path
home = Path(os.environ['HOME'])
plan = json.loads((home.parent / 'run.json').read_text())
(home / 'argv.json').write_text(json.dumps(sys.argv[1:]))
workdir = Path([a[10:] for a in sys.argv if a.startswith('--workdir=')][-1])  # as flags are read: the last one
workdir.mkdir(parents=True)
def stop(number, frame):
  (workdir / 'saved').write_text(home.name)
  print('saved', flush=True)
  sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
print(f'step 1 on {home.name}', flush=True)
time.sleep(plan['seconds'])
(workdir / 'summary.json').write_text(home.name)
print(f'step 2 on {home.name}', flush=True)
sys.exit(plan['status'].get(home.name, 0))
"""


def executable(path: Path, text: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!{sys.executable} -S\n{text}')
  path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
  """A checkout in which, since its only commit, a file has changed, one was added and one is gone."""
  root = tmp_path_factory.mktemp('tree')
  git = lambda *words: subprocess.run(['git', '-C', root, *words], check=True, capture_output=True)
  (root / 'experiments').mkdir()
  for name in ('launch.py', 'gone.py', 'requirements-tpu.txt', 'experiments/regression.py'):
    (root / name).write_text('as committed')
  git('init')
  git('add', '.')
  git('-c', 'user.name=me', '-c', 'user.email=me@here', 'commit', '-m', 'all')
  (root / 'launch.py').write_text('changed')
  (root / 'new.py').write_text('added')
  git('add', 'new.py')
  (root / 'gone.py').unlink()
  (root / 'unknown.py').touch()
  return root


@pytest.fixture
def cloud(tree, tmp_path, monkeypatch):
  """A folder with gcloud, two workers, and what they shall do: fail.json, run.json."""
  monkeypatch.setattr(launchers, 'ROOT', tree)
  monkeypatch.setenv('GIT_CONFIG_GLOBAL', os.devnull)  # nobody's name is needed
  folder = tmp_path / 'cloud'
  executable(folder / 'gcloud', GCLOUD)
  for worker in ('worker0', 'worker1'):
    executable(folder / worker / 'bin' / 'python3', PYTHON)
    executable(folder / worker / 'run', RUN)
    executable(folder / worker / 'bin' / 'hostname', f'print("{worker}")')
  (folder / 'fail.json').write_text('{}')
  (folder / 'run.json').write_text(json.dumps({'seconds': 0.2, 'status': {}}))
  monkeypatch.setenv('PATH', f'{folder}:/usr/bin:/bin')
  monkeypatch.chdir(tmp_path)
  return folder


def calls(cloud: Path) -> list[list[str]]:
  path = cloud / 'calls.jsonl'
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps(cloud: Path) -> list[str]:
  return [call[3] for call in calls(cloud)]


def fail(cloud: Path, calls: dict[int, list]) -> None:
  """Has calls, by their number, end with (status, what is said)."""
  (cloud / 'fail.json').write_text(json.dumps(calls))


REGRESSION = ['--', 'regression', '--workdir=runs/one', f'--data_dir={TEXT}', '--steps=7']


def test_a_run_goes_to_every_worker_and_its_workdir_comes_back(cloud, tmp_path, capfd):
  assert tpu.main([*FLAGS, *REGRESSION]) == 0
  common = [*WHERE, '--quiet']
  seen = calls(cloud)
  assert [call[:3] for call in seen] == [['compute', 'tpus', 'tpu-vm']] * 7
  told = [[a for a in call[3:] if not a.startswith('--command=')] for call in seen]
  assert told == [
    ['describe', 'pod', *common],
    ['scp', f'{tmp_path}/runs/tpu/pod/tree.tar.gz', 'pod:karpjax.tar.gz', '--worker=all', *common],
    ['ssh', 'pod', '--worker=all', *common],
    ['ssh', 'pod', '--worker=all', *common],
    ['ssh', 'pod', '--worker=0', *common],
    ['ssh', 'pod', '--worker=all', *common],
    ['scp', '--recurse', 'pod:karpjax/runs/one', 'runs/tpu/pod', '--worker=0', *common],
  ]
  for name in ('worker0', 'worker1'):
    files = {path.name: path.read_text() for path in (cloud / name / 'karpjax' / 'tree').rglob('*.*')}
    same = dict.fromkeys(('requirements-tpu.txt', 'regression.py'), 'as committed')
    assert files == {'launch.py': 'changed', 'new.py': 'added', **same}  # the tree as it is, of what git knows
    asked = [json.loads(line) for line in (cloud / name / 'python.jsonl').read_text().splitlines()]
    assert asked == [
      ['-m', 'pip', 'install', '-q', '--user', 'uv'],
      ['-m', 'uv', 'venv', '-q', '--python', '3.12', 'venv'],
      ['-m', 'uv', 'pip', 'install', '-q', '--python', 'venv/bin/python', '-r', 'tree/requirements-tpu.txt'],
    ]
    # Text with spaces and quotes passes two shells unharmed.
    ran = json.loads((cloud / name / 'argv.json').read_text())
    assert ran == ['-u', 'launch.py', *REGRESSION[1:], '--workdir=../runs/one', '--distributed']
  out, err = capfd.readouterr()
  assert out == 'step 1 on worker0\nstep 2 on worker0\n'  # worker 0 alone, nothing else
  assert (tmp_path / 'runs/tpu/pod/one/summary.json').read_text() == 'worker0'
  delete = shlex.join(['gcloud', 'compute', 'tpus', 'tpu-vm', 'delete', 'pod', *common])
  assert err.splitlines()[-1] == f'tpu: pod costs money until it is deleted: {delete}'


def test_dry_run_calls_nothing_and_prints_what_a_run_calls(cloud, tmp_path, capfd):
  assert tpu.main([*FLAGS, '--dry_run', *REGRESSION]) == 0
  printed = [line for line in capfd.readouterr().out.splitlines() if not line.startswith('#')]
  assert not calls(cloud) and not (tmp_path / 'runs').exists()
  assert tpu.main([*FLAGS, *REGRESSION]) == 0
  assert [shlex.split(line)[1:] for line in printed if line.startswith('gcloud')] == calls(cloud)
  # Pasted into a shell, the lines do it all again.
  shutil.rmtree(tmp_path / 'runs')
  for worker in cloud.glob('worker*'):
    shutil.rmtree(worker / 'karpjax')
  capfd.readouterr()
  pasted = subprocess.run(['bash', '-e'], input='\n'.join(printed), text=True, capture_output=True, check=True)
  assert pasted.stdout.splitlines()[:2] == ['step 1 on worker0', 'step 2 on worker0']
  assert (tmp_path / 'runs/tpu/pod/one/summary.json').read_text() == 'worker0'


def test_a_vm_is_made_only_when_asked_for_and_absent(cloud, capfd):
  create = ['--create', '--type=v5litepod-16', '--version=v2-alpha-tpuv5-lite']
  stop, absent = [3, 'ERROR: enough'], [1, 'ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource not found']
  fail(cloud, {1: stop})
  assert tpu.main([*FLAGS, *create, *REGRESSION]) == 1
  assert steps(cloud) == ['describe', 'scp']
  (cloud / 'calls.jsonl').unlink()
  fail(cloud, {0: absent, 2: stop})
  assert tpu.main([*FLAGS, *create, *REGRESSION]) == 1
  assert steps(cloud) == ['describe', 'create', 'scp']
  assert calls(cloud)[1][4:] == [
    *('pod', *WHERE, '--quiet', '--accelerator-type=v5litepod-16', '--version=v2-alpha-tpuv5-lite')
  ]
  (cloud / 'calls.jsonl').unlink()
  capfd.readouterr()
  assert tpu.main([*FLAGS, *REGRESSION]) == 1
  err = capfd.readouterr().err
  assert steps(cloud) == ['describe'] and 'no TPU VM pod in us-west4-a: --create' in err and 'costs' not in err


@pytest.mark.parametrize(
  ('call', 'step', 'follows'),
  [
    (0, 'describe', []),
    (1, 'copy', []),
    (2, 'install', []),
    (3, 'start', ['ssh']),  # what has started on some workers is stopped
    (4, 'follow', []),
    (5, 'status', []),
    (6, 'collect', []),
  ],
)
def test_each_failure_is_one_line_that_names_the_command_and_what_is_left(cloud, call, step, follows, capfd):
  fail(cloud, {call: [3, 'ERROR: (gcloud.x) PERMISSION_DENIED: no']})
  assert tpu.main([*FLAGS, *REGRESSION]) == 1
  err = capfd.readouterr().err.splitlines()
  line = next(line for line in err if 'failed' in line)
  verb = shlex.join(['gcloud', *[a for a in calls(cloud)[call] if not a.startswith('--command=')]])
  assert line.startswith(f'tpu: {step} failed: `{verb}` ended with exit status 3: ERROR: (gcloud.x) PERMISSION_DENIED')
  assert steps(cloud)[call + 1 :] == follows
  if follows:
    assert 'kill -TERM' in calls(cloud)[-1][-1]
  assert any('costs money' in line for line in err) == (call > 0)
  assert any('may still be at work' in line for line in err) == (step in ('follow', 'status'))
  if step in ('follow', 'status'):
    at = next(i for i, line in enumerate(err) if 'may still be at work' in line)
    assert [shlex.split(line)[4] for line in err[at + 1 : at + 4]] == ['ssh', 'ssh', 'scp']


def test_a_creation_that_fails_says_that_a_vm_may_be_left(cloud, capfd):
  fail(cloud, {0: [1, 'ERROR: NOT_FOUND'], 1: [1, 'ERROR: no more capacity']})
  assert tpu.main([*FLAGS, '--create', '--type=v4-8', '--version=x', *REGRESSION]) == 1
  err = capfd.readouterr().err
  assert 'create failed' in err and 'no more capacity' in err and 'tpu-vm delete pod' in err


@pytest.mark.parametrize('worker', [pytest.param('worker0', marks=pytest.mark.slow), 'worker1'])
def test_the_exit_status_is_that_of_the_worker_that_failed(cloud, worker, tmp_path, capfd):
  (cloud / 'run.json').write_text(json.dumps({'seconds': 0, 'status': {worker: 5}}))
  assert tpu.main([*FLAGS, *REGRESSION]) == 5
  assert f'the run ended with exit status 5 on {worker};' in capfd.readouterr().err
  assert (tmp_path / 'runs/tpu/pod/one/summary.json').exists()  # a failed run's files are wanted too


def test_a_worker_that_does_not_end_is_named(cloud, monkeypatch, capfd):
  monkeypatch.setattr(tpu, 'PEERS', 1)
  slow = RUN.replace("time.sleep(plan['seconds'])", "time.sleep(20 if home.name == 'worker1' else 0)")
  executable(cloud / 'worker1' / 'run', slow)
  assert tpu.main([*FLAGS, *REGRESSION]) == 1
  assert 'worker 0 has ended, but worker1 has not' in capfd.readouterr().err
  # A second launch finds it still at work, and does not pull the tree from under it.
  (cloud / 'calls.jsonl').unlink()
  assert tpu.main([*FLAGS, *REGRESSION]) == 1
  assert 'install failed' in (err := capfd.readouterr().err) and 'another run is at work on' in err
  os.kill(int((cloud / 'worker1/karpjax/pid').read_text()), signal.SIGTERM)


def launch(cloud, *flags) -> subprocess.Popen:
  code = (
    f'import sys; sys.path.insert(0, {str(Path(__file__).parents[3])!r}); from karpjax.commands.launchers import tpu; '
  )
  return subprocess.Popen(
    [sys.executable, '-c', code + 'sys.exit(tpu.main(sys.argv[1:]))', *FLAGS, *flags, *REGRESSION],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
  )


def test_ctrl_c_stops_the_run_on_every_worker_after_it_has_saved(cloud, tmp_path):
  (cloud / 'run.json').write_text(json.dumps({'seconds': 60, 'status': {}}))
  process = launch(cloud)
  assert process.stdout.readline() == 'step 1 on worker0\n'
  os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole foreground
  out, err = process.communicate(timeout=30)
  assert process.returncode == 130 and out == 'saved\n', (out, err)
  assert 'stopping the run on every worker' in err and 'costs money' in err and 'still be at work' not in err
  for name in ('worker0', 'worker1'):
    assert (cloud / name / 'karpjax/runs/one/saved').exists()
    assert (cloud / name / 'karpjax/status').read_text() == '143\n'
  assert (tmp_path / 'runs/tpu/pod/one/saved').read_text() == 'worker0'


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once_and_says_what_is_left(cloud):
  (cloud / 'run.json').write_text(json.dumps({'seconds': 60, 'status': {}}))
  executable(cloud / 'worker0' / 'run', RUN.replace('sys.exit(128 + number)', 'time.sleep(5)'))
  process = launch(cloud)
  assert process.stdout.readline() == 'step 1 on worker0\n'
  os.killpg(process.pid, signal.SIGINT)
  assert process.stdout.readline() == 'saved\n'
  time.sleep(0.3)
  os.killpg(process.pid, signal.SIGINT)
  _, err = process.communicate(timeout=30)
  assert process.returncode == 130 and 'Traceback' not in err, err
  assert 'the run may still be at work' in err and 'kill -TERM' in err and 'costs money' in err
  os.kill(int((cloud / 'worker0/karpjax/pid').read_text()), signal.SIGKILL)


def test_timeout_stops_the_run_as_ctrl_c_does(cloud, tmp_path, capfd):
  (cloud / 'run.json').write_text(json.dumps({'seconds': 60, 'status': {}}))
  assert tpu.main([*FLAGS, '--timeout=1', *REGRESSION]) == 124
  assert (tmp_path / 'runs/tpu/pod/one/saved').exists()
  assert (cloud / 'worker1/karpjax/runs/one/saved').exists()


WRONG = {
  '--zone=z --project=p -- regression': '--name is missing',
  '--name=n --project=p -- regression': '--zone is missing',
  '--name=n --zone=z -- regression': '--project is missing',
  '--name=n --zone=z --project=p --create -- regression': '--type is missing (--create needs it)',
  '--name=n --zone=z --project=p --create --type=v4-8 -- regression': '--version is missing',
  '--name=N_1 --zone=z --project=p -- regression': 'small letters',
  '--name=n --zone=z --project=p --timeout=-1 -- regression': '--timeout=-1.0: at least 0',
  '--name=n --zone=z --project=p --timeout=soon -- regression': 'timeout',
  '--name=n --zone=z --project=p --zoen=x -- regression': 'zone',
  '--name=n --zone=z --project=p regression': '`-- EXPERIMENT` is missing',
  '--name=n --zone=z --project=p --': '`-- EXPERIMENT` is missing',
  'x --name=n --zone=z --project=p -- regression': "stray argument 'x'",
  '--name=n --zone=z --project=p -- regresion': 'Did you mean regression?',
  '--name=n --zone=z --project=p -- regression --stps=5': 'regression: unknown flag --stps. Did you mean --steps?',
  '--name=n --zone=z --project=p -- regression --seed=x': 'seed',
  '--name=n --zone=z --project=p --output=/dev/null/x -- regression': '--output=/dev/null/x cannot be written',
  '--name=n --zone=z --project=p -- regression --workdir=../x': 'home of the workers',
  '--name=n --zone=z --project=p -- regression --workdir=~/x': '--workdir=~/x: a path below karpjax in the home of the workers',
}


@pytest.mark.parametrize('argv', WRONG)
def test_bad_input_is_one_line_before_anything_starts(argv, cloud, tmp_path, capfd):
  assert tpu.main(argv.split()) == 2
  err = capfd.readouterr().err
  assert err.count('\n') == 1 and err.startswith('tpu: ') and WRONG[argv] in err, err
  assert not calls(cloud) and not (tmp_path / 'runs').exists()


def test_without_gcloud_it_says_how_to_get_it(cloud, capfd, monkeypatch):
  (cloud / 'gcloud').unlink()
  git = shutil.which('git')
  (cloud / 'git').symlink_to(git)
  monkeypatch.setenv('PATH', str(cloud))
  assert tpu.main([*FLAGS, *REGRESSION]) == 2
  assert 'cloud.google.com/sdk/docs/install' in capfd.readouterr().err
  assert tpu.main([*FLAGS, '--dry_run', *REGRESSION]) == 0  # printing needs none


def test_a_flagfile_that_would_not_be_copied_is_refused(cloud, tmp_path, capfd):
  (tmp_path / 'my.flags').write_text('--steps=5\n')
  assert tpu.main([*FLAGS, '--', 'regression', '--flagfile=my.flags']) == 2
  assert 'git add my.flags' in capfd.readouterr().err and not calls(cloud)
