"""Several processes that train as one: how they find each other, agree, and bring their arrays together.

JAX's own distributed runtime does the work. Every host runs the same program on the same steps; only the first writes.
"""

import socket
import sys
import threading
import time
from collections.abc import Callable

import jax
import numpy as np

from karpjax.errors import UsageError

HEARTBEAT_SECONDS = 30  # after this long without a sign of life a host counts as lost, and the others stop


def start(config) -> None:
  """Joins the other processes, before JAX is used; nothing to do for one process.

  Args:
    config: --distributed lets JAX find the others (TPU pods, Slurm, Kubernetes); --coordinator, --num_processes and
      --process_id name them.

  Raises:
    UsageError: for flags that do not fit together, or when not all processes came within --start_timeout seconds.
  """
  named = {'coordinator': config.coordinator, 'num_processes': config.num_processes, 'process_id': config.process_id}
  given = [name for name, value in named.items() if value not in ('', None)]
  if not given and not config.distributed:
    return
  if given and len(given) < 3:
    missing = ', '.join(f'--{name}' for name in named if name not in given)
    raise UsageError(f'--{given[0]} needs {missing} beside it; or give --distributed alone where JAX finds its peers')
  if given:
    if config.num_processes < 1 or not 0 <= config.process_id < config.num_processes:
      raise UsageError(
        f'--process_id={config.process_id}: process ids run from 0 to {config.num_processes - 1} (--num_processes - 1)'
      )
    if ':' not in config.coordinator:
      raise UsageError(f'--coordinator={config.coordinator}: write HOST:PORT, as 10.0.0.1:8476')
  if config.start_timeout < 1:
    raise UsageError(f'--start_timeout={config.start_timeout}: at least 1 second is needed')
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  if given and config.num_processes > 1:
    _meet(config.coordinator, config.num_processes, config.process_id, config.start_timeout)
  arguments = (
    {
      'coordinator_address': config.coordinator,
      'num_processes': config.num_processes,
      'process_id': config.process_id,
    }
    if given
    else {}
  )
  # JAX's runtime ends the process when its time is up, without a word that helps.
  warning = threading.Timer(config.start_timeout - 0.5, _warn, (config.start_timeout,))
  warning.daemon = True
  warning.start()
  try:
    jax.distributed.initialize(
      **arguments,
      initialization_timeout=config.start_timeout,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    reason = str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__
    raise UsageError(f'the processes did not find each other: {reason}. {CAUSES}') from None
  finally:
    warning.cancel()


def _warn(seconds) -> None:
  print(f'after {seconds:g} s, not all processes have come. {CAUSES}', file=sys.stderr, flush=True)


CAUSES = (
  'The usual causes: the command was started on one worker only (start it on all of them at once), or the '
  "coordinator's port is closed."
)


def _meet(coordinator: str, count: int, number: int, timeout: float) -> None:
  """Waits until every process has called on process 0, at the coordinator's port, before JAX's own runtime takes it.

  JAX's runtime kills a process that waits too long, and cannot say who is missing.

  Raises:
    UsageError: naming those that did not come, or an id that came twice.
  """
  host, port = coordinator.rsplit(':', 1)
  deadline = time.monotonic() + timeout
  if number == 0:
    with socket.socket() as server:
      server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      try:
        server.bind(('', int(port)))
      except (OSError, ValueError, OverflowError) as error:
        raise UsageError(f'--coordinator={coordinator}: port {port} cannot be used here: {error}') from None
      server.listen(count)
      calls, came, problem = [], set(), ''
      while len(came) < count - 1 and not problem:
        server.settimeout(max(0.01, deadline - time.monotonic()))
        try:
          call, _ = server.accept()
          call.settimeout(5)
          text = call.recv(64).decode()
          if not text.startswith('karpjax '):
            call.close()
            continue
          _, other, others = text.split()
        except TimeoutError:
          missing = ', '.join(str(i) for i in range(1, count) if i not in came)
          problem = f'after {timeout:g} s, of {count} processes these are missing: {missing}. {CAUSES}'
          break
        except (OSError, ValueError):
          continue
        if int(other) in came or int(other) == 0:
          problem = f'two processes have --process_id={other}; each needs its own, from 0 to {count - 1}'
        elif int(others) != count:
          problem = f'process {other} was started with --num_processes={others}, process 0 with {count}'
        came.add(int(other))
        calls.append(call)
      for call in calls:
        try:
          call.sendall((problem or 'go').encode())
        except OSError:
          problem = problem or 'a process left before all had come'
        call.close()
    if problem:
      raise UsageError(problem)
    return
  answer = ''
  while not answer:
    try:
      with socket.create_connection((host, int(port)), timeout=max(0.1, min(5, deadline - time.monotonic()))) as call:
        call.sendall(f'karpjax {number} {count}'.encode())
        call.settimeout(max(0.1, deadline - time.monotonic() + 5))
        answer = call.recv(1024).decode()
    except ValueError:
      raise UsageError(f'--coordinator={coordinator}: write HOST:PORT, as 10.0.0.1:8476') from None
    except OSError:
      answer = ''
    if not answer:
      if time.monotonic() > deadline:
        raise UsageError(f'after {timeout:g} s, process 0 was not found at {coordinator}. {CAUSES}')
      time.sleep(0.2)
  if answer != 'go':
    raise UsageError(answer)


def first() -> bool:
  """Whether this process is the one that writes."""
  return jax.process_index() == 0


def any_of(flag: bool) -> bool:
  """Whether it is true on any host; every host has to ask."""
  if jax.process_count() == 1:
    return flag
  from jax.experimental import multihost_utils

  return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def first_says(value: float) -> float:
  """The first host's number, on every host."""
  if jax.process_count() == 1:
    return value
  from jax.experimental import multihost_utils

  return float(multihost_utils.broadcast_one_to_all(np.float32(value)))


def on_first(function: Callable):
  """What the first host's `function()` gives, as text, on every host; its UsageError is everyone's."""
  answer, error = '', None
  if first():
    try:
      answer = str(function())
    except UsageError as raised:
      answer, error = f'error {raised}', raised
    else:
      answer = f'fine {answer}'
  answer = told(answer)
  if error:
    raise error
  if answer.startswith('error '):
    raise UsageError(answer.removeprefix('error '))
  return answer.removeprefix('fine ')


def told(text: str) -> str:
  """The first host's text, on every host."""
  if jax.process_count() == 1:
    return text
  from jax.experimental import multihost_utils

  data = np.frombuffer(text.encode(), np.uint8)
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
  if not first():
    data = np.zeros(length, np.uint8)
  return bytes(np.asarray(multihost_utils.broadcast_one_to_all(data))).decode() if length else ''


def same(tree):
  """The first host's arrays, on every host: NumPy, and keys as local arrays."""
  if jax.process_count() == 1:
    return tree
  from jax.experimental import multihost_utils

  key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  bits = jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if key(x) else x), tree)
  heard = multihost_utils.broadcast_one_to_all(bits)
  return jax.tree.map(lambda x, b: jax.random.wrap_key_data(np.asarray(b)) if key(x) else np.asarray(b), tree, heard)


def wait(name: str) -> None:
  """Until every host has come here."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def gather(x):
  """A global array whole, on the host: NumPy, or for keys a local array."""
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.wrap_key_data(gather(jax.random.key_data(x)))
  if x.is_fully_addressable or x.is_fully_replicated:
    return np.asarray(x)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(x, tiled=True)
