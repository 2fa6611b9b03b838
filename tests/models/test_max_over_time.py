import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax.models import text


def loop(params, x, windows):
  """Every window that meets a real step, one after the other. x: [time, in], all real -> [features]."""
  found = []
  for width in windows:
    kernel, bias = params[f'window{width}']['kernel'], params[f'window{width}']['bias']
    wide = np.concatenate([np.zeros((width - 1, x.shape[1])), x, np.zeros((width - 1, x.shape[1]))])
    sums = [np.einsum('ti,tio->o', wide[t : t + width], kernel) + bias for t in range(len(x) + width - 1)]
    found.append(np.maximum(np.max(sums, 0), 0))
  return np.concatenate(found)


def made(windows=(2, 3, 5), dtype=jnp.float32, lengths=(7, 1, 4), time=7):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(len(lengths), time, 3)).astype(np.float32)  # padding is no zeros: the mask has to hide it
  mask = np.arange(time) < np.array(lengths)[:, None]
  module = text.MaxOverTime(windows, 4, dtype)
  params = jax.jit(module.init)(jax.random.key(0), x, mask)['params']
  params = jax.tree.map(lambda a: a + rng.normal(size=a.shape).astype(np.float32) * 0.3, params)  # biases too
  return module, params, x, mask


def test_against_a_plain_loop_for_texts_shorter_and_longer_than_the_windows():
  module, params, x, mask = made()
  features = jax.jit(module.apply)({'params': params}, x, mask)
  params = jax.tree.map(np.asarray, params)
  for row, real, ours in zip(x, mask, features):
    np.testing.assert_allclose(ours, loop(params, row[real], (2, 3, 5)), atol=1e-5)


def test_more_padding_changes_nothing_whatever_it_holds():
  module, params, x, mask = made()
  apply = jax.jit(module.apply)
  longer = np.concatenate([x, np.full((3, 5, 3), np.inf, np.float32)], 1)
  features = apply({'params': params}, longer, np.pad(mask, ((0, 0), (0, 5))))
  np.testing.assert_allclose(features, apply({'params': params}, x, mask), atol=1e-6)


def test_leading_axes_are_batches():
  module, params, x, mask = made()
  apply = jax.jit(module.apply)
  folded = apply({'params': params}, x[None].repeat(2, 0), mask[None].repeat(2, 0))
  assert folded.shape == (2, 3, 12)
  np.testing.assert_allclose(folded[1], apply({'params': params}, x, mask), atol=1e-6)


def test_equals_pytorchs_convolutions():
  torch = pytest.importorskip('torch')
  module, params, x, mask = made(lengths=(7, 7, 7))
  expected = []
  for width in module.windows:
    kernel, bias = (torch.tensor(np.asarray(params[f'window{width}'][name])) for name in ('kernel', 'bias'))
    out = torch.nn.functional.conv1d(torch.tensor(x).transpose(1, 2), kernel.permute(2, 1, 0), bias, padding=width - 1)
    expected.append(out.relu().amax(2).numpy())
  np.testing.assert_allclose(jax.jit(module.apply)({'params': params}, x, mask), np.concatenate(expected, 1), atol=1e-5)


def test_bfloat16_keeps_params_in_float32():
  module, params, x, mask = made(dtype=jnp.bfloat16)
  assert jax.eval_shape(functools.partial(module.apply, {'params': params}), x, mask).dtype == jnp.bfloat16
  shapes = jax.eval_shape(module.init, jax.random.key(0), x, mask)['params']
  assert {a.dtype for a in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
