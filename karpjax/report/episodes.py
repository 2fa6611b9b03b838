"""An episode of a policy, as GIF."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from karpjax.report import writers
from karpjax.rl import rollout
from karpjax.rl.environment import Environment

MILLISECONDS = 40  # a frame
MOST_FRAMES = 250


def frames(environment: Environment, acting: Callable, noise: Callable, state, seed: int, greedy: bool = True):
  """(frames [time, height, width, 3] uint8, return) of one episode; long ones are thinned out evenly."""
  play = jax.jit(lambda state, key: rollout.record(environment, acting(state, greedy), key, noise))
  states, seen = jax.device_get(play(state, jax.random.key(seed)))
  end = int(np.argmax(seen.terminated | seen.truncated))
  shown = np.unique(np.linspace(0, end + 1, min(end + 2, MOST_FRAMES)).astype(int))
  return environment.render(jax.tree.map(lambda x: x[shown], states)), float(seen.total[end])


def write(path: Path, pictures: np.ndarray) -> Path:
  """An animated GIF, which repeats."""
  import io

  from PIL import Image

  images = [Image.fromarray(picture) for picture in pictures]
  content = io.BytesIO()
  images[0].save(content, 'GIF', save_all=True, append_images=images[1:], duration=MILLISECONDS, loop=0)
  path.parent.mkdir(parents=True, exist_ok=True)
  writers.write_bytes(path, content.getvalue())
  return path


def draw(environment: Environment, acting: Callable, noise: Callable, state, t: int, folder: Path) -> None:
  """A Program's `report`: plots/episode.gif, by the likeliest actions."""
  if environment.render:
    write(folder / 'plots' / 'episode.gif', frames(environment, acting, noise, state, seed=t)[0])
