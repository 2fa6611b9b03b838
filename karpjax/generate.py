"""Sequences from any step function, token by token: greedy, by beam search, or drawn, as an endless stream.

A step is `step(tokens [batch] int32, state) -> (logits [batch, vocabulary] float32, state)`: the last token, and what a
model remembers -> what may come next. The state is any pytree whose leaves have a leading axis [batch, …]: the state of
an LSTM, or a cache of keys and values with a length per example. Nothing here knows a model.
"""

import collections
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.program import Input

PADDING = 0  # what follows the end
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


# ---- whole sequences ----


def greedy(step, state, first, *, steps: int, end: int | None = None):
  """The most probable next token, until all sequences have ended or are `steps` long.

  Args:
    step, state: see the module; the state after all that comes before `first` [batch] int32.
    steps: the most tokens.
    end: the token that ends a sequence, or None.

  Returns:
    [batch, steps] int32: the end is part of it, and 0 is what follows it.
  """

  def extend(carry):
    t, state, last, ended, tokens = carry
    logits, state = step(last, state)
    chosen = jnp.where(ended, PADDING, logits.argmax(-1).astype(jnp.int32))
    ended = ended if end is None else ended | (chosen == end)
    return t + 1, state, chosen, ended, tokens.at[:, t].set(chosen)

  size = first.shape[0]
  tokens = jnp.full((size, steps), PADDING, jnp.int32)
  carry = jnp.zeros((), jnp.int32), state, first.astype(jnp.int32), jnp.zeros(size, bool), tokens
  return jax.lax.while_loop(lambda carry: (carry[0] < steps) & ~carry[3].all(), extend, carry)[-1]


# ---- beam search ----


def length_norm(length, alpha: float):
  """((5 + length) / 6)^alpha, which log probabilities are divided by (Wu et al. 2016, eq. 14)."""
  return ((5 + length) / 6) ** alpha


def repeat(tree, times: int):
  """[batch, …] -> [batch · times, …], leaf by leaf, each row beside its copies: as `beam_search` lays out its beams."""
  return jax.tree.map(lambda x: jnp.repeat(x, times, 0), tree)


# The sequences that a search holds: tokens [batch, beam, steps] int32; their log probabilities, lengths, whether they have
# ended and their last tokens, all [batch, beam]; the model's state [batch · beam, …]; and the time.
Beam = collections.namedtuple('Beam', 't state tokens total length ended last')


def _finished(beam: Beam, steps: int, alpha: float):
  """[batch]: whether no unfinished sequence can beat the best that has ended."""
  live = ~beam.ended & (beam.total > -jnp.inf)
  score = jnp.where(beam.ended, beam.total / length_norm(beam.length, alpha), -jnp.inf).max(-1)
  # log probabilities only fall, and their divisor grows no further than that of the longest
  attainable = jnp.where(live, beam.total, -jnp.inf).max(-1) / length_norm(steps, alpha)
  return ~live.any(-1) | (attainable < score)


def _extend(step: Callable, beam: Beam, over, end: int | None, alpha: float) -> Beam:
  """The best of all continuations; nothing changes where an example's search is `over` [batch, 1]."""
  size, width = beam.total.shape
  rows = jnp.arange(size)[:, None]
  logits, state = step(beam.last.reshape(-1), beam.state)
  vocabulary = logits.shape[-1]
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(size, width, vocabulary)
  stays = jnp.where(jnp.arange(vocabulary) == PADDING, 0.0, -jnp.inf)  # the one continuation of what has ended
  totals = beam.total[:, :, None] + jnp.where(beam.ended[:, :, None], stays, log_probs)  # [batch, beam, vocabulary]
  lengths = beam.length + ~beam.ended
  scores = totals / length_norm(lengths, alpha)[:, :, None]
  _, chosen = jax.lax.top_k(scores.reshape(size, -1), width)  # [batch, beam · vocabulary] -> [batch, beam]
  parent, token = chosen // vocabulary, (chosen % vocabulary).astype(jnp.int32)
  parent = jnp.where(over, jnp.arange(width), parent)
  token = jnp.where(over, PADDING, token)
  ended = beam.ended[rows, parent]
  return Beam(
    t=beam.t + 1,
    state=jax.tree.map(lambda x: x[(rows * width + parent).reshape(-1)], state),
    tokens=beam.tokens[rows, parent].at[:, :, beam.t].set(token),
    total=jnp.where(over, beam.total, jnp.take_along_axis(totals.reshape(size, -1), chosen, 1)),
    length=jnp.where(over, beam.length, lengths[rows, parent]),
    ended=ended if end is None else ended | ((token == end) & ~over),
    last=token,
  )


def beam_search(step, state, first, *, beam: int, steps: int, end: int | None, length_penalty: float = 0.0):
  """The most probable sequence, by a beam in which those that have ended keep their places, until none can beat the
  best.

  A sequence's score is its log probability / `length_norm` of its length, the end included. A beam of 1 is `greedy`;
  one that holds all prefixes is exhaustive.

  Args:
    step: see the module; it is given [batch · beam] tokens, the beams of an example side by side. What does not change
      (an encoder's output) may be closed over, `repeat`ed, so that it is not moved with the beams.
    state: of [batch, …], after all that comes before `first` [batch] int32.
    beam: how many sequences are kept.
    steps: the most tokens.
    end: the token that ends a sequence, or None.
    length_penalty: alpha of `length_norm`; 0 favours the short.

  Returns:
    tokens [batch, beam, steps] int32, the best first, 0 after the end; scores [batch, beam] float32, -inf where there
    is no such sequence.
  """
  size = first.shape[0]
  over = functools.partial(_finished, steps=steps, alpha=length_penalty)
  start = Beam(
    t=jnp.zeros((), jnp.int32),
    state=repeat(state, beam),
    tokens=jnp.full((size, beam, steps), PADDING, jnp.int32),
    total=jnp.full((size, beam), -jnp.inf).at[:, 0].set(0.0),  # one beam to begin with
    length=jnp.zeros((size, beam), jnp.int32),
    ended=jnp.zeros((size, beam), bool),
    last=jnp.repeat(first.astype(jnp.int32)[:, None], beam, 1),
  )
  last = jax.lax.while_loop(
    lambda b: (b.t < steps) & ~over(b).all(), lambda b: _extend(step, b, over(b)[:, None], end, length_penalty), start
  )
  return last.tokens, last.total / length_norm(last.length, length_penalty)  # top_k has put them in order


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
