import numpy as np
import pytest

from karpjax.data import image_files, images, medical
from karpjax.data.speed import Config
from karpjax.errors import UsageError

DRAW = np.random.default_rng(0)


def medmnist(folder, name='pneumoniamnist', shape=(9, 7), columns=1, **changes):
  arrays = {}
  for split, size in (('train', 12), ('val', 4), ('test', 6)):
    arrays[f'{split}_images'] = DRAW.integers(0, 256, (size, *shape), np.uint8)
    arrays[f'{split}_labels'] = (np.arange(size * columns).reshape(size, columns) % 2).astype(np.uint8)
  path = folder / f'{name}.npz'
  np.savez(path, **{key: value for key, value in (arrays | changes).items() if value is not None})
  return path, arrays


@pytest.mark.parametrize('shape, channels', [((9, 7), 1), ((9, 7, 3), 3)])
def test_a_set_of_medmnist(tmp_path, shape, channels):
  path, arrays = medmnist(tmp_path, shape=shape)
  data = images.load(Config(dataset=f'medmnist:{path}', validation=0.1))
  assert data.spec.shape == (9, 7, channels) and data.spec.classes == ('normal', 'pneumonia')
  assert {name: split.size for name, split in data.splits.items()} == {'train': 12, 'validation': 4, 'test': 6}
  np.testing.assert_array_equal(
    data.splits['test'].column('image').reshape(arrays['test_images'].shape), arrays['test_images']
  )
  assert data.splits['train'].column('label').tolist() == [0, 1] * 6


def test_several_columns_are_tags(tmp_path):
  path, arrays = medmnist(tmp_path, 'chestmnist', columns=5)
  data = medical.medmnist(path)
  assert data.spec.multi_label and data.spec.classes == tuple('01234')
  np.testing.assert_array_equal(data.splits['train'].column('label'), arrays['train_labels'])


@pytest.mark.parametrize('changes', [
  dict(val_labels=None), dict(test_images=np.zeros((6, 8, 8), np.uint8)), dict(train_labels=np.zeros((3, 1), np.uint8)),
  dict(train_images=np.zeros((12, 9, 7))),
])  # fmt: skip
def test_what_is_none_is_refused(tmp_path, changes):
  path, _ = medmnist(tmp_path, **changes)
  with pytest.raises(UsageError, match=rf'{path}(: \w+ must be images| is no whole file of MedMNIST)'):
    medical.medmnist(path)


# ---- DICOM ----

VALUES = np.array([[0, 100, 200, 300], [400, 500, 1000, 4095]], np.uint16)


def dicom(path, pixels=VALUES, **tags):
  """A DICOM file of pixels; tags None are left out."""
  pydicom = pytest.importorskip('pydicom')
  from pydicom.dataset import FileDataset, FileMetaDataset
  from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

  meta = FileMetaDataset()
  meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
  meta.MediaStorageSOPInstanceUID = generate_uid()
  file = FileDataset(str(path), {}, file_meta=meta, preamble=b'\0' * 128)
  bits = 8 * pixels.itemsize
  own = dict(
    Rows=pixels.shape[0], Columns=pixels.shape[1], SamplesPerPixel=pixels.shape[2] if pixels.ndim == 3 else 1,
    PhotometricInterpretation='RGB' if pixels.ndim == 3 else 'MONOCHROME2', BitsAllocated=bits, BitsStored=bits, HighBit=bits - 1,
    PixelRepresentation=int(pixels.dtype.kind == 'i'), PixelData=pixels.tobytes(),
  )  # fmt: skip
  if pixels.ndim == 3:
    own['PlanarConfiguration'] = 0
  for name, value in (own | tags).items():
    if value is not None:
      setattr(file, name, value)
  file.save_as(path, enforce_file_format=True)
  assert pydicom
  return path


def test_a_window_is_what_the_standard_says(tmp_path):
  read = lambda **tags: image_files.read(dicom(tmp_path / 'a.dcm', **tags), 1)[..., 0]
  stretched = np.rint(VALUES / 4095 * 255)
  np.testing.assert_array_equal(read(), stretched)
  np.testing.assert_array_equal(read(PhotometricInterpretation='MONOCHROME1'), np.rint((1 - VALUES / 4095) * 255))
  unit = lambda x: np.rint(np.clip((x - (300 - 0.5)) / (401 - 1) + 0.5, 0, 1) * 255)
  np.testing.assert_array_equal(read(WindowCenter=300, WindowWidth=401), unit(VALUES.astype(float)))
  rescaled = dict(WindowCenter=300, WindowWidth=401, RescaleSlope=2, RescaleIntercept=-100)
  np.testing.assert_array_equal(read(**rescaled), unit(2.0 * VALUES - 100))
  several = read(WindowCenter=[300, 40], WindowWidth=[401, 80])
  np.testing.assert_array_equal(several, unit(VALUES.astype(float)))


def test_signed_values_flat_pictures_and_colours(tmp_path):
  signed = np.array([[-1000, 0], [500, 1000]], np.int16)
  found = image_files.read(dicom(tmp_path / 'a.dcm', signed), 1)[..., 0]
  np.testing.assert_array_equal(found, np.rint((signed + 1000.0) / 2000 * 255))
  assert not image_files.read(dicom(tmp_path / 'b.dcm', np.full((3, 3), 7, np.uint8)), 1).any()
  colours = DRAW.integers(0, 256, (4, 5, 3), np.uint8)
  np.testing.assert_array_equal(image_files.read(dicom(tmp_path / 'c.dcm', colours), 3), colours)


def test_a_folder_of_dicom_files_is_learnt_from(tmp_path):
  for kind in ('ill', 'well'):
    for i in range(5):
      (tmp_path / kind).mkdir(exist_ok=True)
      dicom(tmp_path / kind / f'{i}.dcm', DRAW.integers(0, 4096, (8, 8)).astype(np.uint16))
  data = images.load(Config(dataset=f'folder:{tmp_path}', validation=0.0))
  assert data.spec.classes == ('ill', 'well') and data.spec.shape == (8, 8, 1)
  spec = data.spec
  np.testing.assert_array_equal(images.load_image(tmp_path / 'ill' / '0.dcm', spec).shape, (8, 8, 1))


@pytest.mark.parametrize('tags, says', [
  (dict(PixelData=None), 'without a picture'), (dict(NumberOfFrames=3), 'has 3 frames'),
])  # fmt: skip
def test_a_file_without_a_picture_says_so(tmp_path, tags, says):
  with pytest.raises(UsageError, match=says):
    image_files.read(dicom(tmp_path / 'a.dcm', **tags), 1)


def test_what_is_no_dicom_says_so(tmp_path):
  pytest.importorskip('pydicom')
  (tmp_path / 'a.dcm').write_text('no')
  with pytest.raises(UsageError, match='is not a readable DICOM file'):
    image_files.read(tmp_path / 'a.dcm', 1)
