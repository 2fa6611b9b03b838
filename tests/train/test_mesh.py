"""A mesh changes where arrays lie, and nothing else."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from experiments import image_classification
from karpjax import config
from karpjax.errors import UsageError
from karpjax.train import compile, loop, mesh
from karpjax.train.runner import Runner
from karpjax.train.step import compute_gradients

pytestmark = pytest.mark.optimised

ONE = {'data': 1, 'fsdp': 1, 'tensor': 1}
# Adam would make noise of a bias before batch norm, whose gradient is 0, as large as its rate.
BATCH_NORM = dict(model='mlp', norm='batch', optimiser='momentum', learning_rate=0.05)
MODELS = {
  'mlp': dict(widths=(64, 32), **BATCH_NORM),
  'cnn with batch norm': dict(model='cnn', widths=(8, 16), hidden=(), norm='batch'),
}
LAYOUTS = {
  'pmap': dict(parallel='pmap'),
  'data': dict(parallel='data'),
  'fsdp': dict(parallel='fsdp'),
  'tensor': dict(parallel='tensor'),
  'all three': dict(mesh='data:2,fsdp:2,tensor:2'),
  'microbatches': dict(parallel='fsdp', microbatches=2),
  'streamed': dict(parallel='data', resident_mb=0),
}


def settings(**changes):
  defaults = dict(steps='4', batch_size=64, steps_per_call='1', ema=0.9, learning_rate=0.01, dropout=(0.0,))
  return image_classification.Config(**defaults | changes)


def bound(**changes):
  given = settings(**changes)
  data = image_classification.data(given)
  resolved = config.resolve(given, data.spec.examples)
  return Runner(image_classification.program(resolved, data), data, resolved)


def trained(steps=4, **changes):
  """(losses of the steps, sums of the test split, the state in global form, the carry on the devices, the runner)."""
  runner = bound(**changes)
  carry = runner.placement.put(runner.init())
  runner.compile(runner.config.steps_per_call)
  losses = []
  for t in range(steps):
    carry = runner.run_steps(carry, t, t + 1, True)
    total, count = runner.to_host(carry.totals['loss'])
    losses.append(np.asarray(total / count))
  sums = runner.evaluate(carry, 'test')
  return np.array(losses), sums, runner.placement.get(carry).state, carry, runner


@functools.cache
def alone(model, microbatches=1):
  return trained(**MODELS[model], microbatches=microbatches)[:3]


CASES = [
  pytest.param(
    model,
    layout,
    marks=[pytest.mark.slow] if model != 'mlp' or layout not in ('fsdp', 'all three') else [],
  )
  for model in MODELS
  for layout in LAYOUTS
]


@pytest.mark.parametrize('model, layout', CASES)
def test_every_layout_gives_the_losses_of_one_device(model, layout):
  losses, sums, state = alone(model, LAYOUTS[layout].get('microbatches', 1))
  there, there_sums, there_state, *_ = trained(**MODELS[model], **LAYOUTS[layout])
  np.testing.assert_allclose(there, losses, rtol=2e-4)
  assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-2, atol=1e-2), there_sums, sums))
  for name in ('params', 'collections', 'ema'):  # batch norm's statistics among them
    close = jax.tree.map(
      lambda a, b: np.allclose(a, b, rtol=1e-2, atol=2e-3), getattr(there_state, name), getattr(state, name)
    )
    assert jax.tree.all(close)


@pytest.mark.slow
def test_seeds_on_a_mesh_are_those_of_one_device():
  losses = trained(seeds=2, seed=3, **MODELS['mlp'])[0]
  np.testing.assert_allclose(trained(seeds=2, seed=3, parallel='fsdp', **MODELS['mlp'])[0], losses, rtol=2e-4)


@pytest.mark.parametrize(
  'source', [{}, pytest.param({'resident_mb': 0}, marks=pytest.mark.slow)], ids=['resident', 'streamed']
)
def test_seeds_over_devices_are_those_of_one_device(source):
  model = dict(widths=(16,), **BATCH_NORM)
  losses, sums, state, *_ = trained(seeds=4, seed=3, **model)
  there, there_sums, there_state, carry, runner = trained(seeds=4, seed=3, parallel='seeds', **model, **source)
  np.testing.assert_allclose(there, losses, rtol=1e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), there_sums, sums)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), there_state.params, state.params)
  for leaf in jax.tree.leaves(carry.state.params):
    assert [s.data.shape for s in leaf.addressable_shards] == [(1, *leaf.shape[1:])] * 4
  assert not compile.collectives(runner.step.as_text())


def bytes_per_device(tree):
  device = jax.local_devices()[0]
  return sum(s.data.nbytes for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == device)


def test_fsdp_holds_an_eighth_of_params_averages_and_optimiser_state_on_each_device():
  runner = bound(parallel='fsdp', model='mlp', widths=(256, 256))
  carry = runner.placement.put(runner.init())
  for tree in (carry.state.params, carry.state.ema, carry.state.opt_state):
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    assert bytes_per_device(tree) < whole / 8 * 1.1


@pytest.mark.parametrize(
  'layout, there, not_there',
  [
    (dict(parallel='data'), ('all-reduce',), ('all-gather', 'reduce-scatter')),
    (dict(parallel='fsdp'), ('all-gather',), ()),
    (dict(parallel='tensor'), ('all-reduce',), ()),
  ],
)
def test_the_collectives_are_the_expected_ones(layout, there, not_there):
  found = bound(model='mlp', widths=(256, 256), **layout).compile_only()['collectives']
  assert set(there) <= set(found) and not set(not_there) & set(found)
  if layout['parallel'] == 'data':  # the gradients of all params, once
    count = 64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10
    assert 4 * count <= found['all-reduce'][1] < 4 * count * 1.2


def test_compile_only_puts_nothing_on_the_devices_and_leaves_no_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  lines = []
  loop.run(image_classification, settings(compile_only=True, parallel='fsdp', **MODELS['mlp']), say=lines.append)
  text = '\n'.join(lines)
  assert re.search(r'FLOPs of a step, all devices\s+[\d.]+ MFLOP', text) and 'all-gather' in text
  assert not list(tmp_path.iterdir())


def test_a_run_goes_on_under_another_layout(tmp_path):
  options = dict(plots=False, tensorboard=False, eval_every='0', **MODELS['mlp'])
  plain = settings(workdir=str(tmp_path / 'plain'), log_every='1', **options)
  moved = dataclasses.replace(plain, workdir=str(tmp_path / 'moved'))
  loop.run(image_classification, plain, say=str)
  for steps, layout in (('1', 'fsdp'), ('3', 'pmap'), ('4', 'none')):
    loop.run(image_classification, dataclasses.replace(moved, steps=steps, parallel=layout), say=str)

  def losses(path):
    return [json.loads(line)['train/loss'] for line in (path / 'metrics.jsonl').read_text().splitlines()]

  np.testing.assert_allclose(losses(tmp_path / 'moved'), losses(tmp_path / 'plain'), rtol=2e-4)


def test_rules():
  sizes = ONE | {'fsdp': 4, 'tensor': 2}
  cut = functools.partial(mesh._specification, 'kernel', sizes=sizes)
  assert cut((64, 32), ('embed', 'hidden')) == P('fsdp', 'tensor')
  assert cut((64, 32), ('hidden', 'embed')) == P('tensor', 'fsdp')
  assert cut((64, 128), ()) == P(None, 'fsdp')  # without names: the largest axis
  assert cut((3, 3, 64, 64), ()) == P(None, None, None, 'fsdp')  # of equals, the last
  assert cut((66, 128), ('embed', 'hidden')) == P(None, 'tensor')  # 66 does not divide by 4, nor by 8 both
  assert cut((16,), ()) == P(None)  # too small to be worth it
  assert cut((67, 71), ()) == P(None, None)
  with pytest.raises(UsageError, match=r'kernel \[64, 31\]: 31 hidden do not divide over tensor:2'):
    cut((64, 31), ('embed', 'hidden'))


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(mesh='data:3'), '3 = 3, but there are 8 devices'),
    (dict(mesh='data:2,fsdp:2'), '2 × 2 = 4, but there are 8 devices'),
    (dict(mesh='date:8'), 'Did you mean data'),
    (dict(mesh='data'), 'write AXIS:SIZE'),
    (dict(parallel='seeds'), 'seeds=1 do not divide over 8 devices'),
    (dict(parallel='data', batch_size=60), 'batch_size=60 does not divide over 8 devices'),
    (dict(parallel='fsdp', batch_size=8, microbatches=2), 'does not divide over 8 devices × microbatches=2'),
    (dict(parallel='tensor', model='mlp', widths=(12,)), '12 hidden do not divide over tensor:8'),
  ],
)
def test_what_does_not_fit_is_refused_before_anything_is_compiled(changes, message):
  with pytest.raises(UsageError, match=re.escape(message)):
    bound(**changes)


def test_collectives_are_read_from_a_programs_text():
  text = """
  %a = f32[4,8]{1,0} all-reduce(%x), channel_id=1
  %b = (f32[4]{0}, bf16[2,2]{1,0}) all-gather-start(%y), channel_id=2
  %c = f32[] add(%d, %e)
  """
  assert compile.collectives(text) == {'all-reduce': (1, 128), 'all-gather': (1, 24)}


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['full', 'dots'])  # tests/models has the gradients of a smaller one
def test_rematerialisation_changes_no_number(remat):
  model = dict(model='resnet20', widths=(8, 8, 8), dropout=None)
  kept, anew = (trained(steps=2, **model, remat=how)[0] for how in ('none', remat))
  np.testing.assert_allclose(anew, kept, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason='the CPU backend of jax 0.10 gains nothing by it')
def test_rematerialisation_holds_less():
  model = dict(model='resnet20', dropout=None, batch_size=256)
  memory = [bound(**model, remat=how).compile_only()['temporary_bytes'] for how in ('none', 'full')]
  assert memory[1] < 0.75 * memory[0]


def test_microbatches_hold_less():
  def loss(params, collections, batch, key):
    x = batch['x']
    for _ in range(8):  # whose activations are kept for the backward pass
      x = jnp.tanh(x @ params)
    return {'loss': (jnp.square(x).sum(), jnp.float32(len(x)))}, collections

  shapes = jax.ShapeDtypeStruct((64, 64), jnp.float32), {}, {'x': jax.ShapeDtypeStruct((4096, 64), jnp.float32)}
  memory = []
  for microbatches in (1, 8):
    compute = compute_gradients(loss, microbatches=microbatches)
    compiled = jax.jit(compute).lower(*shapes, jax.random.key(0)).compile()
    memory.append(compile.memory_analysis(compiled)['temporary_bytes'])
  assert memory[1] < memory[0] / 2
