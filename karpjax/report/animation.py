"""Pictures that move, as GIF: an episode, or what a generator makes over the course of a run."""

import io
from collections.abc import Sequence
from pathlib import Path

from karpjax.report import writers

FRAME = 400  # milliseconds of a picture of a run's course
GREYS = 64  # colours of it


def write(path: Path, images: Sequence, duration: int | Sequence[int]) -> None:
  """A GIF of Pillow images that repeats; `duration` in milliseconds, of each or of all."""
  content = io.BytesIO()
  images[0].save(content, 'GIF', save_all=True, append_images=images[1:], duration=duration, loop=0)
  path.parent.mkdir(parents=True, exist_ok=True)
  writers.write_bytes(path, content.getvalue())


def over_time(picture: Path, t: int, folder: Path) -> None:
  """plots/NAME_over_time.gif of the pictures NAME.png of all steps so far; frames/ keeps them for a run that goes on."""
  from PIL import Image

  frames = folder / 'frames'
  frames.mkdir(exist_ok=True)
  for path in frames.glob('*.png'):
    if int(path.stem) > t:  # of a run that went back to an earlier checkpoint
      path.unlink()
  writers.write_bytes(frames / f'{t:08d}.png', picture.read_bytes())
  images = [Image.open(path).convert('RGB').quantize(GREYS) for path in sorted(frames.glob('*.png'))]
  durations = [*[FRAME] * (len(images) - 1), 4 * FRAME]
  write(folder / 'plots' / f'{picture.stem}_over_time.gif', images, durations)
