"""The verb `monitor` of text classifiers: the share of one class in time-stamped texts, and alerts where it rises.

Leaves the class of each row of FILE.csv in STEM.csv, and a plot in plots/STEM.png, in WORKDIR/monitor.
"""

import csv
import dataclasses
import datetime
import io
from pathlib import Path

import numpy as np

from karpjax import config, paths, verbs
from karpjax.data import labelled_text, text_files
from karpjax.errors import UsageError
from karpjax.metrics import change
from karpjax.report import plots, writers


@dataclasses.dataclass(frozen=True)
class Options(change.Rule):
  label: str = config.flag('negative', 'The class whose share is followed.')
  columns: tuple[str, ...] = config.flag(('time', 'text'), 'The columns of times and of texts.')
  encoding: str = config.flag('', 'The encoding of the file. Default: as its byte-order mark says, or utf-8.')
  output: str = config.flag('', 'The folder of table and plot. Default: WORKDIR/monitor.', path=True)


def read(path: Path, chosen: Options) -> list[tuple[datetime.datetime | float, str, str]]:
  """(time, as it is written, text) of each row of a table, in the order of time.

  Raises:
    UsageError: as `text_files.read_table`, and for a time that is neither ISO 8601 nor a number, or times of several
      kinds.
  """
  rows = []
  for stamp, text in text_files.read_table(path, chosen.encoding, chosen.columns):
    try:
      time = float(stamp) if stamp.replace('.', '', 1).isdigit() else datetime.datetime.fromisoformat(stamp)
    except ValueError:
      such = '2026-11-22T14:30 (ISO 8601), or as numbers such as Unix seconds'
      raise UsageError(f'{path}: {stamp!r} is no time; write them as {such}') from None
    rows.append((time, stamp, text))
  try:
    return sorted(rows, key=lambda row: row[0])
  except TypeError:
    raise UsageError(f'{path}: some times are dates and some numbers, or some have a time zone and some none') from None


def writes(run, files, chosen) -> list[Path]:
  """The table and the plot of each file."""
  folder, stems = Path(chosen.output or run.folder / 'monitor'), [Path(file).stem for file in files]
  places = (place for stem in stems for place in (folder / f'{stem}.csv', folder / 'plots' / f'{stem}.png'))
  return [*map(run.own_path, places)]


def encode(run, files, chosen):
  rows, least = read(Path(files[0]), chosen), chosen.baseline + chosen.window
  if chosen.reference is None and len(rows) <= least:
    few = f'{files[0]} has {len(rows):,} rows; the first {least:,} (baseline and window) are to tell the usual share'
    raise UsageError(f'{few}: give smaller numbers, or the usual share itself, as reference=0.1')
  if chosen.label not in run.spec.classes:
    raise UsageError(f'label={chosen.label}: the classes of this run are {", ".join(run.spec.classes)}')
  return {'tokens': labelled_text.tokens([text for _, _, text in rows], run.spec)}


def decode(run, probabilities, files, chosen):
  path = Path(files[0])
  rows = read(path, chosen)
  best, classes = probabilities.argmax(1), np.asarray(run.spec.classes)
  hits = classes[best] == chosen.label
  watch = change.watch(hits, chosen)
  sums, ends = np.concatenate([[0], np.cumsum(hits)]), np.arange(1, len(hits) + 1)
  starts = np.maximum(ends - chosen.window, 0)
  shares = (sums[ends] - sums[starts]) / (ends - starts)  # among each row and those of the window before it
  times, stamps, texts = zip(*rows)

  place, plot = writes(run, files, chosen)
  folder = place.parent
  table, alerted, known = io.StringIO(), {alert.at for alert in watch.alerts}, ~np.isnan(watch.references)
  writer = csv.writer(table, lineterminator='\n')
  writer.writerow(('time', 'text', 'class', 'probability', 'rolling_share', 'reference', 'evidence', 'alert'))
  for i, given in enumerate(zip(stamps, texts, classes[best])):
    reference = f'{watch.references[i]:.4f}' if known[i] else ''
    numbers = f'{probabilities[i, best[i]]:.4f}', f'{shares[i]:.4f}', reference, f'{watch.statistics[i]:.3f}'
    writer.writerow((*given, *numbers, 'ALERT' if i in alerted else ''))
  writers.write_bytes(place, table.getvalue().encode())
  draw(times, shares, watch, chosen, folder, plot.stem)

  alerts = [
    {'time': stamps[at], 'since': stamps[since], 'rows': at - since + 1, 'share': rate, 'expected': reference}
    for at, since, reference, rate in watch.alerts
  ]
  answer = {'input': files[0], 'rows': len(rows), 'class': chosen.label, 'share': float(hits.mean()), 'alerts': alerts}
  answer |= {'evidence': float(watch.statistics.max()), 'threshold': chosen.threshold}
  yield answer | {'table': str(place), 'plot': str(plot)}


def show(answer) -> str:
  name, alerts = answer['class'], answer['alerts']
  lines = [f'{answer["rows"]:,} rows, {answer["share"]:.1%} {name}']
  for alert in alerts:
    rise = f'{alert["share"]:.1%} of the {alert["rows"]:,} rows since {alert["since"]}'
    lines.append(f'ALERT {alert["time"]}: {name} {rise}, against {alert["expected"]:.1%} expected')
  if not alerts:
    lines.append(f'no alert: the most evidence is {answer["evidence"]:.1f} of {answer["threshold"]:g} nats')
  return '\n'.join([*lines, answer['table'], answer['plot'], ''])


HELP = 'Alerts where a class becomes more frequent among time-stamped texts.'
VERB = verbs.Verb(HELP, encode, verbs.probabilities, decode, 'FILE.csv', Options, show, paths.one_file, writes)


def draw(times, shares, watch, chosen, folder: Path, name: str) -> None:
  """plots/NAME.png: the rolling share and the expected one over time, the evidence, and the alerts."""
  evidence = np.where(np.isnan(watch.references), np.nan, watch.statistics)
  sizes = {'rows': 2, 'height_ratios': [2, 1], 'sharex': True}
  with plots.drawing(folder, name, 8.0, 4.6, **sizes) as (figure, (upper, lower)):
    upper.plot(times, shares, color=plots.BLUE, label=f'share of {chosen.label}')
    upper.plot(times, watch.references, color=plots.FAINT, linestyle='--', linewidth=1, label='expected')
    lower.plot(times, evidence, color=plots.PURPLE, label='evidence, nats')
    lower.axhline(chosen.threshold, color=plots.VERMILION, linewidth=1, label='threshold')
    for i, alert in enumerate(watch.alerts):
      for axis in (upper, lower):
        axis.axvline(times[alert.at], color=plots.VERMILION, linewidth=1)
      rise = None if i else 'the rise'
      upper.axvspan(times[alert.since], times[alert.at], color=plots.ORANGE, alpha=0.25, linewidth=0, label=rise)
    upper.set(ylim=(0, min(1, 1.2 * max(shares.max(), 0.05))), ylabel='rolling share')
    upper.yaxis.set_major_formatter(lambda x, _: f'{100 * x:.0f} %')
    lower.set(ylabel='evidence')
    upper.set_title(f'{plots.title(name)} · {len(watch.alerts)} alert{"" if len(watch.alerts) == 1 else "s"}')
    for axis in (upper, lower):
      axis.legend(loc='upper left', ncols=3)
    figure.autofmt_xdate()
