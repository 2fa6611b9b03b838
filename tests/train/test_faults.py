"""What goes wrong outside of the mathematics: each fault gives one clear line, and loses nothing."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import karpjax
from experiments import image_classification as experiment
from karpjax import command_line, config
from karpjax.commands import runs, sweep
from karpjax.data import fingerprint, images
from karpjax.errors import Diverged, UsageError
from karpjax.report import progress
from karpjax.train import checkpoint, loop, run_dir

ROOT = Path(__file__).parents[2]
SMALL = [
  '--model=mlp',
  '--widths=8',
  '--batch_size=16',
  '--steps=30',
  '--notensorboard',
  '--noplots',
  '--steps_per_call=5',
  '--checkpoint_seconds=0',
  '--compilation_cache=off',
]


def main(*argv):
  return command_line.main(experiment, [*SMALL, *argv])


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.fixture
def no_compilation(monkeypatch):
  def refuse(*_, **__):
    raise AssertionError('compiled before the error was found')

  monkeypatch.setattr(jax.stages.Lowered, 'compile', refuse)


WRONG = {
  '--dataset=digit': 'digits',
  '--dataset=mnist2': 'mnist',
  '--model=resnet2': 'resnet20',
  '--optimiser=adm': 'adam',
  '--learning_rte=1': 'learning_rate',
  '--batch_size=5000': 'larger than the train split',
  '--loss=squared_error --label_smoothing=0.1': '--label_smoothing=0.1: the program makes no use of it',
  '--boundaries=5,9': '--boundaries=5,9: the program makes no use of it',
  '--steps=0': 'at least one step',
  '--learning_rate=-1': '--learning_rate=-1.0: more than 0 is needed',
  '--learning_rate=nan': 'more than 0 is needed',
  '--seeds=1000000000': 'could fit',
  '--warmup=50': 'warmup',
  '--boundaries=20,10 --schedule=step': 'boundaries',
  '--init_from=nowhere': 'nowhere',
  f'--init_from={"1" * 300}': 'no such folder',
  '--eval_splits=tset': 'one of train, validation, test',
  '--augment=flop': 'flip',
  '--workdir=/dev/null/run': 'Not a directory',
  '--microbatches=3': 'does not divide',
  '--parallel=pmap --batch_size=12': '8 devices',
  '--model=cnn --pool=2,2,2,2 --widths=8,8,8,8': 'is left before pooling 4',
  '--select=validation/acuracy': 'there is no such metric. Did you mean validation/accuracy?',
  '--select=-vlidation/accuracy': 'Did you mean validation/accuracy?',
  '--select=validation/accuracy --validation=0': 'Did you mean test/accuracy?',
  '--select=train/los': 'Did you mean train/loss?',
  '--seed=-1': '--seed=-1: at least 0 and at most 4294967295 is needed',
  '--seed=4294967296': '--seed=4294967296: at least 0 and at most 4294967295 is needed',
  '--seed=4294967295 --seeds=2': 'the last seed would be 4294967296',
  '--split_seed=18446744073709551616': '--split_seed',
  '--steps=99999999999999999999': 'at most 2147483647',
  '--steps=1e400': '--steps=1e400: a smaller number is needed',
  '--log_every=1e400': '--log_every=1e400: a smaller number is needed',
  '--steps_per_call=99999999999999999999': '--steps_per_call=99999999999999999999: auto, or a number from 1',
  '--image_size=1000000': 'at least 0 and at most 16384 is needed',
  '--wandb=offline': 'pip install wandb',
  '--dataset=usps': 'usps.npz',
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize('argv', WRONG)
def test_bad_input_is_one_clear_line_before_anything_is_compiled(argv, empty_folder, no_compilation, capsys):
  if 'wandb' in argv and __import__('importlib').util.find_spec('wandb'):
    pytest.skip('wandb is installed')
  assert main(*argv.split()) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and error.startswith('image_classification: ') and WRONG[argv] in error, error
  assert not list(empty_folder.iterdir()), 'something was left behind'


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A finished run of 30 steps."""
  folder = tmp_path_factory.mktemp('finished') / 'run'
  assert main(f'--workdir={folder}', '--checkpoint_every=10', '--keep=3') == 0
  return folder


@pytest.fixture
def run(finished, empty_folder):
  """A copy of it, ./run."""
  return shutil.copytree(finished, 'run')


def contents(folder):
  return sorted((p, p.stat().st_mtime_ns) for p in Path(folder).rglob('*') if p.name != '.lock')


def test_changed_flags_on_an_old_workdir_are_refused_by_name(run, capsys):
  before = contents('run')
  assert main('--workdir=run', '--learning_rate=0.5', '--seed=1') == 2
  error = capsys.readouterr().err
  assert '--learning_rate=0.001, now 0.5' in error and '--seed=0, now 1' in error
  assert contents('run') == before
  assert main('--workdir=run', '--log_every=3', '--batch_size=16') == 0  # free, and unchanged


@pytest.mark.parametrize('version, age', [(None, 'an older'), (run_dir.FORMAT + 1, 'a newer')])
def test_a_workdir_of_another_version_is_refused_in_one_line(version, age, empty_folder, capsys):
  Path('run').mkdir()
  text = json.dumps(
    {'experiment': 'image_classification', 'flags': {'gone': 1}} | ({'format': version} if version else {})
  )
  Path('run/config.json').write_text(text)
  line = f'run was written by {age} version of karpjax, which this one cannot read'
  for flag in ('--workdir=run', '--init_from=run'):
    assert main(flag) == 2
    assert capsys.readouterr().err == f'image_classification: {line}\n'
  with pytest.raises(UsageError, match=line):
    karpjax.open('run')
  assert [p.name for p in empty_folder.rglob('*') if p.is_file()] == ['config.json']


def test_a_flag_that_is_newer_than_the_workdir_had_its_default(run, capsys):
  stored = json.loads(Path('run/config.json').read_text())
  assert stored['format'] == run_dir.FORMAT
  del stored['flags']['ema'], stored['flags']['warmup']
  Path('run/config.json').write_text(json.dumps(stored))
  assert main('--workdir=run', '--ema=0.9') == 2
  assert '--ema=0.0, now 0.9' in capsys.readouterr().err
  assert main('--workdir=run') == 0


def test_other_data_on_an_old_workdir_are_refused_by_name(run, capsys, monkeypatch):
  before, read = contents('run'), images.SOURCES['digits']

  def other():
    data = read()
    data.splits['test'].arrays['image'][0, 0, 0] += 1
    return data

  monkeypatch.setitem(images.SOURCES, 'digits', other)
  line = 'run: the data are not those that it began with: image of test has changed. Put them back, or train on these in another workdir'
  assert main('--workdir=run', '--steps=40') == 2
  assert capsys.readouterr().err == f'image_classification: {line}\n'
  with pytest.raises(UsageError, match=line):
    karpjax.open('run').evaluate()
  assert contents('run') == before
  monkeypatch.setitem(images.SOURCES, 'digits', read)
  assert karpjax.open('run').evaluate() and main('--workdir=run', '--steps=40') == 0


def test_data_may_move_and_what_is_new_is_said_by_its_name(empty_folder, capsys):
  for number in range(40):
    file = Path(f'here/{number % 2}/{number}.png')
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)).save(file)
  assert main('--dataset=folder:here', '--workdir=run') == 0
  Path('here').rename('there')
  assert main('--dataset=folder:there', '--workdir=run', '--steps=40') == 0
  for place in ('here', 'there'):  # of a finished run too
    Path('there' if place == 'here' else 'here').rename(place)
    assert main(f'--dataset=folder:{place}', '--workdir=run', '--steps=40') == 0
    assert karpjax.open('run').evaluate()
  assert main('--dataset=digits', '--workdir=run', '--steps=50') == 2
  assert '--dataset=folder:there, now digits' in capsys.readouterr().err
  shutil.copy('there/0/0.png', 'there/0/new.png')  # all durations in epochs are others too
  assert main('--dataset=folder:there', '--workdir=run', '--steps=50') == 2
  assert 'the data are not those that it began with: 0/new.png is new.' in capsys.readouterr().err
  Path('run/data.json').unlink()
  Path('there').rename('here')
  assert main('--dataset=folder:here', '--workdir=run', '--steps=50') == 2
  assert '--dataset=folder:there, now folder:here' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['data.json', 'index.html', 'tensorboard/events'])
def test_a_folder_of_other_things_is_no_workdir(name, empty_folder, capsys):
  file = Path('own', name)
  file.parent.mkdir(parents=True)
  file.write_text('mine')
  what = Path(name).parts[0]
  line = f'own holds no run, but {what}, which one would write over; choose another workdir'
  assert main('--workdir=own') == 2
  assert capsys.readouterr().err == f'image_classification: {line}\n'
  grid = '--grid learning_rate=0.1 --model=mlp --steps=2 --workdir=own'
  assert sweep.main(['image_classification', *grid.split()]) == 2
  assert capsys.readouterr().err == f'sweep: {line}\n' and file.read_text() == 'mine'


def test_hosts_that_have_read_other_data_than_the_first_are_refused(tmp_path, monkeypatch):
  _, data = diverging({}, 1)
  first = fingerprint.of(data)['splits']
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(run_dir.hosts, 'any_host', bool)
  monkeypatch.setattr(run_dir.hosts, 'from_host0', lambda value: first)
  assert run_dir.fingerprint_of(tmp_path, {}, data, {})['splits'] == first
  data.splits['train'].arrays['x'][3] += 1
  with pytest.raises(UsageError, match='counting: the hosts have read data that differ'):
    run_dir.fingerprint_of(tmp_path, {}, data, {})


def test_a_run_keeps_its_spec_and_an_older_one_gets_a_fingerprint(run):
  stored, data = json.loads(Path('run/config.json').read_text()), Path('run/data.json')
  kept = data.read_text()
  data.unlink()
  stored['spec']['mean'] = [0.25]  # as another machine may have summed up
  Path('run/config.json').write_text(json.dumps(stored))
  assert main('--workdir=run', '--steps=40') == 0
  assert data.read_text() == kept and json.loads(Path('run/config.json').read_text())['spec'] == stored['spec']
  stored['spec']['classes'][0] = 'zero'
  Path('run/config.json').write_text(json.dumps(stored))
  assert main('--workdir=run', '--steps=50') == 2


def test_the_workdir_alone_goes_on_with_its_own_flags(run, capsys):
  first = json.loads(Path('run/config.json').read_text())['flags']
  flags = ['--workdir=run', '--steps=40', '--compilation_cache=off']
  assert command_line.main(experiment, flags) == 0
  again = json.loads(Path('run/config.json').read_text())['flags']
  assert again == {**first, 'steps': 40, 'workdir': 'run'}
  assert 'goes on at step 30 of 40' in capsys.readouterr().out


def test_steps_do_not_grow_under_a_schedule_that_ends_with_them(run, capsys):
  stored = json.loads(Path('run/config.json').read_text())
  stored['flags']['schedule'] = 'cosine'
  Path('run/config.json').write_text(json.dumps(stored))
  assert main('--workdir=run', '--steps=60') == 2
  assert '--steps=30, now 60' in capsys.readouterr().err


def test_a_second_process_on_one_workdir_is_refused(empty_folder, capsys):
  with run_dir.claim(Path('run')):
    assert main('--workdir=run') == 2
  assert 'another process is at work in run' in capsys.readouterr().err


def rows(folder):
  every = [json.loads(line) for line in (Path(folder) / 'metrics.jsonl').read_text().splitlines()]
  return [{name: x for name, x in row.items() if name != 'steps_per_second'} for row in every]


def test_what_a_kill_leaves_changes_no_bit_of_a_runs_end(finished, run, capsys):
  """A damaged checkpoint, part of another, rows beyond the one before, the last of which is cut off, and no summary."""
  for file in Path('run/checkpoints/last/30/state').rglob('*'):
    if file.is_file():
      file.write_bytes(b'')
  shutil.copytree('run/checkpoints/last/20', 'run/checkpoints/last/30.orbax-checkpoint-tmp')
  with open('run/metrics.jsonl', 'a') as file:
    file.write('{"step": 3')
  Path('run/summary.json').unlink()
  assert main('--workdir=run', '--checkpoint_every=10') == 0
  out = capsys.readouterr().out
  assert 'step 30 is damaged' in out and 'goes on at step 20 of 30' in out
  same_end(finished, 'run', 30)
  assert rows('run') == rows(finished) and rows('run')[-1]['step'] == 30


def same_end(a, b, step):
  (x, _), (y, _) = (checkpoint.Checkpoints(Path(f) / 'checkpoints').load('last', step) for f in (a, b))
  assert x.keys() == y.keys() and all(x[n].tobytes() == y[n].tobytes() for n in x)


# ---- NaN and infinity ----


def diverging(at_step: dict[int, int], seeds: int):
  """A program whose loss is infinite from a step of its own on, by seed; its parameter counts the steps it made."""
  from karpjax.data import dataset
  from karpjax.program import Program, TrainState, pair

  split = dataset.Split.of(x=np.zeros((20, 1), np.float32))
  spec = dataset.Spec('counting', (1,), (), 1.0, (0.0,), (1.0,), 20, 'float32')

  def init(key):
    import optax

    return TrainState.create(key, {'params': {'w': jnp.zeros(())}}, optax.identity())

  def step(state, batch):
    seed = jax.random.key_data(state.key)[-1]
    limit = jnp.array([at_step.get(s, 10**6) for s in range(seeds)])[seed]
    loss = jnp.where(state.step >= limit, jnp.inf, 1.0)
    return state.replace(step=state.step + 1, params={'w': state.params['w'] + loss}), {'loss': (loss, jnp.ones(()))}

  evaluate = lambda state, batch, key: {'loss': pair(batch['x'][:, 0], batch['mask'])}
  program = Program(init, step, evaluate, lambda sums: {'loss': float(sums['loss'][0])})
  return program, dataset.Dataset(spec, {'train': split, 'validation': split})


def train(folder, at_step, seeds=1, **changes):
  settings = config.resolve(
    config.Train(steps='30', batch_size=4, seeds=seeds, workdir=str(folder), log_every='6', eval_every='10', checkpoint_every='4', checkpoint_seconds=0,
                 steps_per_call='3', tensorboard=False, plots=False, **changes), examples=20)  # fmt: skip
  said = []
  program, data = diverging(at_step, seeds)
  return lambda: loop.train(program, data, settings, experiment='counting', say=said.append), said


def test_the_loop_stops_at_infinity_and_names_step_metric_checkpoint_and_flags(tmp_path):
  run, _ = train(tmp_path, {0: 17})
  with pytest.raises(Diverged) as stopped:
    run()
  text = str(stopped.value)
  assert 'train/loss' in text or 'in loss' in text
  assert 'at step 17' in text and 'checkpoint is of step 16' in text and 'learning_rate' in text and 'clip=1' in text
  assert [step for step in checkpoint.Checkpoints(tmp_path / 'checkpoints').steps('last')][0] == 16
  assert (tmp_path / 'error.txt').read_text().startswith('Diverged: ') and runs.state_of(tmp_path) == 'failed'


def test_a_seed_that_diverges_is_masked_and_the_others_go_on(tmp_path):
  run, said = train(tmp_path, {1: 7}, seeds=3)
  summary = run()
  np.testing.assert_array_equal(summary.state.params['w'], [30, 7, 30])
  np.testing.assert_array_equal(summary.state.nonfinite_step, [-1, 7, -1])
  assert sum('seed 1 at step 7' in line for line in said) == 1
  assert json.loads((tmp_path / 'diverged.json').read_text()) == {'1': 7}


@pytest.mark.parametrize(
  'losses, seeds, said_of',
  [
    ([2.0] * 30, 1, 'the training loss, 2, is no better'),  # a guess has 2: nothing is learnt
    ([9.0] * 6 + [1.9] * 24, 1, None),  # the first losses of all are no sign
    ([2.0] * 6 + [1.98] * 24, 1, 'the training loss, 1.98, is'),
    ([2.0] * 12 + [1.0] * 18, 1, 'step 12: '),  # a tenth of the run is step 3, and its first row no sign
    ([2.0] * 30, 3, 'the training loss of 3 of 3 seeds, 2, is'),
  ],
)
def test_a_run_that_learns_no_more_than_a_guess_says_so_once(losses, seeds, said_of, tmp_path):
  program, data = diverging({}, 1)
  schedule = jnp.array(losses)
  step = lambda state, batch: (state.replace(step=state.step + 1), {'loss': (schedule[state.step], jnp.ones(()))})
  program = dataclasses.replace(program, step=step, uninformed_loss=2.0)
  settings = config.Train(
    steps='30', batch_size=4, seeds=seeds, workdir=str(tmp_path), log_every='6', eval_every='6',
    checkpoint_every='3', checkpoint_seconds=0, learning_rate=0.3, plots=False, steps_per_call='3', tensorboard=False,
  )  # fmt: skip
  said = []
  loop.train(program, data, config.resolve(settings, examples=20), experiment='counting', say=said.append)
  lines = [line for line in said if 'no better than' in line]
  assert len(lines) == (said_of is not None)
  assert not lines or (said_of in lines[0] and 'learning_rate (now 0.3) or warmup=10%' in lines[0])


def test_no_run_is_told_to_be_better_than_a_loss_of_0():
  said = []
  guess = progress.Guess(0, -0.0, config.Train(steps=10), said.append)
  for step in (1, 2):
    guess.append({'step': step, 'train/loss': 0.0})
  assert not said


def test_what_a_report_returns_is_said_at_the_end(tmp_path):
  program, data = diverging({}, 1)
  program = dataclasses.replace(program, report=lambda state, t, folder: iter([f'a line of step {t}']))
  settings = config.Train(steps='4', batch_size=4, report_every='2', workdir=str(tmp_path), tensorboard=False)
  said = []
  loop.train(program, data, config.resolve(settings, examples=20), experiment='counting', say=said.append)
  assert said[-1] == 'a line of step 4' and 'page: ' in said[-2] and 'a line of step 2' not in said


def test_when_every_seed_has_diverged_the_run_stops(tmp_path):
  run, _ = train(tmp_path, {0: 3, 1: 14}, seeds=2)
  with pytest.raises(Diverged, match='seed 0 at step 3, seed 1 at step 14'):
    run()


# ---- kills ----

KILLER = """
import os, random, signal, sys, time
sys.argv = ['launch.py', *sys.argv[1:]]
import karpjax
from experiments import image_classification as experiment
from karpjax import command_line
import orbax.checkpoint, matplotlib.figure  # imported once, here
random.seed(0)
kills, longest = int(sys.argv[1]), float(sys.argv[2])
for i in range(10 * kills):
  child = os.fork()
  if child == 0:
    os._exit(command_line.main(experiment, sys.argv[3:]))
  time.sleep(random.uniform(0.2, longest))
  if os.waitpid(child, os.WNOHANG) != (0, 0):
    print('finished', flush=True)
    break
  os.kill(child, signal.SIGKILL)
  os.waitpid(child, 0)
  kills -= 1
  if not kills:
    break
print('kills left', kills)
"""


def killed(folder, kills, longest, flags):
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  command = [sys.executable, '-c', KILLER, str(kills), str(longest), *flags, f'--workdir={folder}']
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
  left = re.search(r'kills left (\d+)', done.stdout)
  # A fast machine may come to the end of the run before the last kills.
  assert left and int(left[1]) <= kills // 2, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize('kills, steps', [(2, 20_000), pytest.param(20, 150_000, marks=pytest.mark.timeout(900))])
@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_in_the_same_bits(tmp_path, kills, steps):
  flags = ['--model=mlp', '--widths=8', '--batch_size=16', f'--steps={steps}', '--notensorboard', '--noplots', '--steps_per_call=10',
           '--checkpoint_every=500', '--log_every=250', '--eval_every=1000']  # fmt: skip
  killed(tmp_path / 'killed', kills, 2, flags)
  for folder in ('killed', 'whole'):
    assert command_line.main(experiment, [*flags, f'--workdir={tmp_path / folder}']) == 0
  same_end(tmp_path / 'killed', tmp_path / 'whole', steps)
  assert rows(tmp_path / 'killed') == rows(tmp_path / 'whole')
