"""Whatever runs a Program, it is the same Program."""

import dataclasses
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import image_classification
from karpjax import collectives, config
from karpjax.data import batches
from karpjax.data.dataset import Dataset, Spec, Split
from karpjax.errors import UsageError
from karpjax.program import Population, Program, TrainState, pair
from karpjax.train import checkpoint, loop, runtime
from karpjax.train import runner as runners
from karpjax.train import transforms as transform

SIZE = 40


def dataset(size=SIZE):
  x = np.arange(size, dtype=np.float32)
  split = Split.of(x=x)
  return Dataset(
    Spec('numbers', (1,), (), 1.0, (0.0,), (1.0,), size, 'float32'), {'train': split, 'test': Split.of(x=x[:13])}
  )


def program(batch_size=8):
  """Sums what it sees, overall and for each place of the batch: the answer is arithmetic on the data order."""

  def init(key):
    state = TrainState.create(key, {'params': {'sum': jnp.zeros(())}}, optax.identity())
    return state.replace(carried={'seen': jnp.zeros(batch_size)})

  def step(state, batch):
    total = collectives.total(batch['x'].sum())
    state = state.replace(
      step=state.step + 1,
      params={'sum': state.params['sum'] + total},
      carried={'seen': state.carried['seen'] + batch['x']},
    )
    return state, {'loss': (total, collectives.total(jnp.float32(batch['x'].size)))}

  evaluate = lambda state, batch, key: {'loss': pair(batch['x'], batch['mask'])}
  return Program(init, step, evaluate, lambda sums: {'loss': float(sums['loss'][0] / sums['loss'][1])})


def settings(**changes):
  return config.resolve(
    config.Train(**dict(steps='9', batch_size=8, steps_per_call='4', eval_batch_size=6) | changes), SIZE
  )


def run(runner):
  """(carry in global form after 9 steps, sums of the test split)."""
  carry, t = runner.placement.put(runner.init()), 0
  runner.compile(runner.config.steps_per_call)
  while t < 9:
    stop = min(runner.next_boundary(t), 9)
    carry, t = runner.run_steps(carry, t, stop, t == 0), stop
  return runner.placement.get(carry), runner.evaluate(carry, 'test')


@pytest.mark.parametrize('parallel', ['none', 'pmap', 'data', 'seeds', 'in turn'])
@pytest.mark.parametrize('seeds', [1, 3])
@pytest.mark.parametrize('resident', [True, False])
def test_every_path_sees_the_same_examples_in_the_same_places(parallel, seeds, resident, monkeypatch):
  if parallel in ('seeds', 'in turn') and seeds == 1:
    pytest.skip('one seed has no turns')
  monkeypatch.setattr(runtime, 'prefer_sequential_seeds', lambda flops, convolves: parallel == 'in turn')
  parallel = parallel.replace('in turn', 'none')
  examples = dataset()
  if not resident:
    splits = {name: Split(s.size, None, s.fetch) for name, s in examples.splits.items()}
    examples = Dataset(examples.spec, splits)
  carry, sums = run(runners.Runner(program(), examples, settings(parallel=parallel, seeds=seeds, seed=5)))
  assert int(carry.state.step) == 9
  for s in range(seeds):
    numbers = batches.indices(5 + s, 0, 9, batch_size=8, size=SIZE)
    pick = (lambda x, s=s: np.asarray(x)[s]) if seeds > 1 else np.asarray
    assert pick(carry.state.params['sum']) == numbers.sum() == pick(carry.totals['loss'][0])
    np.testing.assert_array_equal(pick(carry.state.carried['seen']), numbers.sum(0))
    assert pick(sums['loss'][0]) == sum(range(13)) and pick(sums['loss'][1]) == 13


@pytest.mark.parametrize('parallel', ['none', 'seeds'])
def test_members_of_one_seed_see_the_same_batches(parallel):
  members = dataclasses.replace(program(), population=Population((5, 5, 5), {}))
  carry, _ = run(runners.Runner(members, dataset(), settings(parallel=parallel, seeds=3)))
  numbers = batches.indices(5, 0, 9, batch_size=8, size=SIZE)
  np.testing.assert_array_equal(carry.state.params['sum'], [numbers.sum()] * 3)


@pytest.mark.parametrize('parallel', ['none', 'pmap'])
@pytest.mark.parametrize('seeds', [1, 2])
def test_putting_and_getting_are_inverse(parallel, seeds):
  runner = runners.Runner(program(), dataset(), settings(parallel=parallel, seeds=seeds))
  carry = runner.init()
  seen = jnp.arange(8.0 * seeds).reshape(carry.state.carried['seen'].shape)
  carry = carry.replace(state=carry.state.replace(carried={'seen': seen}))
  a, b = (checkpoint.to_arrays(x) for x in (carry, runner.placement.get(runner.placement.put(carry))))
  assert all(np.array_equal(a[name], b[name]) for name in a)


def test_the_device_of_a_cpu_reads_a_resident_set_where_it_lies():
  feed = runners.Runner(program(), dataset(), settings()).feed
  assert feed.arrays['x'].unsafe_buffer_pointer() == feed.split.arrays['x'].ctypes.data


def test_calls_grow_until_they_take_long_enough(monkeypatch):
  runner = runners.Runner(program(), dataset(), settings(steps_per_call='auto', steps='5000'))
  carry, t, ends = runner.placement.put(runner.init()), 0, []
  runner.compile(runner.config.steps_per_call)
  assert runner.steps_per_call == 1024 and runner.next_boundary(0) == 1
  clock = iter(np.arange(100) / 1000)  # each call takes a millisecond
  monkeypatch.setattr(runners.time, 'perf_counter', lambda: next(clock))
  for _ in range(7):
    stop = runner.next_boundary(t)
    carry, t = runner.run_steps(carry, t, stop, False), stop
    ends.append(t)
  assert ends == [1, 5, 21, 85, 341, 1365, 2389] and int(carry.state.step) == 2389


def test_a_step_that_is_not_finite_is_masked_with_all_after_it():
  base = program()

  def step(state, batch):
    new, metrics = base.step(state, batch)
    bad = jnp.where(state.step == 2, jnp.nan, 0.0)
    return new.replace(params={'sum': new.params['sum'] + bad}), metrics

  guarded = jax.jit(transform.guarded(step))
  carry = transform.Carry(base.init(jax.random.key(0)), {'loss': (jnp.zeros(()), jnp.zeros(()))})
  for _ in range(5):
    carry = guarded(carry, {'x': jnp.ones(8), 'index': jnp.arange(8)})
  assert float(carry.state.params['sum']) == 16 and int(carry.state.nonfinite_step) == 2 and int(carry.state.step) == 5


@pytest.mark.parametrize('value, finite', [(1e38, True), (np.inf, False), (-np.inf, False), (np.nan, False)])
@pytest.mark.parametrize('shape', [(3,), (2, 3), (2, 2, 3)])
def test_all_finite(value, finite, shape):
  bad = jnp.ones(shape).at[(-1,) * len(shape)].set(value)
  tree = {'a': bad, 'b': jnp.arange(3), 'c': jnp.full((5,), -1e38), 'd': jnp.full((5, 2), 1e38)}
  assert bool(jax.jit(transform.all_finite)(tree)) == finite


def test_a_state_that_is_cut_over_accelerators_may_need_the_memory_of_all(monkeypatch):
  class Device:
    memory_stats = staticmethod(lambda: {'bytes_limit': 10**6})

  monkeypatch.setattr(jax, 'local_devices', lambda: [Device])
  state = jax.eval_shape(lambda: {'w': jnp.zeros(200_000)})  # 0.8 MB, three times
  with pytest.raises(UsageError, match=r'there are 0.0 GB'):
    runners.check_memory(state, 1)
  runners.check_memory(state, 1, num_state_shards=4)


def test_an_array_that_no_memory_holds_is_refused_by_its_size():
  """As of a rollout of too many steps: what a loop stacks, and what a product takes; an unused one is none."""
  stacked = jax.make_jaxpr(lambda x: jax.lax.scan(lambda c, t: (c, c * t), x, jnp.arange(10**9)))(jnp.ones(100))
  product = jax.make_jaxpr(lambda x: jnp.broadcast_to(x, (10**9, 100)) @ jnp.ones((100, 3)))(jnp.ones(100))
  for jaxpr in (stacked.jaxpr, product.jaxpr):
    assert runners.compile.largest_array(jaxpr) == 4 * 10**11
  assert (
    runners.compile.largest_array(
      jax.make_jaxpr(lambda x: jnp.broadcast_to(x, (10**9, 100)).sum())(jnp.ones(100)).jaxpr
    )
    == 0
  )
  with pytest.raises(UsageError, match='^one array of a step would need 4,000,000.0 GB, and there are'):
    runners.check_memory({}, 1, array=4 * 10**15)


@pytest.fixture
def logged(caplog):
  """What is compiled, in whichever thread."""
  jax.config.update('jax_log_compiles', True)
  with caplog.at_level(logging.WARNING):
    yield caplog
  jax.config.update('jax_log_compiles', False)


def test_no_program_is_compiled_twice_in_a_run_nor_one_that_copies_an_array(tmp_path, logged):
  """Steps, evaluations of splits of different sizes: each is one compilation; nothing else is one."""
  config = image_classification.Config(
    model='mlp', widths=(8,), steps='30', log_every='7', eval_every='13', checkpoint_every='20', tensorboard=False,
    eval_splits=('train', 'validation'), workdir=str(tmp_path / 'run'), plots=False, compilation_cache='off',
  )  # fmt: skip
  loop.run(image_classification, config, say=str)
  compiled = re.findall(r'Finished XLA compilation of (\S+) in', logged.text)
  ours = [name for name in compiled if re.search(r'step|sums|carry', name)]
  assert any('sums' in name for name in ours) and any('step' in name for name in ours)
  assert len(ours) == len(set(ours)), ours
  assert compiled == ours, compiled


def test_sequential_seeds_are_vmapped_seeds_in_a_loop():
  """The step counter has no axis of seeds; a batch has one, or is that of all seeds."""
  base = program()
  step = lambda carry, batch: transform.Carry(base.step(carry.state, batch)[0], carry.totals)
  states = jax.vmap(base.init)(jax.vmap(jax.random.key)(jnp.arange(3)))
  carry = transform.Carry(states.replace(step=jnp.int32(5)), {'loss': jnp.zeros((3, 2))})
  axes = transform.Carry(transform.stack_axes(carry.state), 0)
  x = jnp.arange(24.0).reshape(3, 8)
  for batch, axis in (({'x': x}, 0), ({'x': x[0]}, None)):
    one, other = (transform.over_seeds(step, axes, axis, sequential)(carry, batch) for sequential in (False, True))
    assert one.state.step.shape == () and int(other.state.step) == 6
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), one.state.replace(key=0), other.state.replace(key=0))
  loop = jax.make_jaxpr(transform.over_seeds(step, axes, 0, True))(carry, {'x': x})
  (scan,) = [e for e in loop.eqns if e.primitive.name == 'scan']
  assert scan.params['length'] == 3
