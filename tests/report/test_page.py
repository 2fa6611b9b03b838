"""The page shows all that lies in the folder, fetches nothing, and works with whatever is there."""

import html.parser
import urllib.parse

import pytest

from karpjax.report import page, tables, writers


class Reader(html.parser.HTMLParser):
  """Collects a page's tags, text, and whether tags are closed in order."""

  EMPTY = {'meta', 'img'}

  def __init__(self, text):
    super().__init__()
    self.tags, self.words, self.open = [], [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag not in self.EMPTY:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if data.strip() and self.open[-1] != 'style':
      self.words.append(data.strip())


def read(folder):
  return Reader(page.write_page(folder).read_text())


@pytest.fixture
def folder(tmp_path):
  config = {
    'experiment': 'image_classification',
    'flags': {'dataset': '<b>&digits', 'model': 'cnn', 'widths': [16, 32], 'head': None},
    'command': 'python launch.py image_classification --seeds=3',
    'versions': {'jax': '0.10.2'},
    'devices': ['cpu:0'],
    'git': 'abc123',
    'parameters': [{'name': 'dense/kernel', 'shape': [64, 10], 'count': 640}],
  }
  summary = {
    'steps': 2000,
    'parameters': 640,
    'test/accuracy': writers.summarise_seeds([0.97, 0.98, 0.99]),
    'test/loss': writers.summarise_seeds([0.1, float('nan'), 0.3]),
    'compile_seconds': 3.14159,
  }
  scores = {'precision': 0.5, 'recall': 0.25, 'f1': 1 / 3, 'support': 4}
  report = {
    'heading': 'test split',
    'shown': 'first of 3 seeds',
    'classes': [{'class': 'cat', **scores}],
    'macro': scores,
  }
  for name, value in (('config', config), ('summary', summary), ('report', report)):
    writers.write_json(tmp_path / f'{name}.json', value)
  (tmp_path / 'plots' / 'episodes').mkdir(parents=True)
  for name in ('curve_error.png', 'curve_loss.png', 'confusion_matrix.png', 'odd #1?.png', 'episodes/step_10.gif'):
    (tmp_path / 'plots' / name).write_bytes(b'')
  return tmp_path


def test_the_page_shows_all_of_the_run(folder):
  words = read(folder).words
  for expected in (
    'Image classification', '98.00 %', '± 1.00 %', '98.00 % ± 1.00 %', '– ± –', '2,000', '3.142 s', '16, 32',
    '640',
    '64 × 10', 'dense/kernel', 'abc123', '0.10.2', 'cpu:0', 'python launch.py image_classification --seeds=3',
    'cat', '0.2500', '0.3333', 'macro', 'test split · first of 3 seeds', 'Confusion matrix',
    'Loss over steps',
  ):  # fmt: skip
    assert expected in words, expected
  assert any('3 seeds' in word and '<b>&digits' in word for word in words)


def test_pictures_are_relative_exist_have_alternatives_and_the_loss_comes_first(folder):
  images = [attributes for tag, attributes in read(folder).tags if tag == 'img']
  paths = [urllib.parse.unquote(image['src']) for image in images]
  assert paths[:2] == ['plots/curve_loss.png', 'plots/curve_error.png']
  assert len(paths) == 5 and all((folder / path).exists() for path in paths)
  alternatives = [image['alt'] for image in images]
  assert len(set(alternatives)) == 5 and 'Loss over steps, plot' in alternatives
  assert 'Episodes · step 10, animation' in alternatives


def test_nothing_is_fetched(folder):
  reader = read(folder)
  assert not {tag for tag, _ in reader.tags} & {'script', 'link', 'iframe', 'object'}
  for _, attributes in reader.tags:
    for name in ('src', 'href'):
      assert '://' not in attributes.get(name, '') and not attributes.get(name, '').startswith('/')
  text = (folder / 'index.html').read_text()
  assert '@import' not in text and 'url(' not in text and 'prefers-color-scheme: dark' in text


def test_a_run_with_fewer_files_has_a_page_too(tmp_path):
  assert read(tmp_path).words.count('Curves') == 0
  writers.write_json(tmp_path / 'config.json', {'experiment': 'regression', 'flags': {}, 'git': None})
  writers.write_json(tmp_path / 'summary.json', {'test/error': 3.25, 'train/loss': None})
  words = read(tmp_path).words
  assert 'Regression' in words and words.count('3.25') == 2 and 'Classes' not in words and '–' in words


def test_many_classes_and_many_arrays_are_folded_up(tmp_path):
  row = {'precision': 1.0, 'recall': 1.0, 'f1': 1.0, 'support': 1}
  writers.write_json(
    tmp_path / 'report.json', {'classes': [{'class': f'c{i}', **row} for i in range(100)], 'micro': row}
  )
  arrays = [{'name': f'p{i}', 'shape': [], 'count': 1} for i in range(100)]
  writers.write_json(tmp_path / 'config.json', {'parameters': arrays})
  reader = read(tmp_path)
  assert [tag for tag, _ in reader.tags].count('details') == 2
  assert '100 classes' in reader.words and '100 arrays, 100 parameters' in reader.words and 'c99' in reader.words


def test_the_last_weights_numbers_stand_beside_the_bests_where_these_are_others():
  numbers = {'steps': 2000, 'test/loss': 0.5, 'test/error': 0.25, 'best/step': 1500, 'best/test/loss': 0.375}
  shown = lambda name, value: f'{value:g}'
  rows, heads = tables.last_and_best(numbers, ['test/loss', 'test/error'], shown, 'validation/loss')
  assert rows == [('test/loss', '0.5', '0.375'), ('test/error', '0.25', '')]
  assert heads == ('metric', 'step 2,000, the last', 'step 1,500, the best by validation/loss')
  rows, heads = tables.last_and_best({**numbers, 'best/step': 2000}, ['test/loss'], shown)
  assert rows == [('test/loss', '0.5')] and heads == ('metric', 'step 2,000, the last and the best')
  numbers.pop('best/step')
  assert tables.last_and_best(numbers, ['test/loss'], shown) == (
    [('test/loss', '0.5')],
    ('metric', 'step 2,000, the last'),
  )
