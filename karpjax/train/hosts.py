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
from karpjax.errors import UsageError

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
  named = {'coordinator': config.coordinator, 'num_processes': config.num_processes, 'process_id': config.process_id}
  given = [name for name, value in named.items() if value not in ('', None)]
  if not given and not config.distributed:
    return
  options.check(config)
  if given and len(given) < 3:
    missing = ' and '.join(name for name in named if name not in given)
    raise UsageError(f'{given[0]} needs {missing} beside it; or give distributed=True alone where JAX finds its peers')
  if given:
    if config.process_id >= config.num_processes:
      last = config.num_processes - 1
      raise UsageError(f'process_id={config.process_id}: process ids run from 0 to {last} (num_processes - 1)')
    if not config.coordinator.rpartition(':')[2].isdigit():
      raise UsageError(f'coordinator={config.coordinator}: write HOST:PORT, as 10.0.0.1:8476')
    if config.num_processes > 1:
      meet(config.coordinator, config.num_processes, config.process_id, config.start_timeout)
    named['coordinator_address'] = named.pop('coordinator')
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # JAX's runtime ends the process when its time is up, without a word that helps.
  text = f'after {config.start_timeout} s, not all processes have come. {CAUSES}'
  warning = threading.Timer(config.start_timeout - 0.5, print, (text,), {'file': sys.stderr, 'flush': True})
  warning.daemon = True
  warning.start()
  limits = {'initialization_timeout': config.start_timeout, 'heartbeat_timeout_seconds': HEARTBEAT_SECONDS}
  try:
    jax.distributed.initialize(**named if given else {}, **limits)
  except (RuntimeError, ValueError) as error:
    reason = str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__
    raise UsageError(f'the processes did not find each other: {reason}. {CAUSES}') from None
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
        greeting, process, its_count = call.recv(64).decode().split()
        process, its_count = int(process), int(its_count)
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
  return bool(np.any(multihost_utils.process_allgather(np.array(flag)))) if jax.process_count() > 1 else flag


def barrier(name: str) -> None:
  """Waits until every host has come here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def broadcast_float(value: float) -> float:
  """Host 0's number, on every host."""
  return float(multihost_utils.broadcast_one_to_all(np.float32(value))) if jax.process_count() > 1 else value


def broadcast_str(text: str) -> str:
  """Host 0's text, on every host."""
  if jax.process_count() == 1:
    return text
  data = np.frombuffer(text.encode(), np.uint8)
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
  if not is_host0():
    data = np.zeros(length, np.uint8)
  return bytes(np.asarray(multihost_utils.broadcast_one_to_all(data))).decode() if length else ''


def run_on_host0(function: Callable):
  """What host 0's `function()` returns, which JSON can hold, on every host; its UsageError is everyone's."""
  if jax.process_count() == 1:
    return function()
  answer, error = {}, None
  if is_host0():
    try:
      answer = {'value': function()}
    except UsageError as raised:
      answer, error = {'error': str(raised)}, raised
  answer = json.loads(broadcast_str(json.dumps(answer)))
  if 'error' in answer:
    raise error or UsageError(answer['error'])
  return answer['value']


def is_key(x) -> bool:
  """Whether an array, or its shape, is of typed PRNG keys."""
  return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def broadcast_tree(tree):
  """Host 0's arrays, on every host: NumPy, and keys as local arrays."""
  if jax.process_count() == 1:
    return tree
  bits = jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)
  bits = multihost_utils.broadcast_one_to_all(bits)
  return jax.tree.map(lambda x, b: jax.random.wrap_key_data(np.asarray(b)) if is_key(x) else np.asarray(b), tree, bits)


def gather(x):
  """A global array whole, on the host: NumPy, or for keys a local array."""
  if is_key(x):
    return jax.random.wrap_key_data(gather(jax.random.key_data(x)))
  if x.is_fully_addressable or x.is_fully_replicated:
    return np.asarray(x)
  return multihost_utils.process_allgather(x, tiled=True)
