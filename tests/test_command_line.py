"""Flags to a Config and back."""

import codecs
import dataclasses
import os
import subprocess
import sys

import pytest

import launch
from karpjax import command_line, config
from karpjax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Config(config.Train):
  widths: tuple[int, ...] | None = config.flag(None, 'Widths.')
  rate: float | None = config.flag(None, 'A rate.')
  flag: bool | None = config.flag(None, 'A flag.')


def test_flags_round_trip():
  given = Config(seed=3, widths=(1, 2), rate=0.5, learning_rate=1e-4, flag=True, eval_splits=())
  assert command_line.parse(Config, config.as_flags(given)) == given
  assert command_line.parse(Config, ['--widths=']).widths == ()


def test_flags_given_override_a_base_and_leave_the_rest():
  base = Config(seed=3, batch_size=7)
  assert command_line.parse(Config, ['--batch_size=9'], base=base) == dataclasses.replace(base, batch_size=9)


def test_flagfile(tmp_path):
  (tmp_path / 'a.flags').write_text('# a comment\n--seed=5\n--noflag\n')
  assert command_line.parse(Config, [f'--flagfile={tmp_path / "a.flags"}', '--seeds=2']) == Config(
    seed=5, seeds=2, flag=False
  )


@pytest.mark.parametrize(
  'argv, message',
  [
    (['--learning_rat=1'], 'learning_rate'),
    (['--seed=one'], 'seed=one: a whole number is needed'),
    (['--learning_rate=x'], 'learning_rate=x: a number is needed'),
    (['--lr=1'], r'unknown flag --lr. Did you mean --learning_rate\?'),
    (['--optimizer=adam'], r'unknown flag --optimizer. Did you mean --optimiser\?$'),
    (['--xyzzy'], 'unknown flag --xyzzy. --help shows the flags.'),
    (['--epochs=3'], 'Did you mean --steps=10epochs'),
    (['--optimiser=adamm'], 'adam'),
    (['stray'], 'stray'),
    (['--flagfile=/nowhere'], 'nowhere'),
  ],
)
def test_what_is_no_flag(argv, message):
  with pytest.raises(UsageError, match=message):
    command_line.parse(Config, argv)


def test_two_configs_live_in_one_process():
  one, two = command_line.flag_values(Config), command_line.flag_values(config.Train)
  assert 'widths' in one and 'widths' not in two


def test_usage_shows_every_flag_with_type_default_and_help():
  text = command_line.usage(Config, 'name', 'What it is.', 'all')
  for field in dataclasses.fields(Config):
    assert f'--{field.name}=' in text and field.metadata['help'] in ' '.join(text.split())
  assert '--batch_size=int (default 128)' in text and '--widths=int,…' in text and '--parallel=none|pmap' in text


def test_usage_shows_the_defaults_of_models_and_a_flag_wins_over_them():
  own = config.defaults(models={'deep': {'learning_rate': 5e-4}}, learning_rate=0.002)
  of_models = own(type('Config', (config.Train,), {'__annotations__': {'model': str}, 'model': config.flag('flat')}))
  assert '--learning_rate=number (default 0.002; deep 0.0005)' in command_line.usage(of_models, 'name', '')
  rate = lambda *flags: config.resolve(command_line.parse(of_models, ['--batch_size=1', *flags]), 9).learning_rate
  assert (rate(), rate('--model=deep'), rate('--model=deep', '--learning_rate=0.002')) == (0.002, 5e-4, 0.002)


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1'])
def test_signs_that_a_terminal_has_not_are_spelt(encoding):
  """Plus or minus, and letters of other scripts: what is printed can be read, and is all there."""
  codecs.register_error('karpjax.spell', launch.spell)
  text = 'accuracy 0.98 ± 0.01 · 8×8 → «ж» \udcff'
  said = text.encode(encoding, 'karpjax.spell').decode(encoding)
  assert (
    said
    == {
      'ascii': 'accuracy 0.98 +- 0.01 - 8x8 -> "\\u0436" \\udcff',
      'latin-1': 'accuracy 0.98 ± 0.01 · 8×8 -> «\\u0436» \\udcff',
    }[encoding]
  )


@pytest.mark.parametrize(
  'environment', [{'PYTHONIOENCODING': 'ascii'}, {'LC_ALL': 'C', 'PYTHONCOERCECLOCALE': '0', 'PYTHONUTF8': '0'}]
)
def test_the_front_door_opens_in_an_ascii_terminal(environment):
  command = [sys.executable, launch.__file__]
  done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True)
  assert done.returncode == 0 and done.stderr == b'' and done.stdout.isascii() and b'--flag=value ...' in done.stdout


class Plain(config.Train):
  width: int = 3


@dataclasses.dataclass(frozen=True)
class Taken(config.Train):
  momentum: str = 'x'


@dataclasses.dataclass(frozen=True)
class Unlike(config.Train):
  table: dict | None = None


@pytest.mark.parametrize(
  ('config_class', 'message'),
  [
    (Plain, 'Config must inherit from config.Train'),
    (object, 'Config must inherit from config.Train'),
    (Taken, 'Config.momentum has the name of a flag'),
    (Unlike, 'Config.table is of no kind that a flag has'),
  ],
)
def test_a_config_of_which_no_flags_can_be_made_is_said_in_a_line(config_class, message):
  with pytest.raises(UsageError, match=message):
    command_line.check_config(config_class)


@dataclasses.dataclass(frozen=True)
class Later(config.Train):
  width: 'int' = 3  # as below `from __future__ import annotations`


def test_annotations_that_are_texts_make_flags_too():
  command_line.check_config(Later)
  assert command_line.parse(Later, ['--width=5']).width == 5


def test_an_experiment_named_like_a_command_and_one_half_written_stand_in_no_way(tmp_path, monkeypatch, capsys):
  (tmp_path / 'experiments').mkdir()
  for name, content in {'runs': '"""Mine."""', 'broken': 'def f(:'}.items():
    (tmp_path / 'experiments' / f'{name}.py').write_text(content)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', list(sys.path))
  assert launch.main(['runs', 'experiments']) == 0
  assert 'runs is the command; experiments/runs.py needs another name' in capsys.readouterr().err
  assert launch.main([]) == 0 and 'does not parse: ' in capsys.readouterr().out


@pytest.mark.parametrize(
  'typed, said',
  {
    '--help=all': 'launch.py: --help=all stands behind a name: python launch.py NAME --help=all',
    'runs/nothing': 'launch.py: runs/nothing: no such folder',
    'compar': "launch.py: unknown experiment 'compar'. Did you mean compare?",
    'compare': 'compare: which runs? python launch.py compare WORKDIR WORKDIR …',
    'runs a b': 'runs: unrecognized arguments: b',
    'reproduce --runs': 'reproduce: argument --runs: expected one argument',
    'bench': 'bench: which set-up? python launch.py bench NAME, all or start; bench --help lists them',
    'sweep regression --grid learning_rate': 'sweep: --grid learning_rate: an axis needs values, as --grid learning_rate=…',
    'image_classification --model=mymodule:Wide': 'image_classification: --model=mymodule:Wide: mymodule does not import: '
    "No module named 'mymodule'; it has to lie where you type the command, or in PYTHONPATH",
  }.items(),
)
def test_what_is_typed_wrongly_at_the_front_door_is_said_in_one_line(typed, said, capsys):
  assert launch.main(typed.split()) == 2 and capsys.readouterr().err == f'{said}\n'


@pytest.mark.parametrize(
  'typed, shown',
  {
    'regression --help=': '--learning_rate=number',
    'check regression --help': 'python launch.py check NAME',
    'bench --help': '--steps_per_call=int,…',
    'bench mlp --help=threads': '--threads=int,…',
    'slurm --help=nodes': '--nodes=int',
  }.items(),
)
def test_help_is_given_wherever_it_is_asked_for(typed, shown, capsys):
  assert launch.main(typed.split()) == 0 and shown in capsys.readouterr().out
