"""An episode of a policy, as GIF."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from karpjax.report import animation
from karpjax.rl import rollout
from karpjax.rl.environment import Environment

MILLISECONDS = 40  # a frame
MOST_FRAMES = 250


def frames(environment: Environment, acting: Callable, noise: Callable, state, seed: int, greedy: bool = True):
  """(frames, which are Pillow images, return) of one episode; long ones are thinned out evenly."""

  @jax.jit
  def play(state, key):
    states, seen = rollout.record(environment, acting(state, greedy), key, noise)
    return states, seen.end, seen.total

  states, ends, totals = jax.device_get(play(state, jax.random.key(seed)))
  end = int(np.argmax(ends))
  shown = np.unique(np.linspace(0, end + 1, min(end + 2, MOST_FRAMES)).astype(int))
  drawn = environment.render(jax.tree.map(lambda x: x[shown], states))
  return [Image.fromarray(frame) for frame in drawn], float(totals[end])


def draw(environment: Environment, acting: Callable, noise: Callable, state, t: int, folder: Path) -> None:
  """A Program's `report`: plots/episode.gif, by the likeliest actions."""
  if environment.render:
    images, _ = frames(environment, acting, noise, state, seed=t)
    animation.write(folder / 'plots' / 'episode.gif', images, MILLISECONDS)
