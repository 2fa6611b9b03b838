"""What is timed: a flagfile of setups/, an experiment's flags under a few lines that say what its random data are."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from karpjax import errors

FOLDER = Path(__file__).parent / 'setups'
NAMES = sorted(path.stem for path in FOLDER.glob('*.flags'))


@dataclasses.dataclass(frozen=True)
class Setup:
  """A set-up as plain data, which both workers read as JSON.

  Attributes:
    name: of the flagfile.
    experiment: whose step is timed. That of policy_gradient is a rollout and all updates from it.
    twin: the module of `bench.torch` that has the same model in PyTorch.
    shape: of one image, uint8; of a text, (tokens of an example,); of an observation.
    classes: outputs; of a text, how many different tokens.
    config: the experiment's Config as JSON. Without dropout, so that first losses agree.
    options: those of the model that the flags give.
    training: how many steps a whole training has, whose time with imports and compilation is then told; 0: not told.
    generation: whether a step is one token of a text, drawn greedily with a cache of keys and values.
  """

  name: str
  experiment: str
  twin: str
  shape: tuple[int, ...]
  classes: int
  config: dict[str, Any]
  options: dict[str, Any]
  training: int = 0
  generation: bool = False


def read(name: str, parse) -> Setup:
  """The set-up called `name`.

  Args:
    name: a flagfile without its ending.
    parse: (experiment, flags) -> its Config and the model's options that are given, as JSON.

  Raises:
    UsageError: for an unknown name; the nearest is offered.
  """
  errors.choose('benchmark', name, dict.fromkeys(NAMES))
  text = (FOLDER / f'{name}.flags').read_text()
  about = dict(re.findall(r'^# (\w+): (.*)$', text, re.MULTILINE))
  flags = [line for line in text.splitlines() if line.startswith('--')]
  return Setup(
    name,
    about['experiment'],
    about['twin'],
    tuple(map(int, about['shape'].split('x'))),
    int(about['classes']),
    *parse(about['experiment'], ['--seed=0', f'--steps={2**20}', *flags]),
    int(about.get('training', 0)),
    'generation' in about,
  )


def from_json(values: dict) -> Setup:
  """The inverse of dataclasses.asdict after JSON made lists of its tuples."""
  return Setup(**{**values, 'shape': tuple(values['shape'])})
