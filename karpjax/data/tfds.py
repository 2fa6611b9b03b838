"""Image-classification sets of TensorFlow Datasets, read without TensorFlow from array_record files on disk.

TFDS is storage here: a set that fits in memory is decoded once and kept as .npz files in KARPJAX_CACHE (by
default ~/.cache/karpjax). Nothing in this module touches the network.
"""

import functools
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from karpjax.data import bundled, cache, fingerprint, image_files, published, splitting
from karpjax.data.dataset import Dataset, Spec, Split
from karpjax.errors import UsageError, nearest


def read(
  name: str, data_dir: Path | None = None, *, image_size: int = 0, resident_bytes: int = 2**31, unlabelled: bool = False
) -> Dataset:
  """The prepared TFDS set 'NAME', 'NAME/CONFIG' or 'NAME:VERSION', with features 'image' and 'label', or 'labels'.

  A set without a test split, or with one whose labels are hidden, has its validation split as 'test'; one with train
  only gives a fifth of that, by a fixed draw. With `unlabelled` train needs no labels. Images of many sizes need
  `image_size` and are resized by Pillow's antialiased bilinear filter.
  """
  import tensorflow_datasets as tfds

  builder, prepared = opened(name, data_dir)
  shape, classes, several = _features(name, builder.info)
  tags = len(classes) if several else 0
  if None in shape[:2]:
    if not image_size:
      raise UsageError(f'{name} has images of many sizes: give image_size=N to resize all to N×N')
    shape = (image_size, image_size, shape[2] or 3)
  if 'train' not in prepared:
    raise UsageError(f'{name} has no train split; it has: {", ".join(prepared) or "none"}')
  splits, labels = {}, {}
  for split in (split for split in ('train', 'validation', 'test') if split in prepared):
    # Pillow decodes, always: TFDS would take OpenCV where that is installed, and other bits from the same JPEG.
    source = builder.as_data_source(split=split, decoders={'image': tfds.decode.SkipDecoding()})
    few = source.__getitems__(splitting.sample(len(source), 16).tolist())
    labels[split] = [] if several else [record['label'] for record in few]
    splits[split] = Split(len(source), None, functools.partial(_fetch, f'{name}: {split}', source, shape, tags))
  splits, hidden = splitting.labelled(name, splits, labels, needed=not unlabelled)
  if sum(split.size for split in splits.values()) * math.prod(shape) <= resident_bytes:
    for split, s in splits.items():
      files = [Path(file) for file in builder.info.splits[split].filepaths]
      splits[split] = _keep(f'{builder.info.full_name}/{split}', s, shape, files)
  splits, notes = splitting.with_test(splits, max(splits['train'].size // 5, 1), 0, purpose=3)
  return Dataset(Spec(name, shape, classes, 255.0, multi_label=several), splits, (*hidden, *notes))


def opened(
  name: str,
  data_dir: Path | None = None,
  *,
  sources: Sequence[str] = (*bundled.NAMES, 'folder:PATH'),
  suiting: str = 'image sets of TFDS such as mnist or cifar10',
):
  """The builder of a prepared set of any kind, and the names of its splits, whose files are all there.

  Args:
    name: NAME, NAME/CONFIG or NAME:VERSION; the highest version, where none is named.
    data_dir: where to look; by default TFDS_DATA_DIR or ~/tensorflow_datasets.
    sources: other names that the user could have meant.
    suiting: which sets of TFDS would do.
  """
  import tensorflow_datasets as tfds

  bare, _, version = name.partition(':')
  place = data_dir or Path(os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()
  where = f' --data_dir={data_dir}' if data_dir else ''
  wanted = published.WANTED.get(name)
  files = f'put {wanted} into a folder and name it by data_dir=, or ' if wanted else ''
  prepare = f'{files}prepare it with: pip install tensorflow && tfds build {name} --file_format=array_record{where}'
  for root in (place, place / 'tfds') if bare else ():
    folders = (path.parent for path in (root / bare).rglob('dataset_info.json'))
    finished = filter(lambda folder: tfds.core.Version.is_valid(folder.name), folders)
    there = sorted(finished, key=lambda folder: tfds.core.Version(folder.name))
    if fitting := [folder for folder in there if folder.parent == root / bare and version in ('', folder.name)]:
      return _builder(fitting[-1], root, prepare)
    if there:
      names = ', '.join(f'{folder.parent.relative_to(root)}:{folder.name}' for folder in there)
      raise UsageError(f'{name} is not prepared in {root}; prepared there: {names}')
  known = set(tfds.list_builders(with_community_datasets=False))
  if bare.split('/')[0] in known:
    raise UsageError(f'{name} is not prepared in {place}, and nothing is downloaded; {prepare}')
  near = nearest(name, known | set(sources))
  if 'Did you mean' not in near:
    near = f' Known: {", ".join(sources)}, and {suiting}.'
  raise UsageError(f'unknown data set {name!r}.{near}')


def _builder(folder: Path, root: Path, prepare: str):
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(folder)
  if builder.info.file_format.value != 'array_record':
    raise UsageError(f'{folder} holds {builder.info.file_format.value} files; {prepare}')
  splits = [split for split, info in builder.info.splits.items() if info.num_examples]
  files = [Path(file) for split in splits for file in builder.info.splits[split].filepaths]
  for file in files:
    if not file.is_file():
      raise UsageError(f'{file} is missing; {prepare}')
  fingerprint.note(files, root)  # named with the set's version
  return builder, splits


def _features(name, info):
  """(height, width, channels), None where it varies; the class names; whether an image may be of several."""
  import tensorflow_datasets as tfds

  features = dict(info.features.items())
  image, several = features.get('image'), 'label' not in features and 'labels' in features
  label = getattr(features['labels'], 'feature', None) if several else features.get('label')
  if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
    raise UsageError(
      f'{name} has features {", ".join(features)}; expected an image and its label, or labels, so called'
    )
  if image.np_dtype != np.uint8 or image.shape[-1] not in (1, 3, None):
    raise UsageError(f'{name}: images of {image.np_dtype} {image.shape}; expected uint8 with 1 or 3 channels')
  return tuple(image.shape), tuple(label.names or map(str, range(label.num_classes))), several


def _fetch(title, source, shape, tags, indices):
  """tags: how many there are, of images that may have several; 0: each has a class."""
  records = source.__getitems__([int(i) for i in indices])
  decoded = np.empty((len(indices), *shape), np.uint8)
  for row, (index, record) in enumerate(zip(indices, records)):
    try:
      decoded[row] = image_files.read(io.BytesIO(record['image']), shape[-1], shape[:2])
    except UsageError as error:
      raise UsageError(f'{title} example {index} is not a readable PNG or JPEG image') from error
  labels = np.stack([_tags(record, tags) for record in records]) if tags else [record['label'] for record in records]
  return {'image': decoded, 'label': np.asarray(labels, np.int8 if tags else np.int32)}


def _tags(record, count: int) -> np.ndarray:
  """[count] int8; -1 where all that shows it is hard to tell, as Pascal VOC scores it."""
  labels = np.zeros(count, np.int8)
  labels[record['labels']] = 1
  if 'labels_no_difficult' in record:
    labels[np.setdiff1d(record['labels'], record['labels_no_difficult'])] = -1
  return labels


def _keep(title, split, shape, files):
  """The split as whole arrays, from a file in the cache, decoded and written there at first."""
  stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
  whole = lambda: splitting.materialise(split, f'decoding {title}').arrays
  return Split.of(**cache.kept(title, [stats, shape, 'upright'], whole))
