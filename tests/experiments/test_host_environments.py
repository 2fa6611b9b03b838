"""Runs in environments on the host, as a user makes them."""

import json

import numpy as np
import pytest

from experiments import actor_critic_off_policy, evolution, policy_gradient, value_learning
from karpjax import command_line
from karpjax.errors import UsageError
from karpjax.train import checkpoint, loop

gymnasium = pytest.importorskip('gymnasium', reason='gymnasium is not installed')

SMALL = dict(
  environment='gymnasium:Faulty-v0', batch_size=2, widths=(4,), log_every='1', checkpoint_every='1', checkpoint_seconds=0, episodes=2,
  eval_splits=(), final_splits=(), tensorboard=False, plots=False, compilation_cache='off',
)  # fmt: skip


class Faulty(gymnasium.Env):
  """Eight steps, of which one may fail in the first episode of every environment."""

  observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,))
  action_space = gymnasium.spaces.Discrete(2)

  def __init__(self, at=None):
    self.at = at

  def reset(self, seed=None, options=None):
    super().reset(seed=seed)
    self.t = 0
    return self.np_random.normal(size=3), {}

  def step(self, action):
    self.t += 1
    if self.t == self.at:
      raise RuntimeError('the joint is broken')
    return self.np_random.normal(size=3), float(action), self.t == 8, False, {}


@pytest.fixture(scope='module', autouse=True)
def faulty():
  for name, options in {'Faulty': {}, 'Raises': dict(at=7)}.items():
    gymnasium.register(f'{name}-v0', Faulty, max_episode_steps=10, kwargs=options, disable_env_checker=True)
  yield
  for name in ('Faulty', 'Raises'):
    del gymnasium.registry[f'{name}-v0']


def flags(folder, **changes):
  given = SMALL | changes | {'workdir': str(folder)}
  return [f'--{name}={",".join(x) if isinstance(x, tuple) and not x else x}' for name, x in given.items() if name != 'widths'] + ['--widths=4']  # fmt: skip


def run(experiment, folder, **changes):
  said = []
  return loop.run(experiment, experiment.Config(**SMALL | changes, workdir=str(folder)), say=said.append), said


@pytest.mark.slow
def test_reinforce_goes_on_to_the_same_bits(tmp_path):
  """Its episodes begin with each step, from the seed and the step."""
  settings = dict(algorithm='reinforce', points=True, steps='4', schedule='constant')
  whole, said = run(policy_gradient, tmp_path / 'whole', **settings)
  assert any('lives on the host' in line for line in said)
  run(policy_gradient, tmp_path / 'cut', **settings | dict(steps='2'))
  cut, _ = run(policy_gradient, tmp_path / 'cut', **settings)
  one, other = (checkpoint.to_arrays(x.state.params) for x in (whole, cut))
  assert all(one[name].tobytes() == other[name].tobytes() for name in one)
  assert whole.numbers['train/episode_length'] == 8


def test_what_fails_in_mid_episode_is_one_line_and_what_was_logged_and_saved_stays(tmp_path, capfd):
  argv = flags(tmp_path / 'run', environment='gymnasium:Raises-v0', algorithm='a2c', rollout=3, steps='9')
  assert command_line.main(policy_gradient, argv) == 1
  assert capfd.readouterr().err.strip() == (
    'policy_gradient: gymnasium:Raises-v0: RuntimeError: the joint is broken, in world 0 at step 7 of its episode'
  )
  rows = [json.loads(row) for row in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  assert [row['step'] for row in rows] == [1, 2]
  assert (tmp_path / 'run' / 'checkpoints' / 'last' / '2').is_dir()


def test_values_are_learnt_and_a_run_that_goes_on_begins_other_episodes(tmp_path):
  settings = dict(train_frequency=3, replay_batch=4, learning_starts=4, buffer=40, checkpoint_every='0')
  run(value_learning, tmp_path / 'run', **settings, steps='2')
  summary, said = run(value_learning, tmp_path / 'run', **settings, steps='4')
  assert any('goes on at step 2' in line for line in said)
  seen = summary.state.buffers
  assert np.isfinite(summary.numbers['train/td_error'])
  observation, following = np.asarray(seen.observation[0]), np.asarray(seen.next_observation[0])
  same = [np.array_equal(following[t], observation[t + 1]) for t in range(11)]
  # 12 steps: 6 of the first episode, and 6 of another, which begins with the resume
  assert same == [True] * 5 + [False] + [True] * 5
  np.testing.assert_array_equal(summary.state.carried['worlds'].episode_length, [6, 6])


@pytest.mark.parametrize(
  'experiment, given, message',
  [
    (policy_gradient, dict(seeds=2), 'seeds=2: gymnasium:Faulty-v0 lives on the host'),
    (policy_gradient, dict(parallel='pmap'), 'parallel=pmap: gymnasium:Faulty-v0 lives on the host'),
    (policy_gradient, dict(mesh='data:2'), 'mesh=data:2: gymnasium:Faulty-v0 lives on the host'),
    (evolution, {}, 'gymnasium:Faulty-v0 lives on the host'),
    (value_learning, dict(environment='gymnasium:Pendulum-v1'), 'its actions are continuous'),
    (actor_critic_off_policy, {}, 'its actions are discrete'),
  ],
)
def test_bad_input_is_one_line(experiment, given, message, tmp_path):
  with pytest.raises(UsageError, match=message) as error:
    run(experiment, tmp_path / 'run', **given)
  assert '\n' not in str(error.value) and not (tmp_path / 'run').exists()
