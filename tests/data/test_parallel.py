"""Pairs of texts: what is read, what is drawn, and what the model is given."""

import datetime
import gzip
import json

import numpy as np
import pytest

from experiments.translation import Config
from karpjax import errors
from karpjax.data import generated, parallel, tokenisers


@pytest.fixture
def files(tmp_path):
  german = ['Ein Hund.', 'Zwei Hunde laufen.', 'Ein Mann geht', 'Eine Frau', '', 'Ein Hund.', 'Drei Katzen']
  english = ['A dog.', 'Two dogs run.', 'A man walks', 'A woman', 'nothing', 'A dog.', 'Three cats']
  for name, lines in (('a.de', german), ('a.en', english)):
    (tmp_path / name).write_text('\n'.join(lines) + '\n')
  return f'files:{tmp_path / "a.de"},{tmp_path / "a.en"}'


def load(name, languages=('', ''), **flags):
  flags = {'max_length': 0, 'data_dir': '', **flags}
  flags['data_dir'] = str(flags['data_dir'])
  return parallel.load(Config(dataset=name, source_language=languages[0], target_language=languages[1], **flags))


def texts(data, side):
  return {split: tuple(raw.arrays[side]) for split, raw in data.raw.items()}


def read(data, split, number):
  """(source, target_in, target) of an example, as texts; tokens of no text in angle brackets."""
  spec, row = data.spec, data.splits[split].fetch(np.array([number]))
  named = lambda side, tokens: ' '.join(spec.tokenisers[side].symbols[token] for token in tokens)
  targets = row['targets'][0]
  return named('source', row['source'][0]), named('target', row['target_in'][0]), named('target', targets[targets >= 0])


def test_two_files_become_pairs(files):
  data = load(files, validation=1, test=1)
  assert {split: s.size for split, s in data.splits.items()} == {'train': 3, 'validation': 1, 'test': 1}
  assert any('1 pairs with an empty side' in note for note in data.notes)
  assert any('1 pairs of train that occur again' in note for note in data.notes)
  pairs = {pair for split in data.splits for pair in zip(texts(data, 'source')[split], texts(data, 'target')[split])}
  assert ('Zwei Hunde laufen.', 'Two dogs run.') in pairs and len(pairs) == 5


def test_an_example_is_what_the_module_says(files):
  data = load(files, validation=0, test=0)
  source, target_in, target = read(data, 'train', 1)
  assert source == 'zwei hunde laufen . </s>'
  assert target_in == '<s> two dogs run .' and target == 'two dogs run . </s>'
  source, target_in, target = read(data, 'train', 3)
  assert source == 'eine frau </s> <pad> <pad>'
  assert target_in == '<s> a woman <pad> <pad>' and target == 'a woman </s>'
  row = data.splits['train'].fetch(np.array([3]))
  np.testing.assert_array_equal(row['targets'][0, 3:], [-1, -1])
  assert texts(data, 'target')['train'][3] == 'A woman' and row['reference'][0] == 3
  np.testing.assert_array_equal(data.splits['train'].lengths, [4, 5, 4, 3, 3])
  assert data.spec.lengths == {'source': 5, 'target': 5}


def test_reversed_sources_still_end_with_their_end(files):
  data = load(files, validation=0, test=0, reverse=True)
  assert read(data, 'train', 1)[0] == '. laufen hunde zwei </s>'
  assert read(data, 'train', 1)[2] == 'two dogs run . </s>'


def test_words_are_learnt_from_train_alone_and_rare_ones_are_unknown(files):
  data = load(files, validation=1, test=1, minimum_frequency=2)
  counts = {}
  for line in texts(data, 'source')['train']:
    for word in tokenisers.Tokeniser('words', lower=True).split(line):
      counts[word] = counts.get(word, 0) + 1
  known = data.spec.tokenisers['source'].symbols
  assert set(known) == {*tokenisers.SPECIALS, *(w for w, n in counts.items() if n >= 2)}


def test_long_pairs_are_left_out_of_train_and_cut_elsewhere(tmp_path):
  for name, words in (('a', 'abcdefgh'), ('b', 'ABCDEFGH')):
    lines = [' '.join(words[: n + 1]) for n in range(8)]
    (tmp_path / f'{name}.txt').write_text('\n'.join(lines))
  whole = load(f'files:{tmp_path}/a.txt,{tmp_path}/b.txt', validation=0, test=3, split_seed=1)
  data = load(f'files:{tmp_path}/a.txt,{tmp_path}/b.txt', validation=0, test=3, split_seed=1, max_length=5)
  held = [len(source.split()) for source in texts(whole, 'source')['train']]
  assert [len(source.split()) for source in texts(data, 'source')['train']] == [n for n in held if n + 1 <= 5]
  assert data.spec.lengths['source'] <= 5 and data.splits['test'].size == 3
  for i, reference in enumerate(texts(data, 'target')['test']):
    assert (
      read(data, 'test', i)[2].split() == [*reference.lower().split(), '</s>'][:5]
    )  # it does not end where it is cut
  assert texts(data, 'target')['test'] == texts(whole, 'target')['test']  # what is compared with is never cut


def test_the_spec_goes_through_json_without_its_texts(files):
  data = load(files, validation=1, test=1)
  values = json.loads(json.dumps(data.spec.to_json()))
  again = parallel.Spec.from_json(values)
  assert again.tokenisers == dict(data.spec.tokenisers) and again.lengths == data.spec.lengths
  assert again == data.spec


@pytest.mark.parametrize('name, make', [('dates', generated.dates), ('addition', generated.addition)])
def test_what_is_made_by_rule_is_right_and_the_same_for_a_seed(name, make):
  pairs = make(3000, 0)
  assert pairs == make(3000, 0) != make(3000, 1)
  assert len({source for source, _ in pairs}) == 3000
  for source, target in pairs:
    if name == 'addition':
      a, b = map(int, source.split('+'))
      assert target == str(a + b) and 0 <= a <= 999 and 0 <= b <= 999
    else:
      assert datetime.date.fromisoformat(target).year in range(1950, 2050)


def test_dates_are_written_in_many_ways_and_can_be_read_again():
  pairs = dict(generated.dates(5000, 3))
  read = 0
  forms = [
    '%d %B %Y',
    '%B %d, %Y',
    '%d.%m.%Y',
    '%m/%d/%Y',
    '%d-%b-%y',
    '%Y%m%d',
    '%m/%d/%y',
    "%d %b '%y",
    '%a %d %b %Y',
  ]
  for source, target in pairs.items():
    for form in forms:
      try:
        day = datetime.datetime.strptime(source, form).date()
      except ValueError:
        continue
      if form.count('%y') and day.year >= 2050:
        day = day.replace(year=day.year - 100)
      assert day.isoformat()[2:] == target[2:], (source, target)
      read += 1
      break
  assert read > 3000 and pairs  # of twelve forms, nine
  assert len(set(pairs.values())) == 5000


@pytest.mark.parametrize('name', ['dates', 'addition'])
def test_no_split_holds_what_another_holds(name):
  data = load(name, tokeniser='characters', examples=4000, validation=400, test=400)
  keys = {}
  for split, sources in texts(data, 'source').items():
    results = texts(data, 'target')[split]
    key = lambda s, r: tuple(sorted(s.split('+'))) if name == 'addition' else r
    keys[split] = {key(s, r) for s, r in zip(sources, results)}
    assert len(keys[split]) == data.splits[split].size
  assert not keys['train'] & keys['test'] and not keys['train'] & keys['validation']
  assert not keys['validation'] & keys['test']
  again = load(name, tokeniser='characters', examples=4000, validation=400, test=400)
  assert texts(again, 'source') == texts(data, 'source')


def test_multi30k_is_found_packed_or_not_in_either_direction(tmp_path):
  folder = tmp_path / 'files' / 'multi30k'
  folder.mkdir(parents=True)
  for split, count in (('train', 6), ('val', 2), ('test_2016_flickr', 3)):
    for language in ('de', 'en'):
      text = ''.join(f'{language} {split} {i}\n' for i in range(count))
      if split == 'val':
        (folder / f'{split}.{language}').write_text(text)
      else:
        (folder / f'{split}.{language}.gz').write_bytes(gzip.compress(text.encode()))
  data = load('multi30k', data_dir=tmp_path)
  assert {split: s.size for split, s in data.splits.items()} == {'train': 6, 'validation': 2, 'test': 3}
  assert texts(data, 'source')['validation'][1] == 'de val 1' and data.spec.languages == ('de', 'en')
  other = load('multi30k', data_dir=folder, languages=('en', 'de'))
  assert texts(other, 'source')['test'][2] == 'en test_2016_flickr 2'
  with pytest.raises(errors.UsageError, match='train.fr'):
    load('multi30k', data_dir=folder, languages=('fr', 'de'))


def test_multi30k_itself(shared_data):
  data = load('multi30k', data_dir=shared_data / 'files', minimum_frequency=2)
  assert {split: s.size for split, s in data.splits.items()} == {'train': 28_997, 'validation': 1014, 'test': 1000}
  assert texts(data, 'source')['test'][0] == 'Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt.'
  assert texts(data, 'target')['test'][0] == 'A man in an orange hat starring at something.'
  assert data.spec.tokenisers['target'].size == 5948
  held = np.array(data.spec.buckets)
  places = held[np.searchsorted(held, data.splits['train'].lengths)]
  assert places.mean() < 0.5 * held[-1]  # of the padding less than half is left


def test_translation_sets_of_tfds(tmp_path, prepare_tfds):
  from tensorflow_datasets import features

  rows = {'train': [{'de': f'eins {i}', 'en': f'one {i}'} for i in range(8)], 'test': [{'de': 'zwei', 'en': 'two'}]}
  prepare_tfds('pairs', features.Translation(('de', 'en')), rows)
  data = load('pairs', data_dir=tmp_path, validation=2)
  assert {split: s.size for split, s in data.splits.items()} == {'train': 6, 'validation': 2, 'test': 1}
  assert texts(data, 'source')['test'] == ('zwei',) and texts(data, 'target')['test'] == ('two',)
  turned = load('pairs', data_dir=tmp_path, languages=('en', ''), validation=2)
  assert texts(turned, 'source')['test'] == ('two',) and turned.spec.languages == ('en', 'de')
  with pytest.raises(errors.UsageError, match='source_language=fr: pairs has de, en'):
    load('pairs', data_dir=tmp_path, languages=('fr', 'en'))


def test_bad_input_is_said_in_one_line(tmp_path, files):
  (tmp_path / 'short').write_text('a\nb\n')
  (tmp_path / 'one').write_text('a\n')
  (tmp_path / 'latin').write_bytes('Männer\nx\n'.encode('latin-1'))
  (tmp_path / 'torn.gz').write_bytes(gzip.compress(b'a\nb\n' * 50)[:-12])

  def refused(message, name, **options):
    with pytest.raises(errors.UsageError, match=message) as caught:
      load(name, **options)
    assert '\n' not in str(caught.value)

  both = lambda a, b: f'files:{tmp_path / a},{tmp_path / b}'
  refused(r'a\.de has 7 and .*short has 2 lines', both('a.de', 'short'))
  refused('two files are needed', f'files:{tmp_path / "short"}')
  assert load(both('latin', 'short'), encoding='latin-1', validation=0, test=0).splits['train'].size == 2
  refused('torn.gz cannot be read', both('torn.gz', 'short'))
  refused('nowhere cannot be read', both('nowhere', 'short'))
  refused('1 pair to train on', both('one', 'one'), validation=0, test=0)
  refused('validation=3 and test=2 of 5 examples: leave at least one', files, validation=3, test=2)
  refused('max_length=2 leaves no pair', files, max_length=2)
  refused('at least 2 tokens', files, max_length=1)
  refused('tokeniser=bytes', files, tokeniser='bytes')
  refused('examples=99999: dates has 36,525', 'dates', examples=99_999)
  refused('data_dir', 'multi30k')
  refused(r'train\.de \(or \.gz\) is in none of', 'multi30k', data_dir=tmp_path)
  refused("unknown data set 'multi30'", 'multi30', data_dir=tmp_path)
