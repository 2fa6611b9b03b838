"""Decoding: sequences from any step function, token by token: greedy, drawn, or by beam search.

A step is `step(tokens [batch] int32, state) -> (logits [batch, vocabulary] float32, state)`: what was said last, and what
a model remembers -> what may come next. The state is any pytree whose leaves have a leading axis [batch, …]: the state of
an LSTM, or a cache of keys and values with a length per example. All is pure and compiles; nothing here knows a model.
"""

import jax
import jax.numpy as jnp

PADDING = 0  # what follows the end


def filtered(logits, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0):
  """The logits that are drawn from: -inf where a token is left out.

  Args:
    logits: [batch, vocabulary] float32.
    temperature: what they are divided by; positive.
    top_k: keep this many of the largest, the first of equals; 0: all.
    top_p: then keep the fewest of the most probable that have this share of the probability together (Holtzman et al.
      2020, «The Curious Case of Neural Text Degeneration», section 3.1), one at least; 1: all.

  Returns:
    [batch, vocabulary] float32.
  """
  logits = logits / temperature
  rows = jnp.arange(len(logits))[:, None]
  if 0 < top_k < logits.shape[-1]:
    largest, tokens = jax.lax.top_k(logits, top_k)
    logits = jnp.full_like(logits, -jnp.inf).at[rows, tokens].set(largest)
  if top_p < 1:
    order = jnp.argsort(logits, descending=True, stable=True)
    falling = jnp.take_along_axis(logits, order, -1)
    probabilities = jax.nn.softmax(falling)
    before = jnp.cumsum(probabilities, -1) - probabilities  # the share of those that are more probable
    kept = (before < top_p).at[:, 0].set(True)
    logits = logits.at[rows, order].set(jnp.where(kept, falling, -jnp.inf))
  return logits


def choose(logits, key, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0):
  """The next tokens, drawn from `filtered` logits; at temperature 0 the most probable.

  Args:
    logits: [batch, vocabulary] float32.
    key: of the draw; or one per row, [batch], so that a row draws the same in whatever batch it comes.
    temperature, top_k, top_p: as for `filtered`; static numbers.

  Returns:
    [batch] int32.
  """
  if temperature == 0:
    return logits.argmax(-1).astype(jnp.int32)
  keys = key if key.ndim else jax.random.split(key, len(logits))
  drawn = jax.vmap(jax.random.categorical)(keys, filtered(logits, temperature, top_k, top_p))
  return drawn.astype(jnp.int32)


def sample(
  step,
  state,
  first,
  key,
  *,
  steps: int,
  end: int | None = None,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
):
  """Draws sequences, until all have ended or are `steps` long.

  Args:
    step, state: see the module; the state after all that comes before `first`.
    first: [batch] int32, the tokens that the first step is given.
    key: of all draws; or one per row, [batch]. That of position t is folded with t.
    steps: the most tokens.
    end: the token that ends a sequence, or None.
    temperature, top_k, top_p: as for `choose`.

  Returns:
    [batch, steps] int32: the end is part of it, and 0 is what follows it.
  """

  def going(carry):
    t, _, _, ended, _ = carry
    return (t < steps) & ~ended.all()

  def one(carry):
    t, state, last, ended, tokens = carry
    logits, state = step(last, state)
    here = jax.vmap(jax.random.fold_in, (0, None))(key, t) if key.ndim else jax.random.fold_in(key, t)
    chosen = jnp.where(ended, PADDING, choose(logits, here, temperature, top_k, top_p))
    if end is not None:
      ended |= chosen == end
    return t + 1, state, chosen, ended, tokens.at[:, t].set(chosen)

  size = len(first)
  tokens = jnp.full((size, steps), PADDING, jnp.int32)
  carry = jnp.zeros((), jnp.int32), state, first.astype(jnp.int32), jnp.zeros(size, bool), tokens
  return jax.lax.while_loop(going, one, carry)[-1]


def greedy(step, state, first, *, steps: int, end: int | None = None):
  """`sample` at temperature 0: always the most probable token. Returns [batch, steps] int32."""
  return sample(step, state, first, jax.random.key(0), steps=steps, end=end, temperature=0)


def length_norm(length, alpha: float):
  """((5 + length) / 6)^alpha, which log probabilities are divided by (Wu et al. 2016, eq. 14)."""
  return ((5 + length) / 6) ** alpha


def repeat(tree, times: int):
  """[batch, …] -> [batch · times, …], leaf by leaf, each row beside its copies: as `beam_search` lays out its beams."""
  return jax.tree.map(lambda x: jnp.repeat(x, times, 0), tree)


def beam_search(
  step, state, first, *, beam: int, steps: int, end: int | None, length_penalty: float = 0.0, early_stop: bool = True
):
  """The most probable sequences, by a beam in which those that have ended keep their places.

  A sequence's score is its log probability / `length_norm` of its length, the end included. The beam holds the best of
  all that have ended and of all continuations of those that have not. A sequence that is `steps` long counts as it is.
  A beam of 1 is `greedy`; a beam that holds all prefixes is exhaustive.

  Args:
    step: see the module; it is given [batch · beam] tokens, the beams of an example side by side. What does not change
      (an encoder's output) may be closed over, `repeat`ed, so that it is not moved with the beams.
    state: of [batch, …], after all that comes before `first`.
    first: [batch] int32, the tokens that the first step is given.
    beam: how many sequences are kept.
    steps: the most tokens.
    end: the token that ends a sequence, or None.
    length_penalty: alpha, not negative; 0 ranks by probability, which favours the short.
    early_stop: whether an example's search stops as soon as no sequence that goes on can beat the best that has ended.
      The best is what it would have been; the others are left as they stand.

  Returns:
    tokens [batch, beam, steps] int32, the best first, 0 after the end; scores [batch, beam] float32, -inf where there
    are fewer sequences than beams.
  """
  size, rows = len(first), jnp.arange(len(first))[:, None]

  def finished(carry):
    """Whether an example's search is over, [batch]."""
    _, _, _, total, length, ended, _ = carry
    live = ~ended & (total > -jnp.inf)
    over = ~live.any(-1)
    if early_stop:
      score = jnp.where(ended, total / length_norm(length, length_penalty), -jnp.inf).max(-1)
      # log probabilities only fall, and their divisor grows no further than that of the longest
      attainable = jnp.where(live, total, -jnp.inf).max(-1) / length_norm(steps, length_penalty)
      over |= attainable < score
    return over

  def going(carry):
    return (carry[0] < steps) & ~finished(carry).all()

  def one(carry):
    t, state, tokens, total, length, ended, last = carry
    over = finished(carry)[:, None]
    logits, state = step(last.reshape(-1), state)
    vocabulary = logits.shape[-1]
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(size, beam, vocabulary)
    stays = jnp.where(jnp.arange(vocabulary) == PADDING, 0.0, -jnp.inf)  # the one continuation of what has ended
    totals = total[:, :, None] + jnp.where(ended[:, :, None], stays, log_probs)  # [batch, beam, vocabulary]
    lengths = length + ~ended
    scores = totals / length_norm(lengths, length_penalty)[:, :, None]
    _, chosen = jax.lax.top_k(scores.reshape(size, -1), beam)  # [batch, beam · vocabulary] -> [batch, beam]
    parent, token = chosen // vocabulary, (chosen % vocabulary).astype(jnp.int32)
    parent = jnp.where(over, jnp.arange(beam), parent)
    token = jnp.where(over, PADDING, token)
    state = jax.tree.map(lambda x: x[(rows * beam + parent).reshape(-1)], state)
    tokens = tokens[rows, parent].at[:, :, t].set(token)
    total = jnp.where(over, total, jnp.take_along_axis(totals.reshape(size, -1), chosen, 1))
    length = jnp.where(over, length, lengths[rows, parent])
    ended = ended[rows, parent]
    if end is not None:
      ended |= (token == end) & ~over
    return t + 1, state, tokens, total, length, ended, token

  carry = (
    jnp.zeros((), jnp.int32),
    repeat(state, beam),
    jnp.full((size, beam, steps), PADDING, jnp.int32),
    jnp.full((size, beam), -jnp.inf).at[:, 0].set(0.0),  # one beam to begin with
    jnp.zeros((size, beam), jnp.int32),
    jnp.zeros((size, beam), bool),
    jnp.repeat(first.astype(jnp.int32)[:, None], beam, 1),
  )
  _, _, tokens, total, length, _, _ = jax.lax.while_loop(going, one, carry)
  scores = total / length_norm(length, length_penalty)
  tokens = jnp.where(scores[:, :, None] > -jnp.inf, tokens, PADDING)
  order = jnp.argsort(scores, descending=True, stable=True)
  return tokens[rows, order], jnp.take_along_axis(scores, order, 1)
