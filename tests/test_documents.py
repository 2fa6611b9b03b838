"""What README and docs say: links resolve, flags exist, all commands run, and the Python of docs/python.md."""

import dataclasses
import functools
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch import OF_ANY_RUN

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
PAGES = [*DOCUMENTS, ROOT / 'experiments' / 'papers' / 'README.md', ROOT / 'karpjax' / 'bench' / 'README.md']
EXPERIMENTS = sorted(path.stem for path in (ROOT / 'experiments').glob('[a-z]*.py'))
# As a reader goes through them: later documents ask runs of earlier ones.
ORDER = [
  ROOT / 'README.md',
  *(
    ROOT / 'docs' / f'{name}.md'
    for name in (
      'data',
      'images',
      'runs',
      'explain',
      'sweeps',
      'devices',
      'efficiency',
      'privacy',
      'experiment',
      'python',
      'deploy',
    )
  ),
]
# Commands that a fresh machine cannot run, and what they lack there.
NEEDS = {
  '-m pytest': 'a suite beside this one',
  'torch.load': 'PyTorch',
  'inception.safetensors': "Inception's weights",
  '--data_dir=downloads': 'MNIST',
  'launch.py audit': 'fairlearn',
  'launch.py serve': 'somebody who stops it',
  'karpjax.serving.speed': 'starlette',
}


def blocks(path: Path, language: str) -> list[str]:
  """The fenced blocks of a document that are of this language."""
  return re.findall(rf'^```{language}\n(.*?)^```$', path.read_text(), re.MULTILINE | re.DOTALL)


def commands(path: Path) -> list[str]:
  """The commands in a document's fenced blocks and, of launch.py, between backticks."""
  fenced = [line.split('  #')[0].strip() for block in blocks(path, '') for line in block.splitlines()]
  inline = re.findall(r'`(python launch\.py [^`…]+)`', path.read_text())
  return [line for line in [*fenced, *inline] if line.startswith('python ')]


def fields(*classes) -> set[str]:
  return {field.name for cls in classes for field in dataclasses.fields(cls)}


@functools.cache
def flags_of_commands() -> dict[str, set[str]]:
  """{command: the flags of its own}, of every command and verb; of an experiment all."""
  from karpjax import verbs
  from karpjax.bench import command as bench
  from karpjax.commands import quantise, reproduce, runs, shrink, sweep, use
  from karpjax.commands.launchers import slurm, tpu
  from karpjax.serving import command as serving

  declared = lambda module: set(re.findall(r"'--(\w+)',", Path(module.__file__).read_text()))
  own = {'reproduce': declared(reproduce), 'sweep': declared(sweep), 'runs': declared(runs), 'compare': declared(runs)}
  own |= {
    'tpu': fields(tpu.Tpu),
    'slurm': fields(slurm.Slurm),
    'bench': fields(bench.All) | fields(bench.start.Start),
    'check': set(),
    'serve': fields(serving.Serving),
    'quantise': fields(quantise.Command),
    'shrink': fields(shrink.Command),
  }
  for name in EXPERIMENTS:
    module = importlib.import_module(f'experiments.{name}')
    own[name] = fields(module.Config)
    for verb, what in {**getattr(module, 'verbs', {}), **verbs.of_any_run()}.items():
      own[verb] = own.get(verb, set()) | fields(use.Asking, what.options)
  return own


def known_flags(words: list[str]) -> set[str]:
  """The flags of a command of launch.py, with those of the experiment that it names; of no known command those of all."""
  every = flags_of_commands()
  named = [word for word in words[:1] if word in every] + [word for word in words[1:] if word in EXPERIMENTS]
  of_runs = every['regression'] & every['gan'] if words[:1] == ['reproduce'] else set()
  known = set().union(*(every[word] for word in named or every), of_runs)
  return known | {'help', 'flagfile', 'devices', 'processes'} | (set() if named else {'flag'})


def unknown(text: str, words: list[str]) -> list[str]:
  """The flags in a text that the command of these words does not take."""
  found = re.findall(r'--(?:no)?([a-z]\w+)', text)
  return [flag for flag in found if not {flag, f'no{flag}'} & known_flags(words)]


@pytest.mark.parametrize('path', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve_and_flags_exist(path):
  text = path.read_text()
  for link in re.findall(r'\]\(([^)#]+)\)', text):
    assert link.startswith('http') or (path.parent / link).exists(), link
  others = 'pip install', 'tfds build', 'tensorboard', 'python -m '
  assert not unknown('\n'.join(line for line in text.splitlines() if not any(x in line for x in others)), [])
  for line in commands(path):
    words = [word for word in shlex.split(line)[2:] if not word.startswith('--')]
    if line.startswith('python launch.py') and not re.search(r'--model=\S+:', line):  # whose fields are flags
      assert not unknown(line, words), line


def test_a_flag_of_another_experiment_is_unknown():
  assert unknown('--latent=3 --seeds=2 --nogrid', ['gan']) == ['grid'] and unknown('--latent=3', []) == []
  assert unknown('--latent=3 --split=test', ['evaluate', 'runs/a']) == ['latent']
  assert unknown('--grid latent=1 --latent=3', ['sweep', 'regression']) == ['latent']


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.name)
def test_commands_name_what_there_is(path):
  from karpjax import command_line
  from karpjax.commands import reproduce

  verbs = {
    verb for name in EXPERIMENTS for verb in getattr(importlib.import_module(f'experiments.{name}'), 'verbs', {})
  }
  for line in commands(path):
    words = [word for word in shlex.split(line)[2:] if not re.match(r'--(devices|processes)=', word)]
    if not line.startswith('python launch.py') or not words or not re.fullmatch(r'[a-z]\w*', words[0]):
      continue
    name, *rest = words
    if name in EXPERIMENTS and not any(':' in word and '--model=' in word for word in rest):
      command_line.parse(importlib.import_module(f'experiments.{name}').Config, rest)
    elif name == 'reproduce':
      assert all((reproduce.PAPERS / f'{n}.flags').exists() for n in rest if not n.startswith('--')), line
    else:
      commands_ = {'runs', 'compare', 'sweep', 'check', 'shrink', 'quantise', 'bench', 'serve', 'tpu', 'slurm'}
      assert name in {*EXPERIMENTS, *verbs, *OF_ANY_RUN, *commands_}, line


def test_readme_is_short():
  lines = (ROOT / 'README.md').read_text().splitlines()
  assert len(lines) <= 150 and max(map(len, lines)) <= 100


# ---- all of it, one command after the other, as a reader would ----


@pytest.fixture(scope='module')
def desk(tmp_path_factory):
  """A folder with a checkout's files and with what the documents suppose: pictures, texts, tables."""
  from PIL import Image

  folder = tmp_path_factory.mktemp('desk')
  for name in ('karpjax', 'experiments', 'launch.py'):
    (folder / name).symlink_to(ROOT / name)
  for kind, shade in (('cat', 40), ('dog', 200)):
    (folder / 'pets' / kind).mkdir(parents=True)
    for i in range(100):
      Image.new('L', (40, 36), shade + i % 40).save(folder / 'pets' / kind / f'{i}.png')
  Image.new('L', (8, 8), 90).save(folder / 'seven.png')
  words = [
    'the',
    'cat',
    'sat',
    'on',
    'a',
    'mat',
    'and',
    'saw',
    'the',
    'dog',
    'run',
    'past',
    'a',
    'red',
    'house',
    'by',
    'the',
    'sea',
  ]
  (folder / 'book.txt').write_text('\n'.join(' '.join(words[i % 7 :] + words[: i % 5]) for i in range(300)))
  rows = [f'{words[i % 9]} {words[i % 4]} {words[i % 13]},{"good" if i % 9 < 4 else "bad"}' for i in range(120)]
  (folder / 'reviews.csv').write_text('\n'.join(['text,label', *rows]) + '\n')
  houses = [f'{i % 7},{"Oslo" if i % 3 else "Rome"},{100 + 30 * (i % 7)}' for i in range(60)]
  (folder / 'houses.csv').write_text('\n'.join(['rooms,town,price', *houses]) + '\n')
  (folder / 'mine.de').write_text('\n'.join(f'eins {i} zwei {i % 7}' for i in range(400)) + '\n')
  (folder / 'mine.en').write_text('\n'.join(f'one {i} two {i % 7}' for i in range(400)) + '\n')
  (folder / 'tagged').mkdir()
  for split, size in (('train', 60), ('valid', 20), ('test', 20)):
    sentences = (f'Anna B-PER\nmet O\n{words[i % 11]} O\n' for i in range(size))
    (folder / 'tagged' / f'{split}.txt').write_text('\n'.join(sentences) + '\n')
  model = next(block for block in blocks(ROOT / 'docs' / 'experiment.md', 'python') if 'class Wide' in block)
  (folder / 'mymodels.py').write_text(model)
  return folder


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_command_and_block_runs(desk):
  environment = {key: value for key, value in os.environ.items() if key != 'XLA_FLAGS'}
  run = functools.partial(subprocess.run, cwd=desk, env=environment, capture_output=True, text=True, check=False)
  for path in ORDER:
    for line in dict.fromkeys(commands(path)):
      if any(text in line for text in NEEDS) or re.search(r'\b(NAME|WORKDIR|PATH|DIR)\b', line):
        continue
      done = run([sys.executable, *shlex.split(line)[1:]])
      assert done.returncode == 0, f'{line}\n{done.stdout[-500:]}\n{done.stderr[-2000:]}'
    if path.stem == 'python':
      done = run([sys.executable, '-c', '\n'.join(blocks(path, 'python'))])
      assert done.returncode == 0, done.stderr
