"""What is frozen stays to the bit, costs no gradient and no state; other layers learn as fast as is asked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import gan
from experiments import image_classification as experiment
from karpjax import config, fine_tuning, optim
from karpjax.errors import UsageError
from karpjax.train import checkpoint, compile, loop, weights
from karpjax.train.prepare import prepare
from tests import stopped

RUN = dict(
  model='cnn', widths=(4, 4), hidden=(8,), norm='batch', batch_size=16, steps='8', log_every='4', eval_every='4', checkpoint_every='4',
  checkpoint_seconds=0, tensorboard=False, plots=False, steps_per_call='2', optimiser='adamw', weight_decay=0.1, clip=0.1,
  freeze=('conv1', 'norm1'),
)  # fmt: skip


def run(folder, stop_at=0, **changes):
  return stopped.run(experiment, RUN, folder, stop_at, **changes)


def stepped(steps=3, **changes):
  """(before, after so many steps) of a run's state."""
  program, data, _ = prepare(experiment, experiment.Config(**RUN | changes))
  before = jax.jit(program.init)(jax.random.key(0))
  batch = {**data.splits['train'].fetch(np.arange(16)), 'index': np.arange(16)}
  step, after, metrics = jax.jit(program.step), before, None
  for _ in range(steps):
    after, metrics = step(after, batch)
  return before, after, metrics, program


def test_what_is_frozen_stays_to_the_bit_with_its_statistics_and_has_no_state():
  before, after, _, program = stepped()
  stays = lambda name: name.startswith(('conv1', 'norm1'))
  for tree in ('params', 'collections'):
    old, new = (checkpoint.to_arrays(getattr(x, tree)) for x in (before, after))
    for name, x in old.items():
      own = name.removeprefix('batch_stats/')
      assert np.array_equal(x, new[name]) == stays(own), name
  moments = [name for name in checkpoint.to_arrays(after.opt_state) if 'mu' in name.split('/')]
  assert moments and not any('mu/conv1' in name or 'mu/norm1' in name for name in moments)
  assert program.notes()[-1].startswith('frozen: ')


def test_no_gradient_of_what_is_frozen_is_computed():
  def flops(*freeze):
    program, data, _ = prepare(experiment, experiment.Config(**RUN | dict(freeze=freeze)))
    batch = {**data.splits['train'].fetch(np.arange(16)), 'index': np.arange(16)}
    state = jax.eval_shape(program.init, jax.random.key(0))
    return compile.estimate_flops(jax.make_jaxpr(program.step)(state, batch).jaxpr)

  assert flops('trunk') < 0.5 * flops()


def test_the_rest_learns_as_if_what_stays_were_no_parameter():
  """The gradient's norm, by which it is clipped, is that of what learns."""
  _, after, metrics, program = stepped(1, clip=1e-3, optimiser='sgd', weight_decay=0.0, learning_rate=1.0)
  before = jax.jit(program.init)(jax.random.key(0))
  change = optax.global_norm(jax.tree.map(jnp.subtract, after.params, before.params))
  assert change == pytest.approx(1e-3, rel=1e-3) and metrics['gradient_norm'][0] > 1e-3


def layers():
  kernel = lambda *shape: {'kernel': jnp.ones(shape), 'bias': jnp.zeros(shape[-1:])}
  return {
    'stem': kernel(2, 3),
    'norm': {'scale': jnp.ones(3)},
    'block': {'inner': kernel(3, 3)},
    'logits': kernel(3, 2),
  }


def test_layers_learn_at_rates_by_their_depth():
  made = optim.configured(config.Train(steps=4, warmup=0, decay_every=1, optimiser='sgd', learning_rate=1.0, layer_decay=0.5,
                                       head_learning_rate=10.0))  # fmt: skip
  params = layers()
  updates, _ = made.update(jax.tree.map(jnp.ones_like, params), made.init(params), params)
  found = {name: float(-x.reshape(-1)[0]) for name, x in zip(fine_tuning.names(params), jax.tree.leaves(updates))}
  assert found == {
    'stem/kernel': 0.25, 'stem/bias': 0.25, 'norm/scale': 0.25, 'block/inner/kernel': 0.5, 'block/inner/bias': 0.5,
    'logits/kernel': 10.0, 'logits/bias': 10.0,
  }  # fmt: skip


def test_patterns_name_parameters_and_modules():
  named = fine_tuning.names(layers())
  of = lambda *patterns: {name for name, stays in zip(named, fine_tuning.frozen(named, patterns)) if stays}
  assert of('stem') == {'stem/kernel', 'stem/bias'} and of('*/bias') == {n for n in named if n.endswith('bias')}
  assert of('trunk') == {n for n in named if not n.startswith('logits')} and of('block/inner', 'norm') == {
    'block/inner/kernel', 'block/inner/bias', 'norm/scale',
  }  # fmt: skip
  with pytest.raises(UsageError, match='freeze=stam: no parameter has that name. Did you mean stem'):
    of('stam')
  with pytest.raises(UsageError, match='nothing is left to learn'):
    of('trunk', 'logits')


@pytest.mark.parametrize('layout', [
  dict(parallel='pmap'), pytest.param(dict(seeds=2), marks=pytest.mark.slow),
  pytest.param(dict(mesh='data:2,fsdp:4'), marks=pytest.mark.slow), pytest.param(dict(microbatches=2), marks=pytest.mark.slow),
])  # fmt: skip
def test_every_layout_leaves_it_and_learns_as_one_device(tmp_path, layout):
  quick = dict(model='mlp', hidden=None, norm=None, widths=(8, 8), freeze=('hidden1',), layer_decay=0.7, steps='4')
  alone, other = run(tmp_path / 'a', **quick), run(tmp_path / 'b', **quick, **layout)
  first = lambda x: x['values'][0] if isinstance(x, dict) else x
  assert first(other.numbers['test/loss']) == pytest.approx(alone.numbers['test/loss'], rel=1e-4)


def test_it_goes_on_to_the_bit(tmp_path):
  quick = dict(
    model='mlp', hidden=None, norm=None, widths=(8, 8), freeze=('hidden1',), layer_decay=0.7, head_learning_rate=3.0
  )
  whole = run(tmp_path / 'whole', **quick)
  stopped.goes_on_to(checkpoint.to_arrays(whole.state), run, tmp_path / 'parts', 4, **quick)


def test_a_probe_is_the_trunk_of_a_run_and_a_new_last_layer(tmp_path):
  quick = dict(model='mlp', hidden=None, norm=None, widths=(8,), freeze=())
  run(tmp_path / 'first', **quick)
  probe = run(tmp_path / 'probe', **{**quick, 'freeze': ('trunk',), 'init_from': str(tmp_path / 'first'), 'steps': '4'})
  best, _ = weights.load_checkpoint(tmp_path / 'first')
  np.testing.assert_array_equal(probe.state.params['hidden1']['kernel'], best['state/params/hidden1/kernel'])


@pytest.mark.parametrize('changes, says', [
  (dict(sparsity=0.5, sparsity_until='50%'), 'pruning and quantisation change weights that would stay'),
  (dict(quantise='w8'), 'pruning and quantisation change weights that would stay'),
  (dict(freeze=('trunk', 'head')), 'nothing is left to learn'),
  (dict(layer_decay=1.5), 'layer_decay'),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(changes, says):
  with pytest.raises(UsageError, match=says):
    loop.run(experiment, experiment.Config(**RUN | changes, workdir=''), say=str)


def test_players_that_learn_apart_are_refused():
  with pytest.raises(UsageError, match='are for one model; here several learn'):
    prepare(gan, gan.Config(layer_decay=0.5, model='mlp'))
