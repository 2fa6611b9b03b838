import json
import math
import pickle

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import regression
from karpjax import errors, options
from karpjax.data import dataset, images, splitting, tables
from karpjax.data.speed import Config


def load(name, **flags):
  return images.load(Config(dataset=name, **{'validation': 0.0} | flags))


@pytest.fixture(scope='module')
def digits():
  return load('digits')


def write_usps(folder, **changes):
  arrays = {
    'x_train': np.arange(3 * 256, dtype=np.uint16).reshape(3, 16, 16),
    'y_train': np.array([0, 1, 9]),
    'x_test': np.full((2, 16, 16), 2000, np.uint16),
    'y_test': np.array([3, 4]),
  }
  np.savez(folder / 'usps.npz', **(arrays | changes))
  return folder


def test_digits_are_scikit_learns_split_by_class(digits):
  from sklearn import datasets

  assert {name: split.size for name, split in digits.splits.items()} == {'train': 1437, 'test': 360}
  both = [np.concatenate([digits.splits[s].arrays[k] for s in ('train', 'test')]) for k in ('image', 'label')]
  rows = np.concatenate([both[0].reshape(1797, 64), both[1][:, None]], 1)
  original = np.concatenate([datasets.load_digits().data, datasets.load_digits().target[:, None]], 1)
  np.testing.assert_array_equal(np.unique(rows, axis=0), np.unique(original, axis=0))
  assert both[0].dtype == np.uint8 and both[0].max() == digits.spec.maximum == 16
  counts = np.bincount(digits.splits['test'].arrays['label'])
  np.testing.assert_allclose(counts, np.bincount(both[1]) * 360 / 1797, atol=1)
  labels = digits.splits['train'].arrays['label']
  assert (np.diff(labels) != 0).mean() > 0.8  # shuffled


def test_digits_are_split_alike_for_every_seed(digits):
  other = load('digits', split_seed=5)
  np.testing.assert_array_equal(other.splits['test'].arrays['image'], digits.splits['test'].arrays['image'])


def test_spec_holds_the_train_splits_statistics_and_survives_json(digits):
  unit = digits.splits['train'].arrays['image'] / 16
  assert digits.spec.mean == pytest.approx((unit.mean(),), rel=1e-5)
  assert digits.spec.std == pytest.approx((unit.std(),), rel=1e-5)
  assert digits.spec.examples == 1437 and digits.spec.classes == tuple('0123456789')
  assert dataset.Spec.from_json(json.loads(json.dumps(digits.spec.to_json()))) == digits.spec


@pytest.mark.slow
def test_mnist1d_is_the_packages_own_and_leaves_the_global_generators_alone():
  from mnist1d import data

  before = np.random.get_state()[1].copy()
  ours, shuffled = load('mnist1d'), load('mnist1d_shuffled')
  np.testing.assert_array_equal(np.random.get_state()[1], before)
  made = data.make_dataset(data.get_dataset_args())
  np.testing.assert_allclose(ours.splits['train'].arrays['image'][..., 0], made['x'], rtol=1e-6)
  np.testing.assert_array_equal(ours.splits['test'].arrays['label'], made['y_test'])
  assert ours.spec.shape == (40, 1) and ours.splits['train'].size == 4000

  plain, permuted = (d.splits['test'].arrays['image'][..., 0] for d in (ours, shuffled))
  order = [int(np.flatnonzero(np.abs(permuted - column[:, None]).max(0) < 1e-4)[0]) for column in plain.T]
  assert sorted(order) == list(range(40)) and order != list(range(40))


def test_usps_is_the_file_in_its_order(shared_data):
  data = load('usps', data_dir=str(shared_data))
  train = data.splits['train'].arrays
  assert (train['image'].shape, train['image'].dtype, train['image'].max()) == ((7291, 16, 16, 1), np.uint16, 2000)
  assert data.splits['test'].size == 2007 and data.spec.maximum == 2000
  assert np.count_nonzero(np.diff(train['label'])) == 9  # sorted by class


@pytest.mark.parametrize(
  'changes, says',
  [
    ({'y_train': np.array([0, 1, 10])}, 'train has the label 10; there are 10 classes, from 0'),
    ({'y_test': np.array([-1, 1])}, 'test has the label -1'),
    ({'y_test': np.array([1])}, 'y_test'),
    ({'x_test': np.full((2, 16, 16), 3000)}, '0 to 2000'),
    ({'x_test': np.zeros((2, 8, 8), np.uint16)}, r'x_test must be .* \[n, 16, 16\]'),
    ({'x_test': np.array([{}, {}], object)}, 'not a whole file'),  # would have to be unpickled
  ],
)
def test_a_faulty_usps_file_is_refused(tmp_path, changes, says):
  assert load('usps', data_dir=str(write_usps(tmp_path))).splits['train'].size == 3
  with pytest.raises(errors.UsageError, match=says):
    load('usps', data_dir=str(write_usps(tmp_path, **changes)))


def test_a_usps_file_that_is_absent_or_cut_is_named(tmp_path):
  with pytest.raises(errors.UsageError, match=r'usps\.npz is in neither .*data_dir'):
    load('usps', data_dir=str(tmp_path))
  path = write_usps(tmp_path) / 'usps.npz'
  path.write_bytes(path.read_bytes()[:500])
  with pytest.raises(errors.UsageError, match=r'usps\.npz is not a whole file'):
    load('usps', data_dir=str(tmp_path))


def test_validation_is_taken_from_train_by_seed(digits):
  fraction, count = load('digits', validation=0.1), load('digits', validation=144)
  assert {k: s.size for k, s in fraction.splits.items()} == {'train': 1293, 'test': 360, 'validation': 144}
  np.testing.assert_array_equal(
    fraction.splits['validation'].arrays['image'], count.splits['validation'].arrays['image']
  )
  other = load('digits', validation=0.1, split_seed=1).splits['validation'].arrays['image']
  assert not np.array_equal(other, count.splits['validation'].arrays['image'])
  parts = [fraction.splits[s].arrays['image'] for s in ('train', 'validation')]
  whole = digits.splits['train'].arrays['image']
  np.testing.assert_array_equal(
    np.unique(np.concatenate(parts).reshape(1437, 64), axis=0), np.unique(whole.reshape(1437, 64), axis=0)
  )
  assert fraction.spec.examples == 1293


def test_subset_draws_without_replacement_by_its_own_seed(digits):
  small = load('digits', subset='100/50:7')
  assert (small.splits['train'].size, small.splits['test'].size, small.spec.examples) == (100, 50, 100)
  same = load('digits', subset='100/50:7', split_seed=3)
  np.testing.assert_array_equal(small.splits['train'].arrays['image'], same.splits['train'].arrays['image'])
  np.random.seed(7)
  drawn = digits.splits['train'].arrays['image'][np.random.permutation(1437)[:100]]
  np.testing.assert_array_equal(small.splits['train'].arrays['image'], drawn)
  everything = load('digits', subset='1437/360:1').splits['train'].arrays['image']
  whole = digits.splits['train'].arrays['image']
  assert not np.array_equal(everything, whole)
  np.testing.assert_array_equal(np.sort(everything.reshape(1437, 64), 0), np.sort(whole.reshape(1437, 64), 0))


@pytest.mark.parametrize(
  'arguments, says',
  [
    ({'validation': 1437}, 'leave at least one'),
    ({'validation': 1e-9}, 'leave at least one'),
    ({'validation': -0.1}, 'at least 0'),
    ({'validation': 1.5}, 'fraction'),
    ({'validation': float('nan')}, 'at least 0'),
    ({'subset': '1438/10:0'}, 'the set has 1,437'),
    ({'subset': '10/0:0'}, 'the set has 360'),
    ({'subset': '10'}, 'TRAIN/TEST:SEED'),
    ({'subset': '10/10:4294967296'}, 'below 4,294,967,296'),
    ({'image_size': -1}, 'image_size'),
    ({'channels': 2}, 'channels'),
    ({'data_dir': '/nonexistent/folder'}, 'not a folder'),
  ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments, says):
  with pytest.raises(errors.UsageError, match=says) as error:
    options.check(Config(**arguments))
    load('mnist' if 'data_dir' in arguments else 'digits', **arguments)
  assert '\n' not in str(error.value)


def test_series_are_neither_resized_nor_recoloured():
  series = dataset.Spec('mnist1d', (40, 1), (), 1.0, (), (), 0)
  for arguments in ((8, 0), (0, 3)):
    with pytest.raises(errors.UsageError, match='for images'):
      images.conversion(series, *arguments)


def test_streamed_and_resident_examples_are_the_same():
  arguments = {'image_size': 11, 'channels': 3, 'validation': 0.2, 'subset': '200/20:1'}
  resident = load('digits', **arguments)
  streamed = load('digits', **arguments, resident_mb=0)
  assert 'kept on the device' in resident.notes[-1] and 'streamed' in streamed.notes[-1]
  assert resident.spec.shape == (11, 11, 3)
  for name in ('train', 'validation', 'test'):
    one, other = resident.splits[name], streamed.splits[name]
    assert other.arrays is None and other.size == one.size
    numbers = np.array([3, 0, 3, one.size - 1])
    for key, values in pickle.loads(cloudpickle.dumps(other.fetch))(numbers).items():
      np.testing.assert_array_equal(values, one.arrays[key][numbers])
      np.testing.assert_array_equal(values, one.fetch(numbers)[key])


def test_permutation_is_one_for_ever():
  assert splitting.permutation(1337, 0, 8).tolist() == [2, 4, 5, 6, 7, 3, 0, 1]
  assert sorted(splitting.permutation(0, 1, 1000)) == list(range(1000))


@pytest.mark.parametrize('dtype, maximum', [(np.uint8, 255.0), (np.uint16, 2000.0), (np.float32, 1.0)])
def test_preprocess_brings_each_type_to_its_range(dtype, maximum):
  raw = (np.array([0, 0.25, 1])[None, :, None, None] * maximum).astype(dtype)
  raw = np.broadcast_to(raw, (2, 3, 1, 2))
  spec = dataset.Spec('some', (3, 1, 2), (), maximum, (0.5, 0.25), (0.25, 0.0), 2)
  unit = raw / maximum
  expected = {'unit': unit, 'symmetric': 2 * unit - 1, 'standard': (unit - [0.5, 0.25]) / [0.25, 1]}
  for how, values in expected.items():
    got = jax.jit(lambda x, how=how: spec.scale(x, how))(raw)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, values, atol=1e-6)


def table(name, **flags):
  return tables.load(regression.Config(dataset=name, **{'validation': 0.0} | flags))


def test_diabetes_bmi_is_scikit_learns_example():
  data = table('diabetes_bmi')
  train, test = (data.splits[s].arrays for s in ('train', 'test'))
  assert test['features'].shape == (20, 1) and train['features'].shape == (422, 1)
  design = np.concatenate([train['features'], np.ones((422, 1))], 1).astype(np.float64)
  slope, intercept = np.linalg.lstsq(design, train['target'].astype(np.float64))[0]
  residual = test['target'] - (slope * test['features'][:, 0] + intercept)
  assert slope == pytest.approx(938.2379, abs=0.01)
  assert np.mean(residual**2) == pytest.approx(2548.07, abs=0.05)
  assert 1 - np.mean(residual**2) / test['target'].var() == pytest.approx(0.4726, abs=1e-4)


def test_tables_are_split_by_seed_and_standardised_by_their_spec():
  cancer = table('breast_cancer')
  assert (cancer.spec.classes, cancer.spec.shape) == (('malignant', 'benign'), (30,))
  assert {k: s.size for k, s in cancer.splits.items()} == {'train': 455, 'test': 114}
  assert np.bincount(cancer.splits['test'].arrays['target']).tolist() == [42, 72]  # of 212 and 357
  standard = cancer.spec.scale(cancer.splits['train'].arrays['features'], 'standard')
  np.testing.assert_allclose(standard.mean(0), 0, atol=1e-4)
  np.testing.assert_allclose(standard.std(0), 1, atol=1e-4)

  diabetes = table('diabetes')
  assert {k: s.size for k, s in diabetes.splits.items()} == {'train': 354, 'test': 88}
  assert diabetes.spec.classes == () and diabetes.splits['train'].arrays['target'].dtype == np.float32
  other = table('diabetes', split_seed=1)
  assert not np.array_equal(other.splits['test'].arrays['target'], diabetes.splits['test'].arrays['target'])


def test_a_sample_is_drawn_from_all_of_a_split_and_always_the_same():
  few = splitting.sample(1000, 50)
  assert len(set(few.tolist())) == 50 and few.tolist() == splitting.sample(1000, 80)[:50].tolist()
  assert (np.bincount(few // 250, minlength=4) >= 5).all()  # of a set sorted by four classes
  assert sorted(splitting.sample(7, 50)) == [*range(7)] and len(splitting.sample(0, 50)) == 0


@pytest.mark.parametrize('level', [0.9, 0.37])
def test_a_channel_that_is_constant_has_no_deviation(level):
  images = np.full((50, 8, 8, 1), level, np.float32)
  mean, std = splitting.statistics(dataset.Split.of(image=images), 1.0)
  assert mean[0] == pytest.approx(level) and std[0] < 1e-7


def test_classes_that_are_rare_or_missing_are_said_with_their_names():
  spec = dataset.Spec('made', (1,), tuple('abcdef'), 1.0)
  splits = {'train': [0, 0, 1, 3, 3, 4, -1], 'validation': [0, 1], 'test': [2, 5, 5, 0]}
  data = dataset.Dataset(spec, {name: dataset.Split.of(label=np.array(x, np.int32)) for name, x in splits.items()})
  assert dataset.rare_classes(data) == (
    'train has one example alone of 2 of 6 classes: b, e',
    'test has 2 of 6 classes that train has not: c, f',
  )
  assert dataset.listed(list('abcde'), 3) == 'a, b, c and 2 more'
  assert dataset.rare_classes(images.load(Config())) == ()


def test_texts_that_train_has_too_are_counted():
  texts = {'train': 'a b c', 'validation': 'd', 'test': 'b c d b'}
  raw = {
    split: dataset.Split.of(text=np.array(x.split(), object), label=np.zeros(len(x), int)) for split, x in texts.items()
  }
  data = dataset.Dataset(dataset.Spec('made', (1,), (), 1.0), {}, raw=raw)
  assert dataset.seen_in_train(data) == ('test: 3 of its 4 texts (75.0%) are in train too',)
  assert dataset.seen_in_train(images.load(Config())) == ()


def test_fractions_and_numbers_are_counted_by_one_rule():
  assert splitting.counts({'a': 0.25, 'b': 3, 'c': 0}, 10) == [2, 3, 0]  # 2.5 to the even number
  assert splitting.counts({'a': 0.25}, 10, rounding=math.ceil) == [3] and splitting.counts(
    {'a': 0.01}, 10, least=1
  ) == [1]
  for asked in ({'a': 0.01}, {'a': 10}, {'a': 0.5, 'b': 0.5}):
    with pytest.raises(errors.UsageError, match='of 10 pairs: leave at least one on each side'):
      splitting.counts(asked, 10, 'pairs')
  for amount in (1.5, -0.1, math.inf, math.nan):
    with pytest.raises(errors.UsageError, match=f'a={amount:g}: give a fraction below 1, or a whole number'):
      splitting.counts({'a': amount}, 10)


@pytest.mark.parametrize(
  'dtype, shape', [('uint8', (5, 3)), ('float32', (0, 2)), ('int32', ()), ('U3', (4,)), (object, (2,))]
)
def test_arrays_of_a_split_are_the_same_wherever_they_lie(dtype, shape):
  room = np.full(math.prod(shape) + 1, 7).astype(dtype)  # one of the two begins at no multiple of 64 bytes
  for array in (room[:-1].reshape(shape), room[1:].reshape(shape)):
    placed = dataset.aligned(array)
    assert placed.dtype == array.dtype and placed.shape == shape and (placed == array).all()
    assert placed.ctypes.data % 64 == 0 or placed.dtype == object or not placed.size


def test_mean_and_deviation_are_taken_of_few_large_images_at_a_time():
  images, asked = np.random.default_rng(0).integers(0, 256, (60, 256, 256, 3), np.uint8), []
  split = dataset.Split(60, None, lambda numbers: asked.append(len(numbers)) or {'image': images[numbers]})
  mean, std = splitting.statistics(split, 255.0)
  np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-6)
  np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-6)
  assert max(asked) * images[0].size <= 2**23
