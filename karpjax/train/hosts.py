"""Several processes that train as one: how they find each other, agree, and bring their arrays together.

JAX's distributed runtime does the work. Every host runs the same program on the same steps; only host 0 writes.
"""

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from karpjax import options
from karpjax.errors import UsageError, first_line

HEARTBEAT_SECONDS = 30  # a host that is silent for so long counts as lost, and the others stop
CAUSES = (
  'The usual causes: the command was started on one worker only (start it on all of them at once), or the '
  "coordinator's port is closed."
)


def start(config) -> None:
  """Joins the other processes, before JAX is used; nothing to do for one process.

  Args:
    config: `distributed` lets JAX find the others (TPU pods, Slurm, Kubernetes); `coordinator`, `num_processes` and
      `process_id` name them.

  Raises:
    UsageError: for flags that do not fit together, or when not all processes came within `start_timeout` seconds.
  """
  coordinator, timeout = config.coordinator or None, config.start_timeout
  count, process = config.num_processes, config.process_id
  named = {'coordinator': coordinator, 'num_processes': count, 'process_id': process}
  given = [name for name, value in named.items() if value is not None]
  if not given and not config.distributed:
    return
  options.check(config)
  if given and len(given) < 3:
    missing = ' and '.join(name for name in named if name not in given)
    raise UsageError(f'{given[0]} needs {missing} beside it; or give distributed=True alone where JAX finds its peers')
  if given:
    if process >= count:
      raise UsageError(f'process_id={process}: process ids run from 0 to {count - 1} (num_processes - 1)')
    if not coordinator.rpartition(':')[2].isdigit():
      raise UsageError(f'coordinator={coordinator}: write HOST:PORT, as 10.0.0.1:8476')
    if count > 1:
      meet(coordinator, count, process, timeout)
    named['coordinator_address'] = named.pop('coordinator')
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # JAX's runtime ends the process when its time is up, without a word that helps.
  text = f'after {timeout} s, not all processes have come. {CAUSES}'
  warning = threading.Timer(timeout - 0.5, print, (text,), {'file': sys.stderr, 'flush': True})
  warning.daemon = True
  warning.start()
  limits = {'initialization_timeout': timeout, 'heartbeat_timeout_seconds': HEARTBEAT_SECONDS}
  try:
    jax.distributed.initialize(**named if given else {}, **limits)
  except (RuntimeError, ValueError) as error:
    raise UsageError(f'the processes did not find each other: {first_line(error)[:200]}. {CAUSES}') from None
  finally:
    warning.cancel()


def meet(coordinator: str, count: int, process: int, timeout: float) -> None:
  """Waits until every process has called on process 0, before JAX's runtime takes the coordinator's port.

  JAX's runtime kills a process that waits too long, and cannot say who is missing.

  Raises:
    UsageError: naming those that did not come, or an id that came twice.
  """
  host, _, port = coordinator.rpartition(':')
  deadline = time.monotonic() + timeout
  problem = _receive(int(port), count, deadline) if process == 0 else _call(host, int(port), process, count, deadline)
  if problem:
    raise UsageError(problem.format(after=f'after {timeout:g} s, ', at=f'{host}:{port}', causes=CAUSES))


def _receive(port: int, count: int, deadline: float) -> str:
  """Process 0's part of the meeting: what went wrong, '' for nothing; all who called are told the same."""
  try:
    server = socket.create_server(('', port), backlog=count)
  except (OSError, OverflowError) as error:
    return f'coordinator={{at}}: the port cannot be used here: {error}'
  calls, problem = {}, ''
  with server:
    while len(calls) < count - 1 and not problem:
      server.settimeout(max(0.01, deadline - time.monotonic()))
      try:
        call = server.accept()[0]
      except TimeoutError:
        missing = ', '.join(str(i) for i in range(1, count) if i not in calls)
        problem = f'{{after}}of {count} processes these are missing: {missing}. {{causes}}'
        break
      try:
        call.settimeout(5)
        greeting, *numbers = call.recv(64).decode().split()
        process, its_count = map(int, numbers)
      except (OSError, ValueError):
        greeting = ''
      if greeting != 'karpjax':  # a stranger
        call.close()
      elif process == 0 or process in calls:
        problem = f'two processes have process_id={process}; each needs its own, from 0 to {count - 1}'
        calls[-1] = call
      else:
        calls[process] = call
        if its_count != count:
          problem = f'process {process} was started with num_processes={its_count}, process 0 with {count}'
    for call in calls.values():
      with call, contextlib.suppress(OSError):
        call.sendall((problem or 'go').encode())
  return problem


def _call(host: str, port: int, process: int, count: int, deadline: float) -> str:
  """Another process's part of the meeting: what went wrong, '' for nothing."""
  while time.monotonic() < deadline:
    left = max(0.1, deadline - time.monotonic())
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=min(5, left)) as call:
      call.sendall(f'karpjax {process} {count}'.encode())
      call.settimeout(left + 5)
      answer = call.recv(1024).decode()
      if answer:
        return answer.removeprefix('go')
    time.sleep(0.2)
  return '{after}process 0 was not found at {at}. {causes}'


def is_host0() -> bool:
  """Whether this process is the one that writes."""
  return jax.process_index() == 0


def any_host(flag: bool) -> bool:
  """Whether it is true on any host; every host has to ask."""
  return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def from_host0(value):
  """Host 0's value, which JSON can hold, on every host."""
  if jax.process_count() == 1:
    return value
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
  data = multihost_utils.broadcast_one_to_all(data if is_host0() else np.zeros(length, np.uint8))
  return json.loads(bytes(np.asarray(data)))


def run_on_host0(function: Callable):
  """What host 0's `function()` returns, which JSON can hold, on every host; its UsageError is everyone's."""
  value = error = None
  if is_host0():
    try:
      value = function()
    except UsageError as raised:
      error = raised
  value, text = from_host0((value, error and str(error)))
  if text is not None:
    raise error or UsageError(text)
  return value


def is_key(x) -> bool:
  """Whether an array, or its shape, is of typed PRNG keys."""
  return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def gather(x):
  """A global array whole, on the host: NumPy, or for keys a local array."""
  if is_key(x):
    return jax.random.wrap_key_data(gather(jax.random.key_data(x)))
  if x.is_fully_addressable or x.is_fully_replicated:
    return np.asarray(x)
  return multihost_utils.process_allgather(x, tiled=True)
