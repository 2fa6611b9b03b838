"""Small sets that need no download: scikit-learn's digits, MNIST-1D as its package makes it, Gaussians,
and usps.npz.
"""

import functools
import zipfile
from pathlib import Path

import numpy as np

from karpjax import paths
from karpjax.data import fingerprint, splitting
from karpjax.data.dataset import Dataset, Spec, Split
from karpjax.errors import UsageError

DIGITS = tuple('0123456789')


def digits() -> Dataset:
  """1,797 handwritten digits, [8, 8, 1] uint8 of 0 … 16; a fixed stratified split, 1,437 and 360."""
  path = paths.in_package('sklearn', 'datasets/data/digits.csv.gz')  # to import scikit-learn takes seconds
  if path is None:
    raise UsageError('the digits of scikit-learn are missing: pip install -r requirements.txt')
  table = np.loadtxt(path, np.uint8, delimiter=',')
  labels = table[:, -1].astype(np.int32)
  whole = Split.of(image=table[:, :-1].reshape(-1, 8, 8, 1), label=labels)
  train, test = map(whole.select, splitting.stratified(labels, 360, seed=0))
  return Dataset(Spec('digits', (8, 8, 1), DIGITS, 16.0), {'train': train, 'test': test})


def mnist1d(*, shuffled: bool = False) -> Dataset:
  """4,000 and 1,000 series, [40, 1] float32, as the package mnist1d makes them by default (arXiv:2011.14439).

  `shuffled` is the paper's control: all series with their positions permuted in one and the same way.
  """
  import random

  from mnist1d import data

  arguments = data.get_dataset_args()
  arguments.shuffle_seq = shuffled
  before = random.getstate(), np.random.get_state()
  try:
    arrays = data.make_dataset(arguments)  # it seeds the global generators
  finally:
    random.setstate(before[0])
    np.random.set_state(before[1])
  split = lambda x, y: Split.of(image=arrays[x].astype(np.float32)[..., None], label=arrays[y].astype(np.int32))
  spec = Spec('mnist1d_shuffled' if shuffled else 'mnist1d', (40, 1), DIGITS, 1.0, dtype='float32')
  return Dataset(spec, {'train': split('x', 'y'), 'test': split('x_test', 'y_test')})


def usps(folder: Path) -> Dataset:
  """The zip-code digits of LeCun et al. 1989: 7,291 and 2,007, [16, 16, 1] uint16 of 0 … 2000, from usps.npz.

  The train split is sorted by class, as on disk. The file holds x_train [n, 16, 16], y_train [n], x_test and
  y_test.
  """
  path = next((p for p in (folder / 'usps.npz', folder / 'files' / 'usps.npz') if p.is_file()), None)
  if path is None:
    raise UsageError(f'usps.npz is in neither {folder} nor {folder / "files"}: give its folder as data_dir=FOLDER')
  try:
    fingerprint.note([path])
    with np.load(path, allow_pickle=False) as file:
      arrays = {split: (file[f'x_{split}'], file[f'y_{split}']) for split in ('train', 'test')}
  except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
    raise UsageError(f'{path} is not a whole file of x_train, y_train, x_test and y_test: {error}') from error
  splits = {}
  for split, (x, y) in arrays.items():
    shapes = x.shape == (len(y), 16, 16) and y.shape == (len(x),)
    if not (shapes and x.size and x.dtype.kind in 'iu' and x.min() >= 0 and x.max() <= 2000):
      raise UsageError(f'{path}: x_{split} must be whole numbers of 0 to 2000, [n, 16, 16], and y_{split} labels, [n]')
    splits[split] = Split.of(image=x[..., None].astype(np.uint16), label=y.astype(np.int32))
  return Dataset(Spec('usps', (16, 16, 1), DIGITS, 2000.0, dtype='uint16'), splits)


GRID = np.stack(np.meshgrid(*[np.arange(-4.0, 5, 2)] * 2, indexing='ij'), -1).reshape(25, 2)  # the modes' means
GRID_STD = 0.05


def gaussians25() -> Dataset:
  """50,000 and 2,500 points, [2] float32, of 25 Gaussians on a grid (Srivastava et al. 2017, section 4.1);
  labels are the modes.
  """
  splits = {}
  for number, (split, size) in enumerate({'train': 50_000, 'test': 2_500}.items()):
    draw = np.random.Generator(np.random.Philox(key=np.array([25, number], np.uint64)))
    labels = draw.integers(len(GRID), size=size).astype(np.int32)
    points = GRID[labels] + GRID_STD * draw.standard_normal((size, 2))
    splits[split] = Split.of(image=points.astype(np.float32), label=labels)
  classes = tuple(f'{x:.0f},{y:.0f}' for x, y in GRID)
  return Dataset(Spec('gaussians25', (2,), classes, 1.0, dtype='float32'), splits)


SOURCES = {
  'digits': digits,
  'mnist1d': mnist1d,
  'mnist1d_shuffled': functools.partial(mnist1d, shuffled=True),
  'gaussians25': gaussians25,
}
NAMES = *SOURCES, 'usps'  # which wants a folder
