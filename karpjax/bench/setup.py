"""What is timed: a flagfile of setups/, an experiment's flags under a few lines that say what its random data are."""

import dataclasses
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / 'setups'
NAMES = sorted(path.stem for path in FOLDER.glob('*.flags'))


@dataclasses.dataclass(frozen=True)
class Setup:
  """A set-up as plain data, which both workers read as JSON.

  Attributes:
    name: of the flagfile.
    experiment: whose step is timed. That of policy_gradient is a rollout and all updates from it.
    twin: the module of `bench.torch` that has the same model in PyTorch, or 'none'.
    shape: of one image, uint8; of a text, (tokens of an example,); of an observation.
    classes: outputs; of a text, how many different tokens.
    config: the experiment's Config as JSON. Without dropout, so that first losses agree.
    options: those of the model that the flags give.
    steps: how many a process makes whose whole time is measured, with imports and compilation.
    beside: {name: the Config as JSON} of another training, whose step is timed beside.
    generation: whether a step is one token of a text, drawn greedily with a cache of keys and values.
  """

  name: str
  experiment: str
  twin: str
  shape: tuple[int, ...]
  classes: int
  config: dict[str, Any]
  options: dict[str, Any]
  steps: int = 100
  generation: bool = False
  beside: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


def from_json(values: dict) -> Setup:
  """The inverse of dataclasses.asdict after JSON made lists of its tuples."""
  options = {name: tuple(x) if isinstance(x, list) else x for name, x in values['options'].items()}
  return Setup(**{**values, 'shape': tuple(values['shape']), 'options': options})
