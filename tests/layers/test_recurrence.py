import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
  module = recurrence.Recurrent(units, cell, bidirectional, **options)
  x = np.random.default_rng(0).normal(size=(3, 8, 2)).astype(np.float32) if x is None else x
  return module, x, jax.jit(module.init)(jax.random.key(0), x)


@pytest.mark.parametrize(
  'cell, bidirectional, given', [*((cell, True, True) for cell in CELLS), ('lstm', False, False)]
)
def test_against_a_plain_loop(cell, bidirectional, given):
  rng = np.random.default_rng(1)
  module, x, params = made(cell, bidirectional)
  state = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), module.initial(3)) if given else None
  outputs, final = jax.jit(module.apply)(params, x, state)
  params = jax.tree.map(np.asarray, params['params'])
  for b in range(3):
    for d in range(1 + bidirectional):
      own = slice(4 * d, 4 * d + 4)
      begun = [s[b, own] for s in state] if given else [np.zeros(4)] * len(final)
      read, last = loop(cell, params, d, x[b, ::-1] if d else x[b], begun)
      np.testing.assert_allclose(outputs[b, :, own], read[::-1] if d else read, atol=1e-5)
      for ours, theirs in zip(final, last):
        np.testing.assert_allclose(ours[b, own], theirs, atol=1e-5)


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


def test_two_halves_carried_over_equal_the_whole():
  module, x, params = made('lstm')
  apply = jax.jit(module.apply)
  whole, final = apply(params, x)
  first, carried = apply(params, x[:, :4], module.initial(3))
  second, last = apply(params, x[:, 4:], carried)
  np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), last, final)


ONE_FAST = [pytest.param(cell, marks=[] if cell == 'lstm' else [pytest.mark.slow]) for cell in CELLS]


@pytest.mark.parametrize('cell', ONE_FAST)
def test_sequences_after_each_other_are_each_alone(cell):
  """Outputs and final states: what is fresh hears of nothing earlier."""
  rng = np.random.default_rng(2)
  module, x, params = made(cell)
  begun = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), module.initial(3))
  fresh = np.zeros((3, 8), bool)
  fresh[1, 4] = fresh[2, 0] = fresh[2, 4] = True  # the first example has one sequence, the others two
  outputs, final = jax.jit(module.apply)(params, x, begun, None, fresh)
  alone = jax.jit(lambda x, begun: module.apply(params, x, begun))
  for b, first, last in ((0, 0, 8), (1, 0, 4), (1, 4, 8), (2, 0, 4), (2, 4, 8)):
    start = jax.tree.map(lambda s: s[b : b + 1], begun) if first == 0 and b < 2 else module.initial(1)
    own, end = alone(x[b : b + 1, first:last], start)
    np.testing.assert_allclose(outputs[b : b + 1, first:last], own, atol=1e-6)
    if last == 8:
      jax.tree.map(lambda a, c: np.testing.assert_allclose(a[b], c[0], atol=1e-6), final, end)


def test_sequences_after_each_other_are_not_read_backwards():
  module, x, params = made('gru', True)
  with pytest.raises(ValueError, match='forwards only'):
    module.apply(params, x, fresh=np.zeros((3, 8), bool))


@pytest.mark.parametrize('cell', ONE_FAST)
def test_padding_changes_nothing(cell):
  """Outputs and final state of a short sequence are those it has alone, whatever stands in its padding."""
  module, x, params = made(cell, True)
  lengths = np.array([8, 4, 4])
  mask = np.arange(8) < lengths[:, None]
  outputs, final = jax.jit(module.apply)(params, np.where(mask[..., None], x, 99), None, mask)
  alone = jax.jit(lambda x: module.apply(params, x))
  for b, n in enumerate(lengths):
    own, last = alone(x[b : b + 1, :n])
    np.testing.assert_allclose(outputs[b, :n], own[0], atol=1e-6)
    assert not np.asarray(outputs[b, n:]).any()
    jax.tree.map(lambda a, c: np.testing.assert_allclose(a[b], c[0], atol=1e-6), final, last)


def test_vmapped_over_params_equals_one_after_the_other():
  module, x, params = made('rnn')
  many = jax.tree.map(lambda a: a + np.random.default_rng(1).normal(size=(3, *a.shape)).astype(np.float32) / 3, params)
  loss = lambda params: jnp.sin(module.apply(params, x)[0]).sum()
  together, gradient = jax.jit(jax.vmap(jax.grad(loss)))(many), jax.jit(jax.grad(loss))
  for i in range(3):
    one = gradient(jax.tree.map(lambda a, i=i: np.asarray(a)[i], many))
    jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-5), together, one)


def test_the_forward_direction_sees_no_later_input():
  module, x, params = made('gru', True, x=np.random.default_rng(4).normal(size=(1, 6, 2)).astype(np.float32))
  slope = jax.jit(jax.jacobian(lambda x: module.apply(params, x)[0]))(x)[0, :, :, 0]  # [time, units, time, in]
  forwards, backwards = (np.abs(slope[:, part]).max((1, 3)) > 0 for part in (slice(0, 4), slice(4, 8)))
  np.testing.assert_array_equal(forwards, np.tri(6, dtype=bool))
  np.testing.assert_array_equal(backwards, np.tri(6, dtype=bool).T)


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
  params = jax.jit(stack.init)(jax.random.key(0), x)['params']
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
  again = jax.jit(module.init)(jax.random.key(0), linear.Rows(table, index))
  jax.tree.map(np.testing.assert_array_equal, again, params)
