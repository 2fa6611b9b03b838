"""Pruning: the schedule against its closed form, what is 0 for ever, and that it runs as all else does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import gan, language_model, text_classification, value_learning
from experiments import image_classification as experiment
from karpjax import config, optim, verbs
from karpjax.durations import Pace
from karpjax.errors import UsageError
from karpjax.train import checkpoint, loop, masks
from karpjax.train.prepare import prepare
from tests import stopped

TIMES = dict(sparsity_from=2, sparsity_until=9, sparsity_every=3)
RUN = dict(
  model='mlp', widths=(16,), batch_size=16, steps='30', log_every='10', eval_every='10', checkpoint_every='10',
  checkpoint_seconds=0, learning_rate=0.01, tensorboard=False, plots=False, steps_per_call='7', sparsity=0.75,
  sparsity_every='4', sparsity_until='22',
)  # fmt: skip


def optimiser(pace=Pace(), **changes):
  resolved = dict(steps=12, warmup=0, decay_every=1, sparsity=0.8)
  return optim.configured(config.Train(**resolved | TIMES | changes), pace)


def updates(made, params, count, gradient=None):
  """The params after each of so many updates."""
  state, each = made.init(params), []
  update = jax.jit(made.update)
  for t in range(count):
    draw = lambda p, t=t: np.random.default_rng(t).normal(size=p.shape).astype('f4')
    change, state = update(gradient or jax.tree.map(draw, params), state, params)
    params = optax.apply_updates(params, change)
    each.append(params)
  return each, state


def two_layers():
  draw = np.random.default_rng(0).normal
  layer = lambda scale, *shape: {'kernel': scale * draw(size=shape).astype('f4'), 'bias': np.zeros(shape[-1:], 'f4')}
  return {'first': layer(1, 10, 20), 'last': layer(0.01, 20, 5), 'table': {'embedding': np.ones((9, 4), 'f4')}}


@pytest.mark.parametrize('name', ['sgd', 'adam', 'muon'])
def test_zeros_follow_the_schedule_and_stay(name):
  each, _ = updates(optimiser(optimiser=name, weight_decay=0.1), two_layers(), 12)
  due = {2: 0, 5: 3 / 7, 8: 6 / 7, 9: 1}  # after so many updates; between them nothing changes
  share = 0.0
  for t, params in enumerate(each, 1):
    share = due.get(t, share)
    for layer, size in (('first', 200), ('last', 100)):
      zeros = params[layer]['kernel'] == 0
      assert zeros.sum() == int(np.floor(np.float32(0.8) * np.float32(1 - (1 - share) ** 3) * size)), t
      assert t == 1 or zeros[each[t - 2][layer]['kernel'] == 0].all()
    assert (params['table']['embedding'] != 0).all() and (params['first']['bias'] != 0).all()


def test_without_pruned_weights_updates_are_those_without_pruning_to_the_bit():
  plain, _ = updates(optimiser(sparsity=0.0, clip=0.5), two_layers(), 4)
  pruned, _ = updates(optimiser(sparsity_from=5, sparsity_until=8, clip=0.5), two_layers(), 4)
  jax.tree.map(np.testing.assert_array_equal, plain[-1], pruned[-1])


def test_the_smallest_go_of_each_layer_or_of_all():
  start, still = two_layers(), jax.tree.map(np.zeros_like, two_layers())
  at_once = dict(optimiser='sgd', sparsity_from=1, sparsity_until=1, sparsity=0.5)
  (of_layers,), _ = updates(optimiser(**at_once), start, 1, still)
  (of_all,), _ = updates(optimiser(**at_once, sparsity_scope='global'), start, 1, still)
  for layer in ('first', 'last'):
    sizes = np.abs(start[layer]['kernel'])
    np.testing.assert_array_equal(of_layers[layer]['kernel'] == 0, sizes < np.median(sizes))
  assert [int((of_all[layer]['kernel'] == 0).sum()) for layer in ('first', 'last')] == [50, 100]


def test_of_equal_weights_no_more_than_asked_are_pruned():
  params = {'layer': {'kernel': np.zeros((4, 5), 'f4')}}
  each, _ = updates(optimiser(), params, 12, {'layer': {'kernel': np.ones((4, 5), 'f4')}})
  assert (each[-1]['layer']['kernel'] == 0).sum() == 16


def test_clipping_sees_no_gradient_of_what_is_pruned():
  params = {'layer': {'kernel': np.array([[3.0], [0.1]], 'f4')}}
  gradient = {'layer': {'kernel': np.array([[1.0], [1000.0]], 'f4')}}
  made = optimiser(optimiser='sgd', learning_rate=1e-6, clip=1.0, sparsity=0.5, sparsity_from=1, sparsity_until=1)
  each, _ = updates(made, params, 2, gradient)
  assert each[1]['layer']['kernel'][0, 0] == np.float32(each[0]['layer']['kernel'][0, 0] - np.float32(1e-6))
  assert each[1]['layer']['kernel'][1, 0] == 0


def test_times_are_steps_of_the_run_and_go_on_where_updates_are_skipped():
  each, _ = updates(optimiser(Pace(3, first=1)), two_layers(), 24)
  assert [int((p['last']['kernel'] == 0).sum()) for p in (each[22], each[23])] == [79, 80]  # 3 × (9 − 1) updates
  made = optimiser()
  state = made.init(two_layers())
  for _ in range(20):
    state = optim.skipped(state)
  params = two_layers()
  change, _ = made.update(params, state, params)
  assert (optax.apply_updates(params, change)['last']['kernel'] == 0).sum() == 80


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(sparsity_from=10), 'from ≤ until is needed'),
    (dict(sparsity_until=13), 'to the 12 steps'),
    (dict(sparsity_from=0, sparsity_until=0), 'until from 1'),
    (dict(sparsity_every=0), 'every from 1'),
    (dict(ema=0.9), '^ema=0.9: averages'),
  ],
)
def test_what_cannot_be_pruned_is_refused(changes, message):
  with pytest.raises(UsageError, match=message):
    optimiser(**changes)


def test_a_model_without_kernels_is_refused():
  program, *_ = prepare(language_model, language_model.Config(model='bigram', sparsity=0.5, sparsity_until='5'))
  with pytest.raises(UsageError, match='no kernels'):
    jax.eval_shape(program.init, jax.random.key(0))


run = functools.partial(stopped.run, experiment, RUN)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """(the arrays of a run of two seeds that prunes, its folder)."""
  folder = tmp_path_factory.mktemp('whole')
  return checkpoint.to_arrays(run(folder, seeds=2).state), folder


def kernels(arrays):
  return {name: x for name, x in arrays.items() if name.startswith('params/') and name.endswith('/kernel')}


def test_seeds_go_on_to_the_same_bits(whole, tmp_path):
  again = stopped.goes_on_to(whole[0], run, tmp_path, 10, seeds=2)
  for kernel in kernels(again).values():
    assert ((kernel == 0).mean((1, 2)) == 0.75).all()
    assert not np.array_equal(kernel[0] == 0, kernel[1] == 0)


@pytest.mark.parametrize('layout', [dict(parallel='pmap'), dict(mesh='data:2,fsdp:4'), dict(parallel='seeds')])
def test_every_layout_prunes_as_one_device(whole, tmp_path, layout):
  state = run(tmp_path, seeds=2, **layout).state
  for name, kernel in kernels(checkpoint.to_arrays(state)).items():
    assert ((kernel == 0).mean((1, 2)) == 0.75).all()
    assert ((kernel == 0) == (whole[0][name] == 0)).mean() > 0.98  # but for roundings


def test_the_best_weights_are_pruned_in_full(tmp_path):
  run(tmp_path, select='-validation/loss', learning_rate=0.003)  # by which the first would be the best
  best = verbs.Run(tmp_path)
  assert best.step == 30 and (best.state.params['logits']['kernel'] == 0).mean() == 0.75


def test_a_ticket_begins_with_the_weights_and_the_zeros_of_its_run(whole, tmp_path):
  ticket = dict(sparsity=0.0, sparsity_every='100', sparsity_until='0', mask_from=str(whole[1]), seeds=2)
  begun = run(tmp_path / 'begun', **ticket | dict(steps='1', learning_rate=1e-12))
  first = jax.vmap(prepare(experiment, experiment.Config(**RUN))[0].init)(jax.vmap(jax.random.key)(jnp.arange(2)))
  end = kernels(checkpoint.to_arrays(run(tmp_path / 'whole', **ticket).state))
  for name, kernel in kernels(checkpoint.to_arrays(begun.state)).items():
    pruned, layer = whole[0][name] == 0, name.split('/')[1]
    np.testing.assert_allclose(kernel, np.where(pruned, 0, first.params[layer]['kernel']), atol=1e-9)
    np.testing.assert_array_equal(end[name] == 0, pruned)


def test_a_ticket_may_begin_with_other_weights_on_any_layout(whole, tmp_path):
  ticket = dict(sparsity=0.0, sparsity_every='100', sparsity_until='0', mask_from=str(whole[1]), seeds=2)
  state = run(tmp_path, init_from=str(whole[1]), mesh='data:2,fsdp:4', steps='1', learning_rate=1e-12, **ticket).state
  for name, kernel in kernels(checkpoint.to_arrays(state)).items():  # the weights are those of the first seed
    np.testing.assert_allclose(kernel, np.where(whole[0][name] == 0, 0, whole[0][name][0]), atol=1e-9)


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(seeds=3), '2 seeds, not 3'),
    (dict(widths=(8,)), 'of another model'),
    (dict(mask_from='nowhere'), 'nowhere: no such folder'),
  ],
)
def test_a_ticket_of_another_run_is_refused_before_anything_is_compiled(whole, tmp_path, changes, message):
  given = RUN | dict(sparsity=0.0, sparsity_every='100', sparsity_until='0', mask_from=str(whole[1]), seeds=2) | changes
  said = []
  with pytest.raises(UsageError, match=message):
    loop.run(experiment, experiment.Config(**given, workdir=str(tmp_path / 'new')), say=said.append)
  assert 'compiling …' not in said


def test_the_report_counts_zeros_bytes_and_flops(tmp_path):
  said = []
  run(tmp_path, say=said.append, plots=True)
  text = (tmp_path / 'texts' / 'sparsity.txt').read_text()
  assert '64×16' in text and '1,024' in text and text.splitlines()[-1] == said[-1] == masks.SLOW
  size = 64 * 16 + 16 * 10
  assert f'{size:,}' in text and '75.00%' in text
  assert f'products: {2 * size / 1000:.3g} kFLOP of an example with weights, {size / 2:.3g} FLOP' in text
  assert f'{4 * (size + 26) / 1000:.3g} kB, or {4 * (size / 4 + 26) / 1000 + size / 8000:.3g} kB' in text


def test_flops_of_convolutions_and_of_attention_are_found():
  def flops(experiment, **flags):
    program, data, _ = prepare(experiment, experiment.Config(**flags))
    return masks._flops(program, data, program.init(jax.random.key(0))), data

  found, _ = flops(experiment, model='cnn', widths=(4, 6), hidden=())
  assert sorted(found.values()) == [2 * 24 * 10, 2 * 64 * 9 * 4, 2 * 16 * 36 * 6]
  found, _ = flops(language_model, layers=1, width=8, heads=2, context=16)
  query = next(name for name in found if name.endswith('query'))
  assert found[query] == 2 * 16 * 8 * 8


def test_the_report_counts_products_of_layers_whose_inputs_are_rounded_too(tmp_path):
  told = {}
  for kind in ('none', 'w8a8'):
    program, *_ = prepare(experiment, experiment.Config(**RUN, quantise=kind))
    told[kind] = program.report(jax.jit(program.init)(jax.random.key(0)), 1, tmp_path)[-2]
  assert told['w8a8'] == told['none'] and told['none'].startswith('products: 2.37 kFLOP')


@pytest.mark.parametrize(
  'flags, first', [(dict(quantise='w8'), 13), (dict(sparsity=0.5, sparsity_until='5'), 13), ({}, 0)]
)
def test_no_weights_of_before_the_first_update_are_the_best(flags, first):
  given = dict(steps='40', learning_starts=200, batch_size=16, train_frequency=1, **flags)
  assert prepare(value_learning, value_learning.Config(**given))[0].settled == first


@pytest.mark.parametrize('experiment, flags', [(gan, {'ema': 0.0}), (text_classification, {'max_norm': 3.0})])
def test_players_and_chains_have_masks_of_their_own(experiment, flags):
  program, *_ = prepare(experiment, experiment.Config(**flags, sparsity=0.5, sparsity_until='5'))
  state = jax.eval_shape(program.init, jax.random.key(0))
  arrays = dict(zip(checkpoint.names(state.opt_state), jax.tree.leaves(state.opt_state)))
  assert masks._of_params(arrays).keys() == {*checkpoint.names(state.params)}
