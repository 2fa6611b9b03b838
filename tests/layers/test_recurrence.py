import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax.layers import recurrence


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def loop(params, direction, sequence, h):
  """A GRU in plain Python, after PyTorch's documentation. sequence: [time, in], h: [units] -> [time, units]."""
  kernel, bias = params['input_kernel'][direction], params['input_bias'][direction]
  state_kernel, state_bias = params['state_kernel'][direction], params['state_bias'][direction]
  outputs = []
  for x in sequence:
    xr, xz, xn = np.split(x @ kernel + bias, 3)
    hr, hz, hn = np.split(h @ state_kernel + state_bias, 3)
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    n = np.tanh(xn + r * hn)
    h = (1 - z) * n + z * h
    outputs.append(h)
  return np.stack(outputs)


@pytest.mark.parametrize('bidirectional', [False, True])
@pytest.mark.parametrize('given', [False, True])
def test_against_a_plain_loop(bidirectional, given):
  rng = np.random.default_rng(0)
  directions = 1 + bidirectional
  x = rng.normal(size=(3, 7, 2)).astype(np.float32)
  initial = rng.normal(size=(directions, 3, 4)).astype(np.float32) if given else None
  module = recurrence.GRU(4, bidirectional)
  params = jax.jit(module.init)(jax.random.key(0), x)['params']
  outputs, final = jax.jit(module.apply)({'params': params}, x, initial)
  params = jax.tree.map(np.asarray, params)
  for b in range(3):
    start = initial[:, b] if given else np.zeros((directions, 4))
    forwards = loop(params, 0, x[b], start[0])
    np.testing.assert_allclose(outputs[b, :, :4], forwards, atol=1e-5)
    np.testing.assert_allclose(final[0, b], forwards[-1], atol=1e-5)
    if bidirectional:
      backwards = loop(params, 1, x[b, ::-1], start[1])
      np.testing.assert_allclose(outputs[b, :, 4:], backwards[::-1], atol=1e-5)
      np.testing.assert_allclose(final[1, b], backwards[-1], atol=1e-5)


def test_equals_pytorchs():
  torch = pytest.importorskip('torch')
  x = np.random.default_rng(1).normal(size=(2, 9, 3)).astype(np.float32)
  theirs = torch.nn.GRU(3, 5, batch_first=True, bidirectional=True)
  params = {}
  for ours, name in (('input', 'ih'), ('state', 'hh')):
    both = [[getattr(theirs, f'{kind}_{name}_l0{way}') for way in ('', '_reverse')] for kind in ('weight', 'bias')]
    params[f'{ours}_kernel'], params[f'{ours}_bias'] = (np.stack([a.detach().numpy().T for a in pair]) for pair in both)
  outputs, final = jax.jit(recurrence.GRU(5, True).apply)({'params': params}, x)
  with torch.no_grad():
    expected, expected_final = theirs(torch.tensor(x))
  np.testing.assert_allclose(outputs, expected.numpy(), atol=1e-5)
  np.testing.assert_allclose(final, expected_final.numpy(), atol=1e-5)


def test_two_halves_carried_over_equal_the_whole():
  x = np.random.default_rng(2).normal(size=(2, 10, 3)).astype(np.float32)
  module = recurrence.GRU(4)
  params = jax.jit(module.init)(jax.random.key(0), x)
  apply = jax.jit(module.apply)
  whole, final = apply(params, x)
  first, carried = apply(params, x[:, :6])
  second, last = apply(params, x[:, 6:], carried)
  np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, atol=1e-6)
  np.testing.assert_allclose(last, final, atol=1e-6)


def test_gradient_against_finite_differences():
  rng = np.random.default_rng(3)
  x = rng.normal(size=(2, 5, 2)).astype(np.float32)
  module = recurrence.GRU(3, True)
  params = jax.jit(module.init)(jax.random.key(0), x)
  loss = jax.jit(lambda params: jnp.sin(module.apply(params, x)[0]).sum())
  gradient = jax.jit(jax.grad(loss))(params)
  for _ in range(3):
    direction = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), params)
    high, low = (loss(jax.tree.map(lambda a, d, t=t: a + t * d, params, direction)) for t in (1e-2, -1e-2))
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), gradient, direction)))
    np.testing.assert_allclose(slope, (high - low) / 2e-2, rtol=1e-2, atol=1e-3)


def test_the_first_output_of_a_forward_gru_sees_only_the_first_input():
  x = np.random.default_rng(4).normal(size=(1, 6, 2)).astype(np.float32)
  module = recurrence.GRU(4, True)
  params = jax.jit(module.init)(jax.random.key(0), x)
  slope = jax.jit(jax.jacobian(lambda x: jax.jit(module.apply)(params, x)[0]))(x)[0, :, :, 0]  # [time, units, time, in]
  forwards, backwards = (np.abs(slope[:, part]).max((1, 3)) > 0 for part in (slice(0, 4), slice(4, 8)))
  np.testing.assert_array_equal(forwards, np.tri(6, dtype=bool))
  np.testing.assert_array_equal(backwards, np.tri(6, dtype=bool).T)


def test_bfloat16_keeps_params_and_state_float32():
  module = recurrence.GRU(4, dtype=jnp.bfloat16)
  x = jnp.ones((2, 5, 3))
  params = jax.jit(module.init)(jax.random.key(0), x)
  outputs, final = jax.jit(module.apply)(params, x)
  assert outputs.dtype == jnp.bfloat16 and final.dtype == jnp.float32
  assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
