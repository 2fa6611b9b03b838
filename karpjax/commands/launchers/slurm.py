"""`launch.py slurm`: an experiment as a Slurm job, on one or more nodes.

  python launch.py slurm --nodes=2 --gpus_per_node=4 --time=08:00:00 -- image_classification --model=resnet20
  python launch.py slurm --tasks_per_node=2 -- NAME …    # CPUs: two processes on one node
  python launch.py slurm … --dry_run -- NAME …           # only prints the script

Writes WORKDIR/jobs/N.sbatch and submits it. The workdir must be on a disk that all nodes share. One task runs for each
GPU, for JAX takes a task of Slurm as the process of one device; the tasks find each other from Slurm's variables. Two
minutes before its time limit, and where a preemption gives it time, the job saves, goes back to the queue and goes on
from its workdir. `scancel` ends it for good.
"""

import dataclasses
import functools
import itertools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from karpjax import config, errors
from karpjax.commands import launchers
from karpjax.train import run_dir

SAVING = 120  # seconds before the time limit at which a job is told to save; Slurm may take up to a minute more
SHORTEST = 5  # minutes: a job that is told to save as soon as it starts would come back for ever
STOPPED = 143  # exit status of a run that has saved after SIGTERM
STRAGGLING = 600  # seconds after the first task's end at which the others are ended

slurm_flag = functools.partial(config.flag, group='Slurm')


@dataclasses.dataclass(frozen=True)
class Slurm:
  """The command's flags; those without a default here have that of the cluster."""

  nodes: int = slurm_flag(1, 'How many nodes.', low=1)
  gpus_per_node: int = slurm_flag(0, 'GPUs of each node, one task each; 0: CPUs only.', low=0)
  tasks_per_node: int = slurm_flag(0, 'Processes on each node. Default: one for each GPU, or one.', low=0)
  cpus_per_task: int = slurm_flag(0, 'CPU cores of each process.', low=0)
  mem: str = slurm_flag('', 'Memory of each node, as 64G.')
  time: str = slurm_flag('', 'Time limit, as 08:00:00; the job goes on after it in a new place of the queue.')
  partition: str = slurm_flag('', 'The partition of the nodes.')
  account: str = slurm_flag('', 'The account that pays.')
  job_name: str = slurm_flag('', "The job's name. Default: the experiment's.")
  python: str = slurm_flag(sys.executable, 'The interpreter, as the nodes find it.', path=True)
  sbatch: str = slurm_flag('', "Other options of sbatch, as '--constraint=a100 --exclusive'.")
  wait: bool = slurm_flag(False, "Return when the job ends, with the job's exit status.")
  dry_run: bool = slurm_flag(False, 'Print the script; write and submit nothing.')


def minutes(limit: str) -> float:
  """A time limit as sbatch reads it, M, M:S, H:M:S, D-H, D-H:M or D-H:M:S, in minutes; raises UsageError for others."""
  match = re.fullmatch(r'(?:(\d+)-)?(\d+(?::\d+){0,2})', limit)
  if not match:
    raise errors.UsageError(f'time={limit}: minutes, HH:MM:SS or DAYS-HH:MM:SS are needed')
  days, parts = match[1], [int(part) for part in match[2].split(':')]
  if days is None and len(parts) < 3:
    parts.insert(0, 0)  # without days, the first of one or two is minutes
  hours, whole, seconds = (*parts, 0, 0)[:3]
  return int(days or 0) * 1440 + hours * 60 + whole + seconds / 60


def script(flags: Slurm, command: list[str], folder: Path) -> str:
  """The text of a batch script.

  Args:
    flags: the resources.
    command: what every task runs, in the folder from which the job is submitted.
    folder: absolute; takes the job's output.
  """
  quoted = lambda text: '"' + re.sub(r'(["\\])', r'\\\1', text) + '"'  # as sbatch reads its #SBATCH lines
  options = {'job-name': quoted(flags.job_name), 'nodes': flags.nodes, 'ntasks-per-node': flags.tasks_per_node}
  plain = 'gpus_per_node', 'cpus_per_task', 'mem', 'time', 'partition', 'account'
  options |= {name.replace('_', '-'): getattr(flags, name) for name in plain}
  options |= {'output': quoted(str(folder).replace('%', '%%') + '/slurm-%j.out'), 'open-mode': 'append'}
  options['signal'] = f'TERM@{SAVING}'
  head = [f'--{name}={value}' for name, value in options.items() if value] + ['--requeue']
  lines = '\n'.join(f'#SBATCH {line}' for line in (*head, flags.sbatch) if line)
  srun = ['srun', '--kill-on-bad-exit=0', f'--wait={STRAGGLING}']
  if flags.gpus_per_node:
    srun.append('--gpu-bind=none')  # a task takes its GPU by its number on the node, so it must see them all
  if flags.cpus_per_task:
    srun.append(f'--cpus-per-task={flags.cpus_per_task}')  # since Slurm 22.05 srun does not take over sbatch's
  return f"""#!/bin/bash
{lines}

cd {shlex.quote(str(Path.cwd()))} || exit 1
{shlex.join([*srun, *command])}
status=$?
# Told to stop, it has saved: it goes on later. (After scancel, this line is not reached.)
if [ "$status" -eq {STOPPED} ]; then scontrol requeue "$SLURM_JOB_ID" && sleep 60; fi
exit "$status"
"""


def submit(path: Path, wait: bool) -> int:
  """Submits a script and says how to see and to end the job. Returns 0, or the job's exit status when waiting."""
  command = ['sbatch', '--parsable', *['--wait'] * wait, str(path)]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  job = process.stdout.readline().strip().split(';')[0]  # the cluster's name may follow
  if not job:
    reasons = process.communicate()[1].strip().splitlines() or ['it gave no reason']
    print(f'slurm: `{shlex.join(command)}` ended with exit status {process.returncode}: {reasons[-1]}', file=sys.stderr)
    return 1
  output = shlex.quote(str(path.parent / f'slurm-{job}.out'))
  print(f'job {job}: {path}', f'  watch:  tail -F {output}', f'          squeue -j {job}', sep='\n')
  print(f'  cancel: scancel {job}', flush=True)
  try:
    process.communicate()
  except KeyboardInterrupt:
    print(f'slurm: no longer waiting; job {job} goes on. To cancel it: scancel {job}', file=sys.stderr)
    return 130
  return process.returncode


def launch(flags: Slurm, experiment: str, rest: list[str], given) -> int:
  """Writes the script under the next free number and submits it: 0, or 1 where sbatch refuses."""
  tasks = flags.tasks_per_node or flags.gpus_per_node or 1
  if flags.gpus_per_node not in (0, tasks):
    clash = f'tasks_per_node={tasks} with gpus_per_node={flags.gpus_per_node}'
    raise errors.UsageError(f'{clash}: under Slurm, JAX gives each task one GPU; leave --tasks_per_node out')
  if flags.time and minutes(flags.time) < SHORTEST:
    raise errors.UsageError(f'time={flags.time}: at least {SHORTEST} minutes are needed, the last two of them to save')
  for name, value in dataclasses.asdict(flags).items():
    if '\n' in str(value):
      raise errors.UsageError(f'--{name} has more than one line')
  if flags.nodes * tasks > 1 and given.parallel in ('none', 'pmap') and not given.mesh:
    raise errors.UsageError(f'{experiment}: several tasks train together with --parallel=data or fsdp, or a --mesh')
  workdir = Path(given.workdir or run_dir.default(experiment)).absolute()
  command = [flags.python, '-u', str(launchers.ROOT / 'launch.py'), experiment, *rest]
  flags = dataclasses.replace(flags, job_name=flags.job_name or experiment, tasks_per_node=tasks)
  text = script(flags, [*command, f'--workdir={workdir}', '--distributed'], workdir / 'jobs')
  if flags.dry_run:
    print(text, end='')
    return 0
  if not shutil.which('sbatch'):
    raise errors.UsageError('sbatch is not installed: log in to the cluster (Debian: apt-get install slurm-client)')
  try:
    (workdir / 'jobs').mkdir(parents=True, exist_ok=True)
    numbered = (workdir / 'jobs' / f'{number}.sbatch' for number in itertools.count(1))
    path = next(path for path in numbered if not path.exists())
    with path.open('x', encoding='utf-8', errors='surrogateescape') as file:
      file.write(text)
  except OSError as error:
    raise errors.UsageError(f'--workdir={workdir} cannot be written: {error.strerror}') from None
  return submit(path, flags.wait)


def main(argv: list[str]) -> int:
  """[flags] -- EXPERIMENT [its flags] -> 0 once submitted, 1 where sbatch refuses, 2 for bad input."""
  return launchers.main(argv, Slurm, __doc__, '--nodes=2 --gpus_per_node=4', launch)
