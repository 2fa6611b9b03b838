"""Whatever is typed behind a flag or a verb: what it asks for is prepared, or one line says why not, with exit code 2."""

import dataclasses
import functools
import itertools
import json
import re
import resource
import signal
import traceback
import warnings
from pathlib import Path

import jax
import pytest
from PIL import Image

import launch
from karpjax import command_line, options, verbs
from karpjax import config as configs
from karpjax.commands import use
from karpjax.train import hosts, prepare, run_dir, runner, runtime

EDGES = (
  *('', ',', ':', '-1', '0', '1', '2147483647', str(10**30), '1' + '0' * 400, '1e300', 'nan', 'inf', '-inf', '0.5', '1,-1'),
  *('0epochs', '-1epochs', 'nanepochs', '1e300epochs', '1e300', 'ünï ☃', '\udcff', 'x' * 300, 'a:b', '{folder}', '{file}'),
  *('folder:{file}', 'text:{folder}', 'lines:{file}', 'files:{folder},{file}', '~nobody', '.', 'None', 'true', '--'),
)  # fmt: skip
SMALL = {'super_resolution': ['--factor=2', '--crop=12'], 'image_to_image': ['--image_size=16']}
COUNTS = 'layers', 'blocks', 'depth', 'kernel_size', 'kernel_sizes', 'window', 'windows'
EXPERIMENTS = [*launch.experiments()]
OF_ALL = [field.name for field in dataclasses.fields(configs.Train)]
WHOLE = 'regression', 'evolution'  # the quickest with data and with environments: of all flags they have all values
PARTS = 4  # of an experiment's flags, each value of which is traced
SECONDS, MEMORY = 120, 4 * 2**30  # of processors, and bytes, for one command at the most


class PreparedError(Exception):
  """All is checked, and nothing compiled."""


@pytest.fixture
def door(tmp_path, monkeypatch, capsys):
  """(argv) -> '' where a command is prepared, done or refused in one line; else what it did instead."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'file').write_text('a file')

  def stop(*_, **__):
    raise PreparedError

  for method in ('init', 'compile', 'compile_evaluation', 'compile_only'):  # compilers are threads, which would go on
    monkeypatch.setattr(runner.Runner, method, stop)
  monkeypatch.setattr(runtime, 'set_up', lambda *_: None)  # of a process
  monkeypatch.setattr(hosts, 'meet', stop)
  monkeypatch.setattr(jax.distributed, 'initialize', stop)
  for module, name in ((launch, 'experiments'), (command_line, 'experiment')):  # they read all files each time
    monkeypatch.setattr(module, name, functools.cache(getattr(module, name)))
  for name in EXPERIMENTS:
    monkeypatch.setattr(command_line.experiment(name), 'data', remembered(command_line.experiment(name).data))
  number = iter(range(10**9))

  def enter(argv):
    if next(number) % 100 == 99:
      jax.clear_caches()
    signal.signal(signal.SIGPROF, lambda *_: (_ for _ in ()).throw(TimeoutError(f'{SECONDS} s were not enough')))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used() + MEMORY, resource.RLIM_INFINITY))
    try:
      warnings.simplefilter('error', RuntimeWarning)  # of NumPy's, for what no longer is the number given
      launch.command([x.replace('{folder}', 'folder').replace('{file}', 'file') for x in argv])
    except PreparedError:
      return ''
    except SystemExit as ended:
      code = ended.code
    except Exception as error:  # a traceback
      frames = [frame for frame in traceback.extract_tb(error.__traceback__) if str(launch.ROOT) in frame.filename]
      code = f'{type(error).__name__}: {error}'[:300] + f' ({frames[-1].filename}:{frames[-1].lineno})'
    finally:
      signal.setitimer(signal.ITIMER_PROF, 0)
      resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
      lines = capsys.readouterr().err.splitlines()
    refused = (
      len(lines) == 1 and 'MemoryError' not in lines[0]
    )  # filled it bit by bit, which NumPy's words name at once
    return '' if code == 0 or (code == 2 and refused) else f'{argv}: {code}, {lines[:3]}'

  return enter


def used() -> int:
  """Bytes of this process's address space."""
  return int(re.search(r'VmSize:\s+(\d+)', Path('/proc/self/status').read_text())[1]) * 1024


@functools.cache
def remembered(data):
  """The same function, which makes the data of one experiment's usual flags once."""
  kept = []

  def load(config):
    for names, values, made in kept:
      if [getattr(config, name) for name in names] == values:
        return made
    read = set()
    made = data(configs.watched(config, read))
    names = sorted(read & {field.name for field in dataclasses.fields(config)})
    values = [getattr(config, name) for name in names]
    if not kept:
      kept.append((names, values, made))
    return made

  return load


def tables(name: str) -> list[dict]:
  """The tables of the models of an experiment."""
  found = vars(getattr(command_line.experiment(name), 'models', object)).values()
  return [table for table in found if isinstance(table, dict)]


def commands(name: str, flag: str, edge: str, number: int) -> list[str]:
  """A command that gives a flag an edge value, of a model that has it."""
  config_class = command_line.experiment(name).Config
  choices = {f.name: configs.metadata(f)['choices'] for f in dataclasses.fields(config_class)}.get('model') or ()
  have = lambda model: any(flag in options.of_model(table[model]) for table in tables(name) if model in table)
  models = [model for model in choices if have(model)]
  model = [f'--model={models[number % len(models)]}'] if models else []
  return [name, *SMALL.get(name, []), *model, f'--{flag}={edge}']


def fields(name: str) -> list[str]:
  return [field.name for field in dataclasses.fields(command_line.experiment(name).Config)]


def test_every_flag_has_had_an_edge_value(door, monkeypatch):
  """Another one for each flag, those of all experiments each in one of them; as far as a Program is made of it."""
  monkeypatch.setattr(runner.Runner, '__init__', runner.Runner.init)
  own = [(name, flag) for name in EXPERIMENTS for flag in fields(name) if flag not in OF_ALL]
  general = [(EXPERIMENTS[i % len(EXPERIMENTS)], flag) for i, flag in enumerate(OF_ALL)]
  asked = [commands(*both, EDGES[7 * i % len(EDGES)], i) for i, both in enumerate(own + general)]
  wrong = [said for argv in asked if (said := door(argv))]
  assert not wrong, '\n'.join(wrong)


def test_numbers_of_layers_and_windows_have_a_largest_value():
  """Each layer and each place of a window is traced, were there two thousand million."""
  made = [constructor for name in EXPERIMENTS for table in tables(name) for constructor in table.values()]
  modules = [constructor for constructor in made if dataclasses.is_dataclass(getattr(constructor, 'func', constructor))]
  counts = [field for module in modules for name, field in options.of_model(module).items() if name in COUNTS]
  assert len(counts) > 5 and all(field.metadata['high'] for field in counts)


@pytest.mark.parametrize(
  'argv',
  [
    'gan --latent',
    'vae --latent',
    'translation --beam',
    'text_classification --windows',
    'evolution --episodes',
    'evolution --batch_size',
    'policy_gradient --rollout',
  ],
)
def test_a_number_that_would_take_all_memory_is_not_tried(door, argv, capsys):
  with pytest.raises(SystemExit):
    launch.command(f'{argv}=2147483647'.split())
  assert re.fullmatch(r'\w+: --\w+=2147483647: at least 1 and at most \d+ is needed\n', capsys.readouterr().err)


GIVEN = {'TEXT …': 'a text <mask>', 'IMAGE …': 'picture.png', 'FILE.csv': 'table.csv'}


@pytest.fixture
def verbs_of(door, monkeypatch):
  """(name) -> {verb: [its flags]} of a run that lies in the folder NAME: all but its weights."""
  Image.new('RGB', (40, 40)).save('picture.png')
  Path('table.csv').write_text('time,text\n' + ''.join(f'{i},a text\n' for i in range(40)))
  monkeypatch.setattr(verbs.Run, '_loaded', property(lambda run: hosts.meet()))

  def make(name):
    experiment = command_line.experiment(name)
    config = command_line.parse(experiment.Config, SMALL.get(name, []))
    _, data, config = prepare.prepare(experiment, config)
    stored = {'format': run_dir.FORMAT, 'experiment': name, 'flags': configs.to_json(config), 'command': ''}
    Path(name).mkdir()
    Path(name, 'config.json').write_text(json.dumps({**stored, 'spec': data.spec.to_json()}))
    own = {**getattr(experiment, 'verbs', {}), **verbs.of_any_run()}
    given = {verb: [GIVEN[each.inputs]] if each.inputs else [] for verb, each in own.items()}
    flags = lambda verb: [f.name for kind in (own[verb].options, use.Asking) for f in dataclasses.fields(kind)]
    return {verb: (given[verb], flags(verb)) for verb in own}

  return make


def test_verbs_have_had_edge_values(door, verbs_of):
  """Each of their flags another one, and their inputs."""
  number, wrong = itertools.count(), []
  for name in EXPERIMENTS:
    for verb, (given, flags) in verbs_of(name).items():
      asked = [[verb, name, *given, f'--{flag}={EDGES[7 * next(number) % len(EDGES)]}'] for flag in flags]
      asked += [[verb, name, EDGES[11 * next(number) % len(EDGES)]]]
      wrong += [said for argv in asked if (said := door(argv))]
  assert not wrong, '\n'.join(wrong)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('name', EXPERIMENTS)
def test_every_edge_value_of_every_verb(door, verbs_of, name):
  asked = []
  for verb, (given, flags) in verbs_of(name).items():
    asked += [[verb, name, *given, f'--{flag}={edge}'] for flag in flags for edge in EDGES]
    asked += [[verb, name, edge] for edge in EDGES]
  wrong = [said for argv in asked if (said := door(argv))]
  assert not wrong, '\n'.join(wrong)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('name', EXPERIMENTS)
@pytest.mark.parametrize('part', range(PARTS))
def test_every_edge_value_of_every_flag(door, name, part):
  """All flags in two experiments; in the others their own, and of each flag of all its share of the values."""
  turn, asked = EXPERIMENTS.index(name), []
  for number, flag in [*enumerate(fields(name))][part::PARTS]:
    step, first = (
      (1, 0) if flag not in OF_ALL or name in WHOLE else (len(EXPERIMENTS), (turn + number) % len(EXPERIMENTS))
    )
    asked += [commands(name, flag, edge, i) for i, edge in [*enumerate(EDGES)][first::step]]
  wrong = [said for argv in asked if (said := door(argv))]
  assert not wrong, '\n'.join(wrong)
