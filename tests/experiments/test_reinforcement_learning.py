"""What the experiments in environments have alike: they go on to the same bits, and every layout makes the same updates."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

import karpjax
from experiments import actor_critic_off_policy, evolution, policy_gradient, value_learning
from karpjax.errors import UsageError
from karpjax.train import checkpoint, loop

SMALL = dict(
  batch_size=8, widths=(8,), steps='12', log_every='3', checkpoint_every='5', checkpoint_seconds=0, episodes=4, eval_splits=(), final_splits=(),
  tensorboard=False, plots=False, steps_per_call='1', seed=5,
)  # fmt: skip
REPLAY = dict(train_frequency=4, replay_batch=16, buffer=256, learning_starts=64)
ROLLOUT = dict(rollout=16, minibatches=2, epochs=2, schedule='constant')
MOMENTS = dict(scale_rewards=True, normalise_observations=True)
# with all that the states can hold
RUNS = {
  'ppo': (policy_gradient, ROLLOUT | MOMENTS, ['carried/worlds', 'moments/observation', 'carried/discounted']),
  'memory': (policy_gradient, ROLLOUT | MOMENTS | dict(memory='lstm', memory_width=8, shared=True), ['memory/body']),
  'dqn': (
    value_learning,
    REPLAY
    | dict(
      widths=(8, 8), target_every=64, exploration_steps=300, double=True, dueling=True, n_step=3, priority=0.6, atoms=11,
      lowest=0.0, highest=100.0,
    ),
    ['buffers/priority', 'target'],
  ),
  'sac': (actor_critic_off_policy, REPLAY | dict(tau=0.1, widths=(8, 8)), ['buffers/action', 'target/critics']),
  'es': (evolution, dict(worlds=2, steps='6', final_splits=('test',)), ['params']),
}  # fmt: skip
FEW = {name: dict(steps='2') if name in ('ppo', 'memory') else {} for name in RUNS}  # their updates are many
# with one epoch of one minibatch no shuffle tells layouts apart: the same gradients
UNSHUFFLED = {'ppo': dict(minibatches=1, epochs=1), 'memory': dict(minibatches=1, epochs=1)}


def run(name, folder, **changes):
  experiment, given, _ = RUNS[name]
  return loop.run(
    experiment, experiment.Config(**SMALL | given | changes | dict(workdir=str(folder))), say=lambda x: None
  )


def arrays(summary):
  return checkpoint.to_arrays(summary.state)


def same_bits(one, other):
  one, other = arrays(one), arrays(other)
  assert one.keys() == other.keys()
  for name in one:
    assert one[name].tobytes() == other[name].tobytes(), name
  return one


def near(one, other, rtol=2e-3, atol=2e-4):
  one, other = arrays(one), arrays(other)
  for name in one:
    if 'key' not in name:
      np.testing.assert_allclose(other[name], one[name], rtol=rtol, atol=atol, err_msg=name)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """name -> its run, made once."""
  runs = {}

  def make(name, **changes):
    key = (name, *changes.items())
    if key not in runs:
      runs[key] = run(name, tmp_path_factory.mktemp('whole') / 'run', **changes)
    return runs[key]

  return make


def slow_but(*fast):
  return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in RUNS]


@pytest.mark.parametrize('name', slow_but('dqn'))
def test_going_on_gives_the_same_bits(name, whole, tmp_path):
  run(name, tmp_path / 'cut', steps='3' if name == 'es' else '5')
  held = same_bits(whole(name), run(name, tmp_path / 'cut'))
  assert all(any(part in array for array in held) for part in RUNS[name][2])
  memory = [x for array, x in held.items() if 'memory' in array and 'worlds' in array]
  assert [x.shape for x in memory] == [(8, 8)] * (2 if name == 'memory' else 0) and all(np.any(x) for x in memory)


@pytest.mark.parametrize('name', slow_but('dqn'))
def test_vmapped_seeds_are_those_seeds_alone(name, whole, tmp_path):
  alone, together = whole(name, **FEW[name]), run(name, tmp_path / 'both', **FEW[name], seeds=2, seed=4)
  both = arrays(together)
  for array, x in arrays(alone).items():
    if 'params' in array or 'memory' in array:
      np.testing.assert_allclose(both[array][1], x, rtol=1e-3, atol=1e-4, err_msg=array)


PMAP = dict(parallel='pmap')


@pytest.mark.parametrize(
  'name, layout',
  [
    pytest.param(name, layout, marks=() if (name, layout) == ('dqn', PMAP) else pytest.mark.slow)
    for name in RUNS
    for layout in (PMAP, dict(mesh='data:4,fsdp:2'), dict(microbatches=4))
    if 'microbatches' not in layout or name == 'memory'
  ],
)
def test_layouts_make_the_same_updates(name, layout, whole, tmp_path):
  given = UNSHUFFLED[name] | dict(steps='3') if name in UNSHUFFLED else {}
  one, other = whole(name, **given), run(name, tmp_path / 'run', **given, **layout)
  near(one, other)
  assert other.numbers['train/episode_return'] == pytest.approx(
    one.numbers['train/episode_return'], rel=1e-3, nan_ok=True
  )


@pytest.mark.slow
@pytest.mark.parametrize('algorithm', ['td3', 'ddpg'])
def test_the_other_off_policy_algorithms_under_pmap_and_cut(algorithm, tmp_path):
  """The delayed policy, whose turn depends on the step, with several updates and microbatches."""
  given = dict(algorithm=algorithm, updates=3, microbatches=2)
  one = run('sac', tmp_path / 'whole', **given)
  run('sac', tmp_path / 'cut', **given, steps='5')
  same_bits(one, run('sac', tmp_path / 'cut', **given))
  near(one, run('sac', tmp_path / 'pmap', **given | dict(microbatches=1), parallel='pmap'))


@pytest.mark.parametrize('name', slow_but('dqn', 'es'))
def test_an_episode_is_played(name, whole, tmp_path):
  opened, output = karpjax.open(whole(name, **FEW[name]).folder), tmp_path / 'a.gif'
  (answer,) = opened.play(seed=3, stochastic=name != 'es', output=str(output))
  assert answer['file'] == str(output)
  steps = 200 if name == 'sac' else int(answer['return'])  # each step of a cartpole is worth 1
  assert answer['return'] > 0 or -2000 < answer['return'] < -1
  with Image.open(output) as shown:
    assert steps // 2 <= shown.n_frames <= min(steps + 1, 250)  # frames that are alike may be one
  if name == 'es':
    assert opened.play()[0]['file'] == str(opened.folder / 'plots' / 'episode_0.gif')
    with pytest.raises(UsageError, match=r'output=a.png: a name that ends in .gif'):
      opened.play(output='a.png')


def test_evolution_has_no_stochastic_policy_to_report(whole):
  numbers = whole('es').numbers
  assert numbers['test/episode_return'] == numbers['test/episode_length']  # a cartpole's
  assert not [name for name in numbers if 'stochastic' in name]


LEARNT = {
  'ppo': (
    'ppo', 150,
    dict(batch_size=16, rollout=64, minibatches=4, epochs=4, widths=(32,), steps='60', learning_rate=3e-3, schedule='linear'),
  ),
  'dqn': (
    'dqn', 100,
    dict(
      train_frequency=1, replay_batch=64, buffer=10_000, learning_starts=200, widths=(32, 32), steps='3000', target_every=400,
      learning_rate=1e-3, exploration_steps=8000, double=False, dueling=False, n_step=1, priority=0.0, atoms=0,
      lowest=-100.0,
    ),
  ),
  'es': ('es', 150, dict(batch_size=32, worlds=1, steps='60')),
} | {
  algorithm: (
    'sac', -400,
    dict(
      algorithm=algorithm, batch_size=4, train_frequency=1, replay_batch=128, buffer=20_000, learning_starts=1000,
      widths=(64, 64), steps='5000', updates=2, tau=0.005,
      exploration=0.1 if algorithm == 'sac' else 0.2,  # SAC has none
    ),
  )
  for algorithm in ('sac', 'td3', 'ddpg')
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('name', LEARNT)
def test_it_learns(name, tmp_path):
  """To balance a pole (a random policy: about 22), or to swing a pendulum up (about -1200)."""
  kind, least, given = LEARNT[name]
  common = dict(log_every='20', checkpoint_every='0', steps_per_call='20', final_splits=('test',), episodes=20)
  if kind == 'ppo':
    given |= dict(scale_rewards=False, normalise_observations=False)
  numbers = run(kind, tmp_path / 'run', **common | given).numbers
  assert numbers['test/episode_return'] > least
  if kind != 'es':
    assert numbers['test/stochastic_episode_return'] != numbers['test/episode_return']


@pytest.mark.slow
def test_evolved_actions_are_within_their_bounds(tmp_path):
  summary = run('es', tmp_path / 'run', environment='pendulum', steps='2', checkpoint_every='0')
  assert -1800 < summary.numbers['test/episode_return'] < -200


@pytest.mark.parametrize(
  'name, given, message',
  [
    ('ppo', dict(environment='cartpol'), 'Did you mean cartpole'),
    ('ppo', dict(batch_size=0), 'batch_size=0: at least 1'),
    ('ppo', dict(batch_size=4, parallel='pmap'), 'does not divide over 8 devices'),
    ('ppo', dict(activation='sigmoid'), 'activation=sigmoid: unknown'),
    ('ppo', dict(minibatches=3), 'cannot be cut into 3 minibatches of 1 microbatches: choose another rollout, batch_size'),
    ('ppo', dict(algorithm='reinforce', rollout=10), 'rollout=10: reinforce needs whole episodes'),
    ('ppo', dict(epochs=0), 'epochs=0: at least 1'),
    ('ppo', dict(discount=1.5), 'discount=1.5: at least 0 and at most 1'),
    ('ppo', dict(gae=-1.0), 'gae=-1.0: at least 0 and at most 1'),
    ('ppo', dict(value=-0.5), 'value=-0.5: at least 0'),
    ('ppo', dict(epochs=10**9), 'updates are more than the 2147483647 that can be counted'),
    ('memory', dict(minibatches=3), 'a memory needs whole ones, on one device cannot be cut into 3 minibatches'),
    ('memory', dict(memory='lstn'), 'Did you mean lstm'),
    ('memory', dict(memory_width=0), 'memory_width=0: at least 1'),
    ('dqn', dict(environment='pendulum'), 'its actions are continuous'),
    ('dqn', dict(learning_starts=300), 'learning_starts=300 is more than buffer=256'),
    ('dqn', dict(replay_batch=12), 'replay_batch=12: a multiple of the 8 environments'),
    ('dqn', dict(buffer=24, learning_starts=8, n_step=5), 'buffer=24: 3 transitions of each .* and n_step=5'),
    ('dqn', dict(steps='1'), 'steps=1, 32 of environments, end before learning_starts=64 of them'),
    ('dqn', dict(n_step=0), 'n_step=0: at least 1'),
    ('dqn', dict(tau=1.5), 'tau=1.5: at least 0 and at most 1'),
    ('dqn', dict(atoms=1), 'two that differ'),
    ('dqn', dict(atoms=5, lowest=3.0, highest=3.0), 'two that differ'),
    ('dqn', dict(widths=()), 'at least one'),
    ('sac', dict(environment='cartpole'), 'its actions are discrete'),
    ('sac', dict(buffer=24, learning_starts=8), 'buffer=24: 3 transitions of each environment do not hold train_frequency=4'),
    ('sac', dict(critics=0), 'critics=0: at least 1'),
    ('sac', dict(algorithm='td3', smoothing=-0.1), 'smoothing=-0.1: at least 0'),
    ('sac', dict(exploration=float('nan')), 'exploration=nan'),
    ('sac', dict(temperature=0.0), 'temperature=0.0: more than 0'),
    ('sac', dict(policy_rate=-1.0), 'policy_rate=-1.0: more than 0'),
    ('sac', dict(widths=(8, 0)), 'widths=8,0: at least 1'),
    ('es', dict(worlds=0), 'worlds=0: at least 1'),
    ('es', dict(deviation=0.0), 'deviation=0.0: more than 0'),
    ('es', dict(deviation=float('nan')), 'deviation=nan'),
    ('es', dict(microbatches=3), 'microbatches=3 does not divide'),
  ],
)  # fmt: skip
def test_bad_input_is_one_line(name, given, message, tmp_path):
  with pytest.raises(UsageError, match=message) as error:
    run(name, tmp_path / 'run', **given)
  assert '\n' not in str(error.value) and not (tmp_path / 'run').exists()


# ---- networks ----


def test_dueling_values_are_the_state_s_and_what_is_over_the_mean():
  policy = value_learning.policy(value_learning.Config(**SMALL | REPLAY | dict(dueling=True)))
  params = policy.init(jax.random.key(0))['params']
  observation = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
  apply = jax.jit(policy.apply)
  values = apply(params, observation)
  # more for all actions' advantages changes nothing, more for the state's value all values
  for stream, changed in (('advantage', values), ('value', values + 3)):
    moved = {**params, stream: {**params[stream], 'bias': params[stream]['bias'] + 3}}
    np.testing.assert_allclose(apply(moved, observation), changed, rtol=1e-4, atol=1e-5)


def test_twin_critics_have_params_of_their_own_and_each_is_one_critic():
  policy = actor_critic_off_policy.policy(actor_critic_off_policy.Config(**SMALL | RUNS['sac'][1]))
  actor, critics = policy.apply
  variables = jax.device_get(nn.meta.unbox(jax.jit(policy.init)(jax.random.key(0))))
  params = {name: x['params'] for name, x in variables.items()}
  observation = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
  action = np.tanh(observation[:, :1])
  values = np.asarray(jax.jit(critics)(params['critics'], observation, action))
  assert jax.eval_shape(actor, params['policy']['actor'], observation).shape == (5, 2) and values.shape == (2, 5)
  for i in range(2):  # by hand, with this critic's params
    h = np.concatenate([observation, action], -1)
    for layer in ('critic1', 'critic2'):
      h = np.maximum(h @ params['critics'][layer]['kernel'][i] + params['critics'][layer]['bias'][i], 0)
    value = h @ params['critics']['value']['kernel'][i] + params['critics']['value']['bias'][i]
    np.testing.assert_allclose(values[i], value[:, 0], rtol=1e-4, atol=1e-5)
  assert np.abs(values[0] - values[1]).min() > 1e-3
