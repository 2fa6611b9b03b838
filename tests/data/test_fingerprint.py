"""A run that goes on is to find the data it began with: every kind of source, and what has changed in it by name."""

import io
import json
import os
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from experiments import (
  image_classification,
  image_to_image,
  language_model,
  regression,
  super_resolution,
  text_classification,
  token_classification,
  translation,
)
from karpjax.data import fingerprint, tables
from karpjax.data.dataset import Dataset, Spec, Split
from karpjax.train import prepare


def kept(module, **flags):
  """The fingerprint of an experiment's data, as a folder keeps it; and their spec."""
  data = prepare.read_data(module, module.Config(**{'validation': 0.0} | flags))
  return json.loads(json.dumps(fingerprint.of(data))), json.loads(json.dumps(data.spec.to_json()))


def changed(before, now):
  return fingerprint.differences(before[0], now[0]) or fingerprint.other_spec(before[1], now[1])


def picture(path, number, value=None):
  pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
  pixels[-1, -1] = pixels[-1, -1] if value is None else value
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


def classes(root):
  for number in range(12):
    picture(root / 'pets' / ('cat', 'dog')[number % 2] / f'{number}.png', number)
  return image_classification, {'dataset': f'folder:{root / "pets"}'}


def pairs(root):
  for number in range(6):
    for side in ('input', 'target'):
      picture(root / 'twins' / side / f'{number}.png', number)
  return image_to_image, {'dataset': f'pairs:{root / "twins"}'}


def pictures(root):
  for number in range(6):
    picture(root / 'scenes' / f'{number}.png', number)
  return super_resolution, {'dataset': f'folder:{root / "scenes"}', 'factor': 2, 'crop': 8}


def write(root, **files):
  for name, text in files.items():
    (root / name.replace('__', '.')).write_text(text)


def running(root):
  write(root, a__txt='abab abab cdcd ' * 9)
  return language_model, {'dataset': f'text:{root / "a.txt"}', 'context': 4}


def lines(root):
  (root / 'names').mkdir()
  write(root / 'names', a__txt='anna\nberta\nclara\n' * 9, b__txt='dora\nemil\n' * 9)
  return language_model, {'dataset': f'lines:{root / "names"}', 'context': 0}


def table(root):
  write(root, mail__csv='text,label\n' + 'good thing,yes\nbad thing,no\n' * 20)
  return text_classification, {'dataset': str(root / 'mail.csv')}


def tagged(root):
  (root / 'tags').mkdir()
  write(root / 'tags', train__txt='Anna B-PER\nruns O\n\n' * 9, test__txt='Bert B-PER\nruns O\n\n' * 9)
  return token_classification, {'dataset': f'conll:{root / "tags"}'}


def sentences(root):
  write(root, a__fr=''.join(f'un {n}\n' for n in range(60)), b__en=''.join(f'one {n}\n' for n in range(60)))
  return translation, {'dataset': f'files:{root / "a.fr"},{root / "b.en"}'}


def put(name, text):
  return lambda root: (root / name).write_text(text)


def letter(name, old, new):
  return lambda root: (root / name).write_text((root / name).read_text().replace(old, new))


CHANGES = {  # what is made, what is done to it -> what is said
  (classes, 'a pixel'): (lambda root: picture(root / 'pets/cat/0.png', 0, 7), 'cat/0.png has changed'),
  (classes, 'one more'): (lambda root: picture(root / 'pets/cat/x.png', 99), 'cat/x.png is new'),
  (classes, 'one less'): (lambda root: (root / 'pets/cat/0.png').unlink(), 'cat/0.png is gone'),
  (pairs, 'a pixel'): (lambda root: picture(root / 'twins/target/3.png', 3, 7), 'target/3.png has changed'),
  (pictures, 'a pixel at the edge, of no crop'): (lambda root: picture(root / 'scenes/1.png', 1, 7), '1.png has changed'),
  (running, 'a letter'): (letter('a.txt', 'd', 'e'), 'a.txt has changed'),
  (running, 'letters that have other names alone'): (letter('a.txt', 'd', 'z'), 'a.txt has changed'),
  (lines, 'a line'): (put('names/b.txt', 'dora\nemma\n' * 9), 'b.txt has changed'),
  (lines, 'a file'): (put('names/c.txt', 'fritz\n'), 'c.txt is new'),
  (table, 'a label'): (letter('mail.csv', 'bad thing,no', 'bad thing,yo'), 'mail.csv has changed'),
  (tagged, 'a tag'): (letter('tags/test.txt', 'runs O', 'runs B-PER'), 'test.txt has changed'),
  (sentences, 'a word'): (letter('b.en', 'one 7', 'two 7'), 'b.en has changed'),
}  # fmt: skip


@pytest.mark.parametrize('source, what', CHANGES)
def test_a_change_is_said_by_the_files_name(source, what, tmp_path):
  module, flags = source(tmp_path)
  before = kept(module, **flags)
  assert changed(before, kept(module, **flags)) == []
  change, said = CHANGES[source, what]
  change(tmp_path)
  lines = changed(before, kept(module, **flags))
  # letters of other names alone leave every token as it was, and are found by the vocabulary
  assert lines == [said] or lines == ['other tokenisers'], lines


@pytest.mark.parametrize('resident_mb', [0, 2048])
def test_the_same_files_elsewhere_are_the_same_data(resident_mb, tmp_path):
  (tmp_path / 'here').mkdir()
  module, flags = classes(tmp_path / 'here')
  before = kept(module, **flags, resident_mb=resident_mb)
  assert ('streamed' in before[0]['splits']['train']) == (resident_mb == 0)
  shutil.copytree(tmp_path / 'here', tmp_path / 'there')
  there = {'dataset': f'folder:{tmp_path / "there" / "pets"}', 'resident_mb': resident_mb}
  assert changed(before, kept(module, **there)) == []
  (tmp_path / 'there/pets/cat/0.png').rename(tmp_path / 'there/pets/cat/00.png')
  renamed = ['cat/0.png is gone', 'cat/00.png is new']  # of what is in memory the content alone counts
  assert changed(before, kept(module, **there)) == (renamed if resident_mb == 0 else [])
  picture(tmp_path / 'there/pets/cat/00.png', 0, 7)
  assert changed(before, kept(module, **there)) == renamed


def test_a_pipe_is_read_once(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  writer = threading.Thread(target=(tmp_path / 'pipe').write_text, args=('abab cdcd ' * 9,))
  writer.start()
  found, _ = kept(language_model, dataset=f'text:{tmp_path / "pipe"}', context=4)
  writer.join()
  assert found['files'] == {} and found['splits']['train']['text']


def test_of_many_files_the_folder_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(fingerprint, 'MANY', 5)
  monkeypatch.setattr(fingerprint, 'SMALL', 0)  # no content is looked at
  module, flags = classes(tmp_path)
  before = kept(module, **flags, resident_mb=0)
  assert list(before[0]['files']) == ['cat/', 'dog/'] and all(len(x) == 2 for x in before[0]['files'].values())
  (tmp_path / 'pets/dog/1.png').rename(tmp_path / 'pets/dog/0.png')
  assert changed(before, kept(module, **flags, resident_mb=0)) == ['dog/ has changed']


def test_arrays_of_ones_own_are_named_by_split_and_column():
  x = np.arange(40.0).reshape(20, 2)
  of = lambda x, y, **others: fingerprint.of(
    tables.of_arrays(regression.Config(validation=0.0), 'own', {'x': x, 'y': y}, {'x': x[:4], 'y': y[:4]}, **others)
  )
  before = of(x, x[:, 0])
  assert fingerprint.differences(before, of(x.copy(), x[:, 0])) == []  # which lies otherwise in memory
  assert fingerprint.differences(before, of(x, x[:, 1])) == ['y of train has changed', 'y of test has changed']
  assert fingerprint.differences(before, of(x[:-1], x[:-1, 0])) == ['train has 19 examples, had 20']
  assert fingerprint.differences(before, of(x.astype(np.float32), x[:, 0]))[0] == 'x of train has changed'
  nothing = fingerprint.of(Dataset(Spec('own', (2,), (), 1.0), {'train': Split.of(x=x, y=x[:, 0])}))
  assert fingerprint.differences(before, nothing) == ['there is no longer a split test']


def test_another_version_of_a_tfds_set(prepare_tfds, tmp_path, monkeypatch):
  tfds = pytest.importorskip('tensorflow_datasets')
  features = tfds.features
  monkeypatch.setenv('KARPJAX_CACHE', str(tmp_path / 'cache'))

  def prepare(first):
    content = [io.BytesIO() for _ in range(12)]
    for number, file in enumerate(content, first):
      Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(file, 'PNG')
    [file.seek(0) for file in content]
    rows = [{'image': file, 'label': n % 2} for n, file in enumerate(content)]
    label = features.ClassLabel(names=['red', 'blue'])
    with tfds.core.registered.skip_registration():
      prepare_tfds('paints', {'image': features.Image(shape=(4, 4, 3)), 'label': label}, {'train': rows})

  prepare(0)
  for resident_mb in (0, 2048):
    flags = {'dataset': 'paints', 'data_dir': str(tmp_path), 'resident_mb': resident_mb}
    before = kept(image_classification, **flags)
    (tmp_path / 'paints/1.0.0').rename(tmp_path / 'paints/1.0.1')
    description = tmp_path / 'paints/1.0.1/dataset_info.json'
    description.write_text(description.read_text().replace('1.0.0', '1.0.1'))
    shard = 'paints-train.array_record-00000-of-00001'
    said = changed(before, kept(image_classification, **flags))
    # the same pictures in memory are the same data, whatever their version is called
    assert said == ([] if resident_mb else [f'paints/1.0.0/{shard} is gone', f'paints/1.0.1/{shard} is new'])
    shutil.rmtree(tmp_path / 'paints')
    prepare(1)
    assert changed(before, kept(image_classification, **flags)) == [f'paints/1.0.0/{shard} has changed']
    shutil.rmtree(tmp_path / 'paints')
    prepare(0)
