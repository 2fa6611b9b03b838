"""Environments of gymnasium (Towers et al. 2024) on the host: classic control, MuJoCo, Atari, and whatever registers itself."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from karpjax import errors
from karpjax.rl import atari, host
from karpjax.rl.environment import Box, Discrete, Environment, frame_stack, reaching

OPTIONS = {'limit': 0, 'pixels': 'grey', 'skip': 4, 'stack': 0, 'actions': ''}
PIXELS = {'grey': 4, 'difference': 1}  # and how many frames are stacked
ATARI_FRAMES = 108_000  # of an episode at the most (Machado et al. 2018)


def parse(name: str) -> tuple[str, dict]:
  """'ALE/Pong-v5,pixels=difference,limit=3000' -> ('ALE/Pong-v5', {every option of OPTIONS}).

  Raises:
    UsageError: for an option that is not known, or a value that it cannot have.
  """
  name, *given = name.split(',')
  options = dict(OPTIONS)
  for option in given:
    key, _, value = option.partition('=')
    kind = type(errors.choose(f'option of gymnasium:{name}', key, OPTIONS))
    try:
      options[key] = kind(value)
    except ValueError:
      raise errors.UsageError(f'gymnasium:{name},{option}: a whole number is needed') from None
    if kind is int and options[key] < 1:
      raise errors.UsageError(f'gymnasium:{name},{option}: at least 1 is needed')
  errors.choose('value of pixels', options['pixels'], PIXELS)
  return name, options


def _package(name: str):
  """The module gymnasium, Atari's games registered where they are installed."""
  try:
    import gymnasium
  except ImportError as error:
    raise errors.UsageError(
      f'--environment=gymnasium:{name} needs a package ({error}): pip install gymnasium'
    ) from None
  try:
    import ale_py
  except ImportError as error:
    if name.startswith('ALE/'):
      raise errors.UsageError(f'--environment=gymnasium:{name} needs a package ({error}): pip install ale-py') from None
  else:
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)
  return gymnasium


def _maker(gymnasium, name: str, options: dict, is_atari: bool) -> Callable:
  """(**options of gymnasium.make) -> an environment whose observations are as the options say."""
  own = {'disable_env_checker': True}
  if not is_atari:
    return lambda **more: gymnasium.make(name, **own, **more)
  if options['pixels'] == 'difference':
    own |= {'frameskip': options['skip'], 'obs_type': 'rgb'}
    return lambda **more: atari.Difference(gymnasium.make(name, **own, **more))
  own |= {'frameskip': 1, 'obs_type': 'grayscale'}
  return lambda **more: atari.Grey(gymnasium.make(name, **own, **more), options['skip'])


def _draws(make: Callable, modes) -> bool:
  """Whether frames can be had here: some environments need packages for that which others do without."""
  if 'rgb_array' not in modes:
    return False
  try:
    tried = make(render_mode='rgb_array')
    tried.reset(seed=0)
    drawn = np.ndim(tried.render()) == 3
    tried.close()
  except Exception:  # of whoever wrote it
    return False
  return drawn


class Found(NamedTuple):
  """What `make` needs of an environment that it has tried.

  Attributes:
    make: (**options of gymnasium.make) -> the environment.
    observation, action: of a program.
    act: an action -> how the environment wants it.
    limit: steps of an episode.
    stack: how many observations are seen at once.
    draws: whether frames can be had.
    threshold: the return that solves it, by the registry's `reward_threshold`; or None.
  """

  make: Callable
  observation: Box
  action: Discrete | Box
  act: Callable
  limit: int
  stack: int
  draws: bool
  threshold: float | None


@functools.cache
def _found(text: str) -> Found:
  """See `make`."""
  name, options = parse(text)
  gymnasium = _package(name)
  errors.choose('environment of gymnasium', name, gymnasium.registry)
  spec = gymnasium.spec(name)
  is_atari = str(spec.entry_point).startswith('ale_py')
  for option in ('pixels', 'skip'):
    if options[option] != OPTIONS[option] and not is_atari:
      raise errors.UsageError(f'gymnasium:{name},{option}={options[option]}: for games of Atari only')
  make = _maker(gymnasium, name, options, is_atari)
  try:
    tried = make()
    seen, _ = tried.reset(seed=0)
    tried.close()
  except Exception as error:  # of whoever wrote it
    why = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
    within = str(spec.entry_point).partition('gymnasium.envs.')[2].split('.')[0]
    if isinstance(error, ImportError) and within:  # such as mujoco, which needs packages of its own
      why += f"; pip install 'gymnasium[{within}]'"
    raise errors.UsageError(f'--environment=gymnasium:{name} cannot be made: {why}') from None
  observed = tried.observation_space
  if type(observed).__name__ != 'Box':
    raise errors.UsageError(f'gymnasium:{name} has observations of kind {type(observed).__name__}; boxes are known')
  if is_atari:
    observation = Box(seen.shape, *((-1, 1) if seen.dtype == np.int8 else (0, 255)), str(seen.dtype))
  else:
    dtype = 'uint8' if observed.dtype == np.uint8 else 'float32'
    observation = Box(tuple(observed.shape), observed.low.astype(dtype), observed.high.astype(dtype), dtype)
  limit = options['limit'] or spec.max_episode_steps or (ATARI_FRAMES // options['skip'] if is_atari else 0)
  if not limit:
    raise errors.UsageError(f'gymnasium:{name} has no time limit of its own: gymnasium:{name},limit=1000 gives one')
  draws = _draws(make, tried.metadata.get('render_modes', ()))
  stack = options['stack'] or (PIXELS[options['pixels']] if is_atari else 1)
  acting = _acting(name, tried.action_space, options['actions'])
  return Found(make, observation, *acting, limit, stack, draws, spec.reward_threshold)


def _acting(name: str, space, chosen: str) -> tuple[Discrete | Box, Callable]:
  """(the actions of a program, how the environment wants them)."""
  kind = type(space).__name__
  if kind == 'Discrete':
    numbers = list(range(int(space.start), int(space.start) + int(space.n)))
    if chosen:
      given = [int(number) if number.isdigit() else None for number in chosen.split('+')]
      if not set(given) <= set(numbers):
        raise errors.UsageError(f'gymnasium:{name},actions={chosen}: some of {numbers[0]} … {numbers[-1]}, as 0+1')
      numbers = given
    return Discrete(len(numbers)), lambda action: numbers[int(action)]
  if kind == 'Box' and len(space.shape) == 1 and not chosen:
    clip = lambda action: np.clip(action, space.low, space.high).astype(space.dtype)
    return Box(tuple(space.shape), space.low, space.high), clip
  raise errors.UsageError(
    f'gymnasium:{name}{f",actions={chosen}" if chosen else ""} has actions {space}; discrete ones and boxes of one axis '
    'are known, and of discrete ones some can be chosen'
  )


def make(text: str) -> Environment:
  """'CartPole-v1', 'ALE/Pong-v5' and so on, by gymnasium's own names; actions outside of a Box are clipped to it.

  Behind the name, after commas: limit=N steps of an episode (else the environment's own); actions=2+3 leaves only these of
  the discrete ones; stack=N observations seen at once. Of Atari, whose actions repeat with chance ¼ (Machado et al. 2018):
  skip=N frames an action lasts (4), and pixels=grey, 84×84 and the last four, or pixels=difference, 80×80 of Pong.
  An episode succeeds whose return is the registry's `reward_threshold`, where there is one.

  Raises:
    UsageError: where a package is not installed, there is no such environment, or its spaces are of a kind of their own.
  """
  found = _found(text)
  draw = (lambda: found.make(render_mode='rgb_array')) if found.draws else None
  environment = host.environment(
    f'gymnasium:{text}', found.make, found.observation, found.action, found.limit, act=found.act, draw=draw
  )
  if found.threshold is not None:
    environment = dataclasses.replace(environment, outcomes=reaching(found.threshold))
  return frame_stack(environment, found.stack) if found.stack > 1 else environment
