"""Texts drawn from a language model, token by token, as an endless stream."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.program import Input

CHUNK = 32  # tokens in one call of a stream


def filter_logits(logits, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0):
  """The logits to draw from: -inf where a token is left out.

  Args:
    logits: [batch, vocabulary] float32.
    temperature: what they are divided by; positive.
    top_k: keep this many of the largest, the first of equals; 0: all.
    top_p: then keep the fewest of the most probable that have this probability together, one at least; 1: all (Holtzman
      et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1).

  Returns:
    [batch, vocabulary] float32.
  """
  logits = logits / temperature
  rows = jnp.arange(len(logits))[:, None]
  if 0 < top_k < logits.shape[-1]:
    largest, tokens = jax.lax.top_k(logits, top_k)
    logits = jnp.full_like(logits, -jnp.inf).at[rows, tokens].set(largest)
  return nucleus(logits, top_p) if top_p < 1 else logits


def nucleus(logits, top_p):
  """`filter_logits`'s rule of top_p, which may be traced, and [batch, 1], a number for each row."""
  order = jnp.argsort(logits, descending=True, stable=True)
  falling = jnp.take_along_axis(logits, order, -1)
  probabilities = jax.nn.softmax(falling)
  before = jnp.cumsum(probabilities, -1) - probabilities  # the probability of those that are more probable
  kept = (before < top_p).at[:, 0].set(True)
  return logits.at[jnp.arange(len(logits))[:, None], order].set(jnp.where(kept, falling, -jnp.inf))


def next_tokens(logits, keys, temperature: float = 1.0, **rules):
  """The next tokens, drawn by `filter_logits`; at temperature 0 the most probable.

  Args:
    logits: [batch, vocabulary] float32.
    keys: [batch], one per row, so that a row draws the same in whatever batch it comes.
    temperature, rules: static numbers, as `filter_logits`'s.

  Returns:
    [batch] int32.
  """
  if temperature == 0:
    return logits.argmax(-1).astype(jnp.int32)
  drawn = jax.vmap(jax.random.categorical)(keys, filter_logits(logits, temperature, **rules))
  return drawn.astype(jnp.int32)


# ---- streams of any length ----


def begin(model, variables, tokens, length):
  """The logits [batch, vocabulary] of what follows prompts, and a model's state after them.

  Args:
    model: as for `stream`.
    variables: its params and collections.
    tokens: [batch, time] int32.
    length: [batch] int32, at least 1: how many of them are each prompt.
  """
  if hasattr(model, 'begin'):
    return model.apply(variables, tokens, length, method='begin')

  def one(t, carry):
    token = jax.lax.dynamic_slice_in_dim(tokens, t, 1, 1)
    new = model.apply(variables, token, carry[1], method='step')
    if carry[0] is None:
      return new
    return jax.tree.map(lambda new, old: jnp.where((t < length)[:, *(None,) * (new.ndim - 1)], new, old), new, carry)

  return jax.lax.fori_loop(1, length.max(), one, one(0, (None, model.initial(tokens.shape[0]))))


def exports(model) -> dict:
  """For `Program.exports`: 'prefill' of prompts and 'step' of the tokens behind them, by a model as for `stream`."""
  of_prompts = {'tokens': Input((model.context,), 'int32'), 'length': Input((), 'int32')}
  state = jax.tree.map(lambda x: Input(x.shape[1:], str(x.dtype)), jax.eval_shape(lambda: model.initial(1)))
  named = lambda logits, state: {'logits': logits, 'state': state}

  def prefill(state, batch, key):
    return named(*begin(model, state.variables(), batch['tokens'], batch['length']))

  def step(state, batch, key):
    return named(*model.apply(state.variables(), batch['token'][:, None], batch['state'], method='step'))

  return {'prefill': (prefill, of_prompts), 'step': (step, {'token': Input((), 'int32'), 'state': state})}


def chunk_of(model, chunk: int = CHUNK) -> int:
  """Tokens between two looks at whether a model's cache has room for as many more."""
  return min(chunk, max(1, model.context // 4)) if hasattr(model, 'begin') else chunk


@functools.lru_cache(maxsize=16)
def _compiled(model, chunk: int, **rules):
  """(begin, extend): variables, … -> logits and a state; variables, logits, a state, keys, t -> tokens, logits,
  a state.
  """

  @functools.partial(jax.jit, donate_argnums=2)
  def extend(variables, logits, state, keys, t):
    def one(carry, t):
      logits, state = carry
      own = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
      tokens = next_tokens(logits, own, **rules)
      return model.apply(variables, tokens[:, None], state, method='step'), tokens

    (logits, state), tokens = jax.lax.scan(one, (logits, state), t + jnp.arange(chunk))
    return tokens.T, logits, state

  return jax.jit(functools.partial(begin, model)), extend


def stream(model, variables, prompt: np.ndarray, keys, *, chunk: int = CHUNK, **rules) -> Iterator[np.ndarray]:
  """What follows a prompt, without end: each token costs one step, and nothing is compiled anew.

  A model whose cache is full reads the last half of its context once more.

  Args:
    model: with `context`, `step`, and `begin` or `initial`.
    variables: its params and collections.
    prompt: [batch, n] int32, n at least 1; of one that is longer than the context the last tokens count.
    keys: [batch], one per text; token t is drawn from a key folded with t.
    chunk: tokens in one call.
    rules: temperature, top_k and top_p, as for `filter_logits`; a temperature of 0 takes the most probable.

  Yields:
    [batch, up to chunk] int32.
  """
  batch, context = len(prompt), model.context
  limited = hasattr(model, 'begin')  # by its positions
  chunk = chunk_of(model, chunk)
  start, extend = _compiled(model, chunk, **rules)
  text, t = np.asarray(prompt, np.int32), 0

  def read(tokens):
    tokens = tokens[:, -context:] if limited else tokens
    room = context // 2 if limited and tokens.shape[1] <= context // 2 else max(context, tokens.shape[1])
    padded = np.zeros((batch, room), np.int32)
    padded[:, : tokens.shape[1]] = tokens
    return (*start(variables, padded, np.full(batch, tokens.shape[1], np.int32)), tokens.shape[1])

  logits, state, length = read(text[:, -(context - chunk) :] if limited else text)
  while True:
    if limited and length + chunk > context:
      logits, state, length = read(text[:, -(context // 2) :])
    tokens, logits, state = extend(variables, logits, state, keys, np.int32(t))
    tokens = np.asarray(tokens)
    text, t, length = np.concatenate([text, tokens], 1)[:, -context:], t + chunk, length + chunk
    yield tokens


def texts(model, variables, prompt: np.ndarray, keys, *, steps: int, end: int | None = None, **rules):
  """`stream`, cut to `steps` tokens each, and behind a first `end`: a list of [n] int32, without it."""
  parts = []
  for tokens in stream(model, variables, prompt, keys, **rules):
    parts.append(tokens)
    rows = np.concatenate(parts, 1)[:, :steps]
    if rows.shape[1] == steps or (end is not None and (rows == end).any(1).all()):
      break
  return [row[: np.argmax(row == end) if end in row else None] for row in rows]
