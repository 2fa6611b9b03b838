"""One device, or `pmap` over those of one host."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import jax_utils

from karpjax import collectives
from karpjax.train import costs, runtime
from karpjax.train.layouts.layout import Layout, structs


def one_device() -> Layout:
  copy = lambda tree: jax.tree.map(jnp.array, tree)  # calls donate it

  def compile(function, arguments, replicated, flops):
    traced = jax.jit(function, donate_argnums=0).trace(*arguments)
    return costs.compiled(traced.lower(), traced.jaxpr, options=runtime.compiler_options(flops))

  return Layout(
    parts=1,
    pieces=1,
    lay=lambda shapes: None,
    init=lambda function, keys: jax.jit(function)(keys),
    place=copy,
    globalise=lambda carry: carry,
    replicate=copy,
    sums=copy,
    shapes=lambda carry: carry,
    replicated_shapes=structs,
    cut=lambda x, axis: x,
    rows=lambda size: slice(None),
    compile=compile,
    compile_sums=lambda f, flops: jax.jit(f, donate_argnums=1, compiler_options=runtime.compiler_options(flops)),
    fetch=jax.device_get,
  )


def pmap(devices, seeds: int) -> Layout:
  """Every leaf has a leading axis [devices, …]."""
  axis_of_batch = 1 if seeds > 1 else 0  # in a per-example leaf [(seeds,) batch, …]
  count = len(devices)

  def cut(x, axis):  # [.., batch, ..] -> [devices, .., batch / devices, ..]
    x = np.asarray(x)
    return np.moveaxis(x.reshape(*x.shape[:axis], count, -1, *x.shape[axis + 1 :]), axis, 0)

  def join(x):  # the reverse
    x = np.moveaxis(np.asarray(x), 0, axis_of_batch)
    return x.reshape(*x.shape[:axis_of_batch], -1, *x.shape[axis_of_batch + 2 :])

  def relaid(carry, per_example, rest):
    state = carry.state
    parts = {'carried': state.carried, 'buffers': state.buffers}
    parts = jax.tree.map(per_example, parts)
    carry = rest(carry.replace(state=state.replace(carried={}, buffers={})))
    return carry.replace(state=carry.state.replace(**parts))

  def stacked(x):
    return jax.ShapeDtypeStruct((count, *x.shape), x.dtype)

  def cut_shape(shape):
    return *shape[:axis_of_batch], shape[axis_of_batch] // count, *shape[axis_of_batch + 1 :]

  def replicate(tree):
    return jax_utils.replicate(tree, devices)

  def place(carry):
    return relaid(carry, lambda x: cut(x, axis_of_batch), replicate)

  def compile(function, arguments, replicated, flops):
    axes = (0,) * (len(arguments) - replicated) + (None,) * replicated
    mapped = jax.pmap(function, collectives.REPLICAS, in_axes=axes, devices=devices, donate_argnums=0)
    return costs.compiled(mapped.lower(*arguments), jax.make_jaxpr(mapped)(*arguments), count, of_one=True)

  return Layout(
    parts=count,
    pieces=1,
    lay=lambda shapes: None,
    init=lambda function, keys: jax.jit(function)(keys),
    place=place,
    globalise=lambda carry: relaid(carry, join, jax_utils.unreplicate),
    replicate=replicate,
    sums=replicate,
    shapes=lambda carry: relaid(
      carry,
      lambda x: jax.ShapeDtypeStruct((count, *cut_shape(x.shape)), x.dtype),
      lambda tree: jax.tree.map(stacked, tree),
    ),
    replicated_shapes=lambda tree: jax.tree.map(stacked, tree),
    cut=cut,
    rows=lambda size: slice(None),
    compile=compile,
    compile_sums=lambda f, flops: jax.pmap(f, collectives.REPLICAS, devices=devices, donate_argnums=1),
    fetch=lambda tree: jax.device_get(jax_utils.unreplicate(tree)),
  )
