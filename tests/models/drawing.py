"""Variables without compiling a module's initialisers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


def drawn(model, *inputs, scale=0.5, **call):
  """Variables of a Linen module, drawn wide in NumPy so that errors show; variances are positive."""
  shapes = jax.eval_shape(functools.partial(model.init, **call), jax.random.key(0), *inputs)
  rng = np.random.default_rng(0)

  def draw(path, x):
    values = rng.normal(size=x.shape) * scale
    return jnp.asarray(abs(values) + 0.5 if 'var' in jax.tree_util.keystr(path) else values, x.dtype)

  return jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(shapes))
