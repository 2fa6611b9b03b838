"""A folder's files: hidden ones never count, suffixes are of any case, and a byte-order mark tells the encoding."""

import codecs

import pytest

from karpjax import errors, image_verbs
from karpjax.data import folders, image_files, language, text_files
from karpjax.data.language import LanguageFlags


@pytest.fixture
def folder(tmp_path):
  names = 'b.TXT a.txt sub/c.Txt notes.md ._a.txt .git/secret.txt sub/.x/d.txt ._p.png .cache/q.png p.PNG sub/r.jpeg'
  for name in names.split():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(f'{name}\n')
  (tmp_path / 'folder.txt').mkdir()
  (tmp_path / 'folder.png').mkdir()
  return tmp_path


def test_a_language_models_folder_is_what_a_person_sees_in_it(folder):
  class Config(LanguageFlags):
    data_dir, validation = '', 0

  rows, _, _ = language.read(Config(dataset=f'text:{folder}', test=0))
  assert rows['train'] == ['a.txt\n\nb.TXT\n\nsub/c.Txt\n']


def test_what_a_run_left_in_a_folder_of_texts_is_no_text(folder):
  before = folders.files(folder, ('.txt',))
  for name in ('runs/one/metrics.jsonl', 'runs/one/texts/samples.txt'):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text('')
  assert folders.files(folder, ('.txt',)) == before
  assert folders.files(folder / 'runs/one', ('.txt',)) == [folder / 'runs/one/texts/samples.txt']  # asked for


@pytest.mark.parametrize('kind', ['text', 'lines'])
def test_files_called_as_splits_are_these(kind, tmp_path):
  class Config(LanguageFlags):
    data_dir, validation, split_seed = '', 0.25, 0

  for split in ('train', 'test'):
    (tmp_path / f'{split}.txt').write_text(f'{split}\n' * 8)
  rows, _, _ = language.read(Config(dataset=f'{kind}:{tmp_path}'))
  words = {split: {word for row in each for word in row.split()} for split, each in rows.items()}
  assert words == {'train': {'train'}, 'validation': {'train'}, 'test': {'test'}}
  (tmp_path / 'more.txt').write_text('more\n')  # then they are one text
  assert 'test' in ' '.join(language.read(Config(dataset=f'{kind}:{tmp_path}'))[0]['train'])


def test_a_verbs_folder_of_images_too(folder):
  assert image_verbs.files([str(folder)]) == [str(folder / 'p.PNG'), str(folder / 'sub' / 'r.jpeg')]


def test_a_folder_may_lie_in_a_hidden_one(folder):
  assert folders.files(folder / 'sub' / '.x', ('.txt',)) == [folder / 'sub' / '.x' / 'd.txt']


def test_splits_are_found_in_names_of_any_case(tmp_path):
  for name in ('Train.TXT', 'VALID.conll', '.test.txt', 'test.md'):
    (tmp_path / name).write_text('x')
  found = text_files.split_files(tmp_path, ('.txt', '.conll'))
  assert {split: path.name for split, path in found.items()} == {'train': 'Train.TXT', 'validation': 'VALID.conll'}
  for name in ('pictures/Train', 'pictures/TEST', 'pictures/.val'):
    (tmp_path / name).mkdir(parents=True)
  parts = image_files.split_folders(tmp_path / 'pictures')
  assert {split: path.name for split, path in parts.items()} == {'train': 'Train', 'test': 'TEST'}


@pytest.mark.parametrize('name', ['validation', 'val', 'valid', 'dev', 'testa'])
def test_pictures_and_texts_call_a_validation_split_by_the_same_names(tmp_path, name):
  (tmp_path / 'train').mkdir()
  (tmp_path / name).mkdir()
  for stem in ('train', name):
    (tmp_path / f'{stem}.txt').write_text('x')
  assert image_files.split_folders(tmp_path)['validation'] == tmp_path / name
  assert text_files.split_files(tmp_path, ('.txt',))['validation'] == tmp_path / f'{name}.txt'
  (tmp_path / 'Validation.old').mkdir()
  assert image_files.split_folders(tmp_path)['validation'] == tmp_path / name
  (tmp_path / ('dev' if name != 'dev' else 'val')).mkdir()
  with pytest.raises(errors.UsageError, match='has two of the validation split, '):
    image_files.split_folders(tmp_path)


WORDS = 'naïve café, Ω\n'


@pytest.mark.parametrize('mark, codec', [(codecs.BOM_UTF8, 'utf-8'), (codecs.BOM_UTF16_LE, 'utf-16-le'),
  (codecs.BOM_UTF16_BE, 'utf-16-be'), (codecs.BOM_UTF32_LE, 'utf-32-le'), (codecs.BOM_UTF32_BE, 'utf-32-be')])  # fmt: skip
def test_a_byte_order_mark_tells_the_encoding_whatever_is_usual(tmp_path, mark, codec):
  path = tmp_path / 'a.txt'
  path.write_bytes(mark + WORDS.encode(codec))
  assert text_files.read_file(path) == text_files.read_file(path, '', 'latin-1') == WORDS
  assert text_files.read_file(path, codec) == WORDS
  if codec != 'utf-8':
    with pytest.raises(errors.UsageError, match=f'name its encoding, as encoding={codec[:6]}$'):
      text_files.read_file(path, 'ascii')


def test_without_a_mark_it_is_the_usual_one(tmp_path):
  (tmp_path / 'a.txt').write_bytes('café'.encode('latin-1'))
  assert text_files.read_file(tmp_path / 'a.txt', '', 'latin-1') == 'café'
  with pytest.raises(errors.UsageError, match='byte 3 is 0xe9; name its encoding, as encoding=latin-1'):
    text_files.read_file(tmp_path / 'a.txt')
