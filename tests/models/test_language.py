import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from karpjax import options
from karpjax.errors import UsageError
from karpjax.models import language
from tests.models.drawing import drawn

SMALL = {
  'counts': {},
  'bigram': {},
  'mlp': {'hidden': 16, 'norm': 'batch'},
  'rnn': {'units': (8, 6)},
  'lstm': {'units': (8, 6)},
  'gru': {'units': (8,)},
  'wavenet': {'hidden': 16, 'window': 4},
  'gpt': {'layers': 2, 'heads': 4, 'width': 16},
}
GPTS = [{}, {'kv_heads': 2}, {'positions': 'rotary'}, {'positions': 'sinusoidal', 'tied': False}, {'bias': False}]
GPTS += [{'head_dim': 6, 'heads': 3, 'positions': 'rotary'}]
SLOW = ('bigram', 'rnn', 'gru')  # as counts and lstm are
CASES = [pytest.param(*case, marks=[pytest.mark.slow] * (case[0] in SLOW)) for case in SMALL.items()]
CASES += [
  pytest.param('gpt', SMALL['gpt'] | more, marks=[pytest.mark.slow] * (1 < i < 5)) for i, more in enumerate(GPTS) if i
]


def build(name, chosen, vocabulary=11, context=12):
  tokens = jnp.zeros((1, context), jnp.int32)
  return options.build(language.MODELS, name, chosen, tokens, vocabulary=vocabulary, context=context)


@functools.cache
def made(name, **chosen):
  """(model, variables, tokens [3, 12], its compiled logits); of 11 tokens and a context of 12."""
  model = build(name, chosen)
  tokens = np.random.default_rng(0).integers(0, 11, (3, 12), dtype=np.int32)
  variables = drawn(model, tokens, scale=0.3)
  if name == 'counts':
    variables = jax.tree.map(jnp.abs, variables)
  return model, variables, tokens, functools.partial(jax.jit(model.apply), variables)


@pytest.mark.parametrize('name, chosen', CASES)
def test_no_token_sees_a_later_one_and_no_example_another_and_steps_equal_all_at_once(name, chosen):
  model, variables, tokens, apply = made(name, **chosen)
  logits, other = apply(tokens), tokens.copy()
  assert logits.shape == (3, 12, 11) and logits.dtype == jnp.float32
  other[:, 7] = (other[:, 7] + 1) % 11
  after = apply(other)
  np.testing.assert_allclose(after[:, :7], logits[:, :7], atol=1e-6)
  assert (np.abs(after - logits)[:, 7:].max((1, 2)) > 1e-3).all()  # the change is seen from there on
  other[1:] = 0
  np.testing.assert_allclose(apply(other)[0, :7], logits[0, :7], atol=1e-6)
  state, given = model.initial(3), []
  step = jax.jit(lambda tokens, state: model.apply(variables, tokens, state, method='step'))
  for t in range(12):
    one, state = step(tokens[:, t : t + 1], state)
    given.append(one)
    assert {x.shape[0] for x in jax.tree.leaves(state)} <= {3}  # every leaf is per example
  np.testing.assert_allclose(jnp.stack(given, 1), logits, atol=1e-5)


def test_a_prompt_of_any_length_begins_a_gpt():
  model, variables, tokens, apply = made('gpt', **SMALL['gpt'])
  whole = apply(tokens)
  length = np.array([1, 5, 12])
  logits, state = jax.jit(lambda t, n: model.apply(variables, t, n, method='begin'))(tokens, length)
  np.testing.assert_allclose(logits, whole[np.arange(3), length - 1], atol=1e-5)
  step = jax.jit(lambda tokens, state: model.apply(variables, tokens, state, method='step'))
  after, _ = step(tokens[:, 5:6], state)
  np.testing.assert_allclose(after[1], whole[1, 5], atol=1e-5)


@pytest.mark.parametrize(
  'name, chosen, context, count',
  [
    ('wavenet', {}, 8, 76_579),  # karpathy/nn-zero-to-hero, makemore part 5
    ('mlp', {}, 3, 11_897),  # the same, part 3
    # by hand, of 27 tokens and no biases
    ('gpt', {'layers': 2, 'width': 128, 'bias': False}, 64, (27 + 64) * 128 + 2 * (12 * 128**2 + 2 * 128) + 128),
    # Radford et al. 2019's smallest, as nanoGPT and Hugging Face count it
    ('gpt', {'layers': 12, 'heads': 12, 'width': 768}, 1024, 124_439_808),
  ],
)
def test_parameter_counts(name, chosen, context, count):
  module = language.MODELS[name](vocabulary=50_257 if context == 1024 else 27, context=context, **chosen)
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))['params']
  assert sum(x.size for x in jax.tree.leaves(shapes)) == count


def test_a_gpt_in_plain_numpy():
  _, variables, tokens, apply = made('gpt', **SMALL['gpt'])
  params = jax.tree.map(np.asarray, variables['params'])

  def norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p['scale'] + p['bias']

  x = params['tokens']['embedding'][tokens[0]] + params['tokens']['positions'][:12]
  for i in range(2):
    p, y = params[f'blocks_{i}'], np.zeros_like(x)
    h, a = norm(x, p['attention_norm']), p['attention']
    for head in range(4):
      q = h @ a['query'][:, head] + a['query_bias'][head]
      k, v = (h @ a['key_value'][:, j, head] + a['key_value_bias'][j, head] for j in range(2))
      scores = np.where(np.tri(12, dtype=bool), q @ k.T / 2, -np.inf)  # √4
      share = np.exp(scores - scores.max(-1, keepdims=True))
      y += share / share.sum(-1, keepdims=True) @ v @ a['out'][head]
    x = x + y + a['out_bias']
    h = norm(x, p['mlp_norm']) @ p['up']['kernel'] + p['up']['bias']
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    x = x + h @ p['down']['kernel'] + p['down']['bias']
  expected = norm(x, params['norm']) @ params['tokens']['embedding'].T
  np.testing.assert_allclose(apply(tokens)[0], expected, atol=1e-4)


@pytest.mark.parametrize('name, chosen, joined', [('mlp', {'norm': 'batch'}, 3), ('wavenet', {'window': 8}, 2)])
def test_batch_norm_is_that_of_windows_one_by_one_whatever_the_padding(name, chosen, joined):
  """As karpathy/nn-zero-to-hero trains them: an example is a window of each token, and its target."""
  model = build(name, chosen | {'hidden': 5}, vocabulary=7)
  lengths, draw = np.array([5, 2, 9]), np.random.default_rng(0)
  mask = np.arange(9) < lengths[:, None]
  tokens = np.where(mask, draw.integers(1, 7, (3, 9)), 0).astype(np.int32)
  variables = drawn(model, tokens, scale=0.5)
  apply = jax.jit(lambda *given: model.apply(variables, given[0], train=True, mask=given[1], mutable='batch_stats'))
  logits, changed = apply(tokens, mask)
  longer, of_longer = apply(*(np.pad(x, ((0, 0), (0, 7))) for x in (tokens, mask)))
  np.testing.assert_allclose(longer[:, :9][mask], logits[mask], atol=1e-5)
  p, ahead = jax.tree.map(np.asarray, variables['params']), np.pad(tokens, ((0, 0), (model.window - 1, 0)))
  windows = np.stack([ahead[:, i : i + 9] for i in range(model.window)], -1)[mask]
  x = p['Embed_0']['embedding'][windows].astype(np.float64)  # [windows, window, embedding]
  for level in range(len(changed['batch_stats'])):
    x = x.reshape(len(x), -1, joined * x.shape[-1]) @ p[f'Dense_{level}']['kernel']
    mean, var, norm = x.mean((0, 1)), x.var((0, 1)), p[f'BatchNorm_{level}']
    for stats in (changed, of_longer):
      running = stats['batch_stats'][f'BatchNorm_{level}']['mean']
      before = variables['batch_stats'][f'BatchNorm_{level}']['mean']
      np.testing.assert_allclose(running, 0.9 * before + 0.1 * mean, rtol=1e-4, atol=1e-5)
    x = np.tanh((x - mean) / np.sqrt(var + 1e-5) * norm['scale'] + norm['bias'])
  head = p[f'Dense_{level + 1}']
  np.testing.assert_allclose(logits[mask], x[:, 0] @ head['kernel'] + head['bias'], rtol=1e-4, atol=1e-4)


def test_gpt2s_initialisation():
  model = build('gpt', dict(layers=2, heads=4, width=128), vocabulary=500, context=64)
  params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))['params']
  block = params['blocks_1']
  for kernel, std in (
    (params['tokens']['embedding'], 0.02),
    (block['attention']['query'], 0.02),
    (block['attention']['out'], 0.02 / 2),  # √(2 · 2 layers)
    (block['down']['kernel'], 0.02 / 2),
    (block['up']['kernel'], 0.02),
  ):
    np.testing.assert_allclose(np.std(kernel), std, rtol=0.03)
  assert not np.any(block['up']['bias']) and not np.any(block['attention']['query_bias'])


def test_rotary_positions_are_relative():
  """Scores depend on the distance alone (Su et al. 2021, eq. 16)."""
  from karpjax.layers import attention

  q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
  score = lambda m, n: float((attention.rotate(q, jnp.array([m])) * attention.rotate(k, jnp.array([n]))).sum())
  np.testing.assert_allclose(score(3, 1), score(12, 10), rtol=1e-4)
  assert abs(score(3, 1) - score(3, 2)) > 1e-3
  np.testing.assert_allclose(attention.rotate(q, jnp.array([0])), q)


def test_grouped_queries_are_heads_with_shared_keys():
  from karpjax.layers import attention

  x = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
  grouped = attention.MultiHeadAttention(16, 4, 2)
  params = drawn(grouped, x, scale=0.1)['params']
  repeated = {n: np.repeat(v, 2, -2) if n.startswith('key_value') else v for n, v in params.items()}
  attend = lambda module, params: jax.jit(lambda p: module.apply({'params': p}, x, causal=True))(params)
  full = attend(attention.MultiHeadAttention(16, 4), repeated)
  np.testing.assert_allclose(attend(grouped, params), full, atol=1e-6)


@pytest.mark.parametrize('std', [0.02, 0])
def test_heads_of_a_size_of_their_own_that_is_the_usual_one_are_the_same_to_the_bit(std):
  from karpjax.layers import attention

  x = np.random.default_rng(0).normal(size=(2, 5, 12)).astype(np.float32)
  usual, own = (attention.MultiHeadAttention(12, 3, kernel_std=std, out_std=std, head_dim=n) for n in (0, 4))
  (y, params), (same, others) = (m.init_with_output(jax.random.key(0), x) for m in (usual, own))
  assert jax.tree.all(jax.tree.map(np.array_equal, (y, params), (same, others)))


def test_a_head_whose_output_nobody_reads_can_be_left_out():
  from karpjax.layers import attention

  x = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
  attend = lambda heads, params: attention.MultiHeadAttention(16, heads, rotary=True, head_dim=6).apply(
    {'params': params}, x, causal=True
  )
  params = drawn(attention.MultiHeadAttention(16, 4, rotary=True, head_dim=6), x, scale=0.3)['params']
  params['out'] = jnp.asarray(params['out']).at[2].set(0)
  axis = {'query': 1, 'query_bias': 0, 'key_value': 2, 'key_value_bias': 1, 'out': 0}
  left = {name: np.delete(p, 2, axis[name]) if name in axis else p for name, p in params.items()}
  np.testing.assert_allclose(attend(3, left), attend(4, params), atol=1e-5)


@pytest.mark.parametrize(
  'name, chosen, message',
  [
    ('gpt', {'width': 30}, 'does not divide'),
    ('gpt', {'kv_heads': 3}, 'does not divide'),
    ('gpt', {'positions': 'leanred'}, 'Did you mean learned'),
    ('gpt', {'units': (3,)}, 'has no units=3'),
    ('gpt', {'width': 12, 'heads': 4, 'positions': 'rotary'}, 'even size'),
    ('gpt', {'head_dim': 3, 'positions': 'rotary'}, r'head_dim=3.* even size'),
    ('wavenet', {'window': 6}, 'power of 2'),
    ('mlp', {'norm': 'layer'}, 'norm=layer: unknown'),
    ('lstm', {'units': (0,)}, 'at least 1'),
    ('lsmt', {}, 'Did you mean lstm'),
  ],
)
def test_bad_options(name, chosen, message):
  with pytest.raises(UsageError, match=message):
    build(name, chosen, vocabulary=5, context=8)
