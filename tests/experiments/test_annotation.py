"""Images with tags, of which each has any number: image classification of a set whose Spec says so."""

import csv
import json

import jax
import numpy as np
import pytest
from PIL import Image

import karpjax
from experiments import image_classification as experiment
from karpjax.data import image_tags, images
from karpjax.data.dataset import Dataset, Spec, rare_classes
from karpjax.errors import UsageError
from karpjax.train import loop
from karpjax.train.prepare import prepare

COLOURS = {'red': (220, 30, 30), 'green': (30, 200, 30), 'blue': (40, 60, 230)}


@pytest.fixture(scope='module')
def table(tmp_path_factory):
  """The path of a table of 96 pictures, each a row of up to three stripes of COLOURS."""
  folder, draw = tmp_path_factory.mktemp('tags'), np.random.default_rng(0)
  rows = []
  for number in range(96):
    has = [name for name in COLOURS if draw.random() < 0.5]
    picture = draw.integers(0, 40, (6, 9, 3))
    for place, name in zip(draw.permutation(3), has):
      picture[:, 3 * place : 3 * place + 3] = COLOURS[name] + draw.integers(-20, 20, (6, 3, 3))
    Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / f'{number}.png')
    said = [
      f'?{name}' if name not in has and number % 16 == 0 else name
      for name in COLOURS
      if name in has or number % 16 == 0
    ]
    rows.append((f'{number}.png', '|'.join(said), ('train', 'val', 'test')[max(0, number // 16 - 3)]))
  with open(folder / 'tags.csv', 'w', newline='') as file:
    csv.writer(file).writerows([('file', 'tags', 'split'), *rows])
  return folder / 'tags.csv'


def settings(table, folder, **changes):
  flags = dict(
    dataset=f'tags:{table}', model='mlp', widths=(16,), steps='80', batch_size=16, learning_rate=0.01, plots=False,
    tensorboard=False, workdir=str(folder), steps_per_call='20', log_every='20',
  )  # fmt: skip
  return experiment.Config(**flags | changes)


@pytest.fixture(scope='module')
def run(table, tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  return loop.run(experiment, settings(table, folder, plots=True), say=lambda _: None)


def test_it_learns_tags_and_leaves_thresholds(run):
  assert run.numbers['test/macro_map'] > 0.97 and run.numbers['test/exact_match'] > 0.7
  report = json.loads((run.folder / 'report.json').read_text())
  thresholds = json.loads((run.folder / 'thresholds.json').read_text())
  assert [*thresholds] == sorted(COLOURS) and all(0 < x < 1 for x in thresholds.values())
  assert [row['threshold'] for row in report['tags']] == [*thresholds.values()] and 'validation' in report['thresholds']
  assert report['scores_at_half']['macro_map'] == pytest.approx(run.numbers['test/macro_map'])
  assert report['prior_map'] < 0.7 < run.numbers['test/macro_map']
  assert {'precision_recall', 'annotations', 'first_layer_filters'} <= {
    p.stem for p in (run.folder / 'plots').glob('*.png')
  }


def test_annotate_gives_tags_and_a_table_that_can_be_learnt_from(run, table, tmp_path):
  opened = karpjax.open(run.folder)
  pictures = [str(table.parent / f'{i}.png') for i in (1, 2, 3)]
  answers = opened.annotate(pictures, output=str(tmp_path / 'new.csv'))
  thresholds = json.loads((run.folder / 'thresholds.json').read_text())
  assert all(p >= thresholds[tag] for answer in answers for tag, p in answer['tags'].items())
  again, _ = image_tags.table(tmp_path / 'new.csv')
  assert [[*tags] for tags in again['train'].values()] == [[*answer['tags']] for answer in answers]
  assert [file.resolve() for file in again['train']] == [table.parent / f'{i}.png' for i in (1, 2, 3)]
  assert all(len(answer['tags']) == 3 for answer in opened.annotate(pictures, threshold=0.0))
  assert not any(answer['tags'] for answer in opened.annotate(pictures, threshold=1.0))
  opened.annotate(pictures, output=str(tmp_path / 'new.json'))
  assert json.loads((tmp_path / 'new.json').read_text()) == answers
  with pytest.raises(UsageError, match=r'new.txt: FILE.csv or FILE.json'):
    opened.annotate(pictures, output=str(tmp_path / 'new.txt'))
  row = opened.predict(pictures[:1], top=3)[0]['classes']
  assert {tag: p for tag, p in row.items() if p >= thresholds[tag]} == pytest.approx(answers[0]['tags'])


def test_the_loss_of_the_beginning_is_that_of_a_guess_by_frequencies(table):
  flags = dict(dataset=f'tags:{table}', model='logistic', batch_size=16)
  program, data, _ = prepare(experiment, experiment.Config(**flags))
  labels = data.splits['train'].column('label')
  state, known = jax.jit(program.init)(jax.random.key(0)), labels >= 0
  batch = {**data.splits['train'].fetch(np.arange(len(labels))), 'index': np.arange(len(labels)), 'mask': known.any(1)}
  losses = program.example_losses(state, batch, jax.random.key(0))
  assert np.mean(losses) == pytest.approx(program.uninformed_loss, abs=0.02) and program.uninformed_loss < np.log(2)
  plain = (labels == 1).sum(0) / known.sum(0)
  entropy = -(plain * np.log(plain) + (1 - plain) * np.log(1 - plain)).mean()
  assert program.uninformed_loss == pytest.approx(entropy)


@pytest.mark.parametrize(
  'layout',
  [
    pytest.param(dict(seeds=2), marks=pytest.mark.slow),
    dict(parallel='pmap'),
    pytest.param(dict(microbatches=2), marks=pytest.mark.slow),
  ],
)
def test_every_layout_learns_as_one_device(table, tmp_path, layout):
  short = dict(steps='4', steps_per_call='2', log_every='0', class_weights='balanced', tag_loss='asymmetric')
  alone, other = (
    loop.run(experiment, settings(table, tmp_path / name, **short, **own), say=lambda _: None).numbers
    for name, own in (('alone', {}), ('other', layout))
  )
  first = lambda x: x['values'][0] if isinstance(x, dict) else x
  for name in ('test/loss', 'test/macro_map', 'validation/micro_f1'):
    assert first(other[name]) == pytest.approx(first(alone[name]), rel=1e-4), name


def test_weights_of_classes_are_scikit_learn_s(table, tmp_path):
  from sklearn.utils.class_weight import compute_class_weight

  program, data, _ = prepare(
    experiment, experiment.Config(class_weights='balanced', model='logistic', label_smoothing=0.1)
  )
  plain, _, _ = prepare(experiment, experiment.Config(model='logistic', label_smoothing=0.1))
  labels = data.splits['train'].column('label')
  state, batch = (
    jax.jit(program.init)(jax.random.key(0)),
    {**data.splits['train'].fetch(np.arange(50)), 'index': np.arange(50)},
  )
  state = state.replace(params=jax.tree.map(lambda x: x + 0.01 * np.arange(x.size).reshape(x.shape), state.params))
  weighted, losses = (each.example_losses(state, batch, jax.random.key(0)) for each in (program, plain))
  theirs = compute_class_weight('balanced', classes=np.unique(labels), y=labels)
  np.testing.assert_allclose(weighted / losses, theirs[batch['label']], rtol=1e-5)


@pytest.mark.parametrize(
  'changes, says',
  [
    (dict(augment='mixup:0.2'), 'mixup and cutmix mix labels, and some of these are not known'),
    (dict(loss='squared_error'), 'loss'),
    (dict(label_smoothing=0.1), 'label_smoothing'),
  ],
)
def test_what_does_not_suit_tags_is_refused(table, tmp_path, changes, says):
  with pytest.raises(UsageError, match=says):
    loop.run(experiment, settings(table, tmp_path, **changes), say=lambda _: None)


def test_tags_are_refused_where_classes_are_needed_and_left_out_where_none_are(table):
  flags = dict(dataset=f'tags:{table}', image_size=8)
  with pytest.raises(UsageError, match='has tags, of which an image has any number'):
    images.load(experiment.Config(**flags))
  assert images.load(experiment.Config(**flags), unlabelled=True).splits['train'].column('label').max() == 0
  with pytest.raises(UsageError, match='an image has one class there'):
    image_verb = experiment.verbs['annotate']
    image_verb.encode(type('Run', (), {'spec': Spec('x', (8, 8, 1), ('a', 'b'), 1.0), 'folder': 'r'}), [], None)
  with pytest.raises(UsageError, match='tag_loss'):
    loop.run(
      experiment, experiment.Config(tag_loss='focal', model='logistic', steps='2', workdir=''), say=lambda _: None
    )


@pytest.mark.parametrize(
  'rows, says',
  [
    ('file,tags\nno.png,cat', r'line 2: .*no.png is no file'),
    ('file,tags\na.png,cat\na.png,dog', r'line 3: a.png is in line 2 too'),
    ('file,tags\na.png,cat|', r"line 2: 'cat\|' has an empty tag"),
    ('file,tags\na.png,?', 'has an empty tag'),
    ('file,tags,split\na.png,cat,holdout', "the split 'holdout' is none of train, validation and test"),
    ('file,tags,split\na.png,cat,test', 'no row of the split train'),
    ('file,label\na.png,cat', "no column 'tags'"),
    ('file,tags\na.png,', 'train has no tags'),
  ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path, rows, says):
  Image.new('RGB', (4, 4)).save(tmp_path / 'a.png')
  (tmp_path / 'tags.csv').write_text(rows)
  with pytest.raises(UsageError, match=says):
    image_tags.read(f'tags:{tmp_path}/tags.csv', '', seed=0, image_size=0)


def test_tags_of_other_splits_alone_and_images_without_any_are_told(tmp_path):
  for name in 'abc':
    Image.new('RGB', (4, 4)).save(tmp_path / f'{name}.png')
  (tmp_path / 'tags.csv').write_text('file,tags,split\na.png,cat,train\nb.png,,train\nc.png,cat|dog,test\n')
  data = image_tags.read(f'tags:{tmp_path}/tags.csv', '', seed=0, image_size=0)
  assert data.spec.classes == ('cat',)
  assert data.notes == ('1 tags that train has not are left out: dog', 'train: 1 of 2 images have no tag')


def test_flickr8k_s_tags_are_frequent_words_of_captions(tmp_path):
  pictures = {'train': 'ab', 'dev': 'c', 'test': 'd'}
  said = {'a': 'A dog runs .', 'b': 'Two dogs and a DOG .', 'c': 'A cat .', 'd': 'The dog .'}
  (tmp_path / 'Images').mkdir()
  for split, names in pictures.items():
    (tmp_path / f'Flickr_8k.{split}Images.txt').write_text('\n'.join(f'{name}.png' for name in names))
    for name in names:
      Image.new('RGB', (4, 4)).save(tmp_path / 'Images' / f'{name}.png')
  (tmp_path / 'Flickr8k.token.txt').write_text('\n'.join(f'{name}.png#0\t{text}' for name, text in said.items()))
  read = lambda name: image_tags.read(name, str(tmp_path), seed=0, image_size=0)
  data = read('flickr8k:2')
  assert data.spec.classes == ('dog', 'dogs')
  assert {s: split.fetch(np.arange(split.size))['label'].tolist() for s, split in data.splits.items()} == {
    'train': [[1, 0], [1, 1]], 'validation': [[0, 0]], 'test': [[1, 0]],
  }  # fmt: skip
  with pytest.raises(UsageError, match='flickr8k:N for N words'):
    read('flickr8k:0')
  (tmp_path / 'Images' / 'd.png').unlink()
  with pytest.raises(UsageError, match='has d.png, which is no file'):
    read('flickr8k')


def test_rare_tags_are_told():
  split = lambda *labels: images.Split.of(label=np.array(labels, np.int8))
  splits = {'train': split([1, 1, 0], [0, 1, -1]), 'test': split([0, 0, 1], [0, 0, 0])}
  data = Dataset(Spec('x', (1,), ('a', 'b', 'c'), 1.0, multi_label=True), splits)
  assert rare_classes(data) == (
    'train has one example alone of 1 of 3 classes: a', 'test has 1 of 3 classes that train has not: c',
  )  # fmt: skip
