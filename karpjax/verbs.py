"""What a trained run can do: from what a person has, through a pure function, to what a person wants.

A verb is `encode` (texts, files -> arrays), a pure function of the state and these arrays, and `decode` (arrays -> answers).
It is a command (`launch.py predict WORKDIR FILE …`) and a method (`karpjax.open(WORKDIR).predict([FILE])`).
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from karpjax import config as configs
from karpjax import options, paths
from karpjax import population as populations
from karpjax.data import fingerprint
from karpjax.data.dataset import Dataset, Spec
from karpjax.errors import UsageError, check_text, choose
from karpjax.lean import quantisation
from karpjax.report import writers
from karpjax.train import checkpoint, integers, run_dir, weights
from karpjax.train.predict import Predictions


@dataclasses.dataclass(frozen=True)
class NoOptions:
  """The options of a verb that has none."""


@dataclasses.dataclass(frozen=True)
class Verb:
  """One thing that the runs of an experiment can do.

  Attributes:
    help: a sentence for `--help`.
    inputs: what a person gives, as 'IMAGE …'; '' where nothing is wanted.
    encode: (run, inputs, options) -> arrays; raises UsageError for what cannot be read.
    function: (run, options) -> a pure function (state, arrays) -> outputs.
    decode: (run, outputs, inputs, options) -> answers: dicts that JSON can hold; a generator where they come bit by bit.
    options: a frozen dataclass of `config.flag` fields.
    show: answer -> its text for a terminal, with its own line breaks.
    expand: the inputs given -> those that are meant, such as the files of a folder.
    writes: (run, inputs, options) -> the files that `decode` writes, by `Run.own_path` where the user does not name them:
      none may be an input, or another thing that is read.
    model: of a verb that goes on with texts: run -> the model, as `generate` takes it, of `spec.tokenisers['text']`.
  """

  help: str
  encode: Callable[..., Any]
  function: Callable[..., Callable[[Any, Any], Any]]
  decode: Callable[..., Iterable[dict[str, Any]]]
  inputs: str = ''
  options: type = NoOptions
  show: Callable[[dict[str, Any]], str] = lambda answer: '  '.join(map(str, answer.values())) + '\n'
  expand: Callable[[list[str]], list[str]] = list
  writes: Callable[..., Sequence[Path]] = lambda run, inputs, chosen: ()
  model: Callable[..., Any] | None = None


@dataclasses.dataclass(frozen=True)
class Bound:
  """A verb of an open run. Called, it gives the answers as a list."""

  run: 'Run'
  verb: Verb

  def encode(self, inputs: Sequence[str] = (), **chosen):
    return self.verb.encode(self.run, *self._given(inputs, chosen))

  def function(self, state, arrays, **chosen):
    with quantisation.within(self.run.config):
      return self.verb.function(self.run, self._options(chosen))(state, arrays)

  def decode(self, outputs, inputs: Sequence[str] = (), **chosen):
    with quantisation.within(self.run.config):
      answers = self.verb.decode(self.run, outputs, *self._given(inputs, chosen))
    return quantisation.each_within(self.run.config, answers)

  def answers(self, inputs: Sequence[str] = (), **chosen) -> Iterable[dict[str, Any]]:
    """The answers, one after the other, as they come."""
    arrays = self.encode(inputs, **chosen)
    return self.decode(self.function(self.run.state, arrays, **chosen), inputs, **chosen)

  def __call__(self, inputs: Sequence[str] = (), **chosen) -> list[dict[str, Any]]:
    return list(self.answers(inputs, **chosen))

  def _given(self, inputs, chosen) -> tuple[list[str], Any]:
    """The inputs that are meant and the options; a UsageError where a file that is read would be written over."""
    listed, checked = self._listed(inputs), self._options(chosen)
    if places := self.verb.writes(self.run, listed, checked):
      files = [Path(each) for each in listed if os.path.exists(each)]  # and not texts, of any length
      paths.keep({**self.run.reads(places), **dict.fromkeys(files, 'which is given as well')}, places)
    return listed, checked

  def _listed(self, inputs) -> list[str]:
    given = [str(x) for x in ([inputs] if isinstance(inputs, str | Path) else inputs)]
    for number, each in enumerate(given, 1):
      if not os.path.exists(each):  # the name of a file may be of any bytes
        check_text(f'input {number}, ', each)
    return self.verb.expand(given)

  def _options(self, chosen):
    known = {field.name: field for field in dataclasses.fields(self.verb.options)}
    several = {name for name in chosen if isinstance(choose('option', name, known).default, tuple)}
    given = {name: (x,) if name in several and isinstance(x, str) else x for name, x in chosen.items()}
    checked = self.verb.options(**given)
    options.expand_paths(checked)
    options.check(checked)
    return checked


class Run:
  """A run's folder, opened: `config`, `summary`, `metrics` (rows), `spec`, `program`, `state`, and its verbs as methods.

  Args:
    folder: the run's, or a sweep's, which stands for one of its settings at the end of training, as these are compared.
    checkpoint: the weights: 'best', 'last', the step of a checkpoint that is kept, 'int8' or 'int4' by `launch.py quantise`,
      or a FILE.safetensors.
    member: which of several seeds, or of the settings in a part of a sweep, from 0; None: the first seed.
    trial: which setting of a sweep, by its number in the table; None: the best. `self.trial` names it.

  Raises:
    UsageError: where the folder holds no run, or not such a member or setting.
  """

  def __init__(self, folder: str | Path, checkpoint: str = 'best', member: int | None = None, trial: int | None = None):
    self.folder, self.trial, self.member = Path(paths.expand(folder)), '', member
    flags = {'member': member, 'trial': trial}
    self._asked = [str(folder), *(f'--{name}={x}' for name, x in flags.items() if x is not None)]
    self._ending = '' if member is None else f'_member_{member}'
    if (self.folder / 'sweep.json').exists():
      self.folder, self.trial, first = run_dir.setting_of_sweep(self.folder, trial)
      self._ending = f'_{self.trial.partition(":")[0].replace(" ", "_")}{self._ending}'
      self.member = member if first is None else first + (member or 0)
      checkpoint = 'last' if checkpoint == 'best' else checkpoint
    elif trial is not None:
      raise UsageError(f'trial={trial}: {folder} is no sweep')
    self.checkpoint, self.stored = checkpoint, run_dir.stored(self.folder)
    self.experiment = options.imported(f'experiments.{self.stored["experiment"]}', f'{self.folder}: ')
    self.config = configs.from_json(self.experiment.Config, self.stored['flags'])
    self.verbs: dict[str, Verb] = {**getattr(self.experiment, 'verbs', {}), **of_any_run()}
    population = self.stored.get('population')
    members = len(population['seeds']) if population else self.config.seeds
    if self.member is not None and self.member not in range(members):
      raise UsageError(f'member={self.member}: {self.folder} has {members}, numbered from 0')
    if self.trial and first is not None and any(x[first] != x[self.member] for x in population['hyper'].values()):
      raise UsageError(f'member={member}: the seeds of {self.trial} are fewer, numbered from 0')
    if population:  # many settings in one program
      if self.member is None:
        sweep = self.folder.parent
        raise UsageError(
          f'{folder} holds {members} members of a sweep: give member=, or the folder of the sweep, {sweep}, for its best'
        )
      own = {name: values[self.member] for name, values in population['hyper'].items()}
      self.config = dataclasses.replace(self.config, seeds=1, seed=population['seeds'][self.member], **own)
      hyper = {name: [x] for name, x in own.items()}
      self.experiment = populations.varied(self.experiment, hyper, [self.config.seed])

  def own_path(self, path: Path) -> Path:
    """A file's name with the setting and the member asked for in it: what others of the run have written stays."""
    return path.with_name(f'{path.stem}{self._ending}{path.suffix}')

  def reads(self, places: Sequence[Path]) -> dict[Path, str]:
    """{file: what it is} that no verb writes over: the run's, what its flags name, and `places` in a folder of its data."""
    own = {self.folder / name: "the run's own" for name in ('config.json', *run_dir.OWN)}
    flags = (x for field, x in vars(self.config).items() if field != 'workdir' and isinstance(x, str))
    named = [path for text in flags for path in paths.named_in(text)]
    data, folders = writers.read_json(self.folder / run_dir.DATA).get('files', {}), {path.resolve() for path in named}
    inside = lambda path: not folders.isdisjoint(path.parents) and fingerprint.has(data, path)
    read = [path for path in (*named, *places) if path.is_file() and (path in named or inside(path.resolve()))]
    return own | dict.fromkeys(read, 'which the run was made with')

  @functools.cached_property
  def spec(self):
    return getattr(self.experiment, 'Spec', Spec).from_json(self.stored['spec'])

  @functools.cached_property
  def program(self):
    return quantisation.seen(self.experiment.program(self.config, Dataset(self.spec, {})), self.config)

  @functools.cached_property
  def _loaded(self):
    file = integers.file_of(self.checkpoint, lambda name: self.own_path(self.folder / name), self._asked)
    which = self.checkpoint if file is None else 'last' if self.trial else 'best'
    arrays, information = weights.load_checkpoint(self.folder, which)
    if information['seeds'] > 1:
      arrays = {n: x if x.ndim == 0 else x[self.member or 0] for n, x in arrays.items()}  # the step is of all
    with jax.ensure_compile_time_eval():  # a program that opens a run may be made where it is traced, as a sweep's are
      shapes = jax.eval_shape(self.program.init, jax.random.key(0))
      state = checkpoint.from_arrays(arrays, {'state': shapes})['state']
      state = weights.of_file(state, file, self.program.rename_weights) if file else state
    return state, information['step']

  @property
  def state(self):
    return self._loaded[0]

  @property
  def whose(self) -> str:
    """Of which setting or seed the state is; '' where there is one only."""
    if self.trial:
      return f' of {self.trial}'
    if self.config.seeds > 1:
      which = 'the first' if self.member is None else f'member {self.member}, from 0,'
      return f', of {which} of {self.config.seeds} seeds'
    return f', of seed {self.config.seed}' if self.member is not None else ''

  @property
  def step(self) -> int:
    """The step that the state's weights are of."""
    return self._loaded[1]

  @property
  def summary(self) -> dict[str, Any]:
    """The final numbers; {} while the run is not finished."""
    return self._own(writers.read_json(self.folder / 'summary.json'))

  @property
  def metrics(self) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [self._own(row) for row in writers.read_rows(self.folder)]

  def _own(self, numbers):
    """Of numbers of all members of a sweep's program, this one's."""
    own = lambda x: own(x['values']) if isinstance(x, dict) else x[self.member] if isinstance(x, list) else x
    return numbers if self.member is None else {name: own(x) for name, x in numbers.items()}

  def verb(self, name: str) -> Bound:
    """One of the run's verbs.

    Raises:
      UsageError: for one that it has not; those that it has are named.
    """
    if name not in self.verbs:
      can = f'can {", ".join(self.verbs)}' if self.verbs else 'has no verbs'
      raise UsageError(f'{self.folder} is a run of {self.stored["experiment"]}, which cannot {name}; it {can}')
    return Bound(self, self.verbs[name])

  def __repr__(self):
    return f'<run of {self.stored["experiment"]} in {self.folder}>'

  def __getattr__(self, name: str) -> Bound:
    if name.startswith('_') or name not in self.__dict__.get('verbs', {}):
      raise AttributeError(f'a run of {self.__dict__.get("stored", {}).get("experiment")} has no {name}')
    return self.verb(name)


# ---- verbs that several experiments have ----


def of_any_run() -> dict[str, Verb]:
  """The verbs that every run has, whatever its experiment."""
  from karpjax.commands import card, evaluate, export  # which are made of what stands here

  return {'evaluate': evaluate.VERB, 'export': export.VERB, 'card': card.VERB}


def predictions(run: Run, chosen=None, then: Callable = lambda outputs: outputs) -> Predictions:
  """The function of a verb that predicts: `then` of the program's outputs."""
  return Predictions(lambda state, batch, key: then(run.program.predict(state, batch, key)))


def probabilities(run: Run, chosen=None) -> Predictions:
  """The same of classes, or of tags, by the logits of which `predict` is."""
  return predictions(run, then=jax.nn.sigmoid if getattr(run.spec, 'multi_label', False) else jax.nn.softmax)


@dataclasses.dataclass(frozen=True)
class Top:
  top: int = configs.flag(3, 'How many classes to print of each.', low=1)


def likeliest(classes: Sequence[str], row: np.ndarray, top: int) -> dict[str, float]:
  """{class: probability} of the largest of a row [classes], which come first; of equals the first."""
  return {classes[c]: float(row[c]) for c in np.argsort(-row, kind='stable')[:top]}


def classes(help: str, inputs: str, encode: Callable[..., Any], expand: Callable = list) -> Verb:
  """The verb of a classifier: the likeliest classes of each input.

  Args:
    help, inputs, expand: as for `Verb`.
    encode: (run, inputs) -> a batch, as the program's `predict` takes it.
  """

  def decode(run, outputs, inputs, chosen):
    for given, row in zip(inputs, outputs):
      yield {'input': given, 'classes': likeliest(run.spec.classes, row, chosen.top)}

  numbers = lambda found: (f'{name} {p:.4f}' for name, p in found.items())
  show = lambda answer: '  '.join([answer['input'], *numbers(answer['classes'])]) + '\n'

  return Verb(help, lambda run, inputs, _: encode(run, inputs), probabilities, decode, inputs, Top, show, expand)
