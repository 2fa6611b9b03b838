"""A sweep's members are the runs they stand for; what one asks wrongly is said first; what fails loses nothing else."""

import contextlib
import csv
import dataclasses
import json
import math
import re
import sqlite3
import sys
from pathlib import Path

import jax
import numpy as np
import optuna
import pytest

import karpjax
from experiments import image_classification as experiment
from karpjax import command_line, config, errors, population
from karpjax.commands import sweep, use
from karpjax.commands.sweep import __main__ as program
from karpjax.commands.sweep import outcome, processes, settings, study
from karpjax.report import writers
from karpjax.train import loop, weights

TINY = dict(
  model='mlp',
  widths=(8,),
  batch_size=16,
  steps='3',
  steps_per_call='3',
  tensorboard=False,
  plots=False,
  eval_every='0',
  final_splits=('validation',),
)
FLAGS = [*config.as_flags(experiment.Config(**TINY)), '--compilation_cache=off']
MEMBERS = {
  'adam': dict(
    learning_rate=(0.01, 0.03),
    weight_decay=(0.0, 0.1),
    beta1=(0.8, 0.95),
    beta2=(0.99, 0.999),
    epsilon=(1e-8, 1e-3),
    clip=(0.0, 0.05),
  ),
  'nesterov': dict(learning_rate=(0.1, 0.02), momentum=(0.5, 0.9), final_learning_rate=(0.001, 0.01)),
  'muon': dict(learning_rate=(0.01, 0.02), momentum=(0.5, 0.9), weight_decay=(0.0, 0.1)),
  'sgd': dict(learning_rate=(0.1, 0.02), decay=(0.5, 0.2)),
}
SCHEDULES = {'nesterov': dict(schedule='cosine', warmup='1'), 'sgd': dict(schedule='exponential', decay_every='1')}


SLOW = [pytest.param(optimiser, (0, 1), marks=pytest.mark.slow) for optimiser in MEMBERS]


@pytest.mark.parametrize('optimiser, members', [('adam', (1,)), *SLOW])
def test_a_member_alone_is_the_run_with_its_flags(tmp_path, optimiser, members):
  hyper, seeds = MEMBERS[optimiser], (7, 3)
  common = TINY | SCHEDULES.get(optimiser, {}) | dict(optimiser=optimiser, ema=0.7, dropout=(0.4,))
  varied = population.varied(experiment, hyper, seeds)
  config = experiment.Config(**common, seeds=2, workdir=str(tmp_path / 'together'))
  together = loop.run(varied, config, say=lambda _: None)
  for member in members:
    own = {name: values[member] for name, values in hyper.items()}
    config = experiment.Config(**common | own, seed=seeds[member], workdir=str(tmp_path / f'alone{member}'))
    alone = loop.run(experiment, config, say=lambda _: None)
    for name in ('params', 'eval_params'):
      ours = jax.tree.map(lambda x: x[member], getattr(together.state, name))
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, getattr(alone.state, name))
    for name in ('train/loss', 'validation/loss'):
      np.testing.assert_allclose(together.numbers[name]['values'][member], alone.numbers[name], rtol=1e-4)
  # The members are not each other's equals: each had its own numbers.
  leaves = jax.tree.leaves(together.state.params)
  assert all(np.abs(x[0] - x[1]).max() > 1e-4 for x in leaves)
  # Learning rates are no seeds: no page says so, and nobody asks the first of them unawares.
  assert not (tmp_path / 'together' / 'index.html').exists()
  with pytest.raises(ValueError, match='2 members of a sweep'):
    karpjax.open(tmp_path / 'together')
  # A setting's members are its seeds, never another setting's.
  (tmp_path / 'sweep.json').write_text('{}')
  heads = 'trial,axis,status,validation/loss,validation/loss/std,reason,folder,member'
  (tmp_path / 'trials.csv').write_text(f'{heads}\n1,x,done,0.5,,,{tmp_path}/together,0\n')
  assert karpjax.open(tmp_path, trial=1, member=0).member == 0
  with pytest.raises(errors.UsageError, match='member=1: the seeds of trial 1: axis=x are fewer'):
    karpjax.open(tmp_path, trial=1, member=1)


def test_what_a_run_says_of_diverged_members_is_what_a_sweep_reads(tmp_path):
  common = TINY | dict(optimiser='adam', ema=0.7, dropout=(0.4,), seeds=2, workdir=str(tmp_path))
  varied = population.varied(experiment, MEMBERS['adam'] | dict(learning_rate=(1e30, 1e35)), (7, 3))
  with pytest.raises(errors.Diverged) as stopped:
    loop.run(varied, experiment.Config(**common), say=lambda _: None)
  found = processes.diverged(tmp_path)
  assert found.keys() == {0, 1} and all(
    f'seed {seed} at step {step}' in str(stopped.value) for seed, step in found.items()
  )


def test_a_database_without_room_is_a_full_disk():
  database = sqlite3.connect(':memory:')
  database.execute('PRAGMA max_page_count=1')
  with pytest.raises(OSError, match='No space left') as failed, study.full_disk():
    try:
      database.execute('CREATE TABLE settings (x)')
    except sqlite3.OperationalError as error:
      raise optuna.exceptions.StorageInternalError('while committing') from error
  assert errors.full_disk(failed.value).startswith('the disk is full: the database could not be written')


def asked(*argv) -> settings.Sweep:
  return settings.parse(*sweep.arguments(['image_classification', *FLAGS, *argv]))


def parts(*argv):
  asks = asked(*argv)
  settings.check(asks)
  return settings.parts(asks), settings.lines(asks)


@pytest.mark.parametrize(
  'axes', [['--grid', 'learning_rate=0.1,0.2'], ['--trials=2', '--search', 'learning_rate=0.1,0.2']]
)
def test_a_sweep_goes_on_where_its_data_have_moved(axes, tmp_path, monkeypatch):
  write = lambda name, content: (tmp_path / name).write_text(json.dumps(content))
  began, ran = asked(*axes, '--dataset=folder:here'), []
  write('sweep.json', {'asks': writers.plain(began.asks)})
  for kept, place, fine in (
    ({}, 'folder:there', False),
    ({'splits': {}}, 'folder:there', True),
    ({'splits': {}}, 'digits', False),
  ):
    write('data.json', kept)
    with contextlib.nullcontext() if fine else pytest.raises(errors.UsageError, match='--dataset was folder:here, now'):
      asks = settings.refuse_changes(tmp_path, moved := asked(*axes, f'--dataset={place}'))
      monkeypatch.setattr(processes, 'run', simulated(ran))
      trials = search(began, tmp_path)
      assert study.run(moved, asks, tmp_path, lambda _: None) == trials and len(ran) == len({t.folder for t in trials})


def test_traced_axes_share_a_program_and_the_others_do_not():
  grid = ('--grid', 'learning_rate=1,2,3', '--grid', 'widths=4,8', '--grid', 'clip=0,0.5', '--seeds=2')
  found, lines = parts(*grid)
  assert [len(part) for part in found] == [6, 6]
  assert [{setting['widths'] for setting in part} for part in found] == [{'4'}, {'8'}]
  assert 'vmapped, in one program: learning_rate, clip, seeds' in lines
  assert 'one program each, as they change the program itself: widths' in lines
  # Three settings of two seeds are six members.
  assert [len(part) for part in parts('--grid', 'learning_rate=1,2,3,4', '--seeds=2', '--together=6')[0]] == [3, 1]
  assert len(parts('--grid', 'widths=4;8,8')[0]) == 2


def test_a_part_of_one_setting_is_an_ordinary_run_and_settings_alike_are_members_all_the_same():
  alone = processes.command(
    asked('--grid', 'clip=0.5', '--grid', 'widths=4'), [{'clip': '0.5', 'widths': '4'}], Path('x')
  )
  assert alone[1].endswith('launch.py') and {'--clip=0.5', '--widths=4', '--workdir=x'} <= set(alone)
  twice = asked('--trials=2', '--search', 'clip=0,0.5', '--together=2')
  command = processes.command(twice, [{'clip': '0.5'}, {'clip': '0.5'}], Path('x'))
  assert json.loads(command[4]) == {'clip': [0.5, 0.5]}


def test_a_program_of_several_settings_has_each_with_each_seed(monkeypatch):
  ran = []
  monkeypatch.setattr(population, 'varied', lambda module, hyper, seeds: (module, hyper, seeds))
  monkeypatch.setattr(command_line, 'main', lambda *called: ran.append(called) or 7)
  flags = ['--seed=4', '--seeds=2', '--workdir=x']
  assert program.main('image_classification', '{"learning_rate": [1.0, 0.5], "clip": [0, 2]}', *flags) == 7
  hyper = {'learning_rate': [1.0, 1.0, 0.5, 0.5], 'clip': [0, 0, 2, 2]}
  assert ran == [((experiment, hyper, [4, 5, 4, 5]), [*flags, '--seeds=4', '--noplots'])]


WRONG = {
  '': '--grid --search',
  '--grid learning_rte=1,2': 'Did you mean learning_rate?',
  '--grid learning_rate=': 'needs values',
  '--grid learning_rate': 'needs values',
  '--grid learning_rate=1,abc': 'abc',
  '--grid learning_rate=1,-1': 'more than 0 is needed',
  '--grid learning_rate=1,nan': 'more than 0 is needed',
  '--grid learning_rate=1,2 --grid learning_rate=3': 'swept twice',
  '--grid learning_rate=0.1,1e-1': 'the same value',
  '--grid beta2=0.9,1.5': 'less than 1',
  '--grid dropout=0.1,1.5': 'dropout=1.5',
  '--grid label_smoothing=0.1,2': 'label_smoothing=2',
  '--grid widths=8,0': 'widths=0',
  '--grid model=mlp,cn': 'cn',
  '--grid batch_size=16,5000': 'larger than the train split',
  '--grid seed=1,2': '--seeds=N',
  '--grid log_every=1,2': 'no number that could be compared',
  '--grid momentum=0.1,0.2': 'takes no --momentum',
  '--trials=3': '--search',
  '--trials=3 --grid learning_rate=1,2': '--search',
  '--search learning_rate=log:1:2': '--trials',
  '--trials=0 --search learning_rate=log:1:2': '--trials',
  '--trials=x --search learning_rate=log:1:2': 'invalid int value',
  '--trials=3 --search model=mlp,cnn --together=2': 'change the program itself',
  '--trials=3 --search learning_rate=log:1:2 --together=-1': '--together',
  '--trials=3 --search learning_rate=lg:1:2': 'log:LOW:HIGH',
  '--trials=3 --search learning_rate=log:0:2': '(positive)',
  '--trials=3 --search learning_rate=uniform:2:1': 'LOW < HIGH',
  '--trials=3 --search widths=log:1.5:4': 'numbers of --widths',
  '--trials=3 --search model=log:1:2': 'which --model takes not',
  '--trials=3 --search dropout=uniform:0:1': 'dropout=1',
  '--trials=3 --search learning_rate=log:1:2 --grid clip=0,1': 'not allowed with',
  '--trials=3 --search learning_rate=log:1:2 --storage=nosql://x': 'does not open',
  '--grid learning_rate=1,2 --select=test/loss': 'validation metric',
  '--grid learning_rate=1,2 --select=validation/los': 'Did you mean validation/loss?',
  '--grid learning_rate=1,2 --validation=0': 'no validation split',
  '--grid widths=4,8 --learning_rte=3': 'learning_rate',
}


@pytest.mark.parametrize('argv', WRONG)
def test_bad_input_is_one_line_before_anything_is_started(argv, tmp_path, monkeypatch, capsys):
  def refuse(*_, **__):
    raise AssertionError('started or compiled before the error was found')

  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(processes, 'run', refuse)
  monkeypatch.setattr(jax.stages.Lowered, 'compile', refuse)
  assert sweep.main(['image_classification', *FLAGS, *argv.split()]) == 2
  error = capsys.readouterr().err
  assert error.startswith('sweep: ') and error.count('\n') == 1 and WRONG[argv] in error, error
  assert not list(tmp_path.iterdir()), 'something was left behind'


def rows(folder):
  return list(csv.DictReader(open(Path(folder) / 'trials.csv')))


@pytest.mark.slow
def test_a_grid_with_failures_goes_on_and_is_not_run_twice(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  # In the first program one member meets infinity; the second has a batch that does not divide over its devices.
  argv = ['image_classification', *FLAGS, '--grid', 'learning_rate=1e30,0.01,0.1', '--grid', 'batch_size=16,12']
  argv += ['--parallel=pmap', '--workdir=sweep']
  assert sweep.main(argv) == 0
  out = capsys.readouterr().out
  found = rows('sweep')
  losses = processes.numbers(Path('sweep/part-001'))['validation/loss']
  assert [(r['learning_rate'], r['batch_size']) for r in found[:2]] == [
    (rate, '16') for _, rate in sorted(zip(losses[1:], ('0.01', '0.1')))
  ]
  assert [float(r['validation/loss']) for r in found[:2]] == sorted(losses[1:])
  assert [r['status'] for r in found] == ['done'] * 2 + ['failed'] * 4
  reasons = {r['trial']: r['reason'] for r in found}
  assert 'NaN or infinity at step' in reasons['1'] and 'does not divide over 8 devices' in reasons['4']
  assert f'--learning_rate={found[0]["learning_rate"]}' in out and Path('sweep/plots/response.png').exists()
  # The best member is who answers.
  best = karpjax.open('sweep')
  assert best.config.learning_rate == float(found[0]['learning_rate'])
  assert best.summary['validation/loss'] == float(found[0]['validation/loss'])
  assert use.main('predict', ['sweep/part-001', 'x.png']) == 2
  assert 'give --member=, or the folder of the sweep, sweep, for its best' in capsys.readouterr().err
  assert use.describe(Path('sweep')) == 0
  said = capsys.readouterr().out
  assert f'trial {found[0]["trial"]}: learning_rate={found[0]["learning_rate"]}' in said
  assert 'python launch.py sweep image_classification' in said and 'python launch.py image_classification' not in said
  # What has trained does so once; what failed is tried again.
  before = [Path(f'sweep/part-00{n}/output.txt').read_bytes() for n in (1, 2)]
  assert sweep.main(argv) == 0
  after = [Path(f'sweep/part-00{n}/output.txt').read_bytes() for n in (1, 2)]
  assert after[0] == before[0] and after[1] != before[1] and rows('sweep') == found
  assert sweep.main([*argv, '--grid', 'clip=0.5', '--seed=4']) == 2
  error = capsys.readouterr().err
  assert '--clip was 0.0, now 0.5' in error and '--seed was 0, now 4' in error


def test_a_sweep_of_which_nothing_succeeds_exits_with_1(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(processes, 'run', lambda *_: ('failed', 'ended by SIGKILL'))
  assert sweep.main(['image_classification', *FLAGS, '--grid', 'learning_rate=1,2', '--workdir=sweep']) == 1
  assert [r['reason'] for r in rows('sweep')] == ['ended by SIGKILL'] * 2
  assert 'failed: ended by SIGKILL' in capsys.readouterr().out
  assert use.main('predict', ['sweep', 'x.png']) == 2 and 'no setting' in capsys.readouterr().err


@pytest.mark.slow
def test_every_member_diverged_is_listed_with_its_step(tmp_path):
  grid = ['--grid', 'learning_rate=1e30,1e35', '--optimiser=sgd']
  assert sweep.main(['image_classification', *FLAGS, *grid, f'--workdir={tmp_path}']) == 1
  assert [(r['status'], r['reason'][:23]) for r in rows(tmp_path)] == [('failed', 'NaN or infinity at step')] * 2


# ---- searches, their processes replaced by arithmetic ----


def simulated(ran, stop_at=None):
  """A `processes.run` whose loss is (log10 of the learning rate + 2)² + 1 / step; interrupted in its `stop_at`-th call.

  A rate above 0.3 diverges at once where settings share a program.
  """

  def run(folder, command, watch, metric):
    together = command[1] == '-m'
    alone = lambda: [command_line.parse(experiment.Config, command[3:]).learning_rate]
    rates = json.loads(command[4])['learning_rate'] if together else alone()
    ran.append((folder.name, rates))
    each = [math.nan if together and rate > 0.3 else (math.log10(rate) + 2) ** 2 for rate in rates]
    for step in (1, 2, 3):
      if watch(step, [loss + 1 / step for loss in each]):
        return 'stopped', ''
      if len(ran) == stop_at:
        raise SystemExit(143)
    folder.mkdir(parents=True)
    values = [loss + 1 / 3 for loss in each]
    (folder / 'summary.json').write_text(json.dumps({metric: {'values': values} if together else values[0]}))
    gone = ', '.join(f'seed {n} at step 0' for n, loss in enumerate(each) if math.isnan(loss))
    (folder / processes.OUTPUT).write_text(f'NaN or infinity in loss: {gone}' if gone else '')
    return 'done', ''

  return run


def search(asks, folder):
  folder.mkdir(exist_ok=True)
  return study.run(asks, asks.asks, folder, lambda _: None)


def test_a_search_stops_what_is_worse_and_comes_near_the_optimum(tmp_path, monkeypatch):
  asks, ran = asked('--trials=16', '--search', 'learning_rate=log:1e-6:1'), []
  monkeypatch.setattr(processes, 'run', simulated(ran))
  trials = search(asks, tmp_path)
  assert len(trials) == 16 and {t.status for t in trials} == {'done', 'stopped'}
  assert all('worse than the median at step' in t.reason for t in trials if t.status == 'stopped')
  best = outcome.ranked(trials, asks)[0]
  assert best.numbers['validation/loss'][0] == min(t.numbers['validation/loss'][0] for t in trials if t.numbers)
  assert abs(math.log10(float(best.setting['learning_rate'])) + 2) < 0.5
  # The first five are never stopped: there is no median yet.
  assert all(t.status == 'done' for t in trials[:5])


@pytest.mark.parametrize('together', [[], ['--together=3']])
def test_an_interrupted_search_goes_on_with_its_trials_and_draws_the_same(together, tmp_path, monkeypatch):
  asks, whole, ran = asked('--trials=6', '--search', 'learning_rate=log:1e-6:1', *together), [], []
  stop = 2 if together else 4
  monkeypatch.setattr(processes, 'run', simulated(whole))
  search(asks, tmp_path / 'whole')
  monkeypatch.setattr(processes, 'run', simulated(ran, stop_at=stop))
  with pytest.raises(SystemExit):
    search(asks, tmp_path / 'parts')
  trials = search(asks, tmp_path / 'parts')
  assert ran[stop - 1] == ran[stop] and [*ran[: stop - 1], *ran[stop:]] == whole
  # More trials are no other question.
  assert len(trials) == 6 and len(search(dataclasses.replace(asks, trials=7), tmp_path / 'parts')) == 7


def test_settings_drawn_together_share_a_program_and_the_worse_are_masked(tmp_path, monkeypatch):
  asks, ran = asked('--trials=20', '--search', 'learning_rate=log:1e-6:1', '--together=6'), []
  monkeypatch.setattr(processes, 'run', simulated(ran))
  trials = search(asks, tmp_path)
  assert [len(set(rates)) for _, rates in ran] == [6, 6, 6, 2] and len(trials) == 20
  rates = [rate for _, part in ran for rate in part]
  for trial, rate in zip(trials, rates):
    assert float(trial.setting['learning_rate']) == rate
    if rate > 0.3:
      assert trial.status == 'failed'
    elif trial.status == 'done':
      np.testing.assert_allclose(trial.numbers['validation/loss'], (math.log10(rate) + 2) ** 2 + 1 / 3)
    else:
      assert trial.status == 'stopped' and 'worse than the median at step' in trial.reason
  assert {trial.status for trial in trials} >= {'done', 'stopped'}
  best = float(outcome.ranked(trials, asks)[0].setting['learning_rate'])
  assert abs(math.log10(best) + 2) == min(abs(math.log10(rate) + 2) for rate in rates) < 0.5


STAND_IN = """
import json, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with open('metrics.jsonl', 'w') as file:
  for step in (1, 2):
    print(json.dumps({'step': step, 'train/loss': 0.0, **({'loss': [0.5, step]} if step > 1 else {})}), file=file)
"""


@pytest.mark.parametrize(
  'ending, outcome',
  [
    ('time.sleep(60)', ('stopped', '')),
    ('', ('done', '')),
    ("sys.exit('image_classification: no such file')", ('failed', 'no such file')),
    ("raise ValueError('a\\nb')", ('failed', 'ValueError: a')),
    ('signal.raise_signal(signal.SIGKILL)', ('failed', 'ended by SIGKILL: out of memory?')),
  ],
)
def test_a_process_is_watched_and_its_end_understood(ending, outcome, tmp_path):
  seen, code = [], f'import os; os.chdir({str(tmp_path)!r})\n{STAND_IN}\n{ending}'
  watch = lambda *new: seen.append(new) or 'sleep' in ending
  assert processes.run(tmp_path, [sys.executable, '-S', '-c', code], watch, 'loss') == outcome
  assert seen == [(2, [0.5, 2])]


@pytest.mark.slow
def test_a_trial_runs_as_a_process_and_is_stopped(tmp_path):
  """A real process: its values come while it trains; it saves when it is stopped, and goes on from there."""
  asks = asked('--trials=1', '--search', 'learning_rate=log:1e-3:1e-2', '--steps=200000', '--eval_every=100')
  command, seen = processes.command(asks, [{'learning_rate': '0.01'}], tmp_path / 'trial'), []

  def watch(step, values):
    seen.append((step, values))
    return True

  assert processes.run(tmp_path / 'trial', command, watch, asks.metric) == ('stopped', '')
  (step, (loss,)), *_ = seen
  assert step == 100 and 0 < loss < 3
  assert (
    weights.load_checkpoint(tmp_path / 'trial') and 'goes on from it' in (tmp_path / 'trial/output.txt').read_text()
  )


def test_a_password_is_not_written_down():
  asks = dataclasses.replace(asked('--grid', 'clip=0,0.5'), storage='postgresql://me:secret@host/db')
  assert asks.asks['--storage'] == 'postgresql://me:…@host/db'


@pytest.mark.parametrize(
  'values, log',
  [([1e-3, 1e-2, 1e-1], True), ([0.1, 0.2, 0.3], False), ([0, 1, 10], False), ([1, 2, 4, 8], True), ([1, 100], True)],
)
def test_log_spaced_values_get_a_logarithmic_axis(values, log):
  assert outcome.log_spaced(values) == log


def test_many_settings_have_a_narrow_table_and_what_is_left_out_is_said(tmp_path):
  long = '/data/of/mine/and/yours/weights_{}.sa'
  axes = {'learning_rate': settings.Axis('1,2', ('1', '2')), 'model': settings.Axis('mlp', ('mlp',))}
  axes['init_from'] = settings.Axis('a,b', tuple(map(long.format, 'ab')))
  asked = settings.Sweep('image_classification', experiment.Config(), axes, 0, '', 0)
  choices = [(rate, text) for rate in '1234' for text in axes['init_from'].values]
  numbers = lambda i: {'validation/loss': [i + 0.5], 'validation/error': [0.25]}
  trials = [
    outcome.Trial(i, {'learning_rate': rate, 'model': 'mlp', 'init_from': text}, 'done', numbers=numbers(i))
    for i, (rate, text) in enumerate(choices, start=1)
  ]
  lines = outcome.lines(trials, asked)
  assert lines[0].split() == ['trial', 'learning_rate', 'init_from', 'validation/loss']
  assert lines[3].split() == ['2', '1', '/data/of/min…eights_b.sa', '2.5']
  assert lines[-1] == 'alike in all: model mlp'
  page = outcome.write_page(trials, asked, tmp_path).read_text()
  table = page[page.index('Settings and numbers') :].partition('</section>')[0]
  heads = re.findall('<th scope=col[^>]*>([^<]*)', table)
  assert heads == ['', 'learning_rate', 'init_from', 'validation/loss'] and long.format('a') not in table
  assert 'alike in all: validation/error 25.00 %' in table and re.findall('<th scope=row[^>]*>([^<]*)', table)[1] == '2'
