"""Eight simulated devices for every test, and the real data where they are at hand."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Most of a test is the compilation of something small, which takes a fifth less at level 1, in processes that tests start too.
os.environ['XLA_FLAGS'] = (
  '--xla_backend_optimization_level=1 ' + os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# What one test compiled, the next finds compiled, in this process and in those it starts.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp()
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import pytest


@pytest.fixture(scope='session')
def shared_data() -> Path:
  """The folder of real data sets: KARPJAX_DATA, or ../shared/data beside the checkout."""
  folder = Path(os.environ.get('KARPJAX_DATA', Path(__file__).parents[2] / 'shared' / 'data'))
  if not folder.is_dir():
    pytest.skip(f'real data are absent: no {folder.name} folder beside the checkout, and KARPJAX_DATA is not set')
  return folder


@pytest.fixture(scope='session')
def classifier(tmp_path_factory):
  """The workdir of a classifier of digits: its last convolution has 5 channels, its last dense layer sees 24 numbers."""
  from experiments import image_classification
  from karpjax.train import loop

  folder = tmp_path_factory.mktemp('scorer')
  settings = image_classification.Config(
    model='cnn', widths=(3, 5), hidden=(24,), steps='60', learning_rate=0.01, batch_size=64, plots=False, tensorboard=False,
    workdir=str(folder), steps_per_call='20', eval_splits=(), final_splits=(), log_every='0',
  )  # fmt: skip
  loop.run(image_classification, settings, say=lambda _: None)
  return str(folder)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
  """Compiles with few optimisations, as JAX's own tests do, in two thirds of the time; not what is slow or compares roundings."""
  import jax

  optimised = any(item.get_closest_marker(name) for name in ('slow', 'optimised'))
  jax.config.update('jax_disable_most_optimizations', not optimised)
