import jax
import jax.numpy as jnp
import numpy as np

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
