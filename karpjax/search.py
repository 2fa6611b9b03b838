"""The most probable sequences by any step function, token by token: greedy, or by beam search.

A step is `step(tokens [batch] int32, state) -> (logits [batch, vocabulary] float32, state)`: the last token, and what a
model remembers -> what may come next. The state is any pytree whose leaves have a leading axis [batch, …]: the state of
an LSTM, or a cache of keys and values with a length per example. Nothing here knows a model.
"""

import collections
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

PADDING = 0  # what follows the end


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
