"""A linear chain over the tags of a sequence: conditional random field (Lafferty, McCallum & Pereira 2001).

The score of tags y_1 … y_n is start[y_1] + sum_t emissions[t, y_t] + sum_t transition[y_t, y_t+1] + end[y_n], and their
probability its exponential over that of all sequences. Padding comes after the real positions and changes nothing; of a
sequence that is all padding the numbers are finite and mean nothing.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Chain(NamedTuple):
  """What the tags owe to one another: scores in nats, float32."""

  start: jax.Array  # [tags]: of the first
  transition: jax.Array  # [tags, tags]: from the row's tag to the column's
  end: jax.Array  # [tags]: of the last


class ChainScores(nn.Module):
  """The params of a chain, 'start', 'transition' and 'end', zero at first: all sequences weigh the same.

  Attributes:
    tags: how many.
  """

  tags: int

  @nn.compact
  def __call__(self) -> Chain:
    zeros = lambda name, *shape: self.param(name, nn.initializers.zeros, shape)
    return Chain(zeros('start', self.tags), zeros('transition', self.tags, self.tags), zeros('end', self.tags))


def score(chain: Chain, emissions, tags, mask):
  """The score of given tags.

  Args:
    chain: of `tags` tags.
    emissions: [batch, time, tags] float32.
    tags: [batch, time] int32 in [0, tags); any number where masked.
    mask: [batch, time] bool, True at real positions, which come first.

  Returns:
    [batch] float32.
  """
  tags = jnp.where(mask, tags, 0)
  at_tags = jnp.take_along_axis(emissions, tags[..., None], -1)[..., 0]  # [batch, time]
  steps = chain.transition[tags[:, :-1], tags[:, 1:]]  # [batch, time - 1]
  last = jnp.take_along_axis(tags, jnp.maximum(mask.sum(1, keepdims=True) - 1, 0), 1)[:, 0]  # [batch]
  inner = jnp.where(mask, at_tags, 0).sum(1) + jnp.where(mask[:, 1:], steps, 0).sum(1)
  return chain.start[tags[:, 0]] + inner + chain.end[last]


def log_partition(chain: Chain, emissions, mask):
  """The log of the sum over all tag sequences of exp(score), by the forward algorithm; arguments as `score`'s.

  Returns:
    [batch] float32.
  """
  alpha, _ = _forward(chain, emissions, mask, lambda scores: (jax.nn.logsumexp(scores, axis=1), None))
  return jax.nn.logsumexp(alpha + chain.end, axis=-1)


def log_likelihood(chain: Chain, emissions, tags, mask):
  """log p(tags | emissions), [batch] float32; arguments as `score`'s."""
  return score(chain, emissions, tags, mask) - log_partition(chain, emissions, mask)


def viterbi(chain: Chain, emissions, mask):
  """The most probable tags (Viterbi 1967); of equal ones those with the smaller numbers, looked at from the end.

  Args:
    chain, emissions, mask: as `score`'s.

  Returns:
    tags [batch, time] int32, -1 where masked, and their score [batch] float32.
  """
  best = lambda scores: (scores.max(1), scores.argmax(1).astype(jnp.int32))  # of [batch, tags, tags]
  alpha, pointers = _forward(chain, emissions, mask, best)  # pointers: [time - 1, batch, tags]
  final = alpha + chain.end
  last = final.argmax(-1).astype(jnp.int32)  # [batch]

  def back(tag, step):
    pointer, real = step
    before = jnp.take_along_axis(pointer, tag[:, None], 1)[:, 0]
    tag = jnp.where(real, before, tag)  # until the last real position is met, its tag waits
    return tag, tag

  _, tags = jax.lax.scan(back, last, (pointers, mask.T[1:]), reverse=True)  # [time - 1, batch]
  tags = jnp.concatenate([tags, last[None]]).T  # [batch, time]; past the end: the last tag
  return jnp.where(mask, tags, -1), final.max(-1)


def _forward(chain, emissions, mask, combine):
  """alpha [batch, tags] after the last real position, and what `combine` leaves at each step, [time - 1, batch, tags].

  `combine`: the scores [batch, from, to] of one step -> (those of the sequences that end in `to`, what it leaves).
  """
  emissions = emissions.astype(jnp.float32)

  def step(alpha, step):
    emission, real = step
    ends, left = combine(alpha[:, :, None] + chain.transition)
    return jnp.where(real[:, None], ends + emission, alpha), left

  first = chain.start + emissions[:, 0]
  return jax.lax.scan(step, first, (emissions.swapaxes(0, 1)[1:], mask.T[1:]))
