"""~ in what a user gives is the home, wherever a path is read."""

import dataclasses
import importlib
import os
from pathlib import Path

import pytest

from experiments import image_classification, translation
from karpjax import command_line, config, paths, verbs
from karpjax.bench import command as bench
from karpjax.commands import monitor, runs
from karpjax.commands.launchers import slurm, tpu
from karpjax.rl import agents


@pytest.fixture
def home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.parametrize(
  ('text', 'expanded'),
  [
    ('~', 'HOME'),
    ('~/runs/a', 'HOME/runs/a'),
    ('folder:~/pictures', 'folder:HOME/pictures'),
    ('files:~/a.txt,~/b.txt', 'files:HOME/a.txt,HOME/b.txt'),
    ('bpe:~/tokenizer.json', 'bpe:HOME/tokenizer.json'),
    ('~nobody-has-this-name/a', '~nobody-has-this-name/a'),
    ('./~/a', './~/a'),
    ('a~/b', 'a~/b'),
    ('runs/~a', 'runs/~a'),
    ('', ''),
  ],
)
def test_a_tilde_that_begins_a_path_is_the_home(text, expanded, home):
  assert paths.expand(text) == expanded.replace('HOME', str(home))


def test_a_run_and_all_that_it_reads_are_at_home(home):
  argv = ['--workdir=~/runs/a', '--compilation_cache=off', '--dataset=digits', '--model=mlp', '--steps=2']
  argv += ['--widths=4', '--steps_per_call=1', '--notensorboard', '--noplots', '--final_splits=', '--eval_splits=']
  assert command_line.main(image_classification, argv) == 0
  assert (home / 'runs/a/summary.json').exists() and not Path('~').exists()
  assert command_line.main(image_classification, ['--workdir=~/runs/a']) == 0  # goes on with it
  assert command_line.main(image_classification, [*argv[1:], '--init_from=~/runs/a', '--workdir=~/runs/b']) == 0
  assert verbs.Run('~/runs/b').folder == home / 'runs/b'
  assert runs.runs(['~/runs']) == 0
  assert not Path('~').exists()


def test_an_older_run_that_wrote_a_tilde_down_goes_on(home):
  made = config.from_json(translation.Config, {'dataset': 'files:~/a,~/b', 'data_dir': '~/d'})
  assert made == translation.Config(dataset=f'files:{home}/a,{home}/b', data_dir=f'{home}/d')


def test_flags_of_verbs_and_commands_are_expanded_too(home):
  for kind, name in (
    (agents.PlayOptions, 'output'), (monitor.Options, 'output'), (tpu.Tpu, 'output'), (bench.Bench, 'json'),
    (slurm.Slurm, 'python'),
  ):  # fmt: skip
    assert getattr(command_line.parse(kind, [f'--{name}=~/x']), name) == f'{home}/x'


def test_every_flag_whose_help_names_a_path_is_one():
  words = ('DIR', 'PATH', 'FILE', 'WORKDIR', 'folder', 'older of')
  for path in sorted(Path('experiments').glob('[a-z]*.py')):
    for field in dataclasses.fields(importlib.import_module(f'experiments.{path.stem}').Config):
      meta = config.metadata(field)
      if field.type is str and not meta['choices'] and any(word in meta['help'] for word in words):
        assert meta['path'], f'{path.stem}: {field.name}'


def test_the_homes_environment_is_asked_when_a_path_is_given(home, monkeypatch):
  monkeypatch.setenv('HOME', '/elsewhere')
  assert paths.expand('~/a') == '/elsewhere/a' == os.path.expanduser('~/a')
