"""The checks pass on what is right, and each fails on what it is there to find."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from karpjax import config
from karpjax.commands import check as recipe
from karpjax.program import Program, TrainState, pair
from karpjax.train.step import train_step


def program(*, leak=False, dead=False, blind=False, frozen=False, confident=False):
  """Softmax regression on two classes, with one thing wrong."""

  def logits(params, batch):
    x = jnp.zeros_like(batch['x']) if blind else batch['x']
    x = x - x.mean(0) if leak else x
    out = x @ params['w'] + params['b']
    return out * 0 if dead else out

  def losses(params, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, batch), batch['label'])

  def init(key):
    params = {'w': jax.random.normal(key, (4, 2)) * 0.1, 'b': jnp.array([8.0, 0.0]) if confident else jnp.zeros(2)}
    if frozen:
      params['unused'] = jnp.ones(3)
    return TrainState.create(key, {'params': params}, optax.sgd(0.5))

  def loss(params, collections, batch, key):
    return {'loss': pair(losses(params, batch))}, collections

  return Program(
    init,
    train_step(loss, optax.sgd(0.5), config.Train()),
    None,
    None,
    predict=lambda state, batch, key: logits(state.params, batch),
    example_losses=lambda state, batch, key: losses(state.params, batch),
    uninformed_loss=float(np.log(2)),
  )


def batch():
  draw = np.random.default_rng(0)
  x = draw.normal(size=(32, 4)).astype(np.float32)
  return {'x': jnp.asarray(x), 'label': jnp.asarray((x[:, 0] > 0).astype(np.int32)), 'index': jnp.arange(32)}


def failures(wrong):
  return {name for name, (passed, _) in recipe.check(wrong, batch()).items() if passed is not None and not passed}


def test_outputs_that_are_not_finite_are_no_response(monkeypatch):
  check, sound = 'outputs respond to inputs', program()
  monkeypatch.setattr(recipe, 'CHECKS', {check: recipe.CHECKS[check]})
  predict = lambda state, batch, key: sound.predict(state, batch, key).at[3, 1].set(jnp.nan)
  passed, figure = recipe.check(dataclasses.replace(sound, predict=predict), batch())[check]
  assert passed is False and figure == '1 of 64 outputs are not finite'


def test_all_checks_pass_on_a_sound_program():
  assert failures(program()) == set()


@pytest.mark.parametrize('told', [False, True])
def test_a_program_that_only_collects_at_first_is_checked_from_when_it_learns(told, monkeypatch):
  sound, check = program(), 'gradients reach every parameter'

  def step(state, batch):
    after, metrics = sound.step(state, batch)
    kept = jax.tree.map(lambda old, new: jnp.where(state.step < 5, old, new), state.params, after.params)
    return after.replace(params=kept), metrics

  monkeypatch.setattr(recipe, 'CHECKS', {check: recipe.CHECKS[check]})
  late = dataclasses.replace(sound, step=step, collecting=5 if told else 0)
  assert bool(failures(late)) is not told


@pytest.mark.parametrize(
  'fault, check',
  [
    ('confident', 'loss at initialisation'),
    ('leak', 'examples are independent'),
    ('frozen', 'gradients reach every parameter'),
    ('blind', 'one batch can be overfitted'),
    ('blind', 'real inputs beat zeroed ones'),
    ('dead', 'outputs respond to inputs'),
  ],
)
def test_a_fault_fails_its_check(fault, check, monkeypatch):
  monkeypatch.setattr(recipe, 'CHECKS', {check: recipe.CHECKS[check]})
  assert failures(program(**{fault: True})) == {check}


@pytest.mark.parametrize('random', [False, True])
def test_a_draw_from_outside_of_the_keys_fails_its_check(random, monkeypatch):
  sound, check, draw = program(), 'the same seed gives the same bits', np.random.default_rng(0)

  def step(state, batch):  # NumPy draws while it is traced
    return sound.step(state, {**batch, 'x': batch['x'] + draw.normal()} if random else batch)

  monkeypatch.setattr(recipe, 'CHECKS', {check: recipe.CHECKS[check]})
  assert failures(dataclasses.replace(sound, step=step)) == ({check} if random else set())


@pytest.mark.parametrize(
  ('seen', 'passed'),
  [(lambda x: x.cumsum(1), True), (lambda x: x[:, ::-1].cumsum(1)[:, ::-1], False), (jnp.zeros_like, False)],
)
def test_a_model_that_sees_the_future_or_nothing_fails_its_check(seen, passed, monkeypatch):
  check, tokens = 'tokens see none from the future', jnp.arange(24).reshape(3, 8) % 5
  causal = dataclasses.replace(
    program(), causal=True, example_losses=lambda state, batch, key: seen(batch['tokens'].astype(jnp.float32))
  )
  monkeypatch.setattr(recipe, 'CHECKS', {check: recipe.CHECKS[check]})
  found = recipe.check(causal, {**batch(), 'tokens': tokens})
  assert found[check][0] is passed


@pytest.mark.parametrize('blind', [False, True])
def test_what_stays_at_frequencies_does_not_learn(blind, monkeypatch):
  """Of 32 examples 4 are of one class: frequencies alone, which a bias learns, are worth .377 nats, even odds .693."""
  check, guess = 'it learns more than frequencies', -(np.log(28 / 32) * 28 + np.log(4 / 32) * 4) / 32
  monkeypatch.setattr(recipe, 'CHECKS', {check: recipe.CHECKS[check]})
  one = batch() | {'label': jnp.arange(32) // 28}
  one['x'] = one['x'].at[:, 0].set(one['label'])
  told = dataclasses.replace(program(blind=blind), uninformed_loss=guess, untrained_loss=float(np.log(2)))
  passed, figure = recipe.check(told, one, later=[one] * 200)[check]
  assert passed is not blind and 'in steps 191 to 200; a guess 0.3768' in figure
  assert recipe.check(told, one)[check] == (None, 'there are no other batches')


def test_a_change_of_dtype_from_step_to_step_is_a_second_compilation():
  sound = program()

  def step(state, batch):
    state, metrics = sound.step(state, batch)
    return state.replace(params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params)), metrics

  passed, _ = recipe.one_compilation(dataclasses.replace(sound, step=step), sound.init(jax.random.key(0)), batch())
  assert passed is False


@pytest.mark.slow
def test_the_command(capsys):
  assert recipe.main(['image_classification', '--model=mlp', '--widths=32', '--batch_size=32']) == 0
  out = capsys.readouterr().out
  assert out.count('pass') == len(recipe.CHECKS) - 1 and 'FAIL' not in out  # images have no future


def test_the_command_takes_a_batch_of_the_whole_split_and_refuses_bad_input(capsys):
  assert recipe.main(['regression']) == 0  # whose batch is all of it
  assert 'FAIL' not in (out := capsys.readouterr().out) and out.count('pass') >= 5
  assert recipe.main(['image_clasification']) == 2 and 'Did you mean image_classification?' in capsys.readouterr().err
  assert recipe.main(['image_classification', '--model=mpl']) == 2


@pytest.mark.slow
@pytest.mark.parametrize('environments, passes', [(1, 3), (4, 4)])  # one is no comparison of outputs
def test_the_command_checks_what_learns_after_it_has_collected(environments, passes, capsys):
  flags = f'--batch_size={environments} --buffer=100 --learning_starts=80 --replay_batch=8 --widths=16 --steps=100'
  assert recipe.main(['value_learning', *flags.split()]) == 0
  out = capsys.readouterr().out
  assert out.count('pass') == passes and 'FAIL' not in out
