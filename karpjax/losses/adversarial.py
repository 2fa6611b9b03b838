"""What the two players of a GAN minimise, example by example, from the discriminator's scores (logits, not
probabilities).

Names as in the papers: `real` and `fake` are D(x) and D(G(z)) before any sigmoid, each [batch] or, of patches, [batch,
…].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.linen import relu, softplus

from karpjax import collectives


def cross_entropy(real, fake):
  """-log σ(real) - log(1 - σ(fake)) (Goodfellow et al. 2014, eq. 1)."""
  return softplus(-real) + softplus(fake)


class Objective(NamedTuple):
  """What both players minimise, and the score above which an example passes as real, for (real, fake) scores."""

  discriminator: Callable  # (real, fake) -> each example's loss
  generator: Callable  # fake -> each example's loss
  boundary: Callable = lambda real, fake: 0.0  # even odds

  def right(self, real, fake):
    """Which real and which fake examples the discriminator tells rightly: two bools, each of the shape of its scores."""
    boundary = self.boundary(real, fake)
    return real > boundary, fake < boundary


def _between_means(real, fake):
  """[]: a critic's score has no zero."""
  return collectives.mean(real.mean() + fake.mean()) / 2


# Arjovsky et al. 2017, algorithm 1: the critic's eq. 2, negated
WASSERSTEIN = Objective(lambda real, fake: fake - real, lambda fake: -fake, _between_means)
OBJECTIVES = {
  # Goodfellow et al. 2014, eq. 1: log(1 - σ(fake)), which saturates where the discriminator is sure
  'minimax': Objective(cross_entropy, lambda fake: -softplus(fake)),
  # there, section 3: -log σ(fake)
  'non_saturating': Objective(cross_entropy, lambda fake: softplus(-fake)),
  # Mao et al. 2017, eq. 9
  'least_squares': Objective(
    lambda real, fake: (jnp.square(real - 1) + jnp.square(fake)) / 2,
    lambda fake: jnp.square(fake - 1) / 2,
    lambda real, fake: 0.5,  # between the targets of 1 and 0
  ),
  # Lim & Ye 2017; Miyato et al. 2018, eq. 16 and 17
  'hinge': Objective(lambda real, fake: relu(1 - real) + relu(1 + fake), lambda fake: -fake),
  'wasserstein': WASSERSTEIN,
}


def input_gradients(scores: Callable, inputs, *others):
  """The gradient of each example's own score with respect to that example: [batch, …] as `inputs`, differentiable
  again.

  That of the sum of all scores, which is the same where no example looks at another, as with batch norm it would;
  `vmap` of single gradients would compute convolutions, and the kernels' part of the second backward pass, example by
  example.

  Args:
    scores: (examples, *others) -> [batch], each of its own example alone.
  """
  return jax.grad(lambda x: scores(x, *others).sum())(inputs)


def gradient_penalty(gradients):
  """(‖gradient‖₂ - 1)², [batch], by `input_gradients` at points between real and fake (Gulrajani et al. 2017,
  eq. 3).
  """
  norm = jnp.sqrt(2 * r1_penalty(gradients) + 1e-12)  # whose gradient at 0 is 0, not NaN
  return jnp.square(norm - 1)


def r1_penalty(gradients):
  """½ ‖gradient‖², [batch], by `input_gradients` at real examples (Mescheder et al. 2018, eq. 9, without γ)."""
  return jnp.square(gradients.astype(jnp.float32)).sum(range(1, gradients.ndim)) / 2


def between(keys, real, fake):
  """Points on the lines from real to fake examples, [batch, …], uniformly drawn (Gulrajani et al. 2017,
  algorithm 1).
  """
  u = jax.vmap(lambda k: jax.random.uniform(k, (1,) * (real.ndim - 1)))(keys)  # [batch, 1, …]
  return u * real + (1 - u) * fake
