"""Which split a report shows: the test split at the end, and never before."""

import dataclasses
import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

from karpjax.data.dataset import Dataset, Spec, Split
from karpjax.train import loop

SMALL = {
  'image_classification': dict(model='mlp', widths=(4,)),
  'regression': dict(),
  'vae': dict(widths=(4,), latent=2),
  'text_classification': dict(embedding=4, channels=4, windows=(2,), dataset='mine.csv'),
  'token_classification': dict(),
  'masked_language_model': dict(
    tokeniser='characters', width=8, layers=1, heads=1, test=0.1, dataset='lines:mine.csv', context=0, vocabulary=0
  ),
  'language_model': dict(model='bigram', test=0.1, sample_length=4, dataset='lines:mine.csv'),
  'translation': dict(model='gru', units=8, embedding=8, examples=60, batch_size=8),
  'super_resolution': dict(crop=20),
}


class Read(Exception):
  """The test split has been read."""


class Unread:
  """A test split of which only the size may be asked."""

  def __init__(self, split):
    self.size, self.lengths = split.size, split.lengths

  def __getattr__(self, name):
    raise Read(name)


def unread(data: Dataset) -> Dataset:
  raw = {name: split for name, split in data.raw.items() if name != 'test' or isinstance(split, Split)}
  return dataclasses.replace(data, splits={**data.splits, 'test': Unread(data.splits['test'])}, raw=raw)


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('validation', [True, False])
def test_before_the_last_step_no_report_reads_the_test_split(name, validation, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  texts = [f'{"sun" if i % 2 else "ice"} of day {i},{"hot" if i % 2 else "cold"}' for i in range(400)]
  Path('mine.csv').write_text('\n'.join(['text,label', *texts]))
  experiment = importlib.import_module(f'experiments.{name}')
  if name not in ('image_classification', 'text_classification', 'language_model') and not validation:
    pytest.skip('as of the others')
  more = {} if validation else {'validation': 0}
  given = experiment.Config(**SMALL[name], **more, steps='40', plots=False, workdir=str(tmp_path))
  _, data, config = loop.prepare(experiment, given)
  assert 'test' in data.splits and ('validation' in data.splits) == validation
  program = experiment.program(config, unread(data))
  state = jax.jit(program.init)(jax.random.key(0))
  program.report(state, 5, tmp_path)
  with pytest.raises((Read, KeyError)):  # at the end it does
    program.report(state, 40, tmp_path)


def test_the_split_that_is_shown():
  splits = {name: Split.of(x=np.zeros(1)) for name in ('train', 'validation', 'test')}
  of = lambda *names: Dataset(Spec('', (1,), (), 1.0), {name: splits[name] for name in names})
  assert of('train', 'validation', 'test').reported()[0] == 'validation'
  assert of('train', 'test').reported()[0] == 'train'
  assert of('train', 'test').reported(True)[0] == 'test' == of('train', 'validation', 'test').reported(True)[0]
  assert of('train', 'validation').reported(True)[0] == 'validation'
