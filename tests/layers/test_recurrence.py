import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from karpjax.layers import linear, recurrence

CELLS = tuple(recurrence.CELLS)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def loop(cell, params, direction, sequence, state):
  """In plain Python, after PyTorch's documentation. sequence: [time, in], state: each [units] -> [time, units], state."""
  kernel, bias = params['input_kernel'][direction], params['input_bias'][direction]
  state_kernel = params['state_kernel'][direction]
  outputs, (h, *rest) = [], state
  for x in sequence:
    here, there = x @ kernel + bias, h @ state_kernel
    if cell == 'rnn':
      h = np.tanh(here + there)
    elif cell == 'lstm':
      i, f, g, o = np.split(here + there, 4)
      rest = [sigmoid(f) * rest[0] + sigmoid(i) * np.tanh(g)]
      h = sigmoid(o) * np.tanh(rest[0])
    else:
      xr, xz, xn = np.split(here, 3)
      hr, hz, hn = np.split(there + params['state_bias'][direction], 3)
      z = sigmoid(xz + hz)
      h = (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * h
    outputs.append(h)
  return np.stack(outputs), (h, *rest)


def made(cell, bidirectional=False, units=4, x=None, **options):
  """A layer, what it reads, and params drawn at random."""
  rng, module = np.random.default_rng(0), recurrence.Recurrent(units, cell, bidirectional, **options)
  x = rng.normal(size=(3, 8, 2)).astype(np.float32) if x is None else x
  shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), x))
  return module, x, jax.tree.map(lambda a: rng.uniform(-0.5, 0.5, a.shape).astype(np.float32), shapes)


def drawn_states(module):
  return jax.tree.map(lambda s: np.random.default_rng(1).normal(size=s.shape).astype(np.float32), module.initial(3))


@pytest.mark.parametrize('cell', CELLS)
def test_both_ways_against_a_plain_loop_whatever_stands_in_the_padding(cell):
  module, x, params = made(cell, True)
  state, lengths = drawn_states(module), (8, 4, 1)
  mask = np.arange(8) < np.array(lengths)[:, None]
  outputs, final = jax.jit(module.apply)(params, np.where(mask[..., None], x, 99), state, mask)
  for b, n in enumerate(lengths):
    for d, own in enumerate((slice(0, 4), slice(4, 8))):
      way = slice(None, None, -1 if d else 1)
      read, last = loop(cell, params['params'], d, x[b, :n][way], [s[b, own] for s in state])
      np.testing.assert_allclose(outputs[b, :n, own], read[way], atol=1e-5)
      assert not np.asarray(outputs[b, n:]).any()
      for ours, theirs in zip(final, last):
        np.testing.assert_allclose(ours[b, own], theirs, atol=1e-5)


@pytest.mark.parametrize('cell', CELLS)
def test_sequences_after_each_other_are_each_alone(cell):
  """What is fresh begins with zeros and hears of nothing earlier."""
  module, x, params = made(cell)
  begun, fresh = drawn_states(module), np.zeros((3, 8), bool)
  fresh[1, 4] = fresh[2, 0] = fresh[2, 5] = True  # the first example has one sequence, the others two
  outputs, final = jax.jit(module.apply)(params, x, begun, None, fresh)
  for b, first, last in ((0, 0, 8), (1, 0, 4), (1, 4, 8), (2, 0, 5), (2, 5, 8)):
    state = [np.zeros(4) if fresh[b, first] else s[b] for s in begun]
    own, end = loop(cell, params['params'], 0, x[b, first:last], state)
    np.testing.assert_allclose(outputs[b, first:last], own, atol=1e-5)
    if last == 8:
      jax.tree.map(lambda a, c: np.testing.assert_allclose(a[b], c, atol=1e-5), final, end)


@pytest.mark.parametrize('cell', CELLS)
def test_outputs_and_gradients_are_pytorchs(cell):
  torch = pytest.importorskip('torch')
  x = np.random.default_rng(1).normal(size=(2, 9, 3)).astype(np.float32)
  theirs = {'rnn': torch.nn.RNN, 'lstm': torch.nn.LSTM, 'gru': torch.nn.GRU}[cell](
    3, 5, batch_first=True, bidirectional=True
  )
  both = lambda name: np.stack([getattr(theirs, f'{name}_l0{way}').detach().numpy() for way in ('', '_reverse')])
  params = {'input_kernel': both('weight_ih').swapaxes(1, 2), 'state_kernel': both('weight_hh').swapaxes(1, 2)}
  if cell == 'gru':
    params |= {'input_bias': both('bias_ih'), 'state_bias': both('bias_hh')}
  else:
    params['input_bias'] = both('bias_ih') + both('bias_hh')
  module = recurrence.Recurrent(5, cell, True)
  outputs, final = jax.jit(module.apply)({'params': params}, x)
  given = torch.tensor(x, requires_grad=True)
  expected, last = theirs(given)
  np.testing.assert_allclose(outputs, expected.detach().numpy(), atol=1e-5)
  for ours, other in zip(final, last if cell == 'lstm' else (last,)):
    np.testing.assert_allclose(ours.reshape(2, 2, 5).swapaxes(0, 1), other.detach().numpy(), atol=1e-5)
  torch.sin(expected).sum().backward()
  loss = lambda params, x: jnp.sin(module.apply({'params': params}, x)[0]).sum()
  gradients, d_x = jax.jit(jax.grad(loss, (0, 1)))(params, x)
  np.testing.assert_allclose(d_x, given.grad.numpy(), atol=1e-4)
  for name, kernel in (('input_kernel', 'weight_ih'), ('state_kernel', 'weight_hh'), ('input_bias', 'bias_ih')):
    for d, way in enumerate(('', '_reverse')):
      there = getattr(theirs, f'{kernel}_l0{way}').grad.numpy()
      np.testing.assert_allclose(gradients[name][d], there.T if there.ndim == 2 else there, atol=1e-4)


def test_sequences_after_each_other_are_not_read_backwards():
  module, x, params = made('gru', True)
  with pytest.raises(ValueError, match='forwards only'):
    module.apply(params, x, fresh=np.zeros((3, 8), bool))


def test_vmapped_over_params_equals_one_after_the_other():
  module, x, params = made('rnn')
  many = jax.tree.map(lambda a: a + np.random.default_rng(1).normal(size=(3, *a.shape)).astype(np.float32) / 3, params)
  loss = lambda params: jnp.sin(module.apply(params, x)[0]).sum()
  together, gradient = jax.jit(jax.vmap(jax.grad(loss)))(many), jax.jit(jax.grad(loss))
  for i in range(3):
    one = gradient(jax.tree.map(lambda a, i=i: np.asarray(a)[i], many))
    jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-5), together, one)


def test_bfloat16_keeps_params_and_state_float32():
  module, x, params = made('gru', dtype=jnp.bfloat16)
  outputs, final = jax.jit(module.apply)(params, x)
  assert outputs.dtype == jnp.bfloat16 and {f.dtype for f in final} == {jnp.dtype(jnp.float32)}
  gradient = jax.eval_shape(jax.grad(lambda p: module.apply(p, x)[0].astype(jnp.float32).sum()), params)
  assert {a.dtype for a in jax.tree.leaves((params, gradient))} == {jnp.dtype(jnp.float32)}
  exact, _ = jax.jit(recurrence.Recurrent(4, 'gru').apply)(params, x)
  np.testing.assert_allclose(outputs.astype(np.float32), exact, atol=0.05)


def test_a_stack_is_its_layers_one_after_the_other():
  x = np.random.default_rng(5).normal(size=(2, 5, 3)).astype(np.float32)
  stack = recurrence.Stack((4, 6), 'rnn')
  params = nn.meta.unbox(jax.jit(stack.init)(jax.random.key(0), x)['params'])
  outputs, finals = jax.jit(stack.apply)({'params': params}, x)
  first, one = jax.jit(recurrence.Recurrent(4, 'rnn').apply)({'params': params['layer1']}, x)
  second, two = jax.jit(recurrence.Recurrent(6, 'rnn').apply)({'params': params['layer2']}, first)
  np.testing.assert_allclose(outputs, second, atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), finals, (one, two))
  assert jax.tree.map(jnp.shape, stack.initial(2)) == jax.tree.map(jnp.shape, finals)


def test_rows_of_a_table_are_read_as_what_they_are():
  rng = np.random.default_rng(0)
  table, index = rng.normal(size=(5, 2)).astype(np.float32), rng.integers(0, 5, (3, 7))
  weights = rng.normal(size=(3, 7, 8)).astype(np.float32)
  module, _, params = made('rnn', True, x=table[index])

  def gradients(of):
    loss = lambda p, t: (module.apply(p, of(t, index))[0] * weights).sum()
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, table)

  got, expected = gradients(linear.Rows), gradients(lambda t, index: t[index])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, expected)
  again = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), linear.Rows(table, index)))
  assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, params)


def test_what_is_nan_behind_a_sequence_s_end_changes_nothing():
  layer, draw = recurrence.Recurrent(3, 'lstm', True), np.random.default_rng(0)
  x, mask = draw.normal(size=(2, 4, 5)).astype(np.float32), np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
  variables = layer.init(jax.random.key(0), x)
  clean, spoilt = (layer.apply(variables, np.where(mask[..., None], x, bad), mask=mask) for bad in (0, np.nan))
  jax.tree.map(np.testing.assert_array_equal, clean, spoilt)
