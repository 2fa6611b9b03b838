"""Medical pictures: DICOM files, and the sets of MedMNIST."""

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from karpjax.data import fingerprint
from karpjax.data.dataset import Dataset, Spec, Split
from karpjax.errors import UsageError

NAMES = {'pneumoniamnist': ('normal', 'pneumonia'), 'breastmnist': ('malignant', 'normal or benign')}
SPLITS = {'train': 'train', 'validation': 'val', 'test': 'test'}


def medmnist(path: Path) -> Dataset:
  """A set of MedMNIST (Yang et al. 2023) from its NAME.npz, of classes or, where labels have several columns, of tags.

  The file holds train_images [n, height, width (, 3)] uint8 and train_labels [n, columns], and the same of val and test.

  Raises:
    UsageError: where it is no such file.
  """
  try:
    fingerprint.note([path])
    with np.load(path, allow_pickle=False) as file:
      arrays = {split: (file[f'{name}_images'], file[f'{name}_labels']) for split, name in SPLITS.items()}
  except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
    raise UsageError(
      f'{path} is no whole file of MedMNIST, of train_images, train_labels, val_images, …: {error}'
    ) from None
  splits, shape, columns = {}, arrays['train'][0].shape[1:], arrays['train'][1].shape[-1]
  for split, (images, labels) in arrays.items():
    whole = images.dtype == np.uint8 and images.shape[1:] == shape and len(shape) in (2, 3) and shape[2:] in ((), (3,))
    if not (whole and len(images) and labels.shape == (len(images), columns) and labels.dtype.kind in 'iu'):
      raise UsageError(
        f'{path}: {split} must be images [n, height, width] or [n, height, width, 3] uint8 and labels [n, columns]'
      )
    images = images.reshape(*images.shape[:3], -1)
    splits[split] = Split.of(
      image=images, label=labels.astype(np.int8) if columns > 1 else labels[:, 0].astype(np.int32)
    )
  count = columns if columns > 1 else int(max(labels.max() for _, labels in arrays.values())) + 1
  names = NAMES.get(path.stem.partition('_')[0], ())  # a size may stand behind the name
  classes = names if len(names) == count else tuple(map(str, range(count)))
  return Dataset(
    Spec(f'medmnist:{path}', (*shape[:2], 3 if len(shape) == 3 else 1), classes, 255.0, multi_label=columns > 1), splits
  )


def dicom(path) -> Image.Image:
  """A DICOM file's picture in 8 bits a channel, by the first window that it names, else from its least to its largest value.

  Values are rescaled as it says (PS3.3 C.11.1.1.2), and windowed by a line (C.11.2.1.2.1); MONOCHROME1, where 0 is white, is
  inverted.

  Raises:
    UsageError: where it cannot be read, has no pixels, or several frames.
  """
  try:
    import pydicom
    from pydicom.pixels import apply_modality_lut
  except ImportError:
    raise UsageError(f'{path}: DICOM is read by pydicom: pip install -r requirements-medical.txt') from None
  try:
    file = pydicom.dcmread(path)
  except (OSError, EOFError, pydicom.errors.InvalidDicomError) as error:
    raise UsageError(f'{path} is not a readable DICOM file: {" ".join(str(error).split())}') from None
  if 'PixelData' not in file:
    raise UsageError(f'{path} is a DICOM file without a picture (PixelData)')
  if int(file.get('NumberOfFrames') or 1) > 1:
    raise UsageError(f'{path} has {file.NumberOfFrames} frames; write each into a file of its own')
  try:
    pixels = file.pixel_array
  except Exception as error:  # of many kinds, by the codec that is missing
    raise UsageError(f'{path}: its pixels cannot be decoded: {" ".join(str(error).split())}') from None
  if pixels.ndim == 3:
    if pixels.dtype != np.uint8:
      raise UsageError(f'{path} has colours of {pixels.dtype}; convert it to 8 bits a channel')
    return Image.fromarray(pixels)
  values = np.asarray(apply_modality_lut(pixels, file), np.float64)
  centre, width = (
    np.atleast_1d(file.get(name)) if file.get(name) is not None else None for name in ('WindowCenter', 'WindowWidth')
  )
  if centre is not None and width is not None and float(width[0]) > 1:
    unit = (values - (float(centre[0]) - 0.5)) / (float(width[0]) - 1) + 0.5
  else:
    unit = (values - values.min()) / max(values.max() - values.min(), 1e-12)
  if file.PhotometricInterpretation == 'MONOCHROME1':
    unit = 1 - unit
  return Image.fromarray(np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8))
