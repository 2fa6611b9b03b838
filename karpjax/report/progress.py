"""What a run prints: at its start what will run, then its progress with ETA, at its end what it came to."""

import datetime
import math
import sys
import time

import jax
import numpy as np
import tqdm

from karpjax import options
from karpjax.data.dataset import rare_classes, seen_in_train
from karpjax.report import writers
from karpjax.report.tables import last_and_best, table

TRAINED = ('train/loss', 'train/error', 'train/episode_return')  # metrics in a line of progress
EARLY = 0.1  # of a run: by then something should be learnt
STANDS = 0.98  # of the loss of a guess: no better than it
EVALUATED = ('loss', 'accuracy', 'error', 'bleu', 'episode_return')  # of each split


def quantity(number, unit: str) -> str:
  """1234567, 'FLOP' -> '1.23 MFLOP'."""
  if number is None or number < 0 or not math.isfinite(number):
    return f'? {unit}'
  power = min(4, int(math.log10(number) // 3)) if number >= 1 else 0
  return f'{number / 1000**power:.3g} {["", "k", "M", "G", "T"][power]}{unit}'


def start_up(description: dict, dataset, config, layout: str) -> list[str]:
  """The lines before the first step: config, devices, data, parameters, and what the compiler says of a step."""
  compiled, parameters = description['compiled'], description['parameters']
  steps = description['choices']['steps_per_call']
  hosts = f', on {jax.process_count()} hosts' if jax.process_count() > 1 else ''
  rows = [(p['name'], '×'.join(map(str, p['shape'])) or 'scalar', p['count']) for p in parameters]
  each = f', for each of {config.seeds} seeds' if config.seeds > 1 else ''
  flags = ' '.join(options.as_flags(description['changed']))
  moments = 'batch norm takes its moments over each of them, not over the whole batch'
  return [
    f'flags: {flags or "all at their defaults"}; all are in config.json',
    f'devices: {len(description["devices"])} × {description["device_kind"]} ({layout}){hosts}',
    *(f'data: {note}' for note in (*dataset.notes, *rare_classes(dataset), *seen_in_train(dataset))),
    'parameters:',
    *(f'  {line}' for line in table(rows, ('name', 'shape', 'count'))),
    f'  {sum(p["count"] for p in parameters):,} in all{each}',
    f'compiled step: {quantity(compiled["flops"], "FLOP")}, {quantity(compiled["bytes"], "B")} read and written; '
    f'memory {quantity(compiled["argument_bytes"], "B")} arguments, {quantity(compiled["temporary_bytes"], "B")} temporary; '
    f'compilation {compiled["compile_seconds"]:.1f} s',
    f'steps per call: {"at most " if steps > 1 else ""}{steps}',
    *([f'{config.microbatches} microbatches: {moments}'] if config.microbatches > 1 else []),
  ]


def costs(compiled: dict) -> list[str]:
  """The lines of --compile_only: what a step takes, before anything is rented."""
  rows = [
    ('FLOPs of a step, all devices', quantity(compiled['flops'], 'FLOP')),
    ('read and written, each device', quantity(compiled['bytes'], 'B')),
    ('arguments (state, resident data), each device', quantity(compiled['argument_bytes'], 'B')),
    ('temporaries, each device', quantity(compiled['temporary_bytes'], 'B')),
  ]
  rows += [(f'{kind} × {count}', quantity(size, 'B')) for kind, (count, size) in compiled['collectives'].items()]
  return table(rows, ('compiled step', 'figure'))


def number(value) -> str:
  """A metric in a line: 4 significant digits; of several seeds, mean ± standard deviation."""
  summary = writers.summarise_seeds(np.atleast_1d(value))
  return f'{summary["mean"]:.4g}' + (f' ± {summary["std"]:.2g}' if np.size(value) > 1 else '')


class Guess:
  """Is given the metric rows, and says once, after a tenth of a run, where the training loss is no better than a guess.

  Attributes:
    loss: that of a guess which looks at no input; None where it is not known.
    step: of the row before; the first row of a run has the first losses in it, and is no sign.
  """

  def __init__(self, start: int, loss: float | None, config, say):
    self.loss, self.config, self.say = loss, config, say
    self.step, self.silent = start, not loss or start >= EARLY * config.steps  # nothing is better than 0

  def append(self, row: dict) -> None:
    before, self.step = self.step, row['step']
    if self.silent or not before or self.step < EARLY * self.config.steps:
      return
    self.silent, losses = True, np.atleast_1d(row.get('train/hard_loss', row.get('train/loss', math.nan)))
    stands = np.isfinite(losses) & (losses >= STANDS * self.loss)
    whose = f' of {stands.sum()} of {len(losses)} seeds' if len(losses) > 1 else ''
    if stands.any():
      self.say(
        f'step {self.step}: the training loss{whose}, {losses[stands].mean():.4g}, is no better than that of a guess which '
        f'looks at no input, {self.loss:.4g}. Try a lower learning_rate (now {self.config.learning_rate}) or warmup=10%; a '
        'higher rate where the loss falls, but slowly.'
      )

  def close(self) -> None:
    pass


class Progress:
  """A tqdm bar on a terminal, plain lines elsewhere; it is given the metric rows."""

  def __init__(self, start: int, steps: int, say, environment_steps: int = 0):
    self.steps, self.say, self.environment_steps, self.spoken = steps, say, environment_steps, 0.0
    terminal = sys.stderr.isatty()
    self.bar = tqdm.tqdm(total=steps, initial=start, unit='step', dynamic_ncols=True) if terminal else None

  def append(self, row: dict) -> None:
    evaluated = [n for n in row if '/' in n and not n.startswith('train/')]
    trained = [n for n in row if n in TRAINED]
    text = '  '.join(f'{n} {number(row[n])}' for n in trained + [n for n in evaluated if n.split('/')[1] in EVALUATED])
    if self.environment_steps:
      each = row['steps_per_second'] * self.environment_steps
      text += f'  {row["step"] * self.environment_steps:,} environment steps, {quantity(each, "steps")} a second'
    if self.bar:
      self.bar.set_postfix_str('  '.join(f'{n.removeprefix("train/")} {number(row[n])}' for n in trained))
      self.bar.update(row['step'] - self.bar.n)
      if evaluated:
        self.bar.write(f'step {row["step"]}  {text}')
      return
    if not evaluated and time.monotonic() - self.spoken < 2:
      return
    self.spoken = time.monotonic()
    rate = row['steps_per_second']
    left = datetime.timedelta(seconds=round((self.steps - row['step']) / rate)) if rate and math.isfinite(rate) else '?'
    self.say(f'step {row["step"]}/{self.steps}  {text}  {rate:.4g} steps/s  ETA {left}')

  def close(self) -> None:
    if self.bar:
      self.bar.close()


def over_seeds(mean, std, interval, **_) -> str:
  """Mean ± standard deviation, and the 95 % interval of the mean."""
  return f'{mean:.4f} ± {std:.4f}  [{", ".join(f"{x:.4f}" for x in interval)}]'


def final(numbers: dict, folder, config) -> list[str]:
  """The lines after the last step: the metrics of the last weights, and beside them of the best, where these are kept."""
  shown = lambda _, x: '' if x is None else over_seeds(**x) if isinstance(x, dict) else f'{x:.4f}'
  metrics = [n for n in numbers if '/' in n and not n.startswith('best/')]
  by, best = config.select.removeprefix('-'), numbers.get('best/step')
  rows, heads = last_and_best(numbers, metrics, shown, by)
  weights = f'no best weights were kept, as {by} was not measured, or never finite; verbs use the last'
  if best:
    others = f'verbs use the best weights, of step {best:,}; with checkpoint=last the last'
    weights = 'verbs use these weights' if best == config.steps else others
  if any(isinstance(numbers[n], dict) for n in metrics):
    weights += ". Over seeds: mean ± standard deviation [95 % interval of the mean, by Student's t]"
  shares = {n.removesuffix('_share'): x for n, x in numbers.items() if n.endswith('_share') and '/' not in n}
  return [
    *table(rows, heads),
    f'{numbers["seconds"]:.1f} s, and {numbers["compile_seconds"]:.1f} s of compilation before; '
    f'{numbers["steps_per_second"]:.4g} steps/s',
    'time: ' + ', '.join(f'{name} {x:.1%}' for name, x in shares.items()),
    weights,
    f'page: {folder / "index.html"}',
  ]
