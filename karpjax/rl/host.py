"""Environments that live on the host, outside of any pytree, behind the protocol of pure functions.

What a program holds of such an environment is the name of an episode and how far it has come. `vmap` of `reset` and `step` is
one call to the host for all worlds; calls come in the order of the program (`io_callback`, ordered).
"""

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
    """Begins an episode and gives its first observation, alone in a tuple."""
    self.key, self.actions, self.done = tuple(key), [], False
    return self.environment.reset(seed=seed(key))[:1]

  def step(self, action, limit: int):
    """(observation, reward, terminated, truncated) of one step."""
    self.actions.append(action)
    observation, reward, terminated, truncated, _ = self.environment.step(action)
    truncated = (truncated or len(self.actions) >= limit) and not terminated
    self.done = bool(terminated or truncated)
    return observation, reward, terminated, truncated


class Worlds:
  """The environments of one kind, each made when it is first asked for. Only what has begun and is not over makes a step: the
  others give zeros. The arguments are those of `environment`.
  """

  def __init__(self, name: str, make: Callable, box: Box, limit: int, act: Callable):
    self.name, self.make, self.box, self.limit, self.act = name, make, box, limit, act
    self.worlds: list[World] = []

  def _of(self, number: int) -> World:
    while number >= len(self.worlds):
      self.worlds.append(World(self.make()))
    return self.worlds[number]

  def _ask(self, number: int, question: Callable, *arguments):
    """What a world answers, which is finite; raises CallbackError in one line where it fails or is not."""
    try:
      observation, *rest = question(self._of(number), *arguments)
      observation, fault = np.asarray(observation, self.box.dtype).reshape(self.box.shape), None
      numbers = observation if self.box.dtype == 'float32' else ()
      if not np.isfinite(np.sum(numbers, dtype=np.float64) + sum(rest[:1])):
        fault = 'NaN or infinity in what it gives'
    except Exception as error:  # of whoever wrote it
      fault = ': '.join([type(error).__name__, *str(error).strip().splitlines()[:1]])[:200]
    if fault:
      t = len(self.worlds[number].actions) if number < len(self.worlds) else 0
      raise CallbackError(f'{self.name}: {fault}, in world {number} at step {t} of its episode')
    return observation, *rest

  def reset_done(self, keys, numbers, names, t, done):
    """(observations [n, …], reset_mask [n] bool): new episodes of those done, or not in the worlds that should play them."""
    observations, reset_mask = np.zeros((len(keys), *self.box.shape), self.box.dtype), np.array(done)
    for i, number in enumerate(numbers):
      reset_mask[i] |= not self._of(number).plays(names[i], t[i])
      if reset_mask[i]:
        observations[i], *_ = self._ask(number, World.reset, keys[i])
    return observations, reset_mask

  def step(self, numbers, names, t, actions):
    """(observations [n, …], rewards [n], terminated [n], truncated [n])."""
    count = len(numbers)
    observations = np.zeros((count, *self.box.shape), self.box.dtype)
    rewards, ends = np.zeros(count, np.float32), np.zeros((2, count), bool)
    for i, number in enumerate(numbers):
      if self._of(number).plays(names[i], t[i]):
        answer = self._ask(number, World.step, self.act(actions[i]), self.limit)
        observations[i], rewards[i], ends[0, i], ends[1, i] = answer
    return observations, rewards, *ends

  def play_again(self, make: Callable, number: int, times) -> np.ndarray:
    """Frames [times, height, width, 3] uint8 of a world's last episode after so many steps, in an environment that draws."""
    world, drawing = self.worlds[number], World(make())
    drawing.reset(world.key)
    frames = [drawing.environment.render()]
    for action in world.actions[: max(times)]:
      drawing.step(action, self.limit)
      frames.append(drawing.environment.render())
    drawing.environment.close()
    return np.stack([np.asarray(frames[t], np.uint8) for t in times])


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
    outputs = once(*jax.tree.map(whole, arguments, tuple(mapped)))
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

  Its draws are its own, seeded by the episode's key. Where the host has no such episode as a state names, as after a resume,
  `reset_done` begins another.

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
    """The host's answer to (*arguments, the episodes): observations, and of each dtype an array [worlds]."""
    count = len(state.t)
    shapes = [jax.ShapeDtypeStruct((count, *observation.shape), observation.dtype)]
    shapes += [jax.ShapeDtypeStruct((count,), dtype) for dtype in dtypes]
    return io_callback(lambda *given: function(*map(np.asarray, given)), tuple(shapes), *arguments, ordered=True)

  def reset_done(keys, state, done):
    words = jax.random.key_data(keys)
    observations, reset_mask = ask(worlds.reset_done, state, ('bool',), words, state.world, state.key, state.t, done)
    return Episode(state.world, words, jnp.zeros_like(state.t)), observations, reset_mask

  def reset(words):  # [worlds, 2] uint32
    numbers = jnp.arange(len(words), dtype=jnp.int32)
    state, done = Episode(numbers, words, jnp.zeros_like(numbers)), jnp.ones(len(words), bool)
    return state, ask(worlds.reset_done, state, ('bool',), words, numbers, words, state.t, done)[0]

  def step(state, action):
    reached = ask(worlds.step, state, ('float32', 'bool', 'bool'), state.world, state.key, state.t, action)
    return state.replace(t=state.t + 1), TimeStep(*reached)

  reset_one, step_one = _of_one(reset, name), _of_one(step, name)
  return Environment(
    name,
    reset=lambda key: reset_one(jax.random.key_data(key)),
    step=lambda key, state, action: step_one(state, action),
    observation=observation,
    action=action,
    limit=limit,
    render=draw and (lambda states: worlds.play_again(draw, int(states.world[0]), [int(t) for t in states.t])),
    reset_done=reset_done,
    **others,
  )
