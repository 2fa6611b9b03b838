"""`launch.py slurm` against a stand-in sbatch, and against a real Slurm of one node where its daemons are installed."""

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from karpjax.commands import launchers
from karpjax.commands.launchers import slurm

TEXT = """it's "so"  $HOME `x` \\ *;&"""  # what a shell would take apart
FLAGS = ['--nodes=2', '--gpus_per_node=4']
RUN = ['--', 'regression', f'--data_dir={TEXT}', '--steps=7', '--parallel=data']

# Notes how it was called, does what answers.json says.
STAND_IN = r"""
import json, sys
from pathlib import Path
me = Path(__file__)
with open(me.parent / 'calls.jsonl', 'a') as file:
  file.write(json.dumps([me.name, *sys.argv[1:]]) + '\n')
status, out, err = json.loads((me.parent / 'answers.json').read_text()).get(me.name, [0, '', ''])
print(out, end='')
print(err, end='', file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture
def bin_folder(tmp_path, monkeypatch):
  """A folder on PATH with sbatch, srun and scontrol."""
  folder = tmp_path / 'bin'
  folder.mkdir()
  for name in ('sbatch', 'srun', 'scontrol'):
    (folder / name).write_text(f'#!{sys.executable} -S\n{STAND_IN}')
    (folder / name).chmod(0o755)
  answer(folder, sbatch=[0, '1234;cluster\n', ''])
  monkeypatch.setenv('PATH', f'{folder}:/usr/bin:/bin')
  monkeypatch.chdir(tmp_path)
  return folder


def answer(folder: Path, **answers) -> None:
  (folder / 'answers.json').write_text(json.dumps(answers))


def calls(folder: Path) -> list[list[str]]:
  path = folder / 'calls.jsonl'
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def options(text: str) -> list[str]:
  return [line.removeprefix('#SBATCH ') for line in text.splitlines() if line.startswith('#SBATCH ')]


def test_a_script_is_written_and_submitted_and_the_job_is_named(bin_folder, tmp_path, capfd):
  assert slurm.main([*FLAGS, '--time=8:00:00', '--python=py', *RUN, '--workdir=runs/one']) == 0
  path = tmp_path / 'runs/one/jobs/1.sbatch'
  assert calls(bin_folder) == [['sbatch', '--parsable', str(path)]]
  assert options(path.read_text()) == [
    '--job-name="regression"',
    '--nodes=2',
    '--ntasks-per-node=4',
    '--gpus-per-node=4',
    '--time=8:00:00',
    f'--output="{tmp_path}/runs/one/jobs/slurm-%j.out"',
    '--open-mode=append',
    '--signal=TERM@120',
    '--requeue',
  ]
  out = capfd.readouterr().out.splitlines()
  assert [line.split() for line in out] == [
    ['job', '1234:', str(path)],
    ['watch:', 'tail', '-F', f'{tmp_path}/runs/one/jobs/slurm-1234.out'],
    ['squeue', '-j', '1234'],
    ['cancel:', 'scancel', '1234'],
  ]


def test_scripts_are_never_overwritten(bin_folder, tmp_path):
  jobs = tmp_path / 'run' / 'jobs'
  assert slurm.main([*FLAGS, *RUN, '--workdir=run']) == 0
  first = (jobs / '1.sbatch').read_text()
  assert slurm.main(['--nodes=3', *RUN, '--workdir=run']) == 0
  assert (jobs / '1.sbatch').read_text() == first
  assert '--nodes=3' in options((jobs / '2.sbatch').read_text())


def test_both_spellings_and_dry_run_give_the_same_script(bin_folder, tmp_path, capfd):
  more = [*RUN, '--workdir=one-run']  # the experiment's own flags keep their hyphens
  assert slurm.main(['--nodes=2', '--gpus-per-node=4', '--cpus-per-task=6', '--dry-run', *more]) == 0
  printed = capfd.readouterr().out
  assert not calls(bin_folder) and not (tmp_path / 'one-run').exists()
  assert slurm.main([*FLAGS, '--cpus_per_task=6', *more]) == 0
  assert (tmp_path / 'one-run/jobs/1.sbatch').read_text() == printed


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    ([], ['--nodes=1', '--ntasks-per-node=1']),
    (['--tasks_per_node=2', '--mem=64G'], ['--nodes=1', '--ntasks-per-node=2', '--mem=64G']),
    (['--nodes=2', '--gpus_per_node=8'], ['--nodes=2', '--ntasks-per-node=8', '--gpus-per-node=8']),  # one task a GPU
    (
      ['--partition=gpu', '--account=lab', '--sbatch=--exclusive -C a100'],
      ['--nodes=1', '--ntasks-per-node=1', '--partition=gpu', '--account=lab'],
    ),
  ],
)
def test_the_resources_asked_for(flags, expected, bin_folder, capfd):
  assert slurm.main([*flags, '--dry_run', *RUN]) == 0
  text = capfd.readouterr().out
  found = options(text)
  assert found[1 : found.index('--open-mode=append') - 1] == expected
  extra = [flag.partition('=')[2] for flag in flags if flag.startswith('--sbatch=')]
  assert found[found.index('--requeue') + 1 :] == extra
  assert ('--gpu-bind=none' in text) == any('gpus' in flag for flag in flags)


@pytest.mark.parametrize(('status', 'requeued'), [(0, False), (1, False), (143, True)])
def test_the_script_passes_text_unharmed_and_returns_to_the_queue_only_when_stopped(
  status, requeued, bin_folder, tmp_path, monkeypatch
):
  assert slurm.main([*FLAGS, '--cpus_per_task=3', *RUN, '--workdir=run']) == 0
  answer(bin_folder, srun=[status, '', ''], scontrol=[1, '', ''])  # 1: this job may not be requeued
  done = subprocess.run(['bash', 'run/jobs/1.sbatch'], check=False, env={**os.environ, 'SLURM_JOB_ID': '77'})
  assert done.returncode == status
  launch = [sys.executable, '-u', str(launchers.ROOT / 'launch.py')]
  srun = ['srun', '--kill-on-bad-exit=0', '--wait=600', '--gpu-bind=none', '--cpus-per-task=3']
  assert calls(bin_folder)[1] == [
    *srun,
    *launch,
    *RUN[1:],
    '--workdir=run',
    f'--workdir={tmp_path}/run',
    '--distributed',
  ]
  assert calls(bin_folder)[2:] == [['scontrol', 'requeue', '77']] * requeued


def test_a_refusal_by_sbatch_is_one_line_and_the_script_is_kept(bin_folder, tmp_path, capfd):
  answer(bin_folder, sbatch=[1, '', 'sbatch: error: Batch job submission failed: Invalid account\n'])
  assert slurm.main([*FLAGS, *RUN, '--workdir=run']) == 1
  err = capfd.readouterr().err
  path = tmp_path / 'run/jobs/1.sbatch'
  assert err == (
    f'slurm: `sbatch --parsable {path}` ended with exit status 1: '
    'sbatch: error: Batch job submission failed: Invalid account\n'
  )
  assert path.exists()


def test_wait_gives_the_exit_status_of_the_job(bin_folder, capfd):
  answer(bin_folder, sbatch=[5, '12\n', ''])
  assert slurm.main([*FLAGS, '--wait', *RUN, '--workdir=run']) == 5
  assert calls(bin_folder)[0][:3] == ['sbatch', '--parsable', '--wait'] and 'job 12:' in capfd.readouterr().out


WRONG = {
  '--nodes=0 -- regression': '--nodes=0: at least 1',
  '--nodes=-2 -- regression': '--nodes=-2: at least 1',
  '--nodes=two -- regression': 'nodes',
  '--gpus_per_node=-1 -- regression': '--gpus_per_node=-1: at least 0',
  '--gpus_per_node=4 --tasks_per_node=1 -- regression': 'one GPU',
  '--time=soon -- regression': '--time=soon: minutes',
  '--time=2 -- regression': 'at least 5 minutes',
  '--time=00:02:30 -- regression': 'at least 5 minutes',
  '--gpus-per-nod=4 -- regression': 'gpus_per_node',
  '--nodes=2 regression': '`-- EXPERIMENT` is missing',
  '--nodes=2 --': '`-- EXPERIMENT` is missing',
  'regression -- regression': "stray argument 'regression'",
  '-- regresion': 'Did you mean regression?',
  '--nodes=2 -- regression': 'several tasks train together with --parallel=data',
  '--nodes=2 -- regression --parallel=pmap': 'several tasks train together with --parallel=data',
  '-- regression --stps=5': 'regression: unknown flag --stps. Did you mean --steps?',
  '-- regression --seed=x': 'seed',
  '-- regression --workdir=/dev/null/run': 'cannot be written',
}


@pytest.mark.parametrize('argv', WRONG)
def test_bad_input_is_one_line_before_anything_starts(argv, bin_folder, tmp_path, capfd):
  before = sorted(tmp_path.rglob('*'))
  assert slurm.main(argv.split()) == 2
  err = capfd.readouterr().err
  assert err.count('\n') == 1 and err.startswith('slurm: ') and WRONG[argv] in err, err
  assert not calls(bin_folder) and sorted(tmp_path.rglob('*')) == before


def test_a_flag_of_two_lines_is_refused(bin_folder, capfd):
  assert slurm.main(['--account=lab\n#SBATCH --nodes=99', *RUN]) == 2
  assert '--account has more than one line' in capfd.readouterr().err


@pytest.mark.parametrize(
  ('limit', 'expected'),
  [('90', 90), ('2:30', 2.5), ('1:02:30', 62.5), ('1-2', 1560), ('1-2:3', 1563), ('1-0:0:30', 1440.5)],
)
def test_time_limits_are_read_as_sbatch_reads_them(limit, expected):
  """The six forms of `man sbatch`, --time."""
  assert slurm.minutes(limit) == expected


def test_without_sbatch_it_says_how_to_get_it(bin_folder, tmp_path, capfd, monkeypatch):
  monkeypatch.setenv('PATH', str(tmp_path / 'empty'))
  assert slurm.main([*RUN, '--workdir=run']) == 2
  assert 'sbatch is not installed' in capfd.readouterr().err and not (tmp_path / 'run').exists()
  assert slurm.main(['--dry_run', *RUN, '--workdir=run']) == 0


# ---- a real Slurm ----

DAEMONS = ('munged', 'slurmctld', 'slurmd')
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""  # cred_expire is also how long a requeued job waits


def free_ports(count: int) -> list[int]:
  sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(count)]
  ports = [s.getsockname()[1] for s in sockets]
  for s in sockets:
    s.close()
  return ports


def wait_for(condition, seconds: float, what: str):
  deadline = time.monotonic() + seconds
  while not (value := condition()):
    assert time.monotonic() < deadline, f'{what} took more than {seconds} s'
    time.sleep(0.1)
  return value


@pytest.fixture(scope='module')
def cluster():
  """munged, slurmctld and slurmd of this test's own, as the current user: one node on the loopback. Its folder."""
  path = os.environ['PATH'] + ':/usr/sbin:/sbin'
  daemons = {name: shutil.which(name, path=path) for name in DAEMONS}
  if missing := [name for name, file in daemons.items() if not file]:
    pytest.skip(
      f'Slurm is not here: no {", ".join(missing)} (Debian: apt-get install munge slurmctld slurmd slurm-client)'
    )
  host = socket.gethostname().split('.')[0]
  try:
    socket.gethostbyname(host)
  except OSError:
    pytest.skip(f"this machine's own name, {host}, does not resolve")
  # Not below pytest's folder: the name of a socket has at most 107 letters.
  with tempfile.TemporaryDirectory(prefix='slurm-') as name, pytest.MonkeyPatch.context() as patch:
    folder = Path(name)
    for sub in ('state', 'spool'):
      (folder / sub).mkdir()
    key = folder / 'munge.key'
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    conf = folder / 'slurm.conf'
    facts = {'host': host, 'user': getpass.getuser(), 'ports': free_ports(2), 'cpus': os.cpu_count()}
    conf.write_text(CONF.format(folder=folder, **facts))
    patch.setenv('SLURM_CONF', str(conf))
    munge = ['--force', f'--key-file={key}', f'--socket={folder}/munge.sock', f'--pid-file={folder}/munged.pid']
    munge += [f'--log-file={folder}/munged.log', f'--seed-file={folder}/munge.seed', '--foreground']
    commands = {'munged': munge, 'slurmctld': ['-D', '-f', str(conf)], 'slurmd': ['-D', '-f', str(conf)]}
    processes = []
    log = (folder / 'daemons.log').open('w')
    try:
      for daemon in DAEMONS:
        processes.append(subprocess.Popen([daemons[daemon], *commands[daemon]], stdout=log, stderr=log))
        if daemon == 'munged':
          wait_for((folder / 'munge.sock').exists, 20, 'munged')
      state = lambda: subprocess.run(['sinfo', '-h', '-o', '%T'], capture_output=True, text=True, check=False).stdout
      wait_for(lambda: state().strip() == 'idle', 30, 'Slurm')
      yield folder
    finally:
      subprocess.run(['scancel', '--full', f'--user={getpass.getuser()}'], capture_output=True, check=False)
      for process in reversed(processes):
        process.terminate()
        process.wait(30)
      log.close()


@pytest.fixture
def submit(cluster, tmp_path, monkeypatch, capfd):
  """submit(launch, *flags): a job whose launch.py is this text, through the command line; (job, the file of its output)."""
  root = tmp_path / 'tree'
  (root / 'experiments').mkdir(parents=True)
  (root / 'experiments' / 'regression.py').touch()
  monkeypatch.setattr(launchers, 'ROOT', root)
  monkeypatch.chdir(tmp_path)

  def run(launch: str, *flags: str) -> tuple[str, Path]:
    (root / 'launch.py').write_text(launch)
    workdir = tmp_path / 'a "run" of 100%'
    assert slurm.main(['--tasks_per_node=2', *flags, *RUN, f'--workdir={workdir}']) == 0
    job = capfd.readouterr().out.split()[1].rstrip(':')
    return job, workdir / 'jobs' / f'slurm-{job}.out'

  return run


def state(job: str) -> dict[str, str]:
  said = subprocess.run(['scontrol', '-o', 'show', 'job', job], capture_output=True, text=True, check=True).stdout
  return dict(pair.split('=', 1) for pair in said.split() if '=' in pair)


def test_two_tasks_of_a_real_slurm_find_each_other(submit):
  if os.cpu_count() < 2:
    pytest.skip('two tasks need two cores')
  job, output = submit(
    'import os, sys\n'
    'os.environ.pop("XLA_FLAGS", None)\n'
    'os.environ["JAX_CPU_COLLECTIVES_IMPLEMENTATION"] = "gloo"\n'
    'import jax\n'
    'jax.distributed.initialize()\n'
    'from jax.experimental import multihost_utils\n'
    'import numpy as np\n'
    'total = multihost_utils.process_allgather(np.int32([1 + jax.process_index()])).sum()\n'
    'print(f"{jax.process_index()} of {jax.process_count()}: {total}", sys.argv[1:], flush=True)\n'
  )
  ended = wait_for(lambda: (s := state(job))['JobState'] in ('COMPLETED', 'FAILED', 'TIMEOUT') and s, 120, 'the job')
  text = output.read_text()
  assert ended['JobState'] == 'COMPLETED', text
  argv = [*RUN[1:], *[f'--workdir={output.parents[1]}'] * 2, '--distributed']
  assert f'0 of 2: 3 {argv}' in text and f'1 of 2: 3 {argv}' in text, text


STOPPABLE = """
import os, signal, sys, time
def stop(number, frame):
  print('saved', flush=True)
  sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
again = 'SLURM_RESTART_COUNT' in os.environ
print('goes on' if again else 'starts', flush=True)
time.sleep(0 if again else 300)
"""


@pytest.mark.slow
def test_a_stopped_job_saves_and_goes_on_by_itself(submit):
  job, output = submit(STOPPABLE)
  wait_for(lambda: output.exists() and output.read_text().count('starts') == 2, 60, 'the start')
  # What Slurm does before the time limit: the signal goes to the tasks, not to the script.
  subprocess.run(['scancel', '--signal=TERM', job], check=True)
  wait_for(lambda: state(job)['JobState'] == 'COMPLETED', 180, 'the job')
  lines = [line for line in output.read_text().splitlines() if line in ('starts', 'saved', 'goes on')]
  assert lines == ['starts'] * 2 + ['saved'] * 2 + ['goes on'] * 2 and state(job)['Restarts'] == '1'


@pytest.mark.slow
def test_a_cancelled_job_does_not_come_back(submit):
  job, output = submit(STOPPABLE)
  wait_for(lambda: output.exists() and output.read_text().count('starts') == 2, 60, 'the start')
  subprocess.run(['scancel', job], check=True)
  time.sleep(15)
  assert state(job)['JobState'] == 'CANCELLED' and state(job)['Restarts'] == '0'
