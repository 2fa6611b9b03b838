"""Environments of other packages behind our protocol: gymnasium (Towers et al. 2024) on the host, with Atari's games
and MuJoCo; gymnax (Lange 2022), with MinAtar (Young & Tian 2019), and brax (Freeman et al. 2021) within the compiled
step.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from karpjax.errors import UsageError, choose, first_line
from karpjax.rl import drawing, host
from karpjax.rl.environment import Box, Discrete, Environment, TimeStep, frame_stack, success_from, time_limit


def _import(module: str, name: str, packages: str):
  """A module of a package that a user may have, for the environment `name`;
  raises UsageError with its line of installation.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise UsageError(f'environment={name} needs a package ({error}): pip install {packages}') from None


# ---- gymnasium ----

OPTIONS = {'limit': 0, 'pixels': 'grey', 'skip': 4, 'stack': 0, 'actions': ''}
PIXELS = {'grey': 4, 'difference': 1}  # and how many frames are stacked
MOST = 2**24  # of an option that is a number
ATARI_FRAMES = 108_000  # of an episode at the most (Machado et al. 2018)


def gymnasium_options(name: str) -> tuple[str, dict]:
  """'ALE/Pong-v5,pixels=difference,limit=3000' -> ('ALE/Pong-v5', {every option of OPTIONS}).

  Raises:
    UsageError: for an option that is not known, or a value that it cannot have.
  """
  name, *given = name.split(',')
  options = dict(OPTIONS)
  for option in given:
    key, _, value = option.partition('=')
    if isinstance(choose(f'option of gymnasium:{name}', key, OPTIONS), int):
      if not value.isdecimal() or not 1 <= int(value) <= MOST:
        raise UsageError(f'gymnasium:{name},{option}: a whole number, at least 1 and at most {MOST}, is needed')
      value = int(value)
    options[key] = value
  choose('value of pixels', options['pixels'], PIXELS)
  return name, options


def _actions(name: str, space, chosen: str) -> tuple[Discrete | Box, Callable]:
  """(the actions of a program, how the environment wants them)."""
  kind = type(space).__name__
  if kind == 'Discrete':
    numbers = list(range(int(space.start), int(space.start) + int(space.n)))
    if chosen:
      given = [int(number) if number.isdigit() else None for number in chosen.split('+')]
      if not set(given) <= set(numbers):
        raise UsageError(f'gymnasium:{name},actions={chosen}: some of {numbers[0]} … {numbers[-1]}, as 0+1')
      numbers = given
    return Discrete(len(numbers)), lambda action: numbers[int(action)]
  if kind != 'Box' or len(space.shape) != 1 or chosen:
    raise UsageError(
      f'gymnasium:{name} has actions {space}: boxes of one axis are known, and discrete ones to choose from'
    )
  clip = lambda action: np.clip(action, space.low, space.high).astype(space.dtype)
  return Box(tuple(space.shape), space.low, space.high), clip


def _draws(make: Callable, modes) -> bool:
  """Whether frames can be had here: some environments need packages for that which others do without."""
  with contextlib.suppress(Exception):  # of whoever wrote it
    if 'rgb_array' in modes:
      tried = make(render_mode='rgb_array')
      tried.reset(seed=0)
      drawn = np.ndim(tried.render()) == 3
      tried.close()
      return drawn
  return False


@functools.cache
def _tried(text: str) -> tuple[Callable, int]:
  """(() -> the environment of `from_gymnasium` before frames are stacked, how many are)."""
  name, options = gymnasium_options(text)
  gymnasium = _import('gymnasium', f'gymnasium:{name}', 'gymnasium')
  try:
    ale_py = _import('ale_py', f'gymnasium:{name}', 'ale-py')
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)
  except UsageError:
    if name.startswith('ALE/'):
      raise
  spec = choose('environment of gymnasium', name, gymnasium.registry)
  where = str(spec.entry_point)
  make, is_atari = functools.partial(gymnasium.make, name, disable_env_checker=True), where.startswith('ale_py')
  if options['limit']:  # which gymnasium's own would cut short
    frames = {'max_num_frames_per_episode': max(options['limit'] * options['skip'], ATARI_FRAMES)}
    make = functools.partial(make, **(frames if is_atari else {'max_episode_steps': options['limit']}))
  if is_atari:
    make = _atari(make, options)
  elif (options['pixels'], options['skip']) != (OPTIONS['pixels'], OPTIONS['skip']):
    raise UsageError(f'gymnasium:{text}: pixels and skip are for games of Atari only')
  try:
    tried = make()
    first, _ = tried.reset(seed=0)
    tried.close()
  except Exception as error:  # of whoever wrote it
    why, within = first_line(error), where.partition('gymnasium.envs.')[2]
    if isinstance(error, ImportError) and within:  # such as mujoco, which needs packages of its own
      why += f"; pip install 'gymnasium[{within.split('.')[0]}]'"
    raise UsageError(f'environment=gymnasium:{name} cannot be made: {why}') from None
  space = tried.observation_space
  if is_atari:
    box = Box(first.shape, *((-1, 1) if first.dtype == np.int8 else (0, 255)), str(first.dtype))
  elif type(space).__name__ == 'Box':
    dtype = 'uint8' if space.dtype == np.uint8 else 'float32'
    box = Box(tuple(space.shape), space.low.astype(dtype), space.high.astype(dtype), dtype)
  else:
    raise UsageError(f'gymnasium:{name} has observations of kind {type(space).__name__}; boxes are known')
  limit = options['limit'] or spec.max_episode_steps or (ATARI_FRAMES // options['skip'] if is_atari else 0)
  if not limit:
    raise UsageError(f'gymnasium:{name} has no time limit of its own: gymnasium:{name},limit=1000 gives one')
  action, act = _actions(name, tried.action_space, options['actions'])
  draws = _draws(make, tried.metadata.get('render_modes', ()))
  others = {'act': act, 'draw': functools.partial(make, render_mode='rgb_array') if draws else None}
  if spec.reward_threshold is not None:
    others['outcomes'] = success_from(spec.reward_threshold)
  build = functools.partial(host.environment, f'gymnasium:{text}', make, box, action, limit, **others)
  return build, options['stack'] or (PIXELS[options['pixels']] if is_atari else 1)


def from_gymnasium(text: str) -> Environment:
  """'CartPole-v1', 'ALE/Pong-v5' and so on, by gymnasium's own names; actions outside of a Box are clipped to it.

  Behind the name, after commas: limit=N steps of an episode (else the environment's own); actions=2+3 leaves only these
  of the discrete ones; stack=N observations seen at once. Of Atari, whose actions repeat with chance ¼ (Machado et al.
  2018): skip=N frames an action lasts (4), and pixels=grey, 84×84 and the last four, or pixels=difference, 80×80 of
  Pong. An episode succeeds whose return is the registry's `reward_threshold`, where there is one.

  Raises:
    UsageError: where a package is not installed, there is no such environment, or its spaces are of a kind of their
      own.
  """
  build, stack = _tried(text)
  return frame_stack(build(), stack) if stack > 1 else build()


# ---- what an agent sees of Atari's games ----


def _atari(make: Callable, options: dict) -> Callable:
  """(**options of gymnasium.make) -> a game, seen as the options say."""
  if options['pixels'] == 'difference':
    return lambda **more: Difference(make(frameskip=options['skip'], obs_type='rgb', **more))
  return lambda **more: Grey(make(frameskip=1, obs_type='grayscale', **more), options['skip'])


def small_grey(frames) -> np.ndarray:
  """The brighter of each pixel of two frames [210, 160] uint8, since sprites flicker, as [84, 84, 1] uint8 (Mnih et al.
  2015, methods); each pixel is the mean of its area.
  """
  brighter = np.maximum(*frames)
  return np.asarray(Image.fromarray(brighter).resize((84, 84), Image.Resampling.BOX))[..., None]


def field(frame) -> np.ndarray:
  """Where Pong's paddles and ball are, [80, 80, 1] int8 of 0 and 1: a frame [210, 160, 3] uint8, every second pixel of
  its field (Karpathy, "Deep Reinforcement Learning: Pong from Pixels", 2016).
  """
  red = frame[35:195:2, ::2, 0]  # 144 of the field, 109 of what shows beyond it
  return (~np.isin(red, (0, 144, 109))).astype(np.int8)[..., None]


class Game:
  """A game that is seen otherwise."""

  def __init__(self, game, skip: int = 1):
    self.game, self.skip = game, skip

  def __getattr__(self, name):
    return getattr(self.game, name)


class Grey(Game):
  """An action lasts `skip` frames of a game of grey ones, which skips none itself; the last two are seen,
  as `small_grey`.
  """

  def reset(self, seed):
    frame, about = self.game.reset(seed=seed)
    return small_grey((frame, frame)), about

  def step(self, action):
    frames, total = [], 0.0
    for _ in range(self.skip):
      frame, reward, terminated, truncated, about = self.game.step(action)
      frames, total = [*frames, frame], total + reward
      if terminated or truncated:
        break
    return small_grey((frames[-1], frames[-2:][0])), total, terminated, truncated, about


class Difference(Game):
  """What has moved on Pong's field since the step before: [80, 80, 1] int8 of -1, 0 and 1; nothing at first."""

  def reset(self, seed):
    frame, about = self.game.reset(seed=seed)
    self.before = field(frame)
    return np.zeros_like(self.before), about

  def step(self, action):
    frame, *rest = self.game.step(action)
    before, self.before = self.before, field(frame)
    return self.before - before, *rest


# ---- gymnax and brax ----


def _strong(tree):
  """The same arrays without weak types, which a scan's carry would not keep."""
  return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)


def from_gymnax(name: str) -> Environment:
  """'Breakout-MinAtar' and so on, by gymnax's own names and settings; its automatic reset is left out.

  Raises:
    UsageError: where gymnax is not installed, or knows no such environment.
  """
  gymnax = _import('gymnax', f'gymnax:{name}', 'gymnax six; it holds jax below 0.12')
  choose('environment of gymnax', name, dict.fromkeys(gymnax.registered_envs))
  world, params = gymnax.make(name)
  space, shape = world.action_space(params), tuple(world.observation_space(params).shape)
  box = lambda: Box(tuple(space.shape), np.asarray(space.low), np.asarray(space.high))
  action = Discrete(int(space.n)) if hasattr(space, 'n') else box()

  def reset(key):
    observation, state = world.reset_env(key, params)
    return _strong(state), observation.astype(jnp.float32)

  def step(key, state, action):
    observation, state, reward, terminated, _ = world.step_env(key, state, action, params)
    terminated = jnp.asarray(terminated, bool)
    truncated = jnp.asarray(world.is_truncated(state, params), bool) & ~terminated
    reached = TimeStep(observation.astype(jnp.float32), jnp.asarray(reward, jnp.float32), terminated, truncated)
    return _strong(state), reached

  render = lambda states: drawing.channels(np.asarray(jax.vmap(world.get_obs)(states), np.float32))
  picture, limit = len(shape) == 3 and hasattr(world, 'get_obs'), int(params.max_steps_in_episode)
  return Environment(f'gymnax:{name}', reset, step, Box(shape), action, limit, render if picture else None)


BRAX_LIMITS = {'reacher': 50, 'pusher': 100}  # as of gymnasium's environments of these names; else 1000


def from_brax(name: str) -> Environment:
  """'inverted_pendulum', 'reacher' and so on, by brax's own names, on its positional backend; actions lie within ±1.

  Raises:
    UsageError: where brax is not installed or knows no such environment, or this one on another backend only.
  """
  envs = _import('brax.envs', f'brax:{name}', "brax 'mujoco<4'")
  choose('environment of brax', name, dict.fromkeys(envs._envs))
  try:
    world = envs.get_environment(name, backend='positional')
  except NotImplementedError as error:
    raise UsageError(f'brax:{name} cannot be had on the positional backend: {error}') from None

  def reset(key):
    state = _strong(world.reset(key))
    return state, state.obs.astype(jnp.float32)

  def step(key, state, action):
    # its own types, which brax's step need not keep
    after = world.step(state, jnp.clip(action, -1, 1))
    after = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, state)
    return after, TimeStep(*(x.astype(jnp.float32) for x in (after.obs, after.reward)), after.done.astype(bool))

  box, action = Box((world.observation_size,)), Box((world.action_size,), -1.0, 1.0)
  return time_limit(Environment(f'brax:{name}', reset, step, box, action, BRAX_LIMITS.get(name, 1000)))


PACKAGES = {'gymnasium': from_gymnasium, 'gymnax': from_gymnax, 'brax': from_brax}
