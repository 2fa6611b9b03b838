"""`launch.py --processes=2 --devices=4 NAME …`: hosts as processes of this machine, to rehearse a pod;
one with --devices alone.
"""

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
  with socket.create_server(('127.0.0.1', 0)) as probe:
    return probe.getsockname()[1]


def run(argv: list[str], processes: int, devices: int) -> int:
  """Starts all, passes signals on, and gives the first error's exit code, or 0; all but the first speak on stderr."""
  flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'
  environment = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
  argv = [str(LAUNCH), *argv, f'--coordinator=127.0.0.1:{free_port()}', f'--num_processes={processes}']
  hosts = []

  def repeat(i, stream):
    for line in stream:
      print(f'process {i}: {line}', end='', file=sys.stderr, flush=True)

  def pass_on(number, _):
    for host in hosts:
      if host.poll() is None:
        host.send_signal(number)

  for i in range(processes):
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) if i else {}
    hosts.append(subprocess.Popen([sys.executable, *argv, f'--process_id={i}'], env=environment, **output))
    if i:
      threading.Thread(target=repeat, args=(i, hosts[i].stdout), daemon=True).start()
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, pass_on)
  failed, deadline, running = 0, float('inf'), True
  while running:
    running = any([host.poll() is None for host in hosts])  # a list: every one of them is asked
    if not failed and (failed := next((host.returncode for host in hosts if host.returncode), 0)):
      deadline = time.monotonic() + GRACE_SECONDS
    if time.monotonic() > deadline:
      pass_on(signal.SIGKILL, None)
    time.sleep(0.1)
  return failed if failed >= 0 else 128 - failed
