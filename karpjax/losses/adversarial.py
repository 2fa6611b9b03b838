"""What the two players of a GAN minimise, example by example, from the discriminator's scores (logits, not probabilities).

Names as in the papers: `real` and `fake` are D(x) and D(G(z)) before any sigmoid, each [batch] or, of patches, [batch, …].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from karpjax import collectives


def minimax_discriminator(real, fake):
  """-log σ(real) - log(1 - σ(fake)) (Goodfellow et al. 2014, eq. 1)."""
  return nn.softplus(-real) + nn.softplus(fake)


def minimax_generator(fake):
  """log(1 - σ(fake)) (Goodfellow et al. 2014, eq. 1): it saturates where the discriminator is sure."""
  return -nn.softplus(fake)


def non_saturating_generator(fake):
  """-log σ(fake) (Goodfellow et al. 2014, section 3)."""
  return nn.softplus(-fake)


def least_squares_discriminator(real, fake):
  """½ (real - 1)² + ½ fake² (Mao et al. 2017, eq. 9)."""
  return (jnp.square(real - 1) + jnp.square(fake)) / 2


def least_squares_generator(fake):
  """½ (fake - 1)² (Mao et al. 2017, eq. 9)."""
  return jnp.square(fake - 1) / 2


def hinge_discriminator(real, fake):
  """max(0, 1 - real) + max(0, 1 + fake) (Lim & Ye 2017; Miyato et al. 2018, eq. 16)."""
  return nn.relu(1 - real) + nn.relu(1 + fake)


def wasserstein_discriminator(real, fake):
  """fake - real: the critic's (Arjovsky et al. 2017, eq. 2), negated."""
  return fake - real


def wasserstein_generator(fake):
  """-fake, also the hinge loss's (Arjovsky et al. 2017, algorithm 1)."""
  return -fake


OBJECTIVES: dict[str, tuple[Callable, Callable]] = {  # name -> (discriminator's (real, fake), generator's (fake))
  'minimax': (minimax_discriminator, minimax_generator),
  'non_saturating': (minimax_discriminator, non_saturating_generator),
  'least_squares': (least_squares_discriminator, least_squares_generator),
  'hinge': (hinge_discriminator, wasserstein_generator),
  'wasserstein': (wasserstein_discriminator, wasserstein_generator),
}


def middle(objective: str, real, fake):
  """[]: the score above which an example passes as real. That of a critic has no zero: there it lies between both means."""
  if objective.startswith('wasserstein'):
    return collectives.mean(real.mean() + fake.mean()) / 2
  return 0.5 if objective == 'least_squares' else 0.0  # between the targets of 1 and 0; at even odds


def input_gradients(scores: Callable, inputs, *others):
  """The gradient of each example's own score with respect to that example: [batch, …] as `inputs`, differentiable again.

  That of the sum of all scores, which is the same where no example looks at another, as with batch norm it would; `vmap` of
  single gradients would compute convolutions, and the kernels' part of the second backward pass, example by example.

  Args:
    scores: (examples, *others) -> [batch], each of its own example alone.
  """
  return jax.grad(lambda x: scores(x, *others).sum())(inputs)


def gradient_penalty(slopes):
  """(‖gradient‖₂ - 1)², [batch], by `input_gradients` at points between real and fake (Gulrajani et al. 2017, eq. 3)."""
  norm = jnp.sqrt(_square_norm(slopes) + 1e-12)  # whose gradient at 0 is 0, not NaN
  return jnp.square(norm - 1)


def r1_penalty(slopes):
  """½ ‖gradient‖², [batch], by `input_gradients` at real examples (Mescheder et al. 2018, eq. 9, without γ)."""
  return _square_norm(slopes) / 2


def between(keys, real, fake):
  """Points on the lines from real to fake examples, [batch, …], uniformly drawn (Gulrajani et al. 2017, algorithm 1)."""
  u = jax.vmap(lambda k: jax.random.uniform(k, ()))(keys)
  u = u.reshape(-1, *(1,) * (real.ndim - 1))  # [batch] -> [batch, 1, …]
  return u * real + (1 - u) * fake


def _square_norm(x):
  return jnp.square(x.astype(jnp.float32)).sum(range(1, x.ndim))
