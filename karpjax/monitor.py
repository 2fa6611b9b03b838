"""`launch.py monitor WORKDIR FILE.csv`: what time-stamped texts are about, and whether the share of one class jumps.

Each line of FILE.csv gets its class by the best checkpoint of a text_classification run; the share of a class among the last
lines is followed, drawn, and an ALERT printed where it has risen. Leaves STEM.csv and plots/STEM.png in WORKDIR/monitor.
"""

import argparse
import csv
import datetime
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from karpjax import errors, predict
from karpjax.data import labelled_text, text_files
from karpjax.data.dataset import Split
from karpjax.metrics import change
from karpjax.report import classification, writers
from karpjax.report import monitor as report


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog='launch.py monitor', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('workdir', help='of a text_classification run')
  parser.add_argument('file', help='FILE.csv or FILE.tsv, whose first line names its columns')
  parser.add_argument('--columns', default='time,text', help='of the times and of the texts (default time,text)')
  parser.add_argument('--encoding', default='utf-8', help='of the file (default utf-8)')
  parser.add_argument('--class', dest='watched', default='negative', help='whose share is followed (default negative)')
  parser.add_argument(
    '--window', type=int, default=100, help='lines of the rolling share, and of the binomial test (default 100)'
  )
  parser.add_argument('--test', default='cusum', choices=change.TESTS, help='for a jump (default cusum)')
  parser.add_argument(
    '--threshold',
    type=float,
    default=8.0,
    help='of an alert, in nats: of the CUSUM, whose false alerts are exp(threshold) lines apart at least, in the mean; or '
    'minus the logarithm of the level of the binomial test on each window (default 8)',
  )
  parser.add_argument(
    '--reference', type=float, help='the share that is usual (default: that of all lines before the window)'
  )
  parser.add_argument(
    '--baseline', type=int, default=200, help='how many lines, at least, are to tell what is usual (default 200)'
  )
  parser.add_argument('--factor', type=float, default=2.0, help='by which the CUSUM takes odds to jump (default 2)')
  parser.add_argument('--output', help='a folder (default WORKDIR/monitor)')
  options = parser.parse_args(argv)
  try:
    _check(options)
    path = Path(options.file).expanduser()
    lines = stamped(path, options.encoding, options.columns.split(','))
    least = options.baseline + options.window
    if options.reference is None and len(lines) <= least:
      raise errors.UsageError(
        f'{path} has {len(lines):,} lines; the first {least:,} (--baseline and --window) are to tell what is usual: give '
        'smaller numbers, or the usual share itself as --reference'
      )
    program, state, spec = predict.load(options.workdir)
    predict.check_classifier(options.workdir, spec)
    if options.watched not in spec.classes:
      raise errors.UsageError(f'--class={options.watched}: the classes of this run are {", ".join(spec.classes)}')
    folder = Path(options.output) if options.output else Path(options.workdir) / 'monitor'
    folder.mkdir(parents=True, exist_ok=True)
  except (errors.UsageError, OSError) as error:
    print(f'monitor: {error}', file=sys.stderr)
    return 2
  tokens = labelled_text.tokens([text for _, _, text in lines], spec)
  probabilities = classification.probabilities(program, state, Split.of(tokens=tokens))
  hits = probabilities.argmax(1) == spec.classes.index(options.watched)
  watch = change.watch(
    hits,
    test=options.test,
    threshold=options.threshold,
    window=options.window,
    baseline=options.baseline,
    reference=options.reference,
    factor=options.factor,
  )
  shares = rolling(hits, options.window)
  table = folder / f'{path.stem}.csv'
  writers.write_bytes(table, written(lines, probabilities, spec.classes, shares, watch).encode())
  picture = report.shares(
    [time for time, _, _ in lines], shares, watch, options.threshold, folder, path.stem, options.watched
  )
  print(f'{len(lines):,} lines, {hits.mean():.1%} {options.watched}')
  for alert in watch.alerts:
    print(told(alert, [stamp for _, stamp, _ in lines], options.watched))
  if not watch.alerts:
    print(f'no alert: the most evidence is {watch.statistics.max():.1f} of {options.threshold:g} nats')
  print(f'{table}\n{picture}')
  return 0


def _check(options) -> None:
  if len(options.columns.split(',')) != 2:
    raise errors.UsageError(f'--columns={options.columns}: two names are needed, as time,text')
  for name in ('window', 'baseline'):
    if getattr(options, name) < 1:
      raise errors.UsageError(f'--{name}={getattr(options, name)}: at least 1 is needed')
  if not options.threshold > 0:
    raise errors.UsageError(f'--threshold={options.threshold}: a positive number is needed')
  if not options.factor > 1:
    raise errors.UsageError(f'--factor={options.factor}: more than 1 is needed')
  if options.reference is not None and not 0 < options.reference < 1:
    raise errors.UsageError(f'--reference={options.reference}: a share between 0 and 1 is needed')


def stamped(path: Path, encoding: str, names: Sequence[str]) -> list[tuple[datetime.datetime | float, str, str]]:
  """(time, as it is written, text) of each line of a table, in the order of time.

  Raises:
    UsageError: as `text_files.read_table`, and for a time that is neither ISO 8601 nor a number, or times of several kinds.
  """
  lines = []
  for stamp, text in text_files.read_table(path, encoding, names):
    try:
      time = float(stamp) if stamp.replace('.', '', 1).isdigit() else datetime.datetime.fromisoformat(stamp)
    except ValueError:
      raise errors.UsageError(
        f'{path}: {stamp!r} is no time; write them as 2026-11-22T14:30 (ISO 8601), or as numbers such as Unix seconds'
      ) from None
    lines.append((time, stamp, text))
  try:
    return sorted(lines, key=lambda line: line[0])
  except TypeError:
    raise errors.UsageError(
      f'{path}: some times are dates and some numbers, or some have a time zone and some none'
    ) from None


def rolling(hits: np.ndarray, window: int) -> np.ndarray:
  """[n] bool -> [n] float64: the share among each line and the `window` - 1 before it, or as many as there are."""
  sums = np.concatenate([[0], np.cumsum(hits)])
  ends = np.arange(1, len(hits) + 1)
  starts = np.maximum(ends - window, 0)
  return (sums[ends] - sums[starts]) / (ends - starts)


def written(lines, probabilities, classes, shares, watch) -> str:
  """The table that is left: what each line is, and what was known when it came."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(('time', 'text', 'class', 'probability', 'rolling_share', 'reference', 'evidence', 'alert'))
  alerts = {alert.at for alert in watch.alerts}
  for i, (_, stamp, text) in enumerate(lines):
    best = probabilities[i].argmax()
    reference = '' if np.isnan(watch.references[i]) else f'{watch.references[i]:.4f}'
    numbers = f'{probabilities[i, best]:.4f}', f'{shares[i]:.4f}', reference, f'{watch.statistics[i]:.3f}'
    writer.writerow((stamp, text, classes[best], *numbers, 'ALERT' if i in alerts else ''))
  return out.getvalue()


def told(alert: change.Alert, stamps: Sequence[str], watched: str) -> str:
  """An alert as a line."""
  count = alert.at - alert.since + 1
  return (
    f'ALERT {stamps[alert.at]}: {watched} {alert.share:.1%} of the {count:,} lines since {stamps[alert.since]}, '
    f'against {alert.reference:.1%} expected'
  )
