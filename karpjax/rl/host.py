"""Environments that live on the host, outside of any pytree, behind the protocol of pure functions.

What a program holds of such an environment is the name of an episode and how far it has come. `vmap` of `reset` and `step` is
one call to the host for all worlds; calls come in the order of the program (`io_callback`, ordered).
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.experimental import io_callback

from karpjax.errors import CallbackError, UsageError
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


@dataclasses.dataclass
class World:
  """One environment with gymnasium's interface, and the episode that it is in: its name, and the actions so far."""

  environment: Any
  key: tuple[int, ...] = ()
  actions: list = dataclasses.field(default_factory=list)
  over: bool = True

  def plays(self, key, t) -> bool:
    """Whether it is at step t of that episode, which is not over."""
    return not self.over and self.key == tuple(key) and len(self.actions) == t

  def reset(self, key):
    """Begins an episode and gives its first observation."""
    self.key, self.actions, self.over = tuple(key), [], False
    return self.environment.reset(seed=seed(key))[0]

  def step(self, action, limit: int):
    """(observation, reward, terminated, truncated) of one step."""
    self.actions.append(action)
    observation, reward, terminated, truncated, _ = self.environment.step(action)
    truncated = (truncated or len(self.actions) >= limit) and not terminated
    self.over = bool(terminated or truncated)
    return observation, reward, terminated, truncated


def seed(key) -> int:
  """Of an episode, 31 bits: key [2] uint32."""
  return int(key[0] ^ key[1]) & 0x7FFFFFFF


class Worlds:
  """The environments of one kind, each made when it is first asked for. Only what has begun and is not over makes a step: the
  others give zeros.
  """

  def __init__(self, name: str, make: Callable, observation: Box, act: Callable, limit: int):
    """Args:
    name: for messages.
    make: () -> an environment of gymnasium's interface.
    observation: of one.
    act: an action of the program -> what `step` of the environment takes.
    limit: the most steps of an episode.
    """
    self.name, self.make, self.observation, self.act, self.limit = name, make, observation, act, limit
    self.worlds: list[World] = []

  def _of(self, number: int) -> World:
    while number >= len(self.worlds):
      self.worlds.append(World(self.make()))
    return self.worlds[number]

  def _zeros(self, count: int):
    return np.zeros((count, *self.observation.shape), self.observation.dtype)

  def _ask(self, number: int, question: Callable, *arguments):
    """What a world answers, which is finite; raises CallbackError in one line where it fails or is not."""
    try:
      world = self._of(number)
      observation, *rest = question(world, *arguments)
      observation = np.asarray(observation, self.observation.dtype).reshape(self.observation.shape)
      numbers = observation if self.observation.dtype == 'float32' else ()
      fault = (
        None if np.isfinite(np.sum(numbers, dtype=np.float64) + sum(rest[:1])) else 'NaN or infinity in what it gives'
      )
    except Exception as error:  # of whoever wrote it
      fault = (
        f'{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}' if str(error) else type(error).__name__
      )
    if fault:
      t = len(self.worlds[number].actions) if number < len(self.worlds) else 0
      raise CallbackError(f'{self.name}: {fault}, in world {number} at step {t} of its episode')
    return observation, *rest

  def reset(self, keys):
    """keys [n, 2] -> observations [n, …] of new episodes in worlds 0 … n - 1."""
    observations = self._zeros(len(keys))
    for i, key in enumerate(keys):
      observations[i], *_ = self._ask(i, lambda world: (world.reset(key),))
    return observations

  def renew(self, keys, numbers, names, t, over):
    """(observations [n, …], again [n] bool): new episodes of those that are over, or not in the worlds that should play them."""
    observations, again = self._zeros(len(keys)), np.array(over)
    for i, number in enumerate(numbers):
      again[i] |= not self._of(number).plays(names[i], t[i])
      if again[i]:
        observations[i], *_ = self._ask(number, lambda world: (world.reset(keys[i]),))
    return observations, again

  def step(self, numbers, names, t, actions):
    """(observations [n, …], rewards [n], terminated [n], truncated [n])."""
    count = len(numbers)
    observations, rewards, ends = self._zeros(count), np.zeros(count, np.float32), np.zeros((2, count), bool)
    for i, number in enumerate(numbers):
      if self._of(number).plays(names[i], t[i]):
        answer = self._ask(number, World.step, self.act(actions[i]), self.limit)
        observations[i], rewards[i], ends[0, i], ends[1, i] = answer
    return observations, rewards, *ends

  def play_again(self, make: Callable, number: int, times) -> list[np.ndarray]:
    """Frames [height, width, 3] uint8 of the last episode of a world after each of `times` steps, in an environment that draws."""
    world, drawing = self.worlds[number], World(make())
    drawing.reset(world.key)
    frames = [drawing.environment.render()]
    for action in world.actions[: max(times)]:
      drawing.step(action, self.limit)
      frames.append(drawing.environment.render())
    drawing.environment.close()
    return [np.asarray(frames[t], np.uint8) for t in times]


def _of_one(many: Callable, name: str) -> Callable:
  """The function of one world of which `many` is the `vmap`: one call to the host."""

  def single(*arguments):
    return jax.tree.map(lambda x: x[0], many(*jax.tree.map(lambda x: x[None], arguments)))

  once = jax.custom_batching.custom_vmap(many)

  @once.def_vmap
  def refuse(size, mapped, *arguments):
    raise UsageError(
      f'{name} lives on the host, outside of what is compiled: seeds, settings or perturbations of one program cannot '
      'each have their own'
    )

  one = jax.custom_batching.custom_vmap(single)

  @one.def_vmap
  def together(size, mapped, *arguments):
    whole = lambda x, over: x if over else jnp.broadcast_to(x, (size, *x.shape))
    found = once(*jax.tree.map(whole, arguments, tuple(mapped)))
    return found, jax.tree.map(lambda _: True, found)

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
) -> Environment:
  """An Environment of gymnasium's interface (reset(seed=…) and step(action)), played in Python one world after another.

  Its draws are its own, seeded by the episode's key. Where the host has no such episode as a state names, as after a resume,
  `renew` begins another.

  Args:
    name: as `environments.make` knows it.
    make: () -> such an environment.
    observation, action: what it gives and takes.
    limit: the most steps of an episode.
    act: an action, a NumPy array, as the environment wants it.
    draw: () -> one whose `render` gives frames; or None.
  """
  worlds = Worlds(name, make, observation, act, limit)

  def shape(count, *each, dtype):
    return jax.ShapeDtypeStruct((count, *each), dtype)

  def seen(count):
    return shape(count, *observation.shape, dtype=observation.dtype)

  def ask(function, shapes, *arguments):
    return io_callback(lambda *given: function(*map(np.asarray, given)), shapes, *arguments, ordered=True)

  def reset(words):  # [n, 2] uint32
    count = len(words)
    numbers = jnp.arange(count, dtype=jnp.int32)
    return Episode(numbers, words, jnp.zeros_like(numbers)), ask(worlds.reset, seen(count), words)

  def step(state, action):
    count = len(state.t)
    shapes = seen(count), shape(count, dtype='float32'), shape(count, dtype=bool), shape(count, dtype=bool)
    reached = TimeStep(*ask(worlds.step, shapes, state.world, state.key, state.t, action))
    return state.replace(t=state.t + 1), reached

  def renew(keys, state, over):
    words, count = jax.random.key_data(keys), len(over)
    shapes = seen(count), shape(count, dtype=bool)
    found, again = ask(worlds.renew, shapes, words, state.world, state.key, state.t, over)
    return Episode(state.world, words, jnp.zeros_like(state.t)), found, again

  def render(states):
    return np.stack(worlds.play_again(draw, int(states.world[0]), [int(t) for t in states.t]))

  reset_one, step_one = _of_one(reset, name), _of_one(step, name)
  return Environment(
    name,
    reset=lambda key: reset_one(jax.random.key_data(key)),
    step=lambda key, state, action: step_one(state, action),
    observation=observation,
    action=action,
    limit=limit,
    render=draw and render,
    renew=renew,
  )
