"""`launch.py tpu`: an experiment on every worker of a TPU VM, through gcloud.

  python launch.py tpu --name=pod --zone=us-west4-a --project=lab -- image_classification --model=resnet20
  python launch.py tpu … --create --type=v5litepod-16 --version=v2-alpha-tpuv5-lite -- NAME …    # rents it first
  python launch.py tpu … --dry_run -- NAME …                                                     # only prints the commands

Copies the files that git knows to every worker, installs requirements-tpu.txt there, starts the experiment on all
workers (JAX would wait for one that is left out), shows worker 0's output and brings its workdir back. A broken
connection does not end the run; Ctrl-C stops it on all workers, and it saves first. Paths in the experiment's flags are
those of the workers. The VM is never deleted: the last line says how.
"""

import dataclasses
import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from karpjax import command_line, config, errors
from karpjax.commands import launchers
from karpjax.train import run_dir

SAVING = 600  # seconds that a stopped run has for saving
PEERS = 60  # seconds that the other workers have to end after worker 0

tpu_flag = functools.partial(config.flag, group='TPU VM')


@dataclasses.dataclass(frozen=True)
class Tpu:
  """The command's flags."""

  name: str = tpu_flag('', 'The name of the TPU VM.')
  zone: str = tpu_flag('', 'Its zone, as us-west4-a.')
  project: str = tpu_flag('', 'The Google Cloud project that pays.')
  create: bool = tpu_flag(False, 'Create the VM if there is none of this name; it costs money until it is deleted.')
  type: str = tpu_flag('', 'Accelerator type of a VM to create, as v5litepod-16.')
  version: str = tpu_flag('', 'Runtime of a VM to create, as v2-alpha-tpuv5-lite.')
  timeout: float = tpu_flag(0.0, 'Seconds after which the run is stopped, as by Ctrl-C; 0: never.', low=0)
  output: str = tpu_flag('', 'The folder that the workdir is copied to. Default: runs/tpu/NAME.', path=True)
  dry_run: bool = tpu_flag(False, 'Print the commands and run none.')


class Failed(RuntimeError):
  """A command that failed, in one line."""


def commands(flags: Tpu, experiment: str, rest: list[str], workdir: str, output: Path) -> dict[str, list[str]]:
  """Every command of a launch by its step, as an argument list.

  On a worker, ~/karpjax holds tree, venv, the run's log, its pid, its exit status once it has ended, and workdirs.
  """
  where = [f'--zone={flags.zone}', f'--project={flags.project}', '--quiet']
  gcloud = lambda verb, *arguments: ['gcloud', 'compute', 'tpus', 'tpu-vm', verb, *arguments, *where]
  ssh = lambda worker, *lines: [*gcloud('ssh', flags.name, f'--worker={worker}'), f'--command={"; ".join(lines)}']
  tree, archive = shlex.quote(str(launchers.ROOT)), str(output.absolute() / 'tree.tar.gz')
  # `git stash create` makes a commit of what is not committed yet, or nothing, and touches no file.
  pack = f'cd {tree} && changed=$(git stash create) && git archive -o {shlex.quote(archive)} "${{changed:-HEAD}}"'
  on_worker, from_tree = (workdir, workdir) if os.path.isabs(workdir) else (f'karpjax/{workdir}', f'../{workdir}')
  # JAX finds the workers by itself on a TPU VM.
  run = ['../venv/bin/python', '-u', 'launch.py', experiment, *rest, f'--workdir={from_tree}', '--distributed']
  at_work = 'if grep -qs launch.py /proc/$(cat ~/karpjax/pid 2> /dev/null)/cmdline; then'
  return {
    'describe': gcloud('describe', flags.name),
    'create': [*gcloud('create', flags.name), f'--accelerator-type={flags.type}', f'--version={flags.version}'],
    'pack': ['sh', '-c', pack],
    'copy': gcloud('scp', archive, f'{flags.name}:karpjax.tar.gz', '--worker=all'),
    'install': ssh(
      'all',
      f'{at_work} echo "ERROR: another run is at work on $(hostname)" >&2; exit 1; fi',
      'set -e; mkdir -p karpjax; cd karpjax; rm -rf tree; mkdir tree; tar -xzf ../karpjax.tar.gz -C tree',
      # The images' own Python may be older than JAX asks for, and without venv.
      'PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q --user uv',
      '[ -x venv/bin/python ] || python3 -m uv venv -q --python 3.12 venv',
      'python3 -m uv pip install -q --python venv/bin/python -r tree/requirements-tpu.txt',
    ),
    'start': ssh(
      'all',
      f'{at_work} exit 0; fi',  # gcloud repeats a command whose connection broke
      'cd karpjax/tree && rm -f ../pid ../status || exit 1',
      f'({{ {shlex.join(run)} & echo $! > ../pid; wait $!; echo $? > ../status; }} > ../log 2>&1 < /dev/null &)',
      'until [ -s ../pid ]; do sleep 0.1; done',
    ),
    'follow': ssh('0', 'cd karpjax', 'tail -n +1 --pid=$(cat pid) -f log'),
    'stop': ssh('all', 'kill -TERM $(cat karpjax/pid) 2> /dev/null', 'true'),
    'status': ssh(
      'all',
      f'for i in $(seq {PEERS}); do [ -s karpjax/status ] && break; sleep 1; done',
      'echo $(hostname) $(cat karpjax/status 2> /dev/null || echo running)',
    ),
    'collect': gcloud('scp', '--recurse', f'{flags.name}:{on_worker}', str(output), '--worker=0'),
    'delete': gcloud('delete', flags.name),
  }


WHY = {
  'describe': 'is it there?',
  'create': 'only if it is not',
  'pack': 'the files that git knows',
  'copy': 'to every worker',
  'install': 'on every worker',
  'start': 'on every worker: JAX waits for all of them',
  'follow': "worker 0's output, until the run ends",
  'status': 'exit status of every worker',
  'collect': 'the workdir of worker 0',
}


def say(text: str) -> None:
  print(f'tpu: {text}', file=sys.stderr, flush=True)


@dataclasses.dataclass
class Commands:
  """The commands of a launch by their step, and the file that takes all that they say;
  `Failed` names one that fails.
  """

  plan: dict[str, list[str]]
  log: Path

  def call(self, step: str) -> str:
    """Carries a step out, and returns its stdout."""
    captured = dict(stdin=subprocess.DEVNULL, capture_output=True, text=True, errors='replace')
    done = subprocess.run(self.plan[step], check=False, **captured)
    with self.log.open('a', encoding='utf-8', errors='surrogateescape') as file:
      print(f'$ {shlex.join(self.plan[step])}', done.stdout, done.stderr, sep='\n', file=file)
    self._check(step, done.returncode, done.stderr)
    return done.stdout

  def _check(self, step: str, code: int, said: str) -> None:
    if code:
      short = shlex.join(part for part in self.plan[step] if not part.startswith('--command='))
      lines = [line.strip() for line in said.splitlines() if line.strip()] or ['it gave no reason']
      line = next((line for line in reversed(lines) if 'ERROR' in line), lines[-1])
      raise Failed(f'{step} failed: `{short}` ended with exit status {code}: {line} (all of it: {self.log})')

  def follow(self, timeout: float) -> int:
    """Shows worker 0's output until the run ends. Returns 0, or 130 or 124 where Ctrl-C or --timeout stopped the
    run.
    """
    stopped, before = 0, self.log.stat().st_size
    with self.log.open('ab') as file:
      # In a session of its own, so that Ctrl-C does not end it before the run has saved.
      options = dict(stdin=subprocess.DEVNULL, stderr=file, start_new_session=True)
      process = subprocess.Popen(self.plan['follow'], **options)
    try:
      try:
        process.wait(timeout or None)
      except (KeyboardInterrupt, subprocess.TimeoutExpired) as reason:
        stopped = 130 if isinstance(reason, KeyboardInterrupt) else 124
        say('stopping the run on every worker; it saves first. Ctrl-C again leaves it to itself')
        self.call('stop')
        process.wait(SAVING)
    except subprocess.TimeoutExpired:
      raise Failed(f'the run has not ended {SAVING} s after it was stopped') from None
    finally:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    self._check('follow', process.returncode, self.log.read_bytes()[before:].decode(errors='replace'))
    return stopped


def status(said: str) -> int:
  """The exit status of the run, of lines 'WORKER STATUS': the first that is not 0."""
  statuses = [line.rsplit(' ', 1) for line in said.splitlines() if ' ' in line]
  running = [worker for worker, code in statuses if code == 'running']
  if running or not statuses:
    raise Failed(f'worker 0 has ended, but {", ".join(running) or "another"} has not')
  bad = [(worker, int(code)) for worker, code in statuses if code != '0']
  for worker, code in bad:
    say(f'the run ended with exit status {code} on {worker}; its output is in ~/karpjax/log there')
  return bad[0][1] if bad else 0


def carry_out(plan: dict[str, list[str]], flags: Tpu, output: Path) -> int:
  """Everything, from the VM to the workdir. Returns the run's exit status; 1 where gcloud fails, 130 after Ctrl-C."""
  run, code = Commands(plan, output / 'gcloud.log'), 1
  exists = started = False  # whether a VM costs money, and whether the run may be at work
  run.log.touch()
  try:
    try:
      run.call('describe')
      exists = True
    except Failed as error:
      if 'NOT_FOUND' not in str(error):
        raise
      if not flags.create:
        missing = f'there is no TPU VM {flags.name} in {flags.zone}'
        raise Failed(f'{missing}: --create --type=… --version=… makes one') from None
      say(f'creating {flags.name} ({flags.type}): this takes minutes')
      exists = True  # a creation that fails may leave something too
      run.call('create')
    for step in ('pack', 'copy', 'install', 'start'):
      say(f'{step}: {WHY[step]}')
      try:
        run.call(step)
      except (Failed, KeyboardInterrupt):
        if step == 'start':  # some workers may have started, and would wait for the others
          run.call('stop')
        raise
    started = True
    code = run.follow(flags.timeout) or status(run.call('status'))
    started = False
    run.call('collect')
    say(f'the workdir is in {output}')
  except Failed as error:
    code = code or 1
    say(str(error))
  except KeyboardInterrupt:
    code = 130
    say('interrupted')
  if started:
    say('the run may still be at work. To see, stop and collect it:')
    print(*(shlex.join(plan[step]) for step in ('follow', 'stop', 'collect')), sep='\n', file=sys.stderr)
  if exists:
    say(f'{flags.name} costs money until it is deleted: {shlex.join(plan["delete"])}')
  return code


def launch(flags: Tpu, experiment: str, rest: list[str], given) -> int:
  """Checks all, and carries the launch out, or prints it."""
  for name in ('name', 'zone', 'project', *(('type', 'version') if flags.create else ())):
    if not getattr(flags, name):
      raise errors.UsageError(f'--{name} is missing{" (--create needs it)" if name in ("type", "version") else ""}')
  if not re.fullmatch(r'[a-z]([-a-z0-9]*[a-z0-9])?', flags.name):
    raise errors.UsageError(f'name={flags.name}: small letters, digits and hyphens are needed, a letter first')
  for path in (f'experiments/{experiment}.py', *(f[11:] for f in rest if f.startswith('--flagfile='))):
    look = ['git', '-C', str(launchers.ROOT), 'ls-files', '--error-unmatch', path]
    if not shutil.which('git') or subprocess.run(look, capture_output=True, check=False).returncode:
      raise errors.UsageError(f'only files that git knows are copied, and not {path}: git add {shlex.quote(path)}')
  if not (flags.dry_run or shutil.which('gcloud')):
    raise errors.UsageError('gcloud is not installed: https://cloud.google.com/sdk/docs/install, then `gcloud init`')
  workdir = os.path.normpath(given.workdir) if given.workdir else str(run_dir.default(experiment))
  typed = command_line.typed(rest, 'workdir')  # whose ~ is by now the home of this machine
  if workdir.startswith('..') or ':' in workdir or typed.startswith('~'):
    text = 'a path below karpjax in the home of the workers is needed, as runs/a, or an absolute one'
    raise errors.UsageError(f'--workdir={typed or workdir}: {text}')
  output = Path(flags.output or f'runs/tpu/{flags.name}')
  plan = commands(flags, experiment, rest, workdir, output)
  if flags.dry_run:
    print(f'mkdir -p {shlex.quote(str(output))}')
    for step in (s for s in WHY if s != 'create' or flags.create):
      print(f'# {step}: {WHY[step]}', shlex.join(plan[step]), sep='\n')
    print(
      f'# to stop the run: {shlex.join(plan["stop"])}', f'# to delete the VM: {shlex.join(plan["delete"])}', sep='\n'
    )
    return 0
  try:
    output.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.UsageError(f'output={output} cannot be written: {error.strerror}') from None
  return carry_out(plan, flags, output)


def main(argv: list[str]) -> int:
  """[flags] -- EXPERIMENT [its flags] -> the run's exit status; 1 where gcloud fails, 2 for bad input."""
  return launchers.main(argv, Tpu, __doc__, '--name=N --zone=Z --project=P', launch)
