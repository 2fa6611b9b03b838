"""`launch.py evaluate WORKDIR`: the metrics of a split, by a run's weights."""

import dataclasses
from collections.abc import Callable, Sequence

from karpjax import config as configs
from karpjax.data import fingerprint
from karpjax.data.dataset import Dataset
from karpjax.errors import UsageError
from karpjax.lean import quantisation
from karpjax.report import tables
from karpjax.train import prepare, run_dir
from karpjax.train.runner import Runner
from karpjax.verbs import Verb


@dataclasses.dataclass(frozen=True)
class Evaluation:
  split: str = configs.flag('test', 'The split.', choices=configs.SPLITS)


def read_data(run) -> Dataset:
  """The data of a run, which are those that it was made with."""
  data = prepare.read_data(run.experiment, run.config)
  run_dir.refuse_other_data(run.folder, fingerprint.of(data), run.stored, data.spec)
  return data


def evaluator(run, data: Dataset, splits: Sequence[str]) -> Callable:
  """(state, one of the splits) -> {metric: number}, by the program and the batches of training."""
  alone = {'seeds': 1, 'parallel': 'none', 'mesh': '', 'topology': '', 'teacher': '', 'final_splits': tuple(splits)}
  config = dataclasses.replace(run.config, **alone)
  runner = Runner(quantisation.seen(run.experiment.program(config, data), config), data, config)
  return lambda state, split: runner.program.summarise(runner.evaluate(runner.carry(state), split))


def encode(run, inputs, chosen):
  data = read_data(run)
  if chosen.split not in data.splits:
    raise UsageError(f'split={chosen.split}: the data have {", ".join(data.splits)}')
  return data


def function(run, chosen):
  """The function of `evaluate`: (state, data) -> {metric: number}."""
  return lambda state, data: evaluator(run, data, (chosen.split,))(state, chosen.split)


VERB = Verb(
  "A split's metrics, of the run's weights.", encode, function,
  lambda run, numbers, inputs, chosen: [{f'{chosen.split}/{name}': x for name, x in numbers.items()}], options=Evaluation,
  show=lambda numbers: ''.join(f'{name:{max(28, *map(len, numbers))}} {tables.decimal(x)}\n' for name, x in numbers.items()),
)  # fmt: skip
