"""A sweep's members are the runs they stand for; what one asks wrongly is said first; what fails loses nothing else."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import image_classification as experiment
from karpjax import command_line, config
from karpjax.commands import sweep
from karpjax.commands.sweep import grid, processes, question, response, search, table, vmapped
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
    ema=(0.0, 0.7),
    dropout=(0.0, 0.4),
    label_smoothing=(0.0, 0.2),
  ),
  'nesterov': dict(learning_rate=(0.1, 0.02), momentum=(0.5, 0.9), final_learning_rate=(0.001, 0.01)),
  'muon': dict(learning_rate=(0.01, 0.02), momentum=(0.5, 0.9), weight_decay=(0.0, 0.1)),
  'sgd': dict(learning_rate=(0.1, 0.02), decay=(0.5, 0.2)),
}
SCHEDULES = {'nesterov': dict(schedule='cosine', warmup='1'), 'sgd': dict(schedule='exponential', decay_every='1')}


SLOW = [pytest.param(optimiser, marks=pytest.mark.slow) for optimiser in ('nesterov', 'muon', 'sgd')]


@pytest.mark.parametrize('optimiser', ['adam', *SLOW])
def test_a_member_alone_is_the_run_with_its_flags(tmp_path, optimiser):
  hyper, seeds = MEMBERS[optimiser], (7, 3)
  common = TINY | SCHEDULES.get(optimiser, {}) | dict(optimiser=optimiser)

  def train(program, dataset, resolved, **options):
    make = lambda settings: experiment.program(settings, dataset)
    return loop.train(vmapped.vary(make, resolved, hyper, seeds), dataset, resolved, **options)

  settings = experiment.Config(**common, seeds=2, workdir=str(tmp_path / 'together'))
  together = loop.run(experiment, settings, train=train, say=lambda _: None)
  for member, seed in enumerate(seeds):
    own = {name: (values[member],) if name == 'dropout' else values[member] for name, values in hyper.items()}
    settings = experiment.Config(**common, **own, seed=seed, workdir=str(tmp_path / f'alone{member}'))
    alone = loop.run(experiment, settings, say=lambda _: None)
    for name in ('params', 'eval_params'):
      ours = jax.tree.map(lambda x: x[member], getattr(together.state, name))
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, getattr(alone.state, name))
    for name in ('train/loss', 'validation/loss'):
      np.testing.assert_allclose(together.numbers[name]['values'][member], alone.numbers[name], rtol=1e-4)
  # The members are not each other's equals: each had its own numbers.
  leaves = jax.tree.leaves(together.state.params)
  assert all(np.abs(x[0] - x[1]).max() > 1e-4 for x in leaves)


def asked(*argv) -> question.Question:
  return question.ask(*sweep.arguments(['image_classification', *FLAGS, *argv]))


def test_traced_axes_share_a_program_and_the_others_do_not():
  plan = grid.plan(
    asked('--grid', 'learning_rate=1,2,3', '--grid', 'widths=4,8', '--grid', 'dropout=0,0.5', '--seeds=2')
  )
  assert [len(part) for part in plan.parts] == [6, 6]
  assert [{setting['widths'] for setting in part} for part in plan.parts] == [{'4'}, {'8'}]
  assert 'vmapped, in one program: learning_rate, dropout, seeds' in plan.lines
  assert any(line.startswith('not vmapped, one program each: widths') for line in plan.lines)
  # Three settings of two seeds are six members.
  cut = grid.plan(asked('--grid', 'learning_rate=1,2,3,4', '--seeds=2', '--together=6'))
  assert [len(part) for part in cut.parts] == [3, 1]
  lists = grid.plan(asked('--grid', 'dropout=0.1;0.2,0.3', '--model=cnn', '--hidden=8'))
  assert len(lists.parts) == 2 and any('its values are lists' in line for line in lists.lines)


def test_an_experiment_that_looks_at_a_number_is_found_out():
  _, dataset, resolved = question.examine(asked('--grid', 'ema=0,0.5'), {})
  batch = question.example(dataset)
  make = lambda settings: experiment.program(settings, dataset)
  looks = lambda settings: make(settings if settings.learning_rate < 1 else dataclasses.replace(settings, ema=0.5))
  assert vmapped.can_be_traced(make, resolved, 'learning_rate', batch)
  assert not vmapped.can_be_traced(looks, resolved, 'learning_rate', batch)


def test_a_part_of_one_setting_is_an_ordinary_run():
  grid_of_one = asked('--grid', 'learning_rate=0.5', '--grid', 'widths=4')
  (settings,) = grid.plan(grid_of_one).parts
  part = grid.part(grid_of_one, settings)
  assert part['hyper'] == {} and '--learning_rate=0.5' in part['flags'] and '--widths=4' in part['flags']


WRONG = {
  '': 'a sweep needs axes',
  '--grid learning_rte=1,2': 'Did you mean learning_rate?',
  '--grid learning_rate=': 'needs values',
  '--grid learning_rate': 'needs values',
  '--grid learning_rate=1,abc': 'abc',
  '--grid learning_rate=1,-1': 'a positive number is needed',
  '--grid learning_rate=1,nan': 'a positive number is needed',
  '--grid learning_rate=1,2 --grid learning_rate=3': 'swept twice',
  '--grid learning_rate=0.1,1e-1': 'the same value',
  '--grid beta2=0.9,1.5': 'less than 1',
  '--grid dropout=0.1,1.5': 'a rate of at least 0 and under 1',
  '--grid label_smoothing=0.1,2': 'a share of 0 to 1',
  '--grid widths=8,0': 'at least 1',
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
  '--trials=3 --search learning_rate=log:0:2': 'positive',
  '--trials=3 --search learning_rate=uniform:2:1': 'less than',
  '--trials=3 --search widths=log:1.5:4': 'whole number',
  '--trials=3 --search model=log:1:2': 'no number',
  '--trials=3 --search dropout=uniform:0:1': 'under 1',
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
  members = json.loads(Path('sweep/part-001/members.json').read_text())['numbers']['validation/loss']
  assert [(r['learning_rate'], r['batch_size']) for r in found[:2]] == [
    (rate, '16') for _, rate in sorted(zip(members[1:], ('0.01', '0.1')))
  ]
  assert [float(r['validation/loss']) for r in found[:2]] == sorted(members[1:])
  assert [r['status'] for r in found] == ['done'] * 2 + ['failed'] * 4
  reasons = {r['trial']: r['reason'] for r in found}
  assert 'NaN or infinity at step' in reasons['1'] and 'does not divide over 8 devices' in reasons['4']
  assert f'--learning_rate={found[0]["learning_rate"]}' in out and Path('sweep/plots/response.png').exists()
  before = Path('sweep/part-001/output.txt').read_bytes()
  assert sweep.main(argv) == 0
  assert 'part 1 of 2: batch_size=16, 3 members, finished before' in capsys.readouterr().out
  assert Path('sweep/part-001/output.txt').read_bytes() == before and rows('sweep') == found
  assert sweep.main([*argv, '--grid', 'ema=0.5', '--seed=4']) == 2
  error = capsys.readouterr().err
  assert '--ema was not given, now 0.5' in error and '--seed was 0, now 4' in error


def test_a_sweep_of_which_nothing_succeeds_exits_with_1(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(processes, 'run', lambda *_: ('failed', 'ended by SIGKILL'))
  assert sweep.main(['image_classification', *FLAGS, '--grid', 'learning_rate=1,2', '--workdir=sweep']) == 1
  assert [r['reason'] for r in rows('sweep')] == ['ended by SIGKILL'] * 2
  assert 'failed: ended by SIGKILL' in capsys.readouterr().out


def test_every_member_diverged_is_listed_with_its_step(tmp_path):
  asks = asked('--grid', 'learning_rate=1e30,1e35', '--optimiser=sgd')
  found = vmapped.run(tmp_path, grid.part(asks, grid.plan(asks).parts[0]))
  assert len(found['nonfinite_step']) == 2 and all(0 <= step < 3 for step in found['nonfinite_step'])
  trial = table.judged(1, {}, {}, found['nonfinite_step'][:1], 'done', '', tmp_path, asks)
  assert trial.status == 'failed' and trial.reason == f'NaN or infinity at step {found["nonfinite_step"][0]}'


# ---- searches, their processes replaced by arithmetic ----


def simulated(asks, ran, stop_at=None):
  """A `processes.run` whose loss is (log10 of the learning rate + 2)² + 1 / step; interrupted in its `stop_at`-th call."""

  def run(folder, part, watch, metric):
    settings = command_line.parse(experiment.Config, part['flags'])
    loss = (math.log10(settings.learning_rate) + 2) ** 2
    ran.append((folder.name, settings.learning_rate))
    for step in (1, 2, 3):
      if watch(step, [loss + 1 / step]):
        return 'stopped', ''
      if len(ran) == stop_at:
        raise SystemExit(143)
    folder.mkdir()
    (folder / processes.MEMBERS).write_text(json.dumps({'numbers': {metric: [loss + 1 / 3]}, 'nonfinite_step': [-1]}))
    return 'done', ''

  return run


def test_a_search_stops_what_is_worse_and_comes_near_the_optimum(tmp_path, monkeypatch):
  asks, ran = asked('--trials=25', '--search', 'learning_rate=log:1e-6:1'), []
  monkeypatch.setattr(processes, 'run', simulated(asks, ran))
  trials = search.run(asks, None, tmp_path, lambda _: None)
  assert len(trials) == 25 and {t.status for t in trials} == {'done', 'stopped'}
  assert all('worse than the median at step' in t.reason for t in trials if t.status == 'stopped')
  best = table.best(trials, asks)
  assert best.numbers['validation/loss'][0] == min(t.numbers['validation/loss'][0] for t in trials if t.numbers)
  assert abs(math.log10(float(best.setting['learning_rate'])) + 2) < 0.5
  # The first five are never stopped: there is no median yet.
  assert all(t.status == 'done' for t in trials[:5])


def test_an_interrupted_search_goes_on_with_its_trial_and_draws_the_same(tmp_path, monkeypatch):
  asks, whole, parts = asked('--trials=8', '--search', 'learning_rate=log:1e-6:1'), [], []
  for name in ('whole', 'parts'):
    (tmp_path / name).mkdir()
  monkeypatch.setattr(processes, 'run', simulated(asks, whole))
  search.run(asks, None, tmp_path / 'whole', lambda _: None)
  monkeypatch.setattr(processes, 'run', simulated(asks, parts, stop_at=4))
  with pytest.raises(SystemExit):
    search.run(asks, None, tmp_path / 'parts', lambda _: None)
  trials = search.run(asks, None, tmp_path / 'parts', lambda _: None)
  assert parts[3] == parts[4] and [*parts[:3], *parts[4:]] == whole
  # More trials are no other question.
  more = dataclasses.replace(asks, trials=9)
  assert len(trials) == 8 and len(search.run(more, None, tmp_path / 'parts', lambda _: None)) == 9


def simulated_together(ran, stop_at=None):
  """As `simulated`, of settings in one program; a rate above 0.3 diverges at once."""

  def run(folder, part, watch, metric):
    rates = part['hyper']['learning_rate']
    ran.append((folder.name, rates))
    each = [math.nan if rate > 0.3 else (math.log10(rate) + 2) ** 2 for rate in rates]
    for step in (1, 2, 3):
      if watch(step, [loss + 1 / step for loss in each]):
        return 'stopped', ''
      if len(ran) == stop_at:
        raise SystemExit(143)
    folder.mkdir()
    numbers = {metric: [loss + 1 / 3 for loss in each]}
    gone = [0 if math.isnan(loss) else -1 for loss in each]
    (folder / processes.MEMBERS).write_text(json.dumps({'numbers': numbers, 'nonfinite_step': gone}))
    return 'done', ''

  return run


def test_settings_drawn_together_share_a_program_and_the_worse_are_masked(tmp_path, monkeypatch):
  asks, ran = asked('--trials=26', '--search', 'learning_rate=log:1e-6:1', '--together=6'), []
  monkeypatch.setattr(processes, 'run', simulated_together(ran))
  trials = search.run(asks, None, tmp_path, lambda _: None)
  assert [len(set(rates)) for _, rates in ran] == [6, 6, 6, 6, 2] and len(trials) == 26
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
  best = float(table.best(trials, asks).setting['learning_rate'])
  assert abs(math.log10(best) + 2) == min(abs(math.log10(rate) + 2) for rate in rates) < 0.5


def test_an_interrupted_program_of_several_settings_goes_on_with_them(tmp_path, monkeypatch):
  asks, whole, parts = asked('--trials=9', '--search', 'learning_rate=log:1e-6:1', '--together=3'), [], []
  for name in ('whole', 'parts'):
    (tmp_path / name).mkdir()
  monkeypatch.setattr(processes, 'run', simulated_together(whole))
  search.run(asks, None, tmp_path / 'whole', lambda _: None)
  monkeypatch.setattr(processes, 'run', simulated_together(parts, stop_at=2))
  with pytest.raises(SystemExit):
    search.run(asks, None, tmp_path / 'parts', lambda _: None)
  assert len(search.run(asks, None, tmp_path / 'parts', lambda _: None)) == 9
  assert parts[1] == parts[2] and [parts[0], *parts[2:]] == whole


def test_settings_alike_are_members_all_the_same():
  part = grid.part(asked('--trials=2', '--search', 'ema=0,0.5', '--together=2'), [{'ema': '0.5'}, {'ema': '0.5'}])
  assert part['hyper'] == {'ema': [0.5, 0.5]}


def test_a_trial_runs_as_a_process_and_is_stopped(tmp_path):
  """A real process: its values come while it trains; it saves when it is stopped, and goes on from there."""
  asks = asked('--trials=1', '--search', 'learning_rate=log:1e-3:1e-2', '--steps=200000', '--eval_every=100')
  part, seen = grid.part(asks, [{'learning_rate': '0.01'}]), []

  def watch(step, values):
    seen.append((step, values))
    return True

  assert processes.run(tmp_path / 'trial', part, watch, asks.metric) == ('stopped', '')
  (step, (loss,)), *_ = seen
  assert step == 100 and 0 < loss < 3
  assert weights.newest(tmp_path / 'trial') and 'goes on from it' in (tmp_path / 'trial/output.txt').read_text()


def test_a_password_is_not_written_down():
  asks = dataclasses.replace(asked('--grid', 'ema=0,0.5'), storage='postgresql://me:secret@host/db')
  assert asks.described()['storage'] == 'postgresql://me:…@host/db'


@pytest.mark.parametrize(
  'values, log',
  [([1e-3, 1e-2, 1e-1], True), ([0.1, 0.2, 0.3], False), ([0, 1, 10], False), ([1, 2, 4, 8], True), ([1, 100], True)],
)
def test_log_spaced_values_get_a_logarithmic_axis(values, log):
  assert response.log_spaced(values) == log
