import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from karpjax import generation
from karpjax.models import language


def made(name, **options):
  model = language.build(name, vocabulary=11, context=16, dtype=jnp.float32, options=options)
  variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 16), jnp.int32)))
  # logits that differ: an untrained model's are nearly alike
  variables['params'] = jax.tree.map(lambda x: 4 * x, variables['params'])
  return model, variables


def take(stream, count):
  parts = []
  while sum(part.shape[1] for part in parts) < count:
    parts.append(next(stream))
  return np.concatenate(parts, 1)[:, :count]


@pytest.mark.parametrize(
  'name, options, length',
  [
    pytest.param('gpt', dict(layers=2, heads=2, width=16), 3, marks=pytest.mark.slow),
    pytest.param('gpt', dict(layers=2, heads=4, kv_heads=2, width=16), 10, marks=pytest.mark.slow),
    pytest.param('lstm', dict(units=(8,)), 3, marks=pytest.mark.slow),
    ('mlp', {}, 3),
  ],
)
def test_greedy_tokens_are_those_of_the_whole_text_read_anew(name, options, length):
  """For a gpt with a context of 16 that is read anew from its half when it is full; a prompt of 10 is more than a half."""
  model, variables = made(name, **options)
  prompt = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3][:length]], np.int32)
  keys = jax.random.split(jax.random.key(0), 1)
  got = take(generation.stream(model, variables, prompt, keys, temperature=0, chunk=4), 40)[0]
  said, begun = list(prompt[0]), 0
  # all in one shape: what is behind a token changes nothing before it
  read = np.zeros((1, 16 if name == 'gpt' else 40 + length), np.int32)
  apply = jax.jit(model.apply)
  for t in range(40):
    if name == 'gpt' and t % 4 == 0 and len(said) - begun + 4 > 16:
      begun = len(said) - 8
    count = len(said) - begun
    read[0, :count] = said[begun:]
    said.append(int(apply(variables, read)[0, count - 1].argmax()))
  assert got.tolist() == said[length:]


def test_each_text_draws_by_its_own_key():
  model, variables = made('lstm', units=(8,))
  keys = jax.random.split(jax.random.key(1), 3)
  prompt = np.array([[1], [1], [2]], np.int32)
  together = take(generation.stream(model, variables, prompt, keys), 20)
  for i in range(3):
    alone = take(generation.stream(model, variables, prompt[i : i + 1], keys[i : i + 1]), 20)
    np.testing.assert_array_equal(alone[0], together[i])
  assert (together[0] != together[1]).any()


def test_nothing_is_compiled_anew_while_a_text_goes_on():
  model, variables = made('gpt', layers=1, heads=2, width=8)
  stream = generation.stream(
    model, variables, np.array([[1]], np.int32), jax.random.split(jax.random.key(0), 1), top_k=3
  )
  take(stream, 40)
  begin, go_on = generation._compiled(model, 1, 1.0, 3, 1.0, 4)
  assert begin._cache_size() == go_on._cache_size() == 1


def test_texts_end_where_they_end():
  model, variables = made('bigram')
  variables['params']['logits'] = 50 * jnp.eye(11, k=1)  # each token is followed by the next one
  rows = generation.texts(
    model, variables, np.array([[0], [6]], np.int32), jax.random.split(jax.random.key(0), 2), steps=50, end=9
  )
  assert [row.tolist() for row in rows] == [list(range(1, 9)), [7, 8]]
