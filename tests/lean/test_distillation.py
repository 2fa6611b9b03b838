"""Distillation: its loss against closed forms, a teacher that is asked as it was trained, and that it runs as all else does."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import image_classification, language_model, text_classification, token_classification
from karpjax import population, verbs
from karpjax.data import images, text, tokenisers
from karpjax.errors import UsageError
from karpjax.layers import crf
from karpjax.lean import distillation
from karpjax.models import tagging
from karpjax.train import checkpoint, loop
from karpjax.train.prepare import prepare
from karpjax.train.runner import Runner

RUN = dict(
  model='mlp', widths=(16,), batch_size=16, steps='12', log_every='4', eval_every='4', checkpoint_every='4',
  checkpoint_seconds=0, learning_rate=0.01, tensorboard=False, plots=False, steps_per_call='3', temperature=3.0,
  teacher_weight=0.7,
)  # fmt: skip

TEACHER = dict(widths=(9,), scale='symmetric', dropout=0.5, steps='8', temperature=4.0, teacher_weight=0.9)


def run(folder, teacher, stop_at=0, experiment=image_classification, **changes):
  def stop(line):
    if stop_at and line.startswith(f'step {stop_at}/'):
      os.kill(os.getpid(), signal.SIGTERM)

  flags = RUN if experiment is image_classification else {}
  return loop.run(experiment, experiment.Config(**flags | changes, teacher=teacher, workdir=str(folder)), say=stop)


def first_row(folder):
  return json.loads((folder / 'metrics.jsonl').read_text().splitlines()[0])


# ---- the loss ----


def test_the_loss_is_that_of_the_definition():
  student, teacher = np.random.default_rng(0).normal(size=(2, 5, 3, 4)) * 3
  softmax = lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)
  p, q = softmax(teacher / 2.5), softmax(student / 2.5)
  expected = 2.5**2 * (p * np.log(p / q)).sum(-1)
  np.testing.assert_allclose(distillation.soft_loss(student, teacher, 2.5), expected, rtol=1e-5)
  assert (np.asarray(distillation.soft_loss(student, student, 2.5)) == 0).all()


def test_at_a_high_temperature_it_matches_logits():
  student, teacher = np.random.default_rng(0).normal(size=(2, 4)).astype('f4')
  gradient = jax.grad(lambda x: distillation.soft_loss(x, teacher, 1e3))(student)
  apart = (student - student.mean()) - (teacher - teacher.mean())
  np.testing.assert_allclose(gradient, apart / 4, rtol=2e-2)  # Hinton et al. 2015, eq. 4


def test_what_a_teacher_holds_impossible_is_finite():
  teacher, student = np.array([0.0, -np.inf], 'f4'), np.array([1.0, 2.0], 'f4')
  value, gradient = jax.value_and_grad(lambda x: distillation.soft_loss(x, teacher, 2.0))(student)
  np.testing.assert_allclose(value, 4 * np.log1p(np.exp(0.5)), rtol=1e-5)
  assert np.isfinite(gradient).all()


def test_logits_of_a_chain_are_those_of_its_marginals():
  draw = np.random.default_rng(0).normal
  chain = crf.Chain(*(draw(size=shape).astype('f4') for shape in ((3,), (3, 3), (3,))))
  emissions, mask = draw(size=(1, 4, 3)).astype('f4'), np.array([[True, True, True, False]])
  tags = np.array([[*each, 0] for each in itertools.product(range(3), repeat=3)])
  sentence = np.repeat(emissions, 27, 0), tags, np.repeat(mask, 27, 0)
  chances = np.exp(jax.jit(crf.log_likelihood)(chain, *sentence))
  marginals = (chances[:, None, None] * np.eye(3)[tags]).sum(0)
  found = jax.nn.softmax(jax.jit(tagging.logits)(emissions, chain, mask))[0]
  np.testing.assert_allclose(found[:3], marginals[:3], rtol=1e-4)


# ---- runs ----


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  folder = tmp_path_factory.mktemp('teacher')
  run(folder, '', **TEACHER)
  return str(folder)


@pytest.fixture(scope='module')
def whole(teacher, tmp_path_factory):
  """(the arrays of two students of one teacher, their folder)."""
  folder = tmp_path_factory.mktemp('whole')
  return checkpoint.to_arrays(run(folder, teacher, seeds=2, augment='shift:1').state), folder


def test_both_parts_of_the_loss_are_told(whole):
  row = first_row(whole[1])
  hard, soft = np.array(row['train/hard_loss']), np.array(row['train/soft_loss'])
  np.testing.assert_allclose(row['train/loss'], 0.3 * hard + 0.7 * soft, rtol=1e-5)
  assert all(0 < x < 1 for x in row['train/agreement'])
  assert not any('soft_loss' in name for name in row if not name.startswith('train/'))


def test_seeds_go_on_to_the_same_bits(whole, teacher, tmp_path):
  flags = dict(seeds=2, augment='shift:1')
  with pytest.raises(SystemExit):
    run(tmp_path, teacher, stop_at=4, **flags)
  again = checkpoint.to_arrays(run(tmp_path, teacher, **flags).state)
  assert again.keys() == whole[0].keys()
  assert all(again[name].tobytes() == x.tobytes() for name, x in whole[0].items())


@pytest.mark.parametrize(
  'layout',
  [dict(parallel='pmap'), dict(mesh='data:2,fsdp:4'), pytest.param(dict(parallel='seeds'), marks=pytest.mark.slow)],
)
def test_every_layout_learns_as_one_device(whole, teacher, tmp_path, layout):
  arrays = checkpoint.to_arrays(run(tmp_path, teacher, seeds=2, augment='shift:1', **layout).state)
  for name, x in whole[0].items():
    if name.startswith('params/'):
      np.testing.assert_allclose(arrays[name], x, rtol=1e-2, atol=2e-3)


def test_a_teacher_is_asked_of_the_images_that_an_adversary_has_left(teacher):
  flags = dict(adversary='trades', attack_steps=1, batch_size=1)
  program, data, _ = prepare(image_classification, image_classification.Config(**RUN | flags, teacher=teacher))
  batch = {**data.splits['train'].fetch(np.arange(1)), 'index': np.arange(1)}
  metrics = jax.jit(lambda key: program.step(program.init(key), batch))(jax.random.key(0))[1]
  assert metrics['soft_loss'][1] == metrics['agreement'][1] == 1


def test_settings_of_a_sweep_have_the_teacher_in_one_program(whole, teacher, tmp_path):
  swept = population.varied(image_classification, {'learning_rate': [0.01, 0.02]}, [1, 1])
  config = image_classification.Config(**RUN, augment='shift:1', seeds=2, teacher=teacher, workdir=str(tmp_path))
  arrays = checkpoint.to_arrays(loop.run(swept, config, say=lambda _: None).state)
  for name, x in whole[0].items():  # whose second seed the first setting is
    if name.startswith('params/'):
      np.testing.assert_allclose(arrays[name][0], x[1], rtol=1e-2, atol=2e-3)


def test_microbatches_and_a_teacher_that_weighs_nothing_change_nothing(teacher, tmp_path):
  plain = run(tmp_path / 'plain', '', temperature=4.0, teacher_weight=0.9, dropout=0.0).state.params
  cut = run(tmp_path / 'cut', teacher, teacher_weight=0.0, microbatches=4).state.params
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3), plain, cut)


def test_weights_of_a_teacher_are_an_argument_of_the_step_and_no_constants(teacher):
  config = image_classification.Config(**RUN, teacher=teacher)
  runner = Runner(*prepare(image_classification, config))
  runner.compile(3)
  text = runner.step.as_text()
  assert re.search(r'f32\[64,9\]\S* parameter\(', text) and not re.search(r'f32\[64,9\]\S* constant\(', text)


def test_a_teacher_scales_the_augmented_images_that_the_student_sees_by_its_own_flags(teacher, tmp_path):
  """A copy of its teacher agrees with it on moved images; a student of another scale is taught by the same logits."""
  flags = dict(steps='1', log_every='1', augment='shift:2,rotate:20', learning_rate=1e-9)
  run(tmp_path / 'copy', teacher, widths=(9,), scale='symmetric', init_from=teacher, **flags)
  row = first_row(tmp_path / 'copy')
  assert row['train/soft_loss'] < 1e-9 and row['train/agreement'] == 1
  config = image_classification.Config(**RUN | flags, teacher=teacher, scale='unit', zero_head=True)
  program, data, _ = prepare(image_classification, config)
  numbers = np.arange(16, dtype=np.int32)
  batch = {**data.splits['train'].fetch(numbers), 'index': numbers}
  plain = dataclasses.replace(config, augment='')
  state = jax.jit(program.init)(jax.random.key(0))
  _, metrics = jax.jit(prepare(image_classification, plain)[0].step)(state, batch)
  model = verbs.Run(teacher)
  logits = model.program.predict(model.state, batch, None)
  expected = distillation.soft_loss(jnp.zeros_like(logits), logits, 3.0).sum()
  np.testing.assert_allclose(metrics['soft_loss'][0], expected, rtol=1e-4)


def taught_copy(experiment, folder, flags, **others):
  """The first row of a run that begins as the teacher which it has, and learns almost nothing."""
  flags = dict(tensorboard=False, plots=False, eval_every='0', checkpoint_every='0', batch_size=8) | flags
  run(folder / 'teacher', '', experiment=experiment, steps='3', **flags)
  teacher = str(folder / 'teacher')
  once = dict(init_from=teacher, steps='1', log_every='1', learning_rate=1e-9)
  run(folder / 'copy', teacher, experiment=experiment, **flags | once | others)
  return first_row(folder / 'copy')


@pytest.mark.slow
@pytest.mark.parametrize('model', ['bilstm', 'bilstm_crf'])
def test_taggers_are_taught_word_by_word(tmp_path, model):
  folder = tmp_path / 'tagged'
  folder.mkdir()
  for split, size in (('train', 24), ('valid', 8), ('test', 8)):
    sentences = (
      f'{"Anna" if i % 2 else "Otto"} B-PER\nmet O\nBerlin B-LOC\n' + 'today O\n' * (i % 3) for i in range(size)
    )
    (folder / f'{split}.txt').write_text('\n'.join(sentences))
  sizes = dict(embedding=4, character_embedding=3, filters=3, units=(4,), dropout=0.0)
  row = taught_copy(
    token_classification, tmp_path, dict(dataset=f'conll:{folder}', model=model, **sizes), temperature=2.0
  )
  assert row['train/soft_loss'] < 1e-5 and row['train/agreement'] == 1 and row['train/hard_loss'] > 0


@pytest.mark.slow
def test_seeds_in_turn_are_taught(classifier, tmp_path):
  both = run(tmp_path / 'both', classifier, seeds=2, steps='3').state.params
  one = run(tmp_path / 'one', classifier, seed=1, steps='3').state.params
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-2, atol=1e-3), both, one)


@pytest.mark.slow
def test_texts_cut_to_buckets_are_taught(tmp_path):
  rows = [f'{"sun " * (i % 7 + 1)}{"ice " * (i % 3)},{"hot" if i % 3 < 2 else "cold"}' for i in range(60)]
  (tmp_path / 'mine.csv').write_text('\n'.join(['text,label', *rows]))
  flags = dict(dataset=str(tmp_path / 'mine.csv'), embedding=4, channels=3, windows=(2,), dropout=0.0, baseline=False)
  row = taught_copy(text_classification, tmp_path, flags)
  assert row['train/soft_loss'] < 1e-5 and row['train/agreement'] == 1


def test_language_models_are_taught_token_by_token(tmp_path):
  (tmp_path / 'story.txt').write_text('the old fox went to the red sea. ' * 40)
  flags = dict(dataset=f'text:{tmp_path / "story.txt"}', context=8, layers=1, heads=1, width=8)
  row = taught_copy(language_model, tmp_path, flags)
  assert row['train/soft_loss'] < 1e-5 and row['train/agreement'] == 1


# ---- bad input ----


def test_a_run_does_not_go_on_with_a_changed_teacher(teacher, tmp_path):
  shutil.copytree(teacher, tmp_path / 'teacher')
  teacher = str(tmp_path / 'teacher')
  run(tmp_path / 'student', teacher)
  shutil.rmtree(teacher)
  with pytest.raises(UsageError, match='no such folder'):
    run(tmp_path / 'student', teacher, steps='16')
  run(teacher, '', **TEACHER, seed=1)
  with pytest.raises(UsageError, match=rf'not those that it began with: the weights of teacher={teacher} have changed'):
    run(tmp_path / 'student', teacher, steps='16')
  shutil.rmtree(teacher)  # which evaluation does not need
  assert 'test/accuracy' in verbs.Run(tmp_path / 'student').evaluate()[0]


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(teacher='nowhere'), r'teacher=nowhere: nowhere: no such folder; give the workdir of a run of image_'),
    (dict(teacher_weight=1.1), 'teacher_weight=1.1: at least 0 and at most 1'),
    (dict(temperature=0.0), 'temperature=0.0: more than 0'),
    (dict(loss='squared_error'), '^loss=squared_error: distillation compares probabilities'),
    (dict(image_size=6), r'trained on other shape: \(8, 8, 1\), not \(6, 6, 1\)'),
  ],
)
def test_what_cannot_be_taught_is_refused(teacher, changes, message):
  with pytest.raises(UsageError, match=message):
    prepare(image_classification, image_classification.Config(**RUN | {'teacher': teacher} | changes))


def test_a_teacher_that_is_itself_half_trained_or_of_another_experiment_is_refused(teacher, tmp_path):
  with pytest.raises(UsageError, match='is this run itself'):
    run(teacher, teacher)
  with pytest.raises(
    UsageError, match='it holds a run of image_classification; give the workdir of a run of language_'
  ):
    prepare(language_model, language_model.Config(teacher=teacher))
  shutil.copytree(teacher, tmp_path / 'half')
  (tmp_path / 'half' / 'summary.json').unlink()
  with pytest.raises(UsageError, match=r'teacher=\S*half: its training has not come to its end'):
    run(tmp_path / 'new', str(tmp_path / 'half'))


def test_flags_that_nothing_reads_are_refused(teacher, tmp_path):
  for changes in (dict(teacher_weight=0.5), dict(temperature=2.0)):
    given = {name: x for name, x in RUN.items() if name not in ('temperature', 'teacher_weight')} | changes
    config = image_classification.Config(**given, workdir=str(tmp_path / 'new'))
    with pytest.raises(UsageError, match=f'^{next(iter(changes))}=.*makes no use of it'):
      loop.run(image_classification, config, say=lambda _: None)


def test_other_classes_and_vocabularies_are_told():
  spec = images.load(image_classification.Config()).spec
  turned = dataclasses.replace(spec, classes=spec.classes[::-1])
  with pytest.raises(UsageError, match='^teacher=a was trained on other classes: 9, 8, .* and 2 more, not 0, 1, 2'):
    distillation.refuse_other('teacher=a', turned, spec)
  tokens = lambda *words: text.TextSpec('a', 9, {'text': tokenisers.Tokeniser('words', words, 0)}, {'text': 4})
  with pytest.raises(UsageError, match=r'other tokenisers: 2 tokens \(words\), but others, or in another order'):
    distillation.refuse_other('teacher=a', tokens('a', 'b'), tokens('b', 'a'))
  distillation.refuse_other('teacher=a', tokens('a'), dataclasses.replace(tokens('a'), name='b', examples=1))
