"""Quantisation: numbers against NumPy, gradients straight through, that it runs as all else does, and files of few bits."""

import functools
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

import karpjax
from experiments import gan, language_model
from experiments import image_classification as experiment
from karpjax import config, optim, options
from karpjax.commands import quantise
from karpjax.errors import UsageError
from karpjax.layers import linear
from karpjax.lean import quantisation
from karpjax.program import Program
from karpjax.train import checkpoint, integers, loop, masks
from karpjax.train.prepare import prepare
from tests import stopped

RUN = dict(
  model='mlp', widths=(16,), batch_size=16, steps='20', log_every='10', eval_every='10', checkpoint_every='10',
  checkpoint_seconds=0, learning_rate=0.01, tensorboard=False, plots=False, steps_per_call='7', quantise='w8a8',
)  # fmt: skip
ON = config.Train(quantise='w8a8')


def by_hand(x, bits, axis):
  """(integers, scale) in NumPy."""
  levels = {8: 127, 4: 7}[bits]
  scale = np.abs(x).max(axis, keepdims=True).astype(np.float32) / np.float32(levels)
  return np.round(x / np.where(scale == 0, 1, scale)), scale


def on_grid(kernel, bits, axis):
  """Whether a kernel takes only the values of so few bits."""
  whole, scale = by_hand(kernel, bits, axis)
  return np.allclose(whole * scale, kernel, rtol=1e-5, atol=1e-7)


def test_integers_and_scales_are_those_by_hand():
  x = np.array([[1.0, -0.3, 0], [0.52, 0.31, 0], [-0.26, 0.1, 0]], 'f4')
  whole, scale = quantisation.integers(x, 4, (0,))
  np.testing.assert_allclose(scale, [[1 / 7, 0.31 / 7, 1]], rtol=1e-6)
  np.testing.assert_array_equal(whole, [[7, -7, 0], [4, 7, 0], [-2, 2, 0]])
  whole, scale = quantisation.integers(x, 8, (0,), clip=0.5)
  np.testing.assert_array_equal(whole[:, 0], [127, 127, -66])
  stack = np.random.default_rng(0).normal(size=(2, 3, 4)).astype('f4')  # of two matrices
  for got, expected in zip(quantisation.integers(stack, 8, quantisation.inputs('sio')), by_hand(stack, 8, 1)):
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize('kind, bits', [('w8', 8), ('w4', 4)])
@pytest.mark.parametrize('name', ['sgd', 'adam', 'muon'])
def test_float_weights_learn_and_rounded_ones_are_seen(name, kind, bits):
  draw = np.random.default_rng(0).normal
  params = {
    'a': {'kernel': draw(size=(6, 5)).astype('f4'), 'bias': np.zeros(5, 'f4')},
    'b': {'kernel': draw(size=(5, 3))},
  }
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  flags = dict(steps=12, warmup=0, decay_every=1, optimiser=name, weight_decay=0.1, learning_rate=0.03)
  plain, made = optim.configured(config.Train(**flags)), optim.configured(config.Train(**flags, quantise=kind))
  exact, state, of_plain, seen = params, made.init(params), plain.init(params), params
  for t in range(12):
    gradients = jax.tree.map(
      lambda p, t=t: jnp.asarray(np.random.default_rng(t).normal(size=p.shape), jnp.float32), params
    )
    change, of_plain = plain.update(gradients, of_plain, exact)
    exact = optax.apply_updates(exact, change)
    change, state = made.update(gradients, state, seen)
    seen = optax.apply_updates(seen, change)
    for layer in ('a', 'b'):
      whole, scale = by_hand(np.asarray(exact[layer]['kernel']), bits, 0)
      differs = ~np.isclose(seen[layer]['kernel'], whole * scale, rtol=1e-4, atol=1e-6)
      assert differs.mean() < 0.1  # a tie may be rounded otherwise
      np.testing.assert_allclose(seen[layer]['kernel'] + state.rest[layer]['kernel'], exact[layer]['kernel'], atol=1e-5)
      assert on_grid(np.asarray(seen[layer]['kernel']), bits, 0)
    np.testing.assert_array_equal(seen['a']['bias'], exact['a']['bias'])


def test_rows_that_enter_are_of_8_bits_and_gradients_go_straight_through():
  draw = np.random.default_rng(0).normal
  x, kernel = draw(size=(4, 6)).astype('f4'), draw(size=(6, 3)).astype('f4')
  f = lambda x, kernel: (linear.dense(x, kernel) ** 2).sum()
  with quantisation.within(ON):
    value, (of_x, of_kernel) = jax.value_and_grad(f, (0, 1))(x, kernel)
    alone = linear.dense(x[:1], kernel)
  rounded, scale = by_hand(x, 8, 1)
  rounded = rounded * scale
  coarse, scale = by_hand(kernel, 8, 0)
  outputs = rounded @ (coarse * scale)
  np.testing.assert_allclose(value, (outputs**2).sum(), rtol=1e-5)
  np.testing.assert_allclose(of_x, 2 * outputs @ kernel.T, rtol=1e-4)
  np.testing.assert_allclose(of_kernel, rounded.T @ (2 * outputs), rtol=1e-4)
  np.testing.assert_allclose(alone, outputs[:1], rtol=1e-5)  # whatever else is in the batch
  assert not np.array_equal(f(x, kernel), value)


@pytest.mark.parametrize('platform', ['cpu', 'cuda', 'tpu'])
def test_integers_are_multiplied(platform):
  arguments = jax.ShapeDtypeStruct((32, 64), jnp.float32), jax.ShapeDtypeStruct((64, 16), jnp.float32)
  with quantisation.within(ON):
    text = jax.jit(linear.dense).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
  assert 'tensor<32x64xi8>, tensor<64x16xi8>) -> tensor<32x16xi32>' in text


@pytest.mark.parametrize(
  'flags, message', [(dict(ema=0.9), '^ema=0.9: averages'), (dict(quantise='w2'), 'quantise=w2'), (dict(model='bigram'), 'no kernels')]
)  # fmt: skip
def test_what_cannot_be_quantised_is_refused(flags, message):
  with pytest.raises(UsageError, match=message):
    program, *_ = prepare(language_model, language_model.Config(**{'quantise': 'w8', **flags}))
    jax.eval_shape(program.init, jax.random.key(0))


class Plain(nn.Module):
  """A model whose layers are none of karpjax's."""

  classes: int
  dtype: type = None

  @nn.compact
  def __call__(self, x, train: bool = False):
    return nn.Dense(self.classes)(x.reshape(len(x), -1))


def test_w8a8_of_layers_that_do_not_heed_it_is_refused(tmp_path):
  flags = {name: value for name, value in RUN.items() if name != 'widths'}
  own = options.with_model(experiment.Config, 'tests.lean.test_quantisation:Plain')
  with pytest.raises(UsageError, match='^quantise=w8a8: the program makes no use of it'):
    loop.run(
      experiment, own(**flags | dict(model='tests.lean.test_quantisation:Plain', workdir=str(tmp_path))), say=str
    )


run = functools.partial(stopped.run, experiment, RUN)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """(the arrays of a run of two seeds, its folder)."""
  folder = tmp_path_factory.mktemp('whole')
  return checkpoint.to_arrays(run(folder, seeds=2).state), folder


def kernels(arrays):
  return {name: x for name, x in arrays.items() if name.startswith('params/') and name.endswith('/kernel')}


def test_seeds_go_on_to_the_same_bits(whole, tmp_path):
  again = stopped.goes_on_to(whole[0], run, tmp_path, 10, seeds=2)
  assert all(on_grid(kernel, 8, 1) for kernel in kernels(again).values()) and len(kernels(again)) == 2


@pytest.mark.parametrize('layout', [dict(parallel='pmap'), dict(mesh='data:2,fsdp:4')])
def test_every_layout_quantises_as_one_device(whole, tmp_path, layout):
  state = run(tmp_path, seeds=2, **layout).state
  for name, kernel in kernels(checkpoint.to_arrays(state)).items():
    assert on_grid(kernel, 8, 1)
    np.testing.assert_allclose(kernel, whole[0][name], atol=0.02)  # but for roundings


def test_what_is_pruned_is_0_and_the_rest_of_few_bits(tmp_path):
  state = run(tmp_path, quantise='w4', sparsity=0.75, sparsity_every='4', sparsity_until='16').state
  for kernel in kernels(checkpoint.to_arrays(state)).values():
    assert on_grid(kernel, 4, 0) and (kernel == 0).mean() >= 0.75
  assert len([x for x in masks._of_params(checkpoint.to_arrays(state.opt_state)).values() if x.ndim]) == 2


def test_players_have_their_own():
  program, *_ = prepare(gan, gan.Config(quantise='w4', sparsity=0.5, sparsity_until='5', ema=0.0))
  state = jax.eval_shape(program.init, jax.random.key(0))
  arrays = dict(zip(checkpoint.names(state.opt_state), jax.tree.leaves(state.opt_state)))
  assert masks._of_params(arrays).keys() == {*checkpoint.names(state.params)}


def test_what_enters_the_network_of_another_program_stays_as_it_is():
  noted = []
  note = lambda *_: noted.append(quantisation.entering(np.float32([[1, 0.3]]), -1)[0, 1] != np.float32(0.3))
  scorer = quantisation.seen(Program(None, None, None, predict=note), config.Train())
  evaluate = lambda *arguments: (note(), scorer.predict(*arguments), note())
  quantisation.seen(Program(None, None, evaluate), ON).evaluate(None, None, None)
  assert noted == [True, False, True]
  answers = quantisation.each_within(ON, (note() or n for n in range(2)))  # as of a verb, bit by bit
  assert list(answers) == [0, 1] and noted[3:] == [True, True] and note() is None and not noted[-1]


# ---- files of few bits ----


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  """A run that is not quantised."""
  folder = tmp_path_factory.mktemp('plain')
  run(folder, quantise='none', steps='60', seeds=2)
  return folder


@pytest.mark.parametrize('bits', [8, 4])
def test_a_file_is_read_by_verbs_and_by_init_from(plain, tmp_path, capsys, bits):
  assert quantise.main([str(plain), f'--bits={bits}', '--member=1']) == 0
  said, place = capsys.readouterr().out, plain / f'int{bits}_member_1.safetensors'
  assert 'of member 1' in said and 'test/accuracy' in said and str(place) in said
  before, after = (karpjax.open(plain, which, member=1) for which in ('best', f'int{bits}'))
  fewer, exact = after.state.params, before.state.params
  file = safetensors.numpy.load_file(place)
  for layer in exact:
    kernel, scale = fewer[layer]['kernel'], file[f'params/{layer}/kernel/scale']
    assert scale.shape == (1, kernel.shape[1]) and on_grid(kernel, bits, 0)
    assert 0 < np.abs(kernel - exact[layer]['kernel']).max() <= 0.6 * np.abs(exact[layer]['kernel']).max()
    np.testing.assert_array_equal(fewer[layer]['bias'], exact[layer]['bias'])
    assert file[f'params/{layer}/kernel/int{bits}'].nbytes == kernel.size * bits // 8
  numbers = after.evaluate()[0]
  assert f'{numbers["test/loss"]:.4f}' in said and numbers != before.evaluate()[0]
  by_path = karpjax.open(plain, str(place), member=1)
  assert by_path.evaluate()[0] == numbers
  lent = run(tmp_path, quantise='none', init_from=str(place), steps='1', learning_rate=1e-12, seeds=2).state.params
  for name, x in checkpoint.to_arrays(lent).items():
    np.testing.assert_allclose(x[1], checkpoint.to_arrays(fewer)[name], atol=1e-9)
  assert quantise.main([str(plain), f'--bits={bits}', '--member=1']) == 2
  assert f'{place} exists' in capsys.readouterr().err


def test_numbers_are_packed_two_a_byte():
  arrays = {'params/a/kernel': np.array([[1.0, -2], [-1, 1], [0.4, 0]], 'f4')[:, :1], 'params/a/bias': np.ones(1, 'f4')}
  file = integers.packed(arrays, {'params/a/kernel': 'io'}, 4)
  np.testing.assert_array_equal(file['params/a/kernel/int4'], [15 | 1 << 4, 11])
  again = integers.unpacked(file)
  np.testing.assert_allclose(again['params/a/kernel'], [[1], [-1], [3 / 7]], rtol=1e-6)
  assert again.keys() == arrays.keys()
  for name, message in (('scale', 'no params/a/kernel/scale'), ('shape', 'no params/a/kernel/shape')):
    with pytest.raises(ValueError, match=message):
      integers.unpacked({n: x for n, x in file.items() if not n.endswith(name)})


def test_bad_input_is_one_line(plain, tmp_path, capsys):
  def refused(*argv):
    assert quantise.main(list(argv)) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line

  assert 'one of 8, 4 is needed' in refused(str(plain), '--bits=3')
  assert 'no such folder' in refused(str(tmp_path / 'none'))
  assert 'is no run' in refused(str(tmp_path))
  assert 'one run is needed' in refused('--bits=8')
  shutil.copytree(plain / 'checkpoints', tmp_path / 'half' / 'checkpoints')
  shutil.copy(plain / 'config.json', tmp_path / 'half')
  assert 'has not come to its end' in refused(str(tmp_path / 'half'))
  with pytest.raises(UsageError, match=r'checkpoint=int8: no .*quantise .* --bits=8 writes it'):
    assert karpjax.open(tmp_path / 'half', 'int8').state
  kernel = {'params/logits/kernel/int8': np.ones((2, 3), np.int8), 'params/logits/kernel/scale': np.ones((1, 3), 'f4')}
  safetensors.numpy.save_file(kernel | {'params/logits/bias': np.ones(10, 'f4')}, tmp_path / 'other.safetensors')
  with pytest.raises(UsageError, match='another model; they differ in params/'):
    assert karpjax.open(plain, str(tmp_path / 'other.safetensors')).state
  with pytest.raises(UsageError, match='nowhere.safetensors cannot be read'):
    assert karpjax.open(plain, 'nowhere.safetensors').state
