"""Environments of other packages: what a rollout sees is what they give; on the host an episode that is lost begins anew."""

import dataclasses
import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax.errors import CallbackError, UsageError, unwrap_callback_error
from karpjax.rl import environments, external, host, ppo, replay, returns, rollout
from karpjax.rl.environment import Box, Discrete, frame_stack, time_limit

gymnasium = pytest.importorskip('gymnasium', reason='gymnasium is not installed')

KEYS = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(2))
GIVEN = lambda observation, noise: noise


class Counting:
  """Observes its steps and its seed; ends after `length` steps; its frames are of the brightness of its steps."""

  def __init__(self, length=5, faulty=None):
    self.length, self.faulty = length, faulty

  def reset(self, seed):
    self.t, self.seed = 0, seed
    return self._seen(), {}

  def _seen(self):
    return np.array([self.t, self.seed % 1000], np.float32)

  def step(self, action):
    self.t += 1
    reward = self.faulty(self.t) if self.faulty else float(action)
    return self._seen(), reward, self.t == self.length, False, {}

  def render(self):
    return np.full((2, 2, 3), self.t, np.uint8)

  def close(self):
    pass


def counting(limit=100, **options):
  made = lambda: Counting(**options)
  return host.environment('counting', made, Box((2,)), Discrete(3), limit, draw=made)


def played(environment, actions, worlds=None, keys=KEYS, **options):
  """(RolloutState, Transition) of a rollout of these actions [length, worlds]."""
  begin = lambda: rollout.start(environment, keys)
  play = lambda worlds: rollout.rollout(environment, GIVEN, worlds, keys, actions, len(actions), **options)
  return jax.jit(play)(jax.jit(begin)() if worlds is None else worlds)


def test_a_rollout_sees_what_gymnasium_gives():
  environment, length = environments.make('gymnasium:CartPole-v1'), 60
  assert environment.limit == 500 and environment.action.size == 2
  actions = jax.random.randint(jax.random.key(1), (length, 2), 0, 2)
  _, seen = played(environment, actions)
  drawn = [jax.random.split(key, 2 * length) for key in KEYS]
  seed = lambda key: host.seed(np.asarray(jax.random.key_data(key)))
  for world in range(2):
    theirs, total = gymnasium.make('CartPole-v1'), 0.0
    observation, _ = theirs.reset(seed=seed(KEYS[world]))
    for t in range(length):
      np.testing.assert_array_equal(seen.observation[t, world], observation)
      observation, reward, terminated, truncated, _ = theirs.step(int(actions[t, world]))
      total += reward
      np.testing.assert_array_equal(seen.next_observation[t, world], observation)
      assert (seen.terminated[t, world], seen.truncated[t, world]) == (terminated, truncated)
      assert seen.episode_return[t, world] == total
      if terminated:
        observation, total = theirs.reset(seed=seed(drawn[world][length + t]))[0], 0.0
  assert seen.terminated.sum(0).min() > 0


def test_two_rollouts_are_one_and_a_lost_episode_begins_anew():
  actions = jnp.ones((3, 2), jnp.int32)
  environment = counting()
  middle, _ = played(environment, actions)
  _, following = played(environment, actions, middle)
  np.testing.assert_array_equal(following.observation[:, 0, 0], [3, 4, 0])  # episodes are of five steps
  np.testing.assert_array_equal(following.terminated[:, 0], [False, True, False])
  np.testing.assert_array_equal(following.episode_return[:, 0], [4, 5, 1])
  _, resumed = played(counting(), actions, middle)  # in another process the host knows nothing of the first rollout
  np.testing.assert_array_equal(resumed.observation[:, 0, 0], [0, 1, 2])
  np.testing.assert_array_equal(resumed.episode_return[:, 0], [1, 2, 3])
  assert (resumed.observation[0, :, 1] != middle.observation[:, 1]).all()  # by other seeds


def test_what_was_learnt_before_a_resume_does_not_join_the_episode_after_it():
  """Episodes of five steps and rewards of 1: of the first three steps are there, and two of the one that the host begins anew."""
  ones, discount = jnp.ones((3, 2), jnp.int32), 0.5
  middle, before = played(counting(), ones)
  _, after = played(counting(), ones, middle)  # in another process
  for capacity in (8, 4):  # and where the ring has gone round
    rings = replay.empty(counting(), 2, capacity)
    for t, seen in enumerate((before, after)):
      rings = jax.jit(functools.partial(replay.write, on_host=True))(rings, np.int32(3 * t), seen)
    two = replay.gather(rings, np.array([[2], [2]]), 3, discount)  # from the last step before the resume
    np.testing.assert_array_equal(two['reward'], [1, 1])
    np.testing.assert_array_equal(two['next_observation'][:, 0], [3, 3])
    np.testing.assert_array_equal(two['discount'], [discount, discount])  # its last state has a value
  environment, rings = counting(length=9), replay.empty(counting(), 2, 8)
  middle, before = played(environment, ones)
  _, after = played(environment, ones, middle)  # the host has it still: three steps are of one episode
  for t, seen in enumerate((before, after)):
    rings = jax.jit(functools.partial(replay.write, on_host=True))(rings, np.int32(3 * t), seen)
  np.testing.assert_array_equal(replay.gather(rings, np.array([[2], [2]]), 3, discount)['reward'], [1.75, 1.75])


def test_discounted_sums_of_rewards_do_not_join_two_episodes_either():
  ones, discount = jnp.ones((3, 2), jnp.int32), 0.5
  middle, _ = played(counting(), ones)
  seen = {'lost': played(counting(), ones, middle)[1]}
  environment = counting(length=9)
  seen['kept'] = played(environment, ones, played(environment, ones)[0])[1]
  carried = {'discounted': jnp.full(2, 1.75)}  # of three rewards of 1
  last = {}
  for name, each in (seen | {'points': seen['kept']}).items():
    config = types.SimpleNamespace(discount=discount, points=name == 'points')
    state = types.SimpleNamespace(carried=carried, moments={'reward': returns.RunningMoments.init(())})
    last[name] = float(ppo.scale_rewards(config, state, each, jnp.ones((3, 2), bool))[1]['discounted'][0])
  assert last == {'lost': 1.75, 'kept': 1.75 + 1.75 / 8, 'points': 0}  # after a point nothing is left


def test_what_is_not_to_begin_again_stays_where_it_ended():
  actions = jnp.ones((9, 2), jnp.int32)
  after, seen = played(counting(), actions, reset=False)
  np.testing.assert_array_equal(seen.done[:, 0], np.arange(9) == 4)
  np.testing.assert_array_equal(after.state.t, [5, 5])
  np.testing.assert_array_equal(after.episode_return, [5, 5])
  assert rollout.finished(seen)['episode_return'] == (10, 2)


def test_episodes_in_worlds_of_their_own_end_where_they_end():
  environment = counting(limit=4)  # before the fifth step
  policy = rollout.Policy(environment, lambda state, observation, noise: jnp.full(len(observation), 2))
  ends = jax.jit(lambda keys: rollout.episodes(policy, None, keys))(KEYS)
  np.testing.assert_array_equal(ends.episode_return, [8, 8])
  np.testing.assert_array_equal(ends.episode_length, [4, 4])


def test_wrappers_hold_across_a_renewal():
  environment = time_limit(dataclasses.replace(frame_stack(counting(), 2), limit=3))
  middle, seen = played(environment, jnp.ones((4, 2), jnp.int32))
  np.testing.assert_array_equal(seen.observation[:, 0, ::2], [[0, 0], [0, 1], [1, 2], [0, 0]])
  np.testing.assert_array_equal(seen.truncated[:, 0], [False, False, True, False])
  np.testing.assert_array_equal(seen.episode_length[:, 0], [1, 2, 3, 1])
  np.testing.assert_array_equal(middle.state.t, [1, 1])


def test_frames_are_of_the_episode_played_again():
  environment = frame_stack(counting(), 2)
  policy = rollout.Policy(environment, lambda state, observation, noise: jnp.ones(1, jnp.int32))
  states, done, _ = jax.jit(lambda key: rollout.record(policy, None, key))(jax.random.key(3))
  end = int(np.argmax(done))
  frames = environment.render(jax.tree.map(lambda x: np.asarray(x)[: end + 2 : 2], states))
  np.testing.assert_array_equal(frames[:, 0, 0, 0], [0, 2, 4])
  assert frames.shape == (3, 2, 2, 3) and frames.dtype == np.uint8


def boom(t):
  if t == 3:
    raise ValueError('the joint is broken\nand so is the rest')
  return 0.0


@pytest.mark.parametrize(
  'environment, message',
  [
    (counting(faulty=boom), 'counting: ValueError: the joint is broken, in world 0 at step 3 of its episode'),
    (counting(faulty=lambda t: np.nan if t == 2 else 0.0), 'counting: NaN or infinity .*, in world 0 at step 2 of its'),
    (
      host.environment('other', lambda: Counting(), Box((3,)), Discrete(3), 9),
      'other: ValueError: cannot reshape .*, in world 0 at step 0 of its episode',
    ),
  ],
)
def test_what_fails_on_the_host_is_one_line(environment, message):
  with pytest.raises(CallbackError, match=message), unwrap_callback_error():
    jax.block_until_ready(played(environment, jnp.ones((5, 2), jnp.int32)))


class Strange(gymnasium.Env):
  """An environment with spaces of any kind."""

  def __init__(self, seen=None, done=None):
    self.observation_space = seen or gymnasium.spaces.Box(-1, 1, (2,))
    self.action_space = done or gymnasium.spaces.Discrete(2)

  def reset(self, seed=None, options=None):
    return self.observation_space.sample(), {}


@pytest.fixture(scope='module', autouse=True)
def strange():
  spaces = gymnasium.spaces
  kinds = {'Words': dict(seen=spaces.Text(3)), 'Switches': dict(done=spaces.MultiBinary(2)), 'Endless': {}}
  for name, options in kinds.items():
    limit = None if name == 'Endless' else 5
    gymnasium.register(f'{name}-v0', Strange, max_episode_steps=limit, kwargs=options, disable_env_checker=True)
  yield
  for name in kinds:
    del gymnasium.registry[f'{name}-v0']


@pytest.mark.parametrize(
  'name, message',
  [
    ('CartPol-v1', 'Did you mean CartPole-v1'),
    ('CartPole-v1,limt=3', 'Did you mean limit'),
    ('CartPole-v1,limit=x', 'whole number'),
    ('CartPole-v1,limit=99999999999', 'at most 16777216, is needed'),
    ('CartPole-v1,limit=0', 'at least 1'),
    ('CartPole-v1,skip=2', 'Atari only'),
    ('CartPole-v1,pixels=gray', 'Did you mean grey'),
    ('CartPole-v1,actions=1+2', 'some of 0 … 1'),
    ('Pendulum-v1,actions=1', 'has actions Box'),
    ('Words-v0', 'observations of kind Text'),
    ('Switches-v0', 'has actions MultiBinary'),
    ('Endless-v0', 'no time limit'),
  ],
)
def test_what_cannot_be_made_is_one_line(name, message):
  with pytest.raises(UsageError, match=message) as error:
    environments.make(f'gymnasium:{name}')
  assert '\n' not in str(error.value)


def test_options_are_of_the_environment():
  environment = environments.make('gymnasium:CartPole-v1,limit=7,stack=2,actions=1')
  assert environment.limit == 7 and environment.observation.shape == (8,) and environment.action.size == 1
  assert environments.make('gymnasium:Endless-v0,limit=3').limit == 3


@pytest.mark.parametrize('limit', [150, 250])  # gymnasium's own is 200
def test_a_limit_is_kept_below_and_beyond_gymnasiums_own(limit):
  environment = environments.make(f'gymnasium:Pendulum-v1,limit={limit}')
  _, seen = played(environment, jnp.zeros((limit + 3, 2, 1)))
  np.testing.assert_array_equal(np.flatnonzero(seen.truncated[:, 0]), [limit - 1])
  np.testing.assert_array_equal(seen.episode_length[limit - 1 :, 0], [limit, 1, 2, 3])


@pytest.mark.parametrize('name', ['CartPole-v1', 'CartPole-v1,stack=2', 'Pendulum-v1'])
def test_an_episode_succeeds_at_the_return_of_the_registry(name):
  environment, threshold = environments.make(f'gymnasium:{name}'), gymnasium.spec(name.split(',')[0]).reward_threshold
  state, _ = jax.eval_shape(environment.reset, KEYS[0])
  found = [environment.outcomes(state, np.float32(total)) for total in ((threshold or 0) - 1, threshold or 0)]
  assert found == ([{}, {}] if threshold is None else [{'success': False}, {'success': True}])
  assert (threshold is None) == (name == 'Pendulum-v1')


@pytest.mark.parametrize(
  'module, name, package',
  [
    ('gymnasium', 'gymnasium:CartPole-v1', 'gymnasium'),
    ('ale_py', 'gymnasium:ALE/Pong-v5', 'ale-py'),
    ('gymnasium.envs.mujoco', 'gymnasium:InvertedPendulum-v5', r"'gymnasium\[mujoco\]'"),
    ('gymnax', 'gymnax:Breakout-MinAtar', 'gymnax'),
    ('brax', 'brax:reacher', 'brax'),
  ],
)
def test_a_missing_package_is_named(module, name, package, monkeypatch):
  external._tried.cache_clear()
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(UsageError, match=f'pip install {package}'):
    environments.make(name)


def test_small_grey_is_the_mean_of_the_brighter_pixels():
  one, other = np.zeros((2, 210, 160), np.uint8)
  one[:105], other[105:] = 200, 100
  small = external.small_grey((one, other))
  assert small.shape == (84, 84, 1) and small.dtype == np.uint8
  assert (small[:42] == 200).all() and (small[42:] == 100).all()


def test_the_field_is_what_is_not_background():
  frame = np.zeros((210, 160, 3), np.uint8)
  frame[..., 0] = 144
  frame[35 + 2 * 7, 2 * 9, 0] = 236  # at an even place of the field
  frame[35 + 2 * 7 + 1, 2 * 9 + 1, 0] = 236  # between
  frame[10] = 236  # above it
  seen = external.field(frame)
  assert seen.shape == (80, 80, 1) and seen.dtype == np.int8
  np.testing.assert_array_equal(np.argwhere(seen[..., 0]), [[7, 9]])


class Reel:
  """Frames whose brightness counts them; the game ends with the sixth."""

  action_space = observation_space = metadata = render = close = None

  def __init__(self, *channels):
    self.channels = channels

  def reset(self, seed):
    self.t = 0
    return np.zeros((210, 160, *self.channels), np.uint8), {}

  def step(self, action):
    self.t += 1
    return np.full((210, 160, *self.channels), self.t, np.uint8), 1.0, self.t == 6, False, {}


def test_an_action_lasts_some_frames():
  seen = external.Grey(Reel(), 4)
  assert (seen.reset(seed=0)[0] == 0).all()
  frame, reward, terminated, *_ = seen.step(0)
  assert (frame == 4).all() and reward == 4 and not terminated
  frame, reward, terminated, *_ = seen.step(0)
  assert (frame == 6).all() and reward == 2 and terminated


def test_differences_are_of_one_step():
  seen = external.Difference(Reel(3))
  assert (seen.reset(seed=0)[0] == 0).all()
  assert (seen.step(0)[0] == 1).all()  # from background 0 to something
  assert (seen.step(0)[0] == 0).all()


@pytest.mark.parametrize(
  'options, shape, dtype', [('', (84, 84, 4), 'uint8'), (',pixels=difference,actions=2+3', (80, 80, 1), 'int8')]
)
def test_pong_is_played(options, shape, dtype):
  pytest.importorskip('ale_py', reason='ale-py is not installed')
  environment = environments.make(f'gymnasium:ALE/Pong-v5{options},limit=30')
  assert environment.observation.shape == shape and environment.action.size == (2 if options else 6)
  keys = jax.random.split(jax.random.key(0), 1)
  play = jax.jit(
    lambda: rollout.rollout(
      environment, lambda o, n: n, rollout.start(environment, keys), keys, jnp.ones((30, 1), jnp.int32), 30
    )[1]
  )
  seen, once_more = play(), play()
  assert seen.observation.shape == (30, 1, *shape) and seen.observation.dtype == dtype
  np.testing.assert_array_equal(seen.observation, once_more.observation)
  assert (np.asarray(seen.observation[0]) == np.asarray(seen.observation[-1])).mean() < 1
  np.testing.assert_array_equal(seen.truncated[:, 0], np.arange(30) == 29)


def test_breakout_is_gymnax_s_own():
  gymnax = pytest.importorskip('gymnax', reason='gymnax is not installed')
  theirs, params = gymnax.make('Breakout-MinAtar')
  ours = environments.make('gymnax:Breakout-MinAtar')
  assert ours.observation.shape == (10, 10, 4) and ours.action.size == 3 and ours.limit == 1000
  length, keys = 60, jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(2))
  act = lambda observation, noise: noise
  actions = jax.random.randint(jax.random.key(1), (length, 2), 0, 3)
  _, seen = jax.jit(lambda keys: rollout.rollout(ours, act, rollout.start(ours, keys), keys, actions, length))(keys)
  observation, state = theirs.reset_env(keys[0], params)
  drawn = jax.random.split(keys[0], 2 * length)
  step = jax.jit(theirs.step_env)
  for t in range(length):
    np.testing.assert_array_equal(seen.observation[t, 0], observation)
    observation, state, reward, terminated, _ = step(drawn[t], state, actions[t, 0], params)
    np.testing.assert_array_equal(seen.next_observation[t, 0], observation)
    assert float(seen.reward[t, 0]) == float(reward) and bool(seen.terminated[t, 0]) == bool(terminated)
    if terminated:
      observation, state = theirs.reset_env(drawn[length + t], params)
  assert seen.terminated[:, 0].any()


def test_frames_show_each_channel_s_colour():
  pytest.importorskip('gymnax', reason='gymnax is not installed')
  ours = environments.make('gymnax:Breakout-MinAtar')
  state, observation = ours.reset(jax.random.key(0))
  (frame,) = ours.render(jax.tree.map(lambda x: np.asarray(x)[None], state))
  assert frame.shape == (200, 200, 3)
  empty = (np.asarray(observation) == 0).all(-1)
  np.testing.assert_array_equal((frame[::20, ::20] == 244).all(-1), empty)


def test_an_inverted_pendulum_is_brax_s_own():
  envs = pytest.importorskip('brax.envs', reason='brax is not installed')
  theirs = envs.get_environment('inverted_pendulum', backend='positional')
  ours = environments.make('brax:inverted_pendulum')
  assert ours.observation.shape == (4,) and ours.action.shape == (1,) and ours.limit == 1000
  length, keys = 40, jax.random.split(jax.random.key(0), 1)
  actions = jnp.full((length, 1, 1), 2.0)  # clipped to 1, where the pole soon falls
  play = jax.jit(lambda keys: rollout.rollout(ours, lambda o, n: n, rollout.start(ours, keys), keys, actions, length))
  _, seen = play(keys)
  state, step = jax.jit(theirs.reset)(keys[0]), jax.jit(theirs.step)
  for t in range(length):
    np.testing.assert_allclose(seen.observation[t, 0], state.obs, rtol=1e-4, atol=1e-5)
    state = step(state, jnp.ones(1))
    np.testing.assert_allclose(seen.next_observation[t, 0], state.obs, rtol=1e-4, atol=1e-5)
    assert float(seen.reward[t, 0]) == 1 and bool(seen.terminated[t, 0]) == bool(state.done)
    if state.done:
      break
  assert t < length - 1 and (seen.observation[t + 1, 0] != seen.next_observation[t, 0]).any()


@pytest.mark.parametrize(
  'package, name, message',
  [('gymnax', 'gymnax:Breakout-MinAtari', 'Breakout-MinAtar'), ('brax', 'brax:reachr', 'reacher')],
)
def test_an_unknown_name_is_offered_the_nearest(package, name, message):
  pytest.importorskip(package, reason=f'{package} is not installed')
  with pytest.raises(UsageError, match=f'Did you mean {message}'):
    environments.make(name)
