"""`launch.py evaluate WORKDIR`: the metrics of a split, by a run's weights."""

import dataclasses

from karpjax import config as configs
from karpjax.data import fingerprint
from karpjax.errors import UsageError
from karpjax.train import prepare, run_dir
from karpjax.train.runner import Runner
from karpjax.verbs import Verb


@dataclasses.dataclass(frozen=True)
class Evaluation:
  split: str = configs.flag('test', 'The split.', choices=configs.SPLITS)


def encode(run, inputs, chosen):
  data = prepare.read_data(run.experiment, run.config)
  run_dir.refuse_other_data(run.folder, fingerprint.of(data), run.stored, data.spec)
  if chosen.split not in data.splits:
    raise UsageError(f'split={chosen.split}: the data have {", ".join(data.splits)}')
  return data


def function(run, chosen):
  """The function of `evaluate`: (state, data) -> {metric: number}, by the program and the batches of training."""

  def numbers(state, data):
    alone = {'seeds': 1, 'parallel': 'none', 'mesh': '', 'topology': '', 'teacher': '', 'final_splits': (chosen.split,)}
    config = dataclasses.replace(run.config, **alone)
    runner = Runner(run.experiment.program(config, data), data, config)
    return runner.program.summarise(runner.evaluate(runner.carry(state), chosen.split))

  return numbers


VERB = Verb(
  "A split's metrics, of the run's weights.", encode, function,
  lambda run, numbers, inputs, chosen: [{f'{chosen.split}/{name}': x for name, x in numbers.items()}], options=Evaluation,
  show=lambda numbers: ''.join(f'{name:{max(28, *map(len, numbers))}} {x:.4f}\n' for name, x in numbers.items()),
)  # fmt: skip
