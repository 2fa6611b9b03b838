"""Which checkpoint of a run is the best."""

import dataclasses
import math

import pytest

from experiments import image_classification as experiment
from karpjax import verbs
from karpjax.commands.sweep import outcome, processes
from karpjax.errors import UsageError
from karpjax.report import progress
from karpjax.train import loop

NAN = math.nan
SETTINGS = dict(
  model='mlp', widths=(8,), batch_size=16, steps='40', eval_every='10', steps_per_call='5', final_splits=(), plots=False,
  tensorboard=False, compilation_cache='off',
)  # fmt: skip


@pytest.mark.parametrize(
  ('select', 'values', 'best', 'told'),
  [
    ('validation/loss', (NAN, 2.0, 1.0, 3.0), 30, 1.0),
    ('-validation/loss', (NAN, -math.inf, 5.0, 4.0), 30, 5.0),
    ('validation/loss', (2.0, NAN, math.inf, 3.0), 10, 2.0),
    ('validation/loss', (NAN, NAN, NAN, NAN), None, None),
  ],
)
def test_a_metric_that_is_nan_is_never_the_best(select, values, best, told, tmp_path):
  config = experiment.Config(**SETTINGS, select=select, workdir=str(tmp_path))
  (program, data, resolved), given = loop.prepare(experiment, config), iter([*values, told])
  program = dataclasses.replace(
    program, summarise=lambda sums: {'loss': sums['loss'][1] > 1 and next(given)}
  )  # of ones: its names
  said = []
  summary = loop.train(program, data, resolved, experiment='image_classification', say=said.append)
  assert (summary.numbers.get('best/step'), summary.numbers.get('best/validation/loss')) == (best, told)
  assert verbs.Run(tmp_path).step == (best or 40)
  assert any('never finite' in line for line in said) == (best is None)


def test_where_summarise_wants_real_sums_the_first_evaluation_refuses_an_unknown_metric(tmp_path):
  def summarise(sums):
    if sums['loss'][1] == 1:
      raise ValueError('not of ones')
    return {'loss': 1.0, 'accuracy': 0.5}

  def train(select, folder):
    config = experiment.Config(**SETTINGS, select=select, workdir=str(tmp_path / folder))
    program, data, resolved = loop.prepare(experiment, config)
    program = dataclasses.replace(program, summarise=summarise)
    return loop.train(program, data, resolved, experiment='image_classification', say=lambda _: None).numbers

  with pytest.raises(UsageError, match='no such metric. Did you mean validation/accuracy?'):
    train('-validation/acuracy', 'first')
  with pytest.raises(UsageError, match='no such metric. Did you mean validation/accuracy?'):
    train('-valdation/accuracy', 'second')
  assert train('-validation/accuracy', 'third')['best/step'] == 10


@pytest.mark.parametrize(
  ('before', 'now', 'better'),
  [
    ([0.5, 0.9], [0.6, NAN], False),  # worse where both can be compared, though the mean of what is left is less
    ([0.5, 0.9], [0.4, NAN], True),
    ([0.5, NAN], [0.6, 0.1], False),
    ([NAN, NAN], [9.0, NAN], True),
    ([0.5, 0.9], [0.6, 0.7], True),  # by the mean over seeds
    ([0.5, 0.9], [], False),
  ],
)
def test_seeds_are_compared_where_they_are_finite_at_both_steps(before, now, better):
  assert loop.better(now, {'step': 1, 'values': before}) == better


def test_what_an_older_checkpoint_says_of_the_best_is_understood():
  assert loop.better([0.5, 0.7], {'step': 1, 'value': 0.65}) and not loop.better([0.5, 0.7], {'step': 1, 'value': 0.5})
  assert loop.better([0.5], {'step': 1, 'value': NAN}) and loop.better([0.5], {'step': 1, 'value': None})


def test_a_sweep_reads_null_as_nan_and_ranks_it_last(tmp_path):
  (tmp_path / 'summary.json').write_text('{"test/loss": null, "validation/loss": {"values": [1.0, null]}}')
  numbers = processes.numbers(tmp_path)
  assert progress.number(numbers['test/loss']) == 'nan' and math.isnan(numbers['validation/loss'][1])
  trials = [outcome.Trial(i, {}, 'done', numbers={'loss': [x]}) for i, x in enumerate((NAN, 2.0, 1.0), start=1)]
  for sign, order in ((1, [3, 2, 1]), (-1, [2, 3, 1])):

    class Asked:
      metric = 'loss'

    Asked.sign = sign
    assert [trial.number for trial in outcome.ranked(trials, Asked)] == order
