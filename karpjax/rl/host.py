"""Environments that live on the host, outside of any pytree, behind the protocol of pure functions.

What a program holds of such an environment is the name of an episode and how far it has come. `vmap` of `reset` and
`step` is one call to the host for all worlds; calls come in the order of the program (`io_callback`, ordered).
"""

import collections
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.experimental import io_callback

from karpjax.errors import CallbackError
from karpjax.rl.environment import Box, Discrete, Environment, TimeStep

logging.getLogger('jax._src.callback').setLevel(logging.CRITICAL)  # JAX logs what is reported here in a line


@struct.dataclass
class Episode:
  """The state of a world on the host, as a program sees it.

  Attributes:
    world: [] int32, which of the host's worlds plays it.
    key: [2] uint32, from which it began.
    t: [] int32, its steps so far.
  """

  world: Any
  key: Any
  t: Any


def seed(key) -> int:
  """Of an episode, 31 bits: key [2] uint32."""
  return int(key[0] ^ key[1]) & 0x7FFFFFFF


class World:
  """One environment with gymnasium's interface, and the episode that it is in: its name, and the actions so far."""

  def __init__(self, environment):
    self.environment, self.key, self.actions, self.done = environment, (), [], True

  def plays(self, key, t) -> bool:
    """Whether it is at step t of that episode, which is not over."""
    return not self.done and self.key == tuple(key) and len(self.actions) == t

  def reset(self, key):
    """Begins an episode; as `step`."""
    self.key, self.actions, self.done = tuple(key), [], False
    return self.environment.reset(seed=seed(key))[0], 0.0, False, False

  def step(self, action, limit: int):
    """(observation, reward, terminated, truncated) of one step."""
    self.actions.append(action)
    observation, reward, terminated, truncated, _ = self.environment.step(action)
    truncated = (truncated or len(self.actions) >= limit) and not terminated
    self.done = bool(terminated or truncated)
    return observation, reward, terminated, truncated


class Worlds:
  """The environments of one kind, each made when it is first asked for. Only what has begun and is not over makes a
  step: the others give zeros. The arguments are those of `environment`.
  """

  def __init__(self, name: str, make: Callable, box: Box, limit: int, act: Callable):
    self.name, self.box, self.limit, self.act = name, box, limit, act
    self.worlds = collections.defaultdict(lambda: World(make()))

  def _play(self, numbers, keys, t):
    return np.array([self.worlds[number].plays(*episode) for number, *episode in zip(numbers, keys, t)], bool)

  def _ask(self, numbers, asked, question: Callable):
    """Observations, rewards, terminated, truncated, each [n, …]: what question(world, i) gives where `asked` [n], which
    is finite, else zeros; raises CallbackError in one line where it fails or is not.
    """
    observations = np.zeros((len(numbers), *self.box.shape), self.box.dtype)
    rewards, ends = np.zeros(len(numbers), np.float32), np.zeros((2, len(numbers)), bool)
    for i in np.flatnonzero(asked):
      world, fault = self.worlds[numbers[i]], ''
      try:
        observation, rewards[i], ends[0, i], ends[1, i] = question(world, i)
        observations[i] = np.asarray(observation, self.box.dtype).reshape(self.box.shape)
        if not np.isfinite(np.sum(observations[i], dtype=np.float64) + rewards[i]):
          fault = 'NaN or infinity in what it gives'
      except Exception as error:  # of whoever wrote it
        fault = ': '.join([type(error).__name__, *str(error).strip().splitlines()[:1]])[:200]
      if fault:
        raise CallbackError(f'{self.name}: {fault}, in world {numbers[i]} at step {len(world.actions)} of its episode')
    return observations, rewards, *ends

  def reset_done(self, numbers, keys, t, new_keys, done):
    """(observations, reset_mask [n]): new episodes of those done, or not in the worlds that should play them."""
    reset_mask = done | ~self._play(numbers, keys, t)
    return self._ask(numbers, reset_mask, lambda world, i: world.reset(new_keys[i]))[0], reset_mask

  def step(self, numbers, keys, t, actions):
    """As `_ask`."""
    act = lambda world, i: world.step(self.act(actions[i]), self.limit)
    return self._ask(numbers, self._play(numbers, keys, t), act)

  def play_again(self, make: Callable, number: int, times) -> np.ndarray:
    """Frames [times, height, width, 3] uint8 of a world's last episode after so many steps,
    in an environment that draws.
    """
    world, drawing = self.worlds[number], make()
    drawing.reset(seed=seed(world.key))
    frames = [drawing.render()]
    for action in world.actions[: max(times)]:
      drawing.step(action)
      frames.append(drawing.render())
    drawing.close()
    return np.stack([np.asarray(frames[t], np.uint8) for t in times])


def _of_one(many: Callable) -> Callable:
  """The function of one world of which `many` is the `vmap`: one call to the host."""

  @jax.custom_batching.custom_vmap
  def one(*arguments):
    return jax.tree.map(lambda x: x[0], many(*jax.tree.map(lambda x: x[None], arguments)))

  @one.def_vmap
  def together(size, mapped, *arguments):
    whole = lambda x, over: x if over else jnp.broadcast_to(x, (size, *x.shape))
    outputs = many(*jax.tree.map(whole, arguments, tuple(mapped)))
    return outputs, jax.tree.map(lambda _: True, outputs)

  return one


def environment(
  name: str,
  make: Callable,
  observation: Box,
  action: Discrete | Box,
  limit: int,
  *,
  act: Callable = lambda action: action,
  draw: Callable | None = None,
  **others,
) -> Environment:
  """An Environment of gymnasium's interface (reset(seed=…) and step(action)), played in Python one world after another.

  Its draws are its own, seeded by the episode's key. Where the host has no such episode as a state names, as after a
  resume, `reset_done` begins another.

  Args:
    name: as `environments.make` knows it.
    make: () -> such an environment.
    observation, action: what it gives and takes.
    limit: the most steps of an episode.
    act: an action, a NumPy array, as the environment wants it.
    draw: () -> one whose `render` gives frames; or None.
    others: fields of an Environment.
  """
  worlds = Worlds(name, make, observation, limit, act)

  def ask(function, state: Episode, dtypes: tuple[str, ...], *arguments):
    """The host's answer to (*the episodes, *arguments): observations, and of each dtype an array [worlds]."""
    shapes = [jax.ShapeDtypeStruct((len(state.t), *observation.shape), observation.dtype)]
    shapes += [jax.ShapeDtypeStruct(state.t.shape, dtype) for dtype in dtypes]
    given = state.world, state.key, state.t, *arguments
    return io_callback(lambda *given: function(*map(np.asarray, given)), tuple(shapes), *given, ordered=True)

  def reset_done(keys, state, done):
    words = jax.random.key_data(keys)  # [worlds, 2] uint32
    observations, reset_mask = ask(worlds.reset_done, state, ('bool',), words, done)
    return Episode(state.world, words, jnp.zeros_like(state.t)), observations, reset_mask

  @_of_one
  def reset(keys):
    numbers = jnp.arange(len(keys), dtype=jnp.int32)
    none = Episode(numbers, jax.random.key_data(keys), jnp.zeros_like(numbers))
    return reset_done(keys, none, jnp.ones(len(keys), bool))[:2]

  @_of_one
  def step(keys, state, action):
    return state.replace(t=state.t + 1), TimeStep(*ask(worlds.step, state, ('float32', 'bool', 'bool'), action))

  render = draw and (lambda states: worlds.play_again(draw, int(states.world[0]), [int(t) for t in states.t]))
  return Environment(name, reset, step, observation, action, limit, render, reset_done=reset_done, **others)
