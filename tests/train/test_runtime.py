import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax.layers.convolution import convolution
from karpjax.train import runtime


def test_only_large_steps_call_onednn_and_it_gives_the_same_numbers():
  assert runtime.compiler_options(1e6) == {}
  options = runtime.compiler_options(1e9)
  assert bool(options) == (jax.__version_info__ >= (0, 11))
  draw = np.random.default_rng(0)
  x = jnp.asarray(draw.normal(size=(8, 16, 16, 16)), jnp.float32)
  kernel = jnp.asarray(draw.normal(size=(3, 3, 16, 16)), jnp.float32)
  plain, fast = (jax.jit(convolution, compiler_options=o)(x, kernel) for o in ({}, options))
  np.testing.assert_allclose(fast, plain, rtol=1e-4, atol=1e-4)
  if options:
    text = jax.jit(convolution, compiler_options=options).lower(x, kernel).compile().as_text()
    assert 'onednn$convolution' in text


def test_seeds_take_turns_where_a_large_step_convolves():
  assert runtime.prefer_sequential_seeds(1e9, convolves=True)
  assert not runtime.prefer_sequential_seeds(1e9, convolves=False) and not runtime.prefer_sequential_seeds(
    1e6, convolves=True
  )


CACHED = """
import sys, jax
from karpjax.train import runtime
runtime.enable_compilation_cache(sys.argv[1])
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
def triple(x): return 3 * x
def square(x): return x * x
print(jax.jit(triple)(2), jax.jit(square)(3), jax.jit(lambda x: x + 1)(1))
"""


def cached(folder):
  """What three small programs with a cache print: (stdout, stderr)."""
  done = subprocess.run([sys.executable, '-c', CACHED, folder], capture_output=True, text=True, check=True)
  return done.stdout, done.stderr


def test_a_damaged_program_in_the_cache_is_said_once_and_mended(tmp_path):
  assert cached(tmp_path) == ('6 9 2\n', '')
  files = sorted(tmp_path.glob('jit_triple-*-cache')) + sorted(tmp_path.glob('jit_square-*-cache'))
  whole = [file.read_bytes() for file in files]
  other = tmp_path / 'jit_triple-other-cache'  # of the same name, and whole
  other.write_bytes(whole[0])
  for file in files:
    file.write_bytes(file.read_bytes()[:-20])
  line = f'compilation cache {tmp_path}: a damaged program is removed and compiled anew; the run goes on\n'
  assert cached(tmp_path) == ('6 9 2\n', line)
  assert other.exists() and all(file.stat().st_size > len(old) - 20 for file, old in zip(files, whole))
  assert cached(tmp_path) == ('6 9 2\n', '')


def test_a_cache_that_cannot_be_written_is_said_once(tmp_path):
  (tmp_path / 'file').touch()
  out, error = cached(tmp_path / 'file')
  assert out == '6 9 2\n' and error.count('\n') == 1 and 'File exists' in error and 'the run goes on' in error


def test_what_a_full_disk_leaves_of_a_program_is_removed(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(warnings, 'showwarning', warnings.showwarning)
  runtime._mend_compilation_cache(tmp_path)
  for name in ('jit_a', 'jit_a', 'jit_b'):
    (tmp_path / f'{name}-1-cache').write_bytes(b'')
    error = 'OSError: [Errno 28] No space left on device'
    warnings.warn(f"Error writing persistent compilation cache entry for '{name}': {error}", stacklevel=2)
    assert not list(tmp_path.iterdir())
  assert capsys.readouterr().err == (
    f'compilation cache {tmp_path}: [Errno 28] No space left on device; the run goes on\n'
  )


FREED = """
import re
from karpjax.train import runtime
runtime.tune_malloc()
resident = lambda: int(re.search(r'VmRSS:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024
blocks = [bytearray(2**16) for _ in range(1600)]  # 100 MB
last, blocks = bytearray(2**16), []  # above what is freed stays one
kept = resident()
runtime.trim_malloc()
print(kept - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='glibc alone keeps freed memory so')
def test_freed_memory_is_given_back():
  done = subprocess.run([sys.executable, '-c', FREED], capture_output=True, text=True, check=True)
  assert int(done.stdout) > 90


def test_sizes_that_no_integer_of_a_program_holds_are_traced_without_a_warning(monkeypatch):
  """They are refused in a line, later."""
  monkeypatch.setattr(runtime, 'enable_compilation_cache', lambda _: None)
  with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter('always')
    runtime.set_up()
    jax.eval_shape(lambda x: x[2**31 :], jax.ShapeDtypeStruct((2**32,), jnp.float32))
  assert not said
