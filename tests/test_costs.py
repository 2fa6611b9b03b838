"""FLOPs of a compiled step, whether the backend counts them before compilation, as CPUs do, or after it alone."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments import image_classification as experiment
from karpjax import config, costs
from karpjax import runner as runners

SIZE, DEVICES = 64, 4
WHOLE = 2 * SIZE**3 * DEVICES  # of [DEVICES * SIZE, SIZE] @ [SIZE, SIZE]


def on_one():
  return jax.jit(jnp.matmul).lower(jnp.ones((DEVICES * SIZE, SIZE)), jnp.ones((SIZE, SIZE))), 1, False


def on_mesh():
  mesh = jax.make_mesh((DEVICES,), ('data',), devices=jax.devices()[:DEVICES])
  cut = jax.device_put(jnp.ones((DEVICES * SIZE, SIZE)), NamedSharding(mesh, P('data')))
  whole = jax.device_put(jnp.ones((SIZE, SIZE)), NamedSharding(mesh, P()))
  return jax.jit(jnp.matmul).lower(cut, whole), DEVICES, False


def by_pmap():
  mapped = jax.pmap(jnp.matmul, in_axes=(0, None), devices=jax.devices()[:DEVICES])
  return mapped.lower(jnp.ones((DEVICES, SIZE, SIZE)), jnp.ones((SIZE, SIZE))), DEVICES, True


@pytest.mark.parametrize('lower', [on_one, on_mesh, by_pmap])
@pytest.mark.parametrize('before', [True, False])
def test_flops_are_of_all_devices_wherever_they_are_counted(lower, before, monkeypatch):
  lowered, devices, of_one = lower()
  if not before:  # as CUDA's backend and libtpu's
    monkeypatch.setattr(jax.stages.Lowered, 'cost_analysis', lambda self: None)
  compiled, flops = costs.compiled(lowered, devices, of_one=of_one)
  assert flops == pytest.approx(WHOLE, rel=0.01)
  assert costs.figures(compiled)['bytes'] > 0


def test_a_backend_that_counts_nothing_compiles_all_the_same(monkeypatch):
  lowered = jax.jit(jnp.matmul).lower(jnp.ones((SIZE, SIZE)), jnp.ones((SIZE, SIZE)))
  monkeypatch.setattr(jax.stages.Lowered, 'cost_analysis', lambda self: None)
  monkeypatch.setattr(jax.stages.Compiled, 'cost_analysis', lambda self: None)
  compiled, flops = costs.compiled(lowered)
  assert flops is None and compiled(jnp.eye(SIZE), jnp.eye(SIZE)).trace() == SIZE


@pytest.mark.parametrize('parallel, seeds', [('none', 1), ('pmap', 1), ('data', 1), ('seeds', 4)])
def test_every_layout_counts_the_same_flops_before_compilation_and_after(parallel, seeds, monkeypatch):
  given = dict(model='mlp', widths=(256,), batch_size=256, steps='1', steps_per_call='1')

  def flops(parallel='none', seeds=1):
    settings = experiment.Config(**given, parallel=parallel, seeds=seeds)
    data = experiment.data(settings)
    settings = config.resolve(settings, data.spec.examples)
    runner = runners.bind(experiment.program(settings, data.spec), data, settings)
    return runner.prepare(runner.place(runner.init()), {})['flops']

  one, before = flops(), flops(parallel, seeds)
  monkeypatch.setattr(jax.stages.Lowered, 'cost_analysis', lambda self: None)
  after = flops(parallel, seeds)
  # Within what each replica repeats, the update of params; a wrong number of devices would be a factor of 4 or 8.
  assert before == pytest.approx(seeds * one, rel=0.3) and after == pytest.approx(before, rel=0.3)
