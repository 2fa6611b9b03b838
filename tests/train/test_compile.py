"""FLOPs of a step, by its operations."""

import jax
import jax.numpy as jnp
import pytest

from experiments import image_classification as experiment
from karpjax import config
from karpjax.layers import convolution
from karpjax.train import compile
from karpjax.train.runner import Runner

SIZE = 64


def flops(function, *arguments, **options):
  return compile.estimate_flops(jax.make_jaxpr(function)(*arguments).jaxpr, **options)


def looped(lengths):
  """A product in loops inside each other."""

  def body(x, _):
    for length in lengths[1:]:
      x, _ = jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=length)
    return x @ x, None

  return lambda x: jax.lax.scan(body, x, None, length=lengths[0])[0]


def chosen(x):
  """Of the two branches, the one with more work counts."""
  return jax.lax.cond(x[0, 0] > 0, lambda x: looped((5,))(x), lambda x: x, x)


def by_platform(x):
  return jax.lax.platform_dependent(x, cpu=lambda x: looped((3,))(x), default=lambda x: looped((50,))(x))


def unknown(x):
  return jax.lax.fori_loop(0, (x[0, 0] > 0).astype(int) + 1, lambda i, x: x @ x, x)


@pytest.mark.parametrize(
  'function, times',
  [
    (lambda x: x @ x, 1),
    (looped((7,)), 7),
    (looped((4, 3)), 4 * (3 + 1)),
    (jax.jit(looped((7,))), 7),
    (lambda x: jax.vmap(looped((7,)))(x[None]), 7),
    (chosen, 5),
    (by_platform, 3),
    (unknown, 1),
  ],
)
def test_products_count_twice_their_multiplications_and_loops_as_often_as_they_run(function, times):
  assert flops(function, jnp.ones((SIZE, SIZE))) == pytest.approx(times * 2 * SIZE**3, rel=0.01)


def test_bodies_of_loops_may_count_once():
  assert flops(looped((4, 3)), jnp.ones((SIZE, SIZE)), loops=False) == pytest.approx(2 * 2 * SIZE**3, rel=0.01)


def test_a_convolution_counts_its_products_and_moved_data_nothing():
  convolve = lambda x, kernel: jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  x, kernel = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 16))
  assert flops(lambda x: convolve(x, kernel).reshape(-1, 32).T, x) == 2 * x.size * 9 * 16
  gradient = jax.grad(lambda k: convolve(x, k).sum())
  assert flops(gradient, kernel) >= 2 * x.size * 9 * 16


def test_a_primitive_is_found_wherever_it_is():
  inside = jax.jit(lambda x: looped((3,))(x))
  assert compile.contains_primitive('dot_general', jax.make_jaxpr(inside)(jnp.ones((2, 2))).jaxpr)
  assert not compile.contains_primitive('conv_general_dilated', jax.make_jaxpr(inside)(jnp.ones((2, 2))).jaxpr)
  convolve = lambda x: convolution.convolution(x, jnp.ones((3, 3, 4, 4)))  # which chooses by platform
  assert compile.contains_primitive('conv_general_dilated', jax.make_jaxpr(convolve)(jnp.ones((1, 4, 4, 4))).jaxpr)


def test_the_estimate_is_near_what_the_compiler_counts():
  settings = experiment.Config(model='mlp', widths=(256,), batch_size=256, steps='1', steps_per_call='1')
  data = experiment.data(settings)
  settings = config.resolve(settings, data.spec.examples)
  runner = Runner(experiment.program(settings, data), data, settings)
  figures = runner.compile(1)
  assert figures['flops'] == pytest.approx(runner.step.cost_analysis()['flops'], rel=0.2)
  assert figures['bytes'] > 0 and figures['argument_bytes'] > 0
