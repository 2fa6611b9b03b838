"""MNIST's idx files and CIFAR's binary version, as published: what is read, and what is refused."""

import gzip
import io
import struct
import tarfile

import numpy as np
import pytest

from karpjax.data import published
from karpjax.errors import UsageError


def idx(array) -> bytes:
  return struct.pack(f'>i{array.ndim}i', 0x800 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
  draw = np.random.default_rng(0)
  data = {}
  for stem, size in (('train', 5), ('t10k', 3)):
    data[stem] = draw.integers(0, 256, (size, 28, 28), np.uint8), draw.integers(0, 10, size, np.uint8)
    (tmp_path / f'{stem}-images-idx3-ubyte.gz').write_bytes(gzip.compress(idx(data[stem][0])))
    (tmp_path / f'{stem}-labels-idx1-ubyte').write_bytes(idx(data[stem][1]))
  return tmp_path, data


def test_idx_files_plain_and_compressed(mnist):
  folder, data = mnist
  read = published.read('mnist', folder)
  assert read.spec.shape == (28, 28, 1) and read.spec.classes == tuple('0123456789') and read.spec.maximum == 255
  for split, stem in (('train', 'train'), ('test', 't10k')):
    np.testing.assert_array_equal(read.splits[split].column('image')[..., 0], data[stem][0])
    np.testing.assert_array_equal(read.splits[split].column('label'), data[stem][1])
  assert published.read('fashion_mnist', folder) is None  # the same names, in a folder of its own
  assert published.read('cifar10', folder) is None and published.read('digits', folder) is None


@pytest.mark.parametrize(
  ('file', 'content', 'message'),
  [
    ('train-images-idx3-ubyte', idx(np.zeros((5, 28), np.uint8)) + bytes(9), 'magic number 2050, not 2051'),
    ('train-images-idx3-ubyte', idx(np.zeros((5, 28, 28), np.uint8))[:-1], 'holds 3919 values, .* 5 × 28 × 28'),
    (
      'train-images-idx3-ubyte',
      np.array([2051, -5, -28, 28], '>i4').tobytes() + bytes(3920),
      'holds 3920 values, .* -5 × -28 × 28',
    ),
    ('train-labels-idx1-ubyte', idx(np.zeros(4, np.uint8)), 'holds 5 images, .* 4 labels'),
    ('t10k-labels-idx1-ubyte', None, 'is missing'),
    ('t10k-labels-idx1-ubyte', idx(np.zeros(0, np.uint8)), 'holds 0 values'),
    ('t10k-labels-idx1-ubyte', b'', 'magic number 0'),
  ],
)
def test_a_damaged_idx_file_is_named(mnist, file, content, message):
  (mnist[0] / file).unlink(missing_ok=True)
  if content is not None:
    (mnist[0] / file).write_bytes(content)
  with pytest.raises(UsageError, match=message):
    published.read('mnist', mnist[0])


def test_a_compressed_file_with_a_wrong_checksum_is_named(mnist):
  path = mnist[0] / 'train-images-idx3-ubyte.gz'
  content = bytearray(path.read_bytes())
  content[-6] ^= 1  # of the CRC at the end
  path.write_bytes(content)
  with pytest.raises(UsageError, match=r'train-images-idx3-ubyte.gz cannot be read: CRC check failed'):
    published.read('mnist', mnist[0])


def cifar_files(name):
  draw = np.random.default_rng(1)
  labels = {'cifar10': 1, 'cifar100': 2}[name]
  records = lambda n: np.concatenate([draw.integers(0, 10, (n, labels)), draw.integers(0, 256, (n, 3072))], 1)
  _, _, train, test, _, names = published.CIFAR[name]
  rows = {file: records(2).astype(np.uint8) for file in (*train, test)}
  text = '\n'.join(f'class{i}' for i in range({'cifar10': 10, 'cifar100': 100}[name])).encode()
  return rows, {names: text, **{file: x.tobytes() for file, x in rows.items()}}, train, test, labels


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
@pytest.mark.parametrize('packed', [False, True])
def test_the_binary_version_of_cifar(tmp_path, name, packed):
  rows, files, train, test, labels = cifar_files(name)
  if packed:
    with tarfile.open(tmp_path / published.CIFAR[name][1], 'w:gz') as archive:
      for file, content in files.items():
        member = tarfile.TarInfo(f'folder/{file}')
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
  else:
    (tmp_path / published.CIFAR[name][0]).mkdir()
    for file, content in files.items():
      (tmp_path / published.CIFAR[name][0] / file).write_bytes(content)
  read = published.read(name, tmp_path)
  whole = np.concatenate([rows[file] for file in train])
  assert (
    read.splits['train'].size == 2 * len(train) and read.splits['test'].size == 2 and read.spec.classes[3] == 'class3'
  )
  np.testing.assert_array_equal(read.splits['train'].column('label'), whole[:, labels - 1])  # fine labels come second
  image = read.splits['train'].column('image')
  assert image.shape[1:] == (32, 32, 3)
  assert image[1, 2, 3, 1] == whole[1, labels + 1024 + 2 * 32 + 3]  # green, row 2, column 3
  assert read.splits['test'].column('label')[0] == rows[test][0, labels - 1]


def test_a_torn_or_incomplete_cifar_is_named(tmp_path):
  _, files, *_ = cifar_files('cifar10')
  folder = tmp_path / published.CIFAR['cifar10'][0]
  folder.mkdir()
  for file, content in files.items():
    (folder / file).write_bytes(content)
  (folder / 'test_batch.bin').write_bytes(files['test_batch.bin'][:-1])
  with pytest.raises(UsageError, match='test are no whole records of 3073 bytes'):
    published.read('cifar10', tmp_path)
  (folder / 'test_batch.bin').unlink()
  with pytest.raises(UsageError, match=r'lacks .*test_batch.bin'):
    published.read('cifar10', tmp_path)


def test_images_by_name_are_read_from_published_files_first(mnist):
  from karpjax.data import images

  config = images_config(dataset='mnist', data_dir=str(mnist[0]), validation=0.4)
  data = images.load(config)
  assert {name: split.size for name, split in data.splits.items()} == {'train': 3, 'validation': 2, 'test': 3}


def test_a_label_beyond_the_classes_is_refused(mnist):
  from karpjax.data import images

  (mnist[0] / 'train-labels-idx1-ubyte').write_bytes(idx(np.full(5, 10, np.uint8)))
  with pytest.raises(UsageError, match='mnist: .* has the label 10; there are 10 classes, from 0'):
    images.load(images_config(dataset='mnist', data_dir=str(mnist[0]), validation=0))


def test_a_set_that_is_not_there_says_which_files_to_bring(tmp_path):
  from karpjax.data import images

  with pytest.raises(UsageError, match=r'put cifar-10-binary.tar.gz into a folder and name it by data_dir='):
    images.load(images_config(dataset='cifar10', data_dir=str(tmp_path)))


def images_config(**flags):
  from experiments import image_classification

  return image_classification.Config(**flags)
