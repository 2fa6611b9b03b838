"""FLOPs of a compiled step, whether the backend counts them before compilation, as CPUs do, or after it alone."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments import image_classification as experiment
from karpjax import config
from karpjax.layers import convolution
from karpjax.train import compile
from karpjax.train.runner import Runner

SIZE, DEVICES = 64, 4
WHOLE = 2 * SIZE**3 * DEVICES  # of [DEVICES * SIZE, SIZE] @ [SIZE, SIZE]


def lowered_and_jaxpr(function, *arguments):
  return function.lower(*arguments), jax.make_jaxpr(function)(*arguments)


def on_one():
  return lowered_and_jaxpr(jax.jit(jnp.matmul), jnp.ones((DEVICES * SIZE, SIZE)), jnp.ones((SIZE, SIZE))), 1, False


def on_mesh():
  mesh = jax.make_mesh((DEVICES,), ('data',), devices=jax.devices()[:DEVICES])
  cut = jax.device_put(jnp.ones((DEVICES * SIZE, SIZE)), NamedSharding(mesh, P('data')))
  whole = jax.device_put(jnp.ones((SIZE, SIZE)), NamedSharding(mesh, P()))
  return lowered_and_jaxpr(jax.jit(jnp.matmul), cut, whole), DEVICES, False


def by_pmap():
  mapped = jax.pmap(jnp.matmul, in_axes=(0, None), devices=jax.devices()[:DEVICES])
  return lowered_and_jaxpr(mapped, jnp.ones((DEVICES, SIZE, SIZE)), jnp.ones((SIZE, SIZE))), DEVICES, True


@pytest.mark.parametrize('lower', [on_one, on_mesh, by_pmap])
@pytest.mark.parametrize('before', [True, False])
def test_flops_are_of_all_devices_wherever_they_are_counted(lower, before, monkeypatch):
  program, devices, of_one = lower()
  if not before:  # as CUDA's backend and libtpu's
    monkeypatch.setattr(jax.stages.Lowered, 'cost_analysis', lambda self: None)
  compiled, flops = compile.compile(*program, devices, of_one=of_one)
  assert flops == pytest.approx(WHOLE, rel=0.01)
  assert compile.memory_analysis(compiled)['bytes'] > 0


def test_a_backend_that_counts_nothing_compiles_all_the_same(monkeypatch):
  program = lowered_and_jaxpr(jax.jit(jnp.matmul), jnp.ones((SIZE, SIZE)), jnp.ones((SIZE, SIZE)))
  monkeypatch.setattr(jax.stages.Lowered, 'cost_analysis', lambda self: None)
  monkeypatch.setattr(jax.stages.Compiled, 'cost_analysis', lambda self: None)
  compiled, flops = compile.compile(*program)
  assert flops is None and compiled(jnp.eye(SIZE), jnp.eye(SIZE)).trace() == SIZE


def repeats(function, *arguments):
  """How many times as many FLOPs there are as with bodies of loops counted once."""
  once, all_ = compile.estimate_flops(jax.make_jaxpr(function)(*arguments))
  return all_ / once


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
    (jnp.matmul, 1),
    (looped((7,)), 7),
    (looped((4, 3)), 4 * (3 + 1) / 2),
    (jax.jit(looped((7,))), 7),
    (jax.vmap(looped((7,))), 7),
    (chosen, 5),
    (by_platform, 3),
    (unknown, 1),
  ],
)
def test_loops_count_as_often_as_they_run(function, times):
  x = jnp.ones((2, SIZE, SIZE))
  arguments = (x, x) if function is jnp.matmul else (x,) if times == 7 else (x[0],)
  assert repeats(function, *arguments) == pytest.approx(times, rel=0.01)


def test_a_convolution_counts_its_products():
  one = lambda x, kernel: jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  x, kernel = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 16))

  def function(x, kernel):
    y = jax.lax.scan(lambda y, _: (one(y, kernel), None), x, None, length=3)[0]
    return y.reshape(-1, 32).T @ jnp.ones((y.size // 32, 16))

  product = 2 * 16 * x.size
  products = 2 * x.size * 9 * 16
  expected = (3 * products + product) / (products + product)
  assert repeats(function, x, kernel) == pytest.approx(expected, rel=0.01)


def test_a_primitive_is_found_wherever_it_is():
  inside = jax.jit(lambda x: looped((3,))(x))
  assert compile.contains_primitive('dot_general', jax.make_jaxpr(inside)(jnp.ones((2, 2))).jaxpr)
  assert not compile.contains_primitive('conv_general_dilated', jax.make_jaxpr(inside)(jnp.ones((2, 2))).jaxpr)
  convolve = lambda x: convolution.convolution(x, jnp.ones((3, 3, 4, 4)))  # which chooses by platform
  assert compile.contains_primitive('conv_general_dilated', jax.make_jaxpr(convolve)(jnp.ones((1, 4, 4, 4))).jaxpr)


@pytest.mark.parametrize('parallel, seeds', [('none', 1), ('pmap', 1), ('data', 1), ('seeds', 4)])
def test_every_layout_counts_the_same_flops_before_compilation_and_after(parallel, seeds, monkeypatch):
  given = dict(model='mlp', widths=(256,), batch_size=256, steps='1', steps_per_call='1')

  def flops(parallel='none', seeds=1):
    settings = experiment.Config(**given, parallel=parallel, seeds=seeds)
    data = experiment.data(settings)
    settings = config.resolve(settings, data.spec.examples)
    runner = Runner(experiment.program(settings, data), data, settings)
    return runner.compile(runner.placement.put(runner.init()), 1)['flops']

  one, before = flops(), flops(parallel, seeds)
  monkeypatch.setattr(jax.stages.Lowered, 'cost_analysis', lambda self: None)
  after = flops(parallel, seeds)
  # Within what each replica repeats, the update of params; a wrong number of devices would be a factor of 4 or 8.
  assert before == pytest.approx(seeds * one, rel=0.3) and after == pytest.approx(before, rel=0.3)
