"""Encoders and decoders: what padding must not change, step by step as all at once, and attention against NumPy."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax import errors
from karpjax import options as model_options
from karpjax.data import tokenisers
from karpjax.models import seq2seq
from tests.models.drawing import drawn

VOCABULARIES = {
  'source': tokenisers.make('characters', ['abcdefgh'], specials=tokenisers.SPECIALS),
  'target': tokenisers.make('characters', ['stuvwx'], specials=tokenisers.SPECIALS),
}
MODELS = {
  'lstm': dict(attention='none', units=(6, 5)),
  'lstm attending': dict(attention='additive', units=(6, 5)),
  'gru': dict(attention='additive', units=(6,)),
  'gru multiplying': dict(attention='multiplicative', units=(6,)),
  'transformer': dict(layers=1, heads=2, width=8, hidden=16),
  'transformer rotary': dict(
    layers=1, heads=2, width=8, hidden=16, positions='rotary', pre_norm=True, tied=True, head_dim=6
  ),
}
SOURCE = np.array([[4, 5, 6, 7, 3, 0, 0], [8, 9, 10, 11, 4, 5, 3], [6, 3, 0, 0, 0, 0, 0]], np.int32)
TARGET_IN = np.array([[2, 5, 6, 7, 0], [2, 9, 4, 5, 6], [2, 4, 0, 0, 0]], np.int32)


def build(name, options, vocabularies=VOCABULARIES, lengths=(12, 9)):
  sizes = {'source_vocabulary': vocabularies['source'].size, 'vocabulary': vocabularies['target'].size}
  contexts = dict(zip(('source_context', 'context'), lengths))
  return model_options.build(seq2seq.MODELS, name, options, SOURCE, TARGET_IN, **sizes, **contexts)


def made(name, **changes):
  """A model, and parameters that are drawn wide, so that errors show."""
  options = {**MODELS[name], **({} if 'transformer' in name else {'embedding': 4})}
  model = build(name.split()[0], {'dropout': 0.1, **options, **changes})
  return model, drawn(model, SOURCE, TARGET_IN, scale=0.6)['params']


def applied(model, params, source, target_in):
  return jax.jit(lambda params: model.apply({'params': params}, source, target_in))(params)


@pytest.mark.parametrize(
  'name', [pytest.param(n, marks=[] if n in ('gru attending', 'transformer') else [pytest.mark.slow]) for n in MODELS]
)
def test_padding_and_what_comes_later_change_nothing_and_steps_equal_all_at_once(name):
  model, params = made(name)
  logits = applied(model, params, SOURCE, TARGET_IN)
  assert logits.shape == (3, 5, 10) and logits.dtype == jnp.float32
  assert np.abs(np.diff(logits, axis=0)).max() > 0.1  # the sources matter
  later = np.concatenate([TARGET_IN[:, :3], np.full((3, 5), 8, np.int32)], 1)
  wider = applied(model, params, np.pad(SOURCE, ((0, 0), (0, 4))), later)
  np.testing.assert_allclose(wider[:, :3], logits[:, :3], atol=2e-5)
  assert (np.abs(wider[:, 3:5] - logits[:, 3:5]).max((1, 2)) > 0.01).all()  # what comes later is seen then

  state, memory = jax.jit(lambda params: model.apply({'params': params}, SOURCE, 9, method='encode'))(params)
  assert {x.shape[0] for x in jax.tree.leaves((state, memory))} == {3}
  step = jax.jit(lambda tokens, state: model.apply({'params': params}, tokens, state, memory, method='step'))
  for t in range(5):
    one, state = step(TARGET_IN[:, t], state)
    np.testing.assert_allclose(one, logits[:, t], atol=2e-5)


@pytest.mark.parametrize('name', ['gru', pytest.param('transformer', marks=pytest.mark.slow)])
def test_a_translation_is_what_the_logits_say(name):
  model, params = made(name)
  translate = lambda beam: np.asarray(
    jax.jit(lambda p: seq2seq.translate(model, p, SOURCE, steps=7, beam=beam, length_penalty=0.0))(params)
  )
  greedy, beamed = translate(1), translate(20)
  target_in = np.concatenate([np.full((6, 1), tokenisers.BEGIN), np.concatenate([greedy, beamed])[:, :-1]], 1)
  logits = np.array(applied(model, params, np.concatenate([SOURCE, SOURCE]), target_in.astype(np.int32)))
  logits[..., : tokenisers.END] = -np.inf  # <pad>, <unk> and <s> are not said
  log_probs = np.asarray(jax.nn.log_softmax(logits))
  totals = []
  for row, scores in zip(np.concatenate([greedy, beamed]), log_probs):
    said = row[row != 0]
    assert tokenisers.END not in said[:-1] and (len(said) == 7 or said[-1] == tokenisers.END)
    assert not {tokenisers.UNKNOWN, tokenisers.BEGIN} & set(said)
    totals.append(scores[np.arange(len(said)), said].sum())
    if len(totals) <= 3:  # greedy: each token is the largest logit behind the ones before
      np.testing.assert_array_equal(scores[: len(said)].argmax(-1), said)
  assert (np.array(totals[3:]) >= np.array(totals[:3]) - 1e-4).all()  # a wide beam finds nothing worse


@pytest.mark.parametrize('beam', [1, 3])
def test_unk_is_said_where_it_may_be(beam):
  class Decoder:
    def apply(self, variables, tokens, state, *_, method):
      if method == 'encode':
        return jnp.zeros(len(tokens)), jnp.zeros(len(tokens))
      likely = {tokenisers.PAD: 4, tokenisers.UNKNOWN: 3, tokenisers.BEGIN: 4, 5: 2}  # 2 of each, then the end
      logits = jnp.zeros(6).at[jnp.array([*likely])].set(jnp.array([*likely.values()], jnp.float32))
      return jnp.where(state[:, None] < 2, logits, jnp.eye(6)[tokenisers.END] * 9), state + 1

  for unknown, token in ((True, tokenisers.UNKNOWN), (False, 5)):
    said = seq2seq.translate(Decoder(), {}, np.zeros((2, 3), np.int32), steps=5, beam=beam, unknown=unknown)
    assert said.tolist() == 2 * [[token, token, tokenisers.END, 0, 0]]


@pytest.mark.parametrize(
  'name, options, count',
  [
    # bentrevett/pytorch-seq2seq, parts 6 and 3: with its vocabularies the same architectures
    ('transformer', {}, 9_038_341),
    ('gru', dict(attention='additive', embedding=256, units=(512,)), 20_518_405),
  ],
)
def test_params_are_as_many_as_published(name, options, count):
  vocabularies = {
    side: tokenisers.Tokeniser('words', tuple(map(str, range(n)))) for side, n in (('source', 7853), ('target', 5893))
  }
  model = build(name, options, vocabularies, (100, 100))
  shapes = jax.eval_shape(model.init, jax.random.key(0), SOURCE, TARGET_IN)['params']
  assert sum(x.size for x in jax.tree.leaves(shapes)) == count


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_bahdanaus_decoder_against_numpy():
  model, params = made('gru')
  logits = applied(model, params, SOURCE, TARGET_IN)
  share = aligned(model, params)
  p = jax.tree.map(np.asarray, params)

  def gru(layer, direction, x, h):
    x = x @ layer['input_kernel'][direction] + layer['input_bias'][direction]
    y = h @ layer['state_kernel'][direction] + layer['state_bias'][direction]
    (xr, xz, xn), (hr, hz, hn) = np.split(x, 3), np.split(y, 3)
    z = sigmoid(xz + hz)
    return (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * h

  def read(tokens, direction):
    h, states = np.zeros(6), []
    for token in tokens:
      states.append(h := gru(p['encoder']['layer1'], direction, p['source_tokens']['embedding'][token], h))
    return states

  for b in range(3):
    tokens = [t for t in SOURCE[b] if t]
    forwards, backwards = read(tokens, 0), read(tokens[::-1], 1)[::-1]
    memory = [np.concatenate(pair) for pair in zip(forwards, backwards)]
    last = np.concatenate([forwards[-1], backwards[0]])
    h = np.tanh(last @ p['bridges_0']['kernel'] + p['bridges_0']['bias'])
    attend, head = p['decoder']['attend'], p['decoder']['head']
    for t, token in enumerate(TARGET_IN[b]):
      query = h @ attend['of_query']['kernel'] + attend['of_query']['bias']
      scores = [np.tanh(query + m @ attend['of_memory']['kernel']) @ attend['score']['kernel'][:, 0] for m in memory]
      weights = np.exp(scores) / np.exp(scores).sum()
      context = sum(w * m for w, m in zip(weights, memory))
      embedded = p['tokens']['embedding'][token]
      h = gru(p['decoder']['stack']['layer1'], 0, np.concatenate([embedded, context]), h)
      features = np.concatenate([h, context, embedded])
      np.testing.assert_allclose(logits[b, t], features @ head['kernel'] + head['bias'], atol=2e-5)
      np.testing.assert_allclose(share[b, t, : len(tokens)], weights, atol=1e-5)
      np.testing.assert_allclose(share[b, t, len(tokens) :], 0, atol=1e-7)


def aligned(model, params):
  return jax.jit(lambda params: seq2seq.alignment(model, params, SOURCE, TARGET_IN))(params)


@pytest.mark.slow
@pytest.mark.parametrize('name, options', [('gru multiplying', {}), ('transformer', {'layers': 2})])
def test_alignments_are_shares_of_what_is_there(name, options):
  model, params = made(name, **options)
  share = aligned(model, params)
  assert share.shape == (3, 5, 7)
  np.testing.assert_allclose(share.sum(-1), 1, atol=1e-5)
  np.testing.assert_allclose(share[0, :, 5:], 0, atol=1e-7)
  if name == 'transformer':
    seen = jax.jit(lambda p: model.apply({'params': p}, SOURCE, TARGET_IN, mutable='intermediates')[1])(params)
    last = seen['intermediates']['blocks_1']['cross']['attention'][0]
    np.testing.assert_allclose(share, last.mean(1), atol=1e-6)


def test_without_attention_there_is_no_alignment():
  assert jax.eval_shape(lambda p: seq2seq.alignment(made('lstm')[0], p, SOURCE, TARGET_IN), made('lstm')[1]) is None


@pytest.mark.parametrize('name', MODELS)
def test_units_are_dropped_in_training_alone(name):
  """Which needs a key; an evaluation has none."""
  model, params = made(name)
  with pytest.raises(flax.errors.InvalidRngError):
    jax.eval_shape(lambda: model.apply({'params': params}, SOURCE, TARGET_IN, train=True))
  keys = {'dropout': jax.random.key(0)}
  jax.eval_shape(lambda: model.apply({'params': params}, SOURCE, TARGET_IN, train=True, rngs=keys))


@pytest.mark.parametrize(
  'name, options, message',
  [
    ('grv', {}, 'Did you mean gru'),
    ('gru', {'heads': 2}, 'model gru has no heads=2'),
    ('transformer', {'attention': 'additive'}, 'model transformer has no attention=additive'),
    ('gru', {'attention': 'aditive'}, 'Did you mean additive'),
    ('gru', {'units': (0,)}, 'units=0: at least 1'),
    ('lstm', {'dropout': 1.0}, 'dropout=1.0: at least 0'),
    ('transformer', {'width': 30, 'heads': 8}, 'width=30'),
    ('transformer', {'positions': 'rotarry'}, 'Did you mean rotary'),
  ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_compiled(name, options, message):
  with pytest.raises(errors.UsageError, match=message):
    build(name, options)


def test_a_sequence_longer_than_the_positions_is_refused():
  model, params = made('transformer')
  with pytest.raises(errors.UsageError, match='13 tokens are more than the 12 positions'):
    jax.eval_shape(model.apply, {'params': params}, np.ones((1, 13), np.int32), TARGET_IN[:1])
