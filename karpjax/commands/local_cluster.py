"""`launch.py --processes=2 --devices=4 NAME …`: hosts as processes of this machine, to rehearse a pod; one with --devices alone."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from karpjax.errors import UsageError

LAUNCH = Path(__file__).parents[2] / 'launch.py'
GRACE_SECONDS = 60  # for the others, once one process has ended with an error


def main(argv: list[str]) -> int:
  """argv: --processes=N, --devices=M (simulated ones, of each process) or both, then what launch.py would be given."""
  counts = {'processes': 1, 'devices': 1}
  try:
    while argv and (name := argv[0].removeprefix('--').split('=')[0]) in counts:
      value = argv.pop(0).partition('=')[2] or (argv.pop(0) if argv else '')
      if not value.isdigit() or int(value) < 1:
        raise UsageError(f'--{name}={value}: a number of at least 1 is needed')
      counts[name] = int(value)
    if not argv:
      raise UsageError('name an experiment after them, as in: launch.py --processes=2 --devices=4 image_classification')
    if any(word.partition('=')[0] in ('--coordinator', '--num_processes', '--process_id') for word in argv):
      raise UsageError('--processes sets --coordinator, --num_processes and --process_id itself')
  except UsageError as error:
    print(f'launch.py: {error}', file=sys.stderr)
    return 2
  return run(argv, **counts)


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def run(argv: list[str], processes: int, devices: int) -> int:
  """Starts all, passes signals on, and gives the first error's exit code, or 0."""
  flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'
  environment = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
  meeting = [f'--coordinator=127.0.0.1:{free_port()}', f'--num_processes={processes}']
  started = []
  for i in range(processes):
    output = None if i == 0 else subprocess.PIPE
    command = [sys.executable, str(LAUNCH), *argv, *meeting, f'--process_id={i}']
    process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, text=True)
    if output:
      for stream in (process.stdout, process.stderr):
        threading.Thread(target=_repeat, args=(i, stream), daemon=True).start()
    started.append(process)

  def pass_on(number, _):
    for process in started:
      if process.poll() is None:
        process.send_signal(number)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, pass_on)
  failed, since = 0, None
  while any(process.poll() is None for process in started):
    codes = [process.returncode for process in started]
    failed = failed or next((code for code in codes if code), 0)
    if failed and since is None:
      since = time.monotonic()
    if since is not None and time.monotonic() - since > GRACE_SECONDS:
      for process in started:
        if process.poll() is None:
          process.kill()
    time.sleep(0.1)
  failed = failed or next((process.returncode for process in started if process.returncode), 0)
  return failed if failed >= 0 else 128 - failed


def _repeat(i: int, stream) -> None:
  for line in stream:
    print(f'process {i}: {line}', end='', file=sys.stderr, flush=True)
