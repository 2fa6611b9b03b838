"""Pictures and small ones of them, as the papers on super-resolution make them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from karpjax import errors
from karpjax.data import pictures
from karpjax.data.dataset import Dataset

FACTORS = (2, 3, 4)
BORDER = 1  # pixels of the small picture at each edge, which stand for those of the large one that no metric counts


@dataclasses.dataclass(frozen=True)
class Spec:
  """What a model must know of crops of pictures; saved with a run.

  Attributes:
    name: as given to `load`.
    channels: of the pictures, 1 or 3.
    examples: crops of the train split.
    pictures: how many the largest split has.
    layers: {split: {'low': pictures, 'high': pictures}}, whole; not saved.
  """

  name: str
  channels: int
  examples: int
  pictures: int
  layers: Mapping[str, Mapping[str, pictures.Pictures]] = dataclasses.field(default_factory=dict, compare=False)

  def to_json(self) -> dict[str, Any]:
    """A dict that json.dumps takes and `from_json` reads back."""
    return {name: getattr(self, name) for name in ('name', 'channels', 'examples', 'pictures')}

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> 'Spec':
    """The inverse of `to_json`."""
    return cls(**values)


def shrunk(picture: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
  """A picture made small, and what of it that stands for.

  By Pillow's bicubic filter (Keys 1981, a = -½) widened by the factor, which is MATLAB's imresize but for the outermost pixels,
  and rounded to 8 bits.

  Args:
    picture: [height, width, channels] uint8.
    factor: a whole number.

  Returns:
    [height // factor, width // factor, channels] uint8, and the picture cut to `factor` times that.
  """
  from PIL import Image

  height, width = (n // factor for n in picture.shape[:2])
  picture = picture[: height * factor, : width * factor]
  image = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
  small = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
  return small.reshape(height, width, -1), picture


def load(name: str, factor: int, crop: int, *, stride: int = 0, resident_bytes: int = 2**31, **options) -> Dataset:
  """Crops of pictures: 'low' [crop, crop, channels] uint8, 'high' [crop · factor, crop · factor, channels], 'picture' [].

  Args:
    name: see `pictures.read`.
    factor: how much larger the high ones are.
    crop: in pixels of the small picture, of all splits. Held-out crops overlap by twice `BORDER`, which metrics leave out.
    stride: from one train crop to the next; 0: half of a crop.
    resident_bytes: see `pictures.crops`.
    options: channels, validation and seed, see `pictures.read`.

  Raises:
    UsageError: for a factor that is not offered, and what `pictures` raises.
  """
  if factor not in FACTORS:
    raise errors.UsageError(f'--factor={factor}: pictures are enlarged by {", ".join(map(str, FACTORS))}')
  parts, notes = pictures.read(name, **options)
  layers, splits = {}, {}
  for split, part in parts.items():
    both = {picture: shrunk(pixels, factor) for picture, pixels in part.items()}
    layers[split] = {layer: {n: b[i] for n, b in both.items()} for i, layer in enumerate(('low', 'high'))}
    step = (stride or max(crop // 2, 1)) if split == 'train' else crop - 2 * BORDER
    splits[split] = pictures.crops(layers[split], crop, step, scales={'high': factor}, resident_bytes=resident_bytes)
  channels = next(iter(layers['train']['low'].values())).shape[-1]
  spec = Spec(name, channels, splits['train'].size, max(map(len, parts.values())), layers)
  counts = ', '.join(f'{s.size:,} {split}' for split, s in splits.items())
  return Dataset(spec, splits, (*notes, f'{counts} crops of {crop}×{crop} pixels, to be enlarged ×{factor}'))
