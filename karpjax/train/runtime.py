"""What is set once for the whole process, at the edge, before JAX begins: memory, compiled programs, determinism."""

import ctypes
import functools
import os
import re
import sys
import warnings
from pathlib import Path

# glibc's mallopt parameters (malloc.h)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8


def tune_malloc() -> None:
  """Lets the C library keep freed memory for the next step, where it is glibc.

  XLA's CPU backend asks for a step's temporaries anew at each call. glibc gives such large blocks back to the system at
  once, and the page faults of getting them again can cost as much as a third of a step. Only the main thread's arena can
  hold blocks beyond 64 MB, so that thread is to ask. Simulated devices have a thread each that asks; then all threads
  share that one arena, although those that compile wait for each other there, 40 % of the time. Not where cores are
  devices by `--parallel=seeds`, which is for small steps: two threads in one arena make that of bench lecun1989 half as
  slow again.
  """
  if not sys.platform.startswith('linux'):
    return
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is None:
    return
  mallopt(M_MMAP_MAX, 0)
  mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
  mallopt(M_TOP_PAD, 64 * 2**20)
  simulated = re.search(r'xla_force_host_platform_device_count=(\d+)', os.environ.get('XLA_FLAGS', ''))
  if simulated and int(simulated[1]) > 1:
    mallopt(M_ARENA_MAX, 1)
    return
  import jax

  jax.config.update('jax_cpu_enable_async_dispatch', False)


def enable_compilation_cache(folder: str) -> None:
  """Keeps compiled programs on disk, so that the second start of a run is a fraction of the first.

  Args:
    folder: where; '' is ~/.cache/karpjax/compiled, 'off' is nowhere.
  """
  import jax

  if folder != 'off':
    jax.config.update('jax_compilation_cache_dir', folder or str(Path('~/.cache/karpjax/compiled').expanduser()))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


LARGE_STEP = 1e8  # FLOPs of one seed


@functools.cache
def _onednn() -> dict:
  """XLA's options for convolutions and matmuls by oneDNN on the CPU, where this jaxlib takes them and gains by them."""
  import jax

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
  # jaxlib cannot serialise a program that calls oneDNN, so each start compiles it anew.
  warnings.filterwarnings('ignore', message='Error writing persistent compilation cache entry')
  return options


def compiler_options(flops: float) -> dict:
  """Options for the compilation of a program of so many FLOPs a step, of one seed and loops counted once.

  On the CPU, large steps call oneDNN, whose convolutions are faster than XLA's own with jax 0.12 (`launch.py bench
  resnet20`). Small ones, as `bench lecun1989`, would spend more on the calls than on the work, with many seeds as well,
  whose matmuls are no larger: sixteen of `bench ppo_cartpole` take a third longer. jax 0.10 gains nothing.
  """
  return _onednn() if flops >= LARGE_STEP else {}


def prefer_sequential_seeds(flops: float, convolves: bool) -> bool:
  """Whether several seeds of a step of so many FLOPs are faster one after the other than at once.

  On a CPU, where caches hold the images of one seed's layers but not those of all: eight seeds of bench cifar10_cnn take
  8.5 times one instead of 13.9. Without convolutions, at once: four of bench gpt_shakespeare_cpu take 3.9 times one, not 4.3.
  """
  import jax

  return jax.default_backend() == 'cpu' and convolves and flops >= LARGE_STEP


def cpu(threads: int, parallel: str) -> None:
  """How XLA uses the cores of a CPU; JAX must not have begun.

  Args:
    threads: that share an operation; 0: one for each core, or one with seeds over devices.
    parallel: with 'seeds', each core becomes a device, unless their number is given already.
  """
  import jax

  if parallel == 'seeds':
    threads = threads or 1
    if 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
      cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
      jax.config.update('jax_num_cpu_devices', cores)
  if threads:
    os.environ['NPROC'] = str(threads)  # where XLA's CPU client looks for the size of its pool


def process(config) -> None:
  """All of it, as the config says."""
  tune_malloc()
  cpu(config.threads, config.parallel)
  enable_compilation_cache(config.compilation_cache)
  if config.deterministic:
    os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_gpu_deterministic_ops=true'
