"""Process-wide settings: JAX, XLA and the allocator, before JAX begins; and the signals that stop a run."""

import contextlib
import ctypes
import functools
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
from jax._src import compilation_cache  # nothing public reads a stored program

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # glibc's mallopt parameters (malloc.h)
LARGE_STEP = {'cpu': 1e9, 'else': 1e11}  # FLOPs, by platform
LARGE_SEED = 1e8  # FLOPs of one seed's step


def tune_malloc() -> None:
  """Lets glibc keep a step's freed memory for the next step, which takes up to a third less time.

  Only the main thread's arena holds blocks beyond 64 MB, so that thread has to ask for them; simulated devices, which
  have a thread each, share that arena.
  """
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform.startswith('linux') else None
  if mallopt is None:
    return
  for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20)):
    mallopt(parameter, value)
  simulated = re.search(r'xla_force_host_platform_device_count=(\d+)', os.environ.get('XLA_FLAGS', ''))
  if simulated and int(simulated[1]) > 1:
    mallopt(M_ARENA_MAX, 1)
    return
  jax.config.update('jax_cpu_enable_async_dispatch', False)


def trim_malloc() -> None:
  """Gives back what glibc keeps of freed memory: of a compilation as much as hundreds of MB."""
  if trim := getattr(ctypes.CDLL(None), 'malloc_trim', None) if sys.platform.startswith('linux') else None:
    trim(0)


def enable_compilation_cache(folder: str) -> None:
  """Keeps compiled programs in a folder, so that the second start of a run is a fraction of the first; 'off':
  nowhere.
  """
  if folder != 'off':
    folder = folder or str(Path('~/.cache/karpjax/compiled').expanduser())
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
    _mend_compilation_cache(Path(folder))


def _mend_compilation_cache(folder: Path) -> None:
  """Makes one line of JAX's warnings of a cache, and removes damaged programs,
  which JAX would keep for every later start.
  """
  show, said = warnings.showwarning, set()

  def say(message, *rest, **named):
    found = re.match(r"Error (\w+) persistent compilation cache entry for '(.+)': \w+: (.*)", str(message))
    if not found:
      return show(message, *rest, **named)
    doing, program, reason = found.groups()
    files = list(folder.glob(f'{program}-*-cache'))
    damaged = [file for file in files if not _decompresses(file)]  # a full disk leaves such
    if doing == 'reading' and '[Errno ' not in reason:
      damaged, reason = damaged or files, 'a damaged program is removed and compiled anew'
    with contextlib.suppress(OSError):
      for file in damaged:
        file.unlink(missing_ok=True)
    if reason not in said:
      print(f'compilation cache {folder}: {reason}; the run goes on', file=sys.stderr)
    said.add(reason)

  warnings.filterwarnings('always', message='Error .* persistent compilation cache')  # not one of each text
  warnings.showwarning = say


def _decompresses(file: Path) -> bool:
  """Whether what JAX has stored of a program is whole."""
  try:
    compilation_cache.decompress_executable(file.read_bytes())
  except Exception:  # of several libraries
    return False
  return True


@functools.cache
def _onednn() -> dict:
  """XLA's options for convolutions and matmuls by oneDNN on the CPU, where this jaxlib takes them and gains by them."""
  if jax.default_backend() != 'cpu' or jax.__version_info__ < (0, 11):
    return {}
  options = {
    'xla_cpu_experimental_onednn_custom_call': True,
    'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE',  # else it takes most convolutions first
  }
  try:
    jax.jit(lambda: 0, compiler_options=options).lower().compile()
  except jax.errors.JaxRuntimeError:  # experimental: a later XLA may not know them
    return {}
  # jaxlib cannot serialise a program that calls oneDNN, so each start compiles it anew; a full disk is another matter
  lacking = r'Error writing persistent compilation cache entry for (?!.*\[Errno )'
  warnings.filterwarnings('ignore', message=lacking)
  return options


def is_large(flops: float) -> bool:
  """Whether a step of so many FLOPs takes so long that a call of its own costs it next to nothing."""
  return flops >= LARGE_STEP['cpu' if jax.default_backend() == 'cpu' else 'else']


def compiler_options(flops: float) -> dict:
  """Options for the compilation of a step of so many FLOPs, of one seed: on a CPU, large ones call oneDNN.

  Small ones do without, for the compilation cache cannot keep programs that call it.
  """
  return _onednn() if is_large(flops) else {}


def prefer_sequential_seeds(flops: float, convolves: bool) -> bool:
  """Whether seeds of a step are faster one after the other: on a CPU, large ones with convolutions,
  whose images stay in cache.
  """
  return jax.default_backend() == 'cpu' and convolves and flops >= LARGE_SEED


def set_up(threads: int = 0, parallel: str = 'none', compilation_cache: str = '', deterministic: bool = False) -> None:
  """Decides how the allocator, XLA and the cores of a CPU work, by the flags of a `config.Train`; JAX must not have
  begun.

  Args:
    threads: CPU threads per operation; 0: one for each core, or one with seeds over devices.
    parallel: with 'seeds', each core becomes a device, unless their number is given already.
    compilation_cache: as for `enable_compilation_cache`.
    deterministic: on GPUs, only deterministic operations.
  """
  tune_malloc()
  enable_compilation_cache(compilation_cache)
  warnings.filterwarnings('ignore', message='Explicitly requested dtype int64')  # of sizes that are refused in a line
  flags = os.environ.get('XLA_FLAGS', '')
  if parallel == 'seeds':
    threads = threads or 1
    if 'xla_force_host_platform_device_count' not in flags:
      cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
      jax.config.update('jax_num_cpu_devices', cores)
  if threads:
    os.environ['NPROC'] = str(threads)  # where XLA's CPU client looks for the size of its pool
  if deterministic:
    os.environ['XLA_FLAGS'] = f'{flags} --xla_gpu_deterministic_ops=true'


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
  """The signals that have come, for the loop to look at between calls. A second one interrupts at once."""
  received: list[int] = []

  def handler(number, _):
    if received:
      raise KeyboardInterrupt
    received.append(number)

  previous = {}
  with contextlib.suppress(ValueError):  # only the main thread may set handlers
    previous = {s: signal.signal(s, handler) for s in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield received
  finally:
    for number, old in previous.items():
      signal.signal(number, old)
