"""Texts of any length from a language model, as a stream of tokens: each costs one step, and nothing is compiled anew.

A model whose cache is full reads the last half of its context once more and goes on from there.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import decoding

CHUNK = 32  # tokens in one call, and shown at once


@functools.lru_cache(maxsize=16)
def _compiled(model, batch: int, temperature: float, top_k: int, top_p: float, chunk: int):
  """(begin, go_on): variables, … -> logits and a state; variables, logits, a state, keys, t -> tokens, logits, a state."""

  @jax.jit
  def begin(variables, tokens, length):
    if hasattr(model, 'begin'):
      return model.apply(variables, tokens, length, method='begin')

    def one(t, carry):
      return model.apply(variables, jax.lax.dynamic_slice_in_dim(tokens, t, 1, 1), carry[1], method='step')

    state = model.initial(batch)
    shapes = jax.eval_shape(lambda: one(0, (None, state)))
    return jax.lax.fori_loop(0, length[0], one, (jnp.zeros(shapes[0].shape, shapes[0].dtype), state))

  @functools.partial(jax.jit, donate_argnums=2)
  def go_on(variables, logits, state, keys, t):
    def one(carry, t):
      logits, state = carry
      own = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
      tokens = decoding.choose(logits, own, temperature, top_k, top_p)
      return model.apply(variables, tokens[:, None], state, method='step'), tokens

    (logits, state), tokens = jax.lax.scan(one, (logits, state), t + jnp.arange(chunk))
    return tokens.T, logits, state

  return begin, go_on


def stream(
  model,
  variables,
  prompt: np.ndarray,
  keys: jax.Array,
  *,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  chunk: int = CHUNK,
) -> Iterator[np.ndarray]:
  """What follows a prompt, without end.

  Args:
    model: of `models.language`.
    variables: its params and collections.
    prompt: [batch, n] int32, n at least 1; of one that is longer than the context the last tokens count.
    keys: [batch], one per text; token t is drawn from a key folded with t.
    temperature, top_k, top_p: as `decoding.choose`'s.
    chunk: tokens in one call.

  Yields:
    [batch, up to chunk] int32.
  """
  batch, context = len(prompt), model.context
  limited = hasattr(model, 'begin')  # by its positions
  chunk = min(chunk, max(1, context // 4)) if limited else chunk
  begin, go_on = _compiled(model, batch, temperature, top_k, top_p, chunk)
  said, t = np.asarray(prompt, np.int32), 0

  def read(tokens):
    tokens = tokens[:, -context:] if limited else tokens
    room = context // 2 if limited and tokens.shape[1] <= context // 2 else max(context, tokens.shape[1])
    padded = np.zeros((batch, room), np.int32)
    padded[:, : tokens.shape[1]] = tokens
    return (*begin(variables, padded, np.full(batch, tokens.shape[1], np.int32)), tokens.shape[1])

  logits, state, length = read(said[:, -(context - chunk) :] if limited else said)
  while True:
    if limited and length + chunk > context:
      logits, state, length = read(said[:, -(context // 2) :])
    tokens, logits, state = go_on(variables, logits, state, keys, np.int32(t))
    tokens = np.asarray(tokens)
    said, t, length = np.concatenate([said, tokens], 1)[:, -context:], t + chunk, length + chunk
    yield tokens


def texts(model, variables, prompt: np.ndarray, keys: jax.Array, *, steps: int, end: int | None = None, **options):
  """`stream`, cut to `steps` tokens each, and behind a first `end`: a list of [n] int32, without it."""
  parts, count = [], 0
  for tokens in stream(model, variables, prompt, keys, **options):
    parts.append(tokens)
    count += tokens.shape[1]
    if count >= steps or (end is not None and (np.concatenate(parts, 1) == end).any(1).all()):
      break
  rows = np.concatenate(parts, 1)[:, :steps]
  if end is None:
    return list(rows)
  return [row[: np.argmax(row == end) if (row == end).any() else len(row)] for row in rows]
