import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax.layers import channel_attention


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def excitation(params, pooled):
  """The two dense layers in NumPy. pooled: [channels] -> [channels]."""
  hidden = np.maximum(pooled @ params['squeeze']['kernel'] + params['squeeze']['bias'], 0)
  return hidden @ params['excite']['kernel'] + params['excite']['bias']


def initialised(module, x, seed=0):
  params = jax.jit(module.init)(jax.random.key(seed), x)['params']
  # biases other than zero, so that a forgotten one shows
  return jax.tree.map(lambda a: np.asarray(a) + np.linspace(-0.2, 0.3, a.size).reshape(a.shape), params)


@pytest.mark.parametrize('shape', [(2, 5, 6, 64), (2, 7, 64)])
def test_squeeze_and_excitation_against_numpy(shape):
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  module = channel_attention.SqueezeExcitation()
  params = initialised(module, x)
  y = jax.jit(module.apply)({'params': params}, x)
  for image, output in zip(x, y):
    gate = sigmoid(excitation(params['excitation'], image.reshape(-1, 64).mean(0)))
    np.testing.assert_allclose(output, image * gate, atol=1e-5)


def test_cbam_against_loops():
  x = np.random.default_rng(1).normal(size=(2, 5, 6, 64)).astype(np.float32)
  module = channel_attention.CBAM()
  params = initialised(module, x)
  y = jax.jit(module.apply)({'params': params}, x)
  kernel = params['place']['kernel']  # [7, 7, 2, 1]
  for image, output in zip(x, y):
    flat = image.reshape(-1, 64)
    gate = excitation(params['excitation'], flat.mean(0)) + excitation(params['excitation'], flat.max(0))
    image = image * sigmoid(gate)
    both = np.pad(np.stack([image.mean(-1), image.max(-1)], -1), ((3, 3), (3, 3), (0, 0)))
    for i in range(5):
      for j in range(6):
        place = sigmoid((both[i : i + 7, j : j + 7] * kernel[..., 0]).sum())
        np.testing.assert_allclose(output[i, j], image[i, j] * place, atol=1e-5)


@pytest.mark.parametrize('kind', ['se', 'cbam'])
def test_bfloat16_keeps_params_and_shape(kind):
  module = channel_attention.ATTENTIONS[kind](dtype=jnp.bfloat16)
  x = jnp.ones((2, 9, 32), jnp.bfloat16)
  params = jax.eval_shape(module.init, jax.random.key(0), x)
  y = jax.eval_shape(module.apply, params, x)
  assert (y.shape, y.dtype) == (x.shape, x.dtype)
  assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
