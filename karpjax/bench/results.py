"""What `bench all` has measured: results.jsonl, a line for each set-up and machine, and the tables of README.md."""

import json
import os
from pathlib import Path

from karpjax.bench.measure import between
from karpjax.report import tables

RESULTS = Path(__file__).with_name('results.jsonl')
README = Path(__file__).with_name('README.md')
MARKS = '<!-- results: written by launch.py bench all -->', '<!-- end of results -->'
FIGURES = ('seconds', 'quartiles', 'ratio', 'ratio_quartiles', 'share_of_peak', 'peak', 'memory', 'all_in', 'versions')
TIMES = ('ours, ms a step', 'PyTorch, ms', 'PyTorch / ours', 'quartiles', 'our share of peak')
HEADS = ('set-up', *TIMES, 'memory, MB', "PyTorch's", 'steps', 'all in, s', "PyTorch's")
EMPTY = 'No machine has been measured by this command yet.'


def entry(name: str, steps: int, about: dict, rows: dict[str, dict], lacks: dict[str, str]) -> dict:
  """A line of results.jsonl.

  Args:
    name: of the set-up.
    steps: of a process all in.
    about: 'machine', 'date' and 'git'.
    rows: of `measure.measure`, by name, of which 'ours' and 'PyTorch' are kept.
    lacks: {'ours' or 'PyTorch': why it has no row}.
  """
  kept = {side: {key: rows[side][key] for key in FIGURES} for side in ('ours', 'PyTorch') if side in rows}
  return {'name': name, **about, 'steps': steps, 'rows': kept, 'lacks': lacks}


def record(line: dict) -> None:
  """Appends to results.jsonl, and writes the tables anew.

  Raises:
    UsageError: where README.md lacks one of the marks.
  """
  with open(RESULTS, 'a', encoding='utf-8') as file:
    file.write(json.dumps(line) + '\n')
    file.flush()
    os.fsync(file.fileno())
  tables.write_between(README, MARKS, pages(map(json.loads, RESULTS.read_text('utf-8').splitlines())))


def pages(lines) -> list[str]:
  """The tables, one for each machine, of the newest line of each set-up."""
  machines: dict[str, dict[str, dict]] = {}
  for line in lines:
    machines.setdefault(line['machine'], {})[line['name']] = line
  text = [] if machines else [EMPTY]
  for machine, newest in machines.items():
    newest = [newest[name] for name in sorted(newest)]
    text += ['', f'### {machine}', '', about(newest), '', *tables.markdown([*map(cells, newest)], HEADS), '']
  return text


def about(lines: list[dict]) -> str:
  """When, with which versions, and what a matmul reached, of the lines of one machine."""
  seen = lambda key: sorted({line[key] for line in lines})
  dates = seen('date')
  commits = ', '.join(sorted({line['git'] or 'unknown' for line in lines}))
  rows = [(side, line['rows'][side]) for line in lines for side in line['rows']]
  versions = '; '.join(sorted({row['versions'] for _, row in rows}))
  peaks = ', '.join(
    f'{min(found):.0f} to {max(found):.0f} GFLOP/s in {"ours" if side == "ours" else side}'
    for side in ('ours', 'PyTorch')
    if (found := [row['peak'] / 1e9 for other, row in rows if other == side])
  )
  when = dates[0] if len(dates) == 1 else f'{dates[0]} to {dates[-1]}'
  return f'Measured {when} at commit {commits}; {versions}. A matmul reaches {peaks}.'


def cells(line: dict) -> tuple[str, ...]:
  """The row of a set-up; where a side has no figures, why."""
  ours, theirs = (line['rows'].get(side) for side in ('ours', 'PyTorch'))
  milliseconds = lambda row: f'{1e3 * row["seconds"]:.4g}'
  memory = lambda row: f'{row["memory"] / 2**20:.0f}' if row else ''
  all_in = lambda row: '' if not row or row['all_in'] is None else f'{row["all_in"]:.1f}'
  ratio = (f'{theirs["ratio"]:.2f}', between(*theirs['ratio_quartiles'])) if theirs else ('', '')
  return (
    f'`{line["name"]}`',
    milliseconds(ours) if ours else line['lacks'].get('ours', ''),
    milliseconds(theirs) if theirs else line['lacks'].get('PyTorch', ''),
    *ratio,
    f'{ours["share_of_peak"]:.0%}' if ours and ours['share_of_peak'] else '',
    *(memory(ours), memory(theirs), f'{line["steps"]:,}', all_in(ours), all_in(theirs)),
  )
