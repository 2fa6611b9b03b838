"""The picture of a monitor: a share over time, what was expected, the evidence, and the alerts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from karpjax.report import plots


@plots.styled
def shares(times: Sequence, shares: np.ndarray, watch, threshold: float, folder: Path, name: str, watched: str) -> Path:
  """plots/NAME.png.

  Args:
    times: [n] dates or numbers, rising.
    shares: [n], the rolling share.
    watch: of `metrics.change`.
    threshold: of the evidence.
    folder: where plots/ is.
    name: of the picture.
    watched: the class.
  """
  figure, (upper, lower) = plots.new_figure(8.0, 4.6, rows=2, height_ratios=[2, 1], sharex=True)
  upper.plot(times, shares, color=plots.BLUE, label=f'share of {watched}')
  upper.plot(times, watch.references, color=plots.FAINT, linestyle='--', linewidth=1, label='expected')
  sought = np.where(np.isnan(watch.references), np.nan, watch.statistics)
  lower.plot(times, sought, color=plots.PURPLE, label='evidence, nats')
  lower.axhline(threshold, color=plots.VERMILION, linewidth=1, label='threshold')
  for i, alert in enumerate(watch.alerts):
    for axis in (upper, lower):
      axis.axvline(times[alert.at], color=plots.VERMILION, linewidth=1)
    upper.axvspan(
      times[alert.since], times[alert.at], color=plots.ORANGE, alpha=0.25, linewidth=0, label=None if i else 'the rise'
    )
  upper.set(ylim=(0, min(1, 1.2 * max(shares.max(), 0.05))), ylabel='rolling share')
  upper.yaxis.set_major_formatter(lambda x, _: f'{100 * x:.0f} %')
  lower.set(ylabel='evidence')
  upper.set_title(f'{plots.title(name)} · {len(watch.alerts)} alert{"" if len(watch.alerts) == 1 else "s"}')
  for axis in (upper, lower):
    axis.legend(loc='upper left', ncols=3)
  figure.autofmt_xdate()
  return plots.save(figure, folder, name)
