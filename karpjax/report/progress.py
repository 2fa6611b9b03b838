"""What a run prints: at its start what will run, then its progress with ETA, at its end what it came to."""

import datetime
import math
import sys
import time

import jax
import numpy as np

from karpjax.report.text import table
from karpjax.train import checkpoint
from karpjax.train.layouts import sharded


def parameter_table(params) -> list[dict]:
  """[{'name', 'shape', 'count'}] of a pytree of parameters (one seed's)."""
  return [
    {'name': name, 'shape': list(x.shape), 'count': int(np.prod(x.shape))}
    for name, x in zip(checkpoint.names(params), jax.tree.leaves(params))
  ]


def quantity(number, unit: str) -> str:
  """1234567, 'FLOP' -> '1.23 MFLOP'."""
  if number is None or number < 0 or not math.isfinite(number):
    return f'? {unit}'
  power = min(4, int(math.log10(number) // 3)) if number >= 1 else 0
  return f'{number / 1000**power:.3g} {["", "k", "M", "G", "T"][power]}{unit}'


def start_up(description: dict, dataset, config) -> list[str]:
  """The lines before the first step: config, devices, data, parameters, and what the compiler says of a step."""
  compiled, choices, parameters = description['compiled'], description['choices'], description['parameters']
  lines = ['config:']
  flags = description['flags']
  lines += [f'  {name} = {value}' for name, value in flags.items()]
  devices = description['devices']
  layout = config.mesh or config.parallel
  if layout == 'seeds':
    used = sharded.spread(config.seeds, len(devices))
    layout = f'{config.seeds // used} seeds on {"each of " if used > 1 else ""}{used}'
  lines += [f'devices: {len(devices)} × {description["device_kind"]} ({layout})']
  if jax.process_count() > 1:
    lines[-1] += f', on {jax.process_count()} hosts'
  lines += [f'data: {note}' for note in dataset.notes]
  rows = [(p['name'], '×'.join(map(str, p['shape'])) or 'scalar', p['count']) for p in parameters]
  lines += ['parameters:', *(f'  {line}' for line in table(rows, ('name', 'shape', 'count')))]
  lines += [
    f'  {sum(p["count"] for p in parameters):,} in all'
    + (f', for each of {config.seeds} seeds' if config.seeds > 1 else '')
  ]
  lines += [
    f'compiled step: {quantity(compiled["flops"], "FLOP")}, {quantity(compiled["bytes"], "B")} read and written; '
    f'memory {quantity(compiled["argument_bytes"], "B")} arguments, {quantity(compiled["temporary_bytes"], "B")} temporary; '
    f'compilation {compiled["compile_seconds"]:.1f} s'
  ]
  steps = choices['steps_per_call']
  lines += [
    f'steps per call: {"at most " if steps > 1 else ""}{steps}'
    + (' (measured)' if config.steps_per_call == 'auto' else '')
  ]
  if config.microbatches > 1:
    lines += [
      f'{config.microbatches} microbatches: batch norm takes its moments over each of them, not over the whole batch'
    ]
  return lines


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
  values = np.atleast_1d(np.asarray(value, np.float64))
  if values.size == 1:
    return f'{values[0]:.4g}'
  with np.errstate(invalid='ignore'):  # of a seed that has diverged
    return f'{values.mean():.4g} ± {values.std(ddof=1):.2g}'


class Progress:
  """A tqdm bar on a terminal, plain lines elsewhere; it is given the metric rows."""

  def __init__(self, start: int, steps: int, say):
    self.start, self.steps, self.say, self.spoken = start, steps, say, 0.0
    self.bar = None
    if sys.stderr.isatty():
      from tqdm import tqdm

      self.bar = tqdm(total=steps, initial=start, unit='step', dynamic_ncols=True)

  def append(self, row: dict) -> None:
    evaluated = [n for n in row if '/' in n and not n.startswith('train/')]
    shown = [n for n in row if n in ('train/loss', 'train/error')] + [
      n for n in evaluated if n.split('/')[1] in ('loss', 'accuracy', 'error', 'bleu')
    ]
    text = '  '.join(f'{n} {number(row[n])}' for n in shown)
    if self.bar:
      self.bar.set_postfix_str(f'loss {number(row["train/loss"])}' if 'train/loss' in row else '')
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


def over_seeds(value: dict) -> str:
  """Mean ± standard deviation, and the bootstrapped 95 % interval of the mean."""
  low, high = value['interval']
  return f'{value["mean"]:.4f} ± {value["std"]:.4f}  [{low:.4f}, {high:.4f}]'


def final(numbers: dict, folder) -> list[str]:
  """The lines after the last step."""
  shown = {n: x for n, x in numbers.items() if '/' in n}
  rows = []
  for name, value in shown.items():
    rows.append((name, over_seeds(value) if isinstance(value, dict) else f'{value:.4f}'))
  lines = table(rows, ('metric', 'final'))
  lines += [
    f'{numbers["seconds"]:.1f} s, and {numbers["compile_seconds"]:.1f} s of compilation before; {numbers["steps_per_second"]:.4g} steps/s',
    'time: '
    + ', '.join(
      f'{n.removesuffix("_share")} {x:.1%}' for n, x in numbers.items() if n.endswith('_share') and '/' not in n
    ),
  ]
  return [*lines, f'page: {folder / "index.html"}']
