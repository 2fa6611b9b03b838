"""MNIST and its kin and CIFAR in the files that their authors publish, read without TensorFlow."""

import gzip
import io
import tarfile
import zlib
from pathlib import Path

import numpy as np

from karpjax.data import fingerprint
from karpjax.data.dataset import Dataset, Spec, Split
from karpjax.data.folders import plain_or_gz
from karpjax.errors import UsageError

DIGITS = tuple('0123456789')
CLOTHES = 'T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle-boot'
KANA = 'o ki su tsu na ha ma ya re wo'
# set -> (folders in which its files are looked for, classes); the last folder is data_dir itself
IDX = {
  'mnist': (('mnist', 'MNIST/raw', ''), DIGITS),
  'fashion_mnist': (('fashion_mnist', 'fashion-mnist', 'FashionMNIST/raw'), tuple(CLOTHES.split())),
  'kmnist': (('kmnist', 'KMNIST/raw'), tuple(KANA.split())),
}
# set -> (folder, or archive, files of train, file of test, labels in a record, file of the classes' names)
CIFAR = {
  'cifar10': (
    *('cifar-10-batches-bin', 'cifar-10-binary.tar.gz'),
    *(tuple(f'data_batch_{i}.bin' for i in range(1, 6)), 'test_batch.bin', 1, 'batches.meta.txt'),
  ),
  'cifar100': (
    *('cifar-100-binary', 'cifar-100-binary.tar.gz'),
    *(('train.bin',), 'test.bin', 2, 'fine_label_names.txt'),
  ),
}
IMAGES, LABELS = 0x803, 0x801  # the magic numbers of idx files of bytes in three dimensions, and in one
WANTED = {name: 'train-images-idx3-ubyte.gz and the other three idx files' for name in IDX} | {
  name: archive for name, (_, archive, *_) in CIFAR.items()
}


def read(name: str, data_dir: Path) -> Dataset | None:
  """A set from its published files in `data_dir` or a folder there, plain or compressed; None where there are none.

  Images are uint8 [n, height, width, 1 or 3], labels int32 [n], which `splitting.check_labels` looks at.

  Args:
    name: one of `WANTED`.
    data_dir: for MNIST 28×28 grey images by idx files; for CIFAR 32×32 in colour by the binary version.

  Raises:
    UsageError: it names the file that is missing, torn, or not what its name says.
  """
  if name in IDX:
    return _read_idx(name, data_dir)
  return _read_cifar(name, data_dir) if name in CIFAR else None


# ---- idx ----


def _read_idx(name: str, data_dir: Path) -> Dataset | None:
  places, classes = IDX[name]
  find = lambda place: plain_or_gz(data_dir / place / 'train-images-idx3-ubyte')
  folder = next((data_dir / place for place in places if find(place)), None)
  if folder is None:
    return None
  splits = {}
  for split, stem in (('train', 'train'), ('test', 't10k')):
    image_file, label_file = (folder / f'{stem}-{kind}-ubyte' for kind in ('images-idx3', 'labels-idx1'))
    images, labels = _idx(image_file, IMAGES), _idx(label_file, LABELS)
    if len(images) != len(labels):
      raise UsageError(f'{image_file} holds {len(images)} images, {label_file} {len(labels)} labels')
    splits[split] = Split.of(image=images[..., None], label=labels.astype(np.int32))
  return Dataset(Spec(name, (*images.shape[1:], 1), classes, 255.0), splits, (f'{name}: idx files in {folder}',))


def _idx(path: Path, magic: int) -> np.ndarray:
  """The array of an idx file of bytes (LeCun, "The MNIST database"): a big-endian head of int32, then the values."""
  file = plain_or_gz(path)
  if file is None:
    raise UsageError(f'{path} is missing, plain or as .gz')
  fingerprint.note([file])
  try:
    content = gzip.decompress(file.read_bytes()) if file.suffix == '.gz' else file.read_bytes()
  except (OSError, EOFError, zlib.error) as error:
    raise UsageError(f'{file} cannot be read: {error}') from None
  dimensions = magic & 0xFF
  head = np.frombuffer(content[: 4 + 4 * dimensions], '>i4') if len(content) >= 4 + 4 * dimensions else [0]
  if head[0] != magic:
    raise UsageError(f'{file} is no idx file of {dimensions} dimensions: magic number {head[0]}, not {magic}')
  shape, values = tuple(map(int, head[1:])), len(content) - 4 - 4 * dimensions
  if values != np.prod(shape) or min(shape) < 1:
    raise UsageError(f'{file} holds {values} values, where its head says {" × ".join(map(str, shape))}')
  return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


# ---- CIFAR ----


def _read_cifar(name: str, data_dir: Path) -> Dataset | None:
  folder, archive, train, test, labels, names = CIFAR[name]
  folder, archive = data_dir / folder, data_dir / archive
  if folder.is_dir():
    contents = lambda file: (folder / file).read_bytes()
    where = folder
  elif archive.is_file():
    unpacked = _unpack(archive)
    contents, where = unpacked.__getitem__, archive
  else:
    return None
  fingerprint.note([folder / file for file in (*train, test, names)] if where == folder else [archive])
  try:
    classes = tuple(contents(names).decode().split())
    splits = {'train': [contents(file) for file in train], 'test': [contents(test)]}
  except (OSError, KeyError) as error:
    missing = error.args[0] if isinstance(error, KeyError) else error.filename
    raise UsageError(f'{where} lacks {missing}') from None
  size = labels + 3 * 32 * 32
  arrays = {}
  for split, parts in splits.items():
    if any(len(part) % size or not part for part in parts):
      raise UsageError(f'{where}: the files of {split} are no whole records of {size} bytes')
    rows = np.frombuffer(b''.join(parts), np.uint8).reshape(-1, size)
    images = rows[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # stored by channels
    arrays[split] = Split.of(image=np.ascontiguousarray(images), label=rows[:, labels - 1].astype(np.int32))
  return Dataset(Spec(name, (32, 32, 3), classes, 255.0), arrays, (f'{name}: the binary version in {where}',))


def _unpack(archive: Path) -> dict[str, bytes]:
  """{file's name: content} of a .tar.gz."""
  try:
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(archive.read_bytes()))) as files:
      return {Path(m.name).name: files.extractfile(m).read() for m in files if m.isfile()}
  except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
    raise UsageError(f'{archive} cannot be read: {error}') from None
