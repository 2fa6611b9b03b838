"""Pruning of whole channels: what is found, what is 0, that it runs as all else does, and the smaller network."""

import os
import signal

import jax
import numpy as np
import pytest

import karpjax
from experiments import gan, language_model
from experiments import image_classification as experiment
from karpjax import optim
from karpjax.commands import shrink
from karpjax.errors import UsageError
from karpjax.lean import structure
from karpjax.train import checkpoint, loop, weights
from karpjax.train.prepare import prepare

PRUNED = dict(sparsity=0.75, sparsity_every='4', sparsity_until='22', structured=True)
RUN = PRUNED | dict(
  model='mlp', widths=(16, 13), norm='batch', batch_size=16, steps='30', log_every='10', eval_every='10',
  checkpoint_every='10', checkpoint_seconds=0, learning_rate=0.01, tensorboard=False, plots=False, steps_per_call='7',
)  # fmt: skip
LEFT = [4, 4]  # 16 − 12, 13 − 9


def run(folder, stop_at=0, say=None, **changes):
  def stop(line):
    if stop_at and line.startswith(f'step {stop_at}/'):
      os.kill(os.getpid(), signal.SIGTERM)

  return loop.run(experiment, experiment.Config(**RUN | changes, workdir=str(folder)), say=say or stop)


def channels(module, **flags):
  program, *_ = prepare(module, module.Config(**flags, **PRUNED | dict(steps='30')))
  return jax.eval_shape(program.init, jax.random.key(0)).opt_state.channels.value


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """(the arrays of a run of two seeds that prunes, its folder)."""
  folder = tmp_path_factory.mktemp('whole') / 'run'
  return checkpoint.to_arrays(run(folder, seeds=2).state), folder


def check_channels(arrays):
  for layer, following, left in (('1', 'hidden2', LEFT[0]), ('2', 'logits', LEFT[1])):
    into, out = arrays[f'params/hidden{layer}/kernel'] != 0, arrays[f'params/{following}/kernel'] != 0
    units = out.any(2)
    assert (units.sum(1) == left).all() and (into.any(1) == units).all()
    for name in ('scale', 'bias'):
      assert ((arrays[f'params/norm{layer}/{name}'] != 0) <= units).all()


def test_units_go_whole_and_a_run_goes_on_to_the_same_bits(whole, tmp_path):
  check_channels(whole[0])
  with pytest.raises(SystemExit):
    run(tmp_path, stop_at=10, seeds=2)
  again = checkpoint.to_arrays(run(tmp_path, seeds=2).state)
  assert again.keys() == whole[0].keys()
  assert all(again[name].tobytes() == x.tobytes() for name, x in whole[0].items())
  assert not np.array_equal(*(again['params/hidden1/kernel'] == 0))  # seeds prune units of their own


@pytest.mark.parametrize(
  'layout', [dict(parallel='pmap'), pytest.param(dict(mesh='data:2,fsdp:4'), marks=pytest.mark.slow)]
)
def test_every_layout_prunes_channels(whole, tmp_path, layout):
  arrays = checkpoint.to_arrays(run(tmp_path, seeds=2, **layout).state)
  check_channels(arrays)
  for name in ('params/hidden1/kernel', 'params/logits/kernel'):
    assert ((arrays[name] == 0) == (whole[0][name] == 0)).mean() > 0.8  # but for roundings: of 13 units, two


def test_the_units_with_the_smallest_weights_go_by_the_schedule():
  config = experiment.Config(**RUN | dict(norm='none', sparsity_until='9', sparsity_from='2', sparsity_every='3'))
  program, _, config = prepare(experiment, config)
  state, made = jax.jit(program.init)(jax.random.key(0)), optim.configured(config)
  update = jax.jit(lambda opt_state, params: made.update(jax.tree.map(jax.numpy.zeros_like, params), opt_state, params))
  sizes, opt_state = np.abs(np.asarray(state.params['hidden1']['kernel'])).sum(0), state.opt_state
  for t in range(1, 12):
    _, opt_state = update(opt_state, state.params)
    kept = np.asarray(opt_state.masks['hidden2']['kernel']).any(1)
    share = min(max((t - 2) // 3 * 3, 0) / 7, 1) if t < 9 else 1
    count = int(np.float32(0.75) * np.float32(1 - (1 - share) ** 3) * 16)
    assert (np.flatnonzero(~kept) == np.sort(np.argsort(sizes)[:count])).all(), t
    assert not np.asarray(opt_state.masks['hidden1']['bias'])[~kept].any()


def test_channels_of_convolutions_are_found():
  found = channels(experiment, model='cnn', widths=(4, 6), depth=(2, 1), norm='batch', hidden=(8,))
  assert [(x.option, x.entry, x.size, *x.makers) for x in found] == [
    ('widths', 0, 4, ('params/conv1/kernel', 3)),
    ('widths', 0, 4, ('params/conv2/kernel', 3)),
    ('widths', 1, 6, ('params/conv3/kernel', 3)),
    ('hidden', 0, 8, ('params/head/hidden1/kernel', 1)),
  ]
  assert ('params/head/hidden1/kernel', 0) in found[2].members and ('batch_stats/norm3/var', 0) in found[2].members


@pytest.mark.slow
def test_hidden_units_and_heads_of_transformers_are_found():
  found = channels(language_model, model='gpt', layers=1, width=8, heads=4, context=4, positions='rotary')
  block = 'params/blocks_0/'
  assert [(x.option, x.size, *x.makers) for x in found] == [
    ('hidden', 32, (block + 'up/kernel', 1)),
    ('heads', 4, (block + 'attention/key_value', 2), (block + 'attention/query', 1)),
  ]
  assert set(found[1].members) == {
    *((block + 'attention/' + name, axis) for name, axis in (('query', 1), ('query_bias', 0), ('out', 0))),
    *((block + 'attention/' + name, axis) for name, axis in (('key_value', 2), ('key_value_bias', 1))),
  }


@pytest.mark.slow
@pytest.mark.parametrize('kv_heads, left', [(1, ['hidden', 'heads']), (2, ['hidden'])])
def test_heads_that_share_one_key_go_and_groups_of_them_stay(kv_heads, left):
  found = channels(language_model, model='gpt', layers=1, width=8, heads=4, kv_heads=kv_heads, context=8)
  assert [x.option for x in found] == left


@pytest.mark.slow
def test_a_transformer_shrinks_to_fewer_heads_of_the_same_size(tmp_path):
  (tmp_path / 'story.txt').write_text('the old fox went to the red sea. ' * 40)
  flags = {name: x for name, x in RUN.items() if name not in ('widths', 'norm')} | dict(sparsity=0.5, context=8)
  flags |= dict(model='gpt', layers=1, heads=4, width=16, positions='rotary', workdir=str(tmp_path / 'run'))
  flags |= dict(dataset=f'text:{tmp_path / "story.txt"}')
  loop.run(language_model, language_model.Config(**flags), say=str)
  place = shrink.shrink(str(tmp_path / 'run'), say=str)
  old, new = karpjax.open(tmp_path / 'run'), karpjax.open(place)
  assert (new.config.heads, new.config.head_dim, new.config.hidden) == (2, 4, 32)
  assert new.state.params['blocks_0']['attention']['key_value'].shape == (16, 2, 2, 4)
  before, after = old.evaluate()[0], new.evaluate()[0]
  assert all(after[name] == pytest.approx(x, rel=1e-4) for name, x in before.items())


@pytest.mark.parametrize(
  'module, flags, message',
  [
    pytest.param(
      *(experiment, dict(model='resnet20', widths=(2, 2, 4)), r'more than one layer reads .*widths \(params/'),
      marks=pytest.mark.slow,
    ),
    (experiment, dict(model='mlp', widths=(6, 6), residual=True), 'other outputs'),
    (experiment, dict(model='logistic'), 'no option of this model'),
    (experiment, dict(sparsity_scope='global'), 'structured is by layer'),
    (gan, dict(ema=0.0), 'a program of one model'),
    (experiment, dict(quantise='w8'), 'not quantised'),
  ],
)
def test_what_cannot_be_made_smaller_is_refused_before_training(module, flags, message):
  with pytest.raises(UsageError, match=message):
    channels(module, **flags)


def test_units_that_go_and_are_not_0_are_refused():
  of = structure.Channels('widths', 0, 3, (('params/a', 1),), (('params/a', 1), ('params/b', 0)))
  kept, arrays = np.array([True, False, True]), {'params/a': np.ones((2, 3)), 'params/b': np.ones((6, 2))}
  arrays['params/a'][:, 1] = arrays['params/b'][[1, 4]] = 0
  structure.refuse_rest(arrays, [of], [kept])
  arrays['params/b'][4, 1] = 1e-9
  with pytest.raises(UsageError, match='params/b is not 0 where'):
    structure.refuse_rest(arrays, [of], [kept])


@pytest.mark.slow
def test_roundings_of_bfloat16_are_no_other_outputs():
  flags = dict(model='cnn', widths=(64, 128), depth=(1, 1), hidden=(256,), dtype='bfloat16')
  assert [x.size for x in channels(experiment, **flags)] == [64, 128, 256]


def test_the_smaller_network_is_a_run_that_predicts_the_same(whole, tmp_path):
  said = []
  place = shrink.shrink(str(whole[1]), str(tmp_path / 'small'), said.append)
  old, new = karpjax.open(whole[1], member=1), karpjax.open(place, member=1)
  assert (
    new.config.widths == tuple(LEFT)
    and not new.config.structured
    and new.state.params['hidden2']['kernel'].shape == (4, 4)
  )
  before, after = old.evaluate()[0], new.evaluate()[0]
  assert before.keys() == after.keys()
  assert all(after[name] == pytest.approx(x, rel=1e-4) for name, x in before.items())
  numbers = new.summary
  assert numbers['parameters'] < numbers['parameters_before'] / 3 and numbers['flops'] < numbers['flops_before'] / 2
  assert said[0].split()[:2] == [str(whole[1]), str(place)] and said[-1].startswith('time of a step')
  lines = []
  loop.run(experiment, new.config, say=lines.append)
  assert lines[-1].startswith('this run is finished')
  assert weights.read(str(place))['params/logits/kernel'].shape == (4, 10)
  with pytest.raises(UsageError, match='holds a run'):
    shrink.shrink(str(whole[1]), str(place), said.append)
