"""`launch.py card WORKDIR`: a page about a model for those who may use it, from what its run has left.

The sections are those of Mitchell et al. 2019, "Model cards for model reporting"; the head is what model hubs read. What
a run cannot know is put as a question, for its author to answer in the file.
"""

import dataclasses
import inspect
import json
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from karpjax import config, verbs
from karpjax.errors import UsageError
from karpjax.metrics import fairness
from karpjax.report import page, tables, writers
from karpjax.train import run_dir

SPLITS = 'train', 'validation', 'test'
QUESTIONS = {
  'Intended use': (
    'For what, and by whom, is it to be used?', 'For what must it not be used? It was made by research code: it is no '
    'medical device, and nothing here says that it may decide on people.',
  ),
  'Factors': ('On whom or what may its errors depend: groups, instruments, places, times?',),
  'Ethical considerations': ('Whose data are these, and did they agree?', 'Whom can a wrong answer harm, and how?'),
  'Caveats and recommendations': ('What was not tried? What should be, before it is used?',),
}  # fmt: skip
MARK = re.compile(r'\n<!-- as it was made: ([0-9a-f]{8}) -->\n\Z')


@dataclasses.dataclass(frozen=True)
class Options:
  output: str = config.flag('', 'The file. Default: card.md in the folder of the run.', path=True)


# ---- what a run has left ----


def source(flags: Mapping[str, Any]) -> str:
  """The data's name, or the environment's, without the folders of the machine that it lay on."""
  name = str(flags.get('dataset') or flags.get('environment') or '')
  kind, colon, path = name.rpartition(':')
  is_path = '/' in path and (colon or path.startswith('/') or Path(path).suffix)
  return kind + colon + ','.join(Path(each).name for each in path.split(',')) if is_path else name


def named(run) -> str:
  """The folder's name, and of several settings or seeds in it, which."""
  folder, member = run.folder.resolve(), '' if run.member is None else f', member {run.member}'
  return f'{folder.parent.name}, {run.trial}' if run.trial else f'{folder.name}{member}'


def weights_of(numbers: Mapping[str, Any]) -> str:
  """'best/' where a best checkpoint was kept that is not the last, which verbs use then; else ''."""
  return 'best/' if numbers.get('best/step') not in (None, numbers.get('steps')) else ''


def mean(value: Any) -> float:
  return value['mean'] if page.over_seeds(value) else value


def results(numbers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """{split: {metric: its final number}} of the weights that verbs use; what is not finite is left out."""
  of, found = weights_of(numbers), {}
  for name, value in numbers.items():
    split, slash, metric = name.removeprefix(of).partition('/')
    if name.startswith(of) and slash and split in SPLITS[1:] and value is not None and math.isfinite(mean(value)):
      found.setdefault(split, {})[metric] = value
  return found


def groups(run) -> list[str]:
  """Lines on what `launch.py audit` has found, where it was asked of what the card is of; of another setting it may be false."""
  lines = []
  for path in sorted((run.folder / 'audit').glob('*.json')):
    for found in json.loads(path.read_text('utf-8')):
      if run.member not in (None, found.get('member', 0)):
        continue
      cell = lambda x: '–' if x[0] is None else f'{100 * x[0]:.2f} ({100 * x[1]:.1f} to {100 * x[2]:.1f})'
      rows = [
        (name + ' (too small to judge)' * own['small'], f'{own["n"]:,}', *(cell(own[rate]) for rate in fairness.RATES))
        for name, own in found['groups'].items()
      ]
      weights = f'; weights of {found["weights"]}' if 'weights' in found else ''
      about = f'positive: {found["label"]}; decision: {found["decision"]}{weights}'
      lines += [f'By {found["group"]}, of {path.stem}; {about}:', '']
      lines += [*tables.markdown(rows, (found['group'], 'n', *(f'{rate}, %' for rate in fairness.RATES))), '']
      told = (f'{name} {"–" if x is None else f"{x:.4f}"}' for name, x in found['differences'].items())
      lines += [f'In brackets: 95 % (Wilson). Largest differences: {", ".join(told)}.', '']
  return lines


# ---- the page ----


def head(run, name: str, numbers: Mapping[str, Any]) -> list[str]:
  """The YAML that hubs read; its values are JSON, which is YAML too."""
  experiment, data = run.stored['experiment'], source(run.stored['flags'])
  kind, found = experiment.replace('_', '-'), results(numbers)
  metrics = list(dict.fromkeys(metric for own in found.values() for metric in own))
  lines = ['---', 'license: unknown  # which?', f'tags: {json.dumps(["jax", "flax", "karpjax", kind])}']
  lines += [f'datasets: {json.dumps([data], ensure_ascii=False)}'] if run.stored['flags'].get('dataset') else []
  lines += [f'metrics: {json.dumps(metrics)}', 'model-index:', f'- name: {json.dumps(name, ensure_ascii=False)}']
  lines += ['  results:'] if found else ['  results: []']
  for split, own in found.items():
    about = json.dumps({'name': data, 'type': data, 'split': split}, ensure_ascii=False)
    lines += [f'  - task: {json.dumps({"type": kind})}', f'    dataset: {about}', '    metrics:']
    for metric, value in own.items():
      over = f' (mean of {len(value["values"])} seeds)' if page.over_seeds(value) else ''
      lines.append(f'    - {json.dumps({"type": metric, "value": mean(value), "name": f"{split} {metric}{over}"})}')
  return [*lines, '---', '']


def details(run, numbers: Mapping[str, Any]) -> list[str]:
  """What it is: model, size, cost, versions, and the command that makes it again."""
  stored, parameters = run.stored, numbers['parameters']
  about = (inspect.getdoc(run.experiment) or '').partition('\n')[0]
  flops, seconds = (stored.get('compiled') or {}).get('flops'), numbers.get('seconds')
  time = f', {seconds:,.0f} s on {stored.get("device_kind")}' if seconds else ''
  versions = ', '.join(f'{name} {version}' for name, version in (stored.get('versions') or {}).items())
  population, parent = stored.get('population'), writers.read_json(run.folder.parent / 'sweep.json')
  members = len(population['seeds']) if population else stored['flags'].get('seeds', 1)
  together = f', of {members} {"members" if population else "seeds"} together' if members > 1 else ''
  own = {name: values[run.member] for name, values in population['hyper'].items()} if population else {}
  rows = {
    'Experiment': f'{stored["experiment"]}: {about}',
    'Model': stored['flags'].get('model') or stored['flags'].get('algorithm'),
    'Setting': run.trial or ' '.join(f'{name}={x}' for name, x in own.items()),
    'Size': f'{parameters:,} parameters, {4 * parameters / 1e6:.3g} MB in float32',
    'Training': f'{numbers["steps"]:,} steps{time}{together if time else ""}',
    'FLOPs of a step': f'{flops:,.0f} (estimated){together}' if flops else None,
    **{page.title(n): page.figure(n, x) for n, x in numbers.items() if 'energy' in n},
    'Privacy': privacy(run, numbers),
    'Versions': versions,
    'Git revision': stored.get('git'),
  }
  listed = [f'- {name}: {value}' for name, value in rows.items() if value]
  command = parent.get('command') if population else None  # a member's is of the program
  asked = '- Who made it, and where are questions to be sent?'
  return [*listed, '', '```', command or stored['command'], '```', '', asked]


def privacy(run, numbers: Mapping[str, Any]) -> str:
  """ε of the training, '' where it was not private."""
  told = [
    f'{name.removeprefix("train/").replace("_", " ")} {page.figure(name, x)}'
    for name, x in numbers.items()
    if 'epsilon' in name
  ]
  path = run.folder / 'texts' / 'privacy.txt'
  about = f' at δ = {run.stored["flags"].get("dp_delta")}, of this one training; '
  lines = path.read_text('utf-8').splitlines()[1:] if path.exists() else []
  caveats = lines or ['what a search of settings and evaluations have told is not accounted']
  return f'{", ".join(told)}{about}{"; ".join(caveats)}' if told else ''


def data_table(run) -> list[str]:
  """The splits and their sizes; of an environment the episodes of evaluation."""
  splits, plays = writers.read_json(run.folder / run_dir.DATA).get('splits', {}), played(run)
  kept = {
    split: own['examples'] for split, own in splits.items() if 'examples' in own and not (plays and split == 'train')
  }
  rows = [(split, f'{count:,}') for split, count in kept.items()]
  return tables.markdown(rows, ('split', 'episodes' if plays else 'examples')) if rows else []


def played(run) -> bool:
  """Whether it has learnt from an environment, and no data."""
  return not run.stored['flags'].get('dataset')


def text(run, name: str) -> str:
  """The card of a finished run, in Markdown."""
  numbers, data = run.summary, source(run.stored['flags'])
  found = results(numbers)
  metrics = [metric for metric in numbers if metric.startswith(SPLITS)]
  rows, heads = tables.last_and_best(numbers, metrics, page.figure)
  seeds = max((len(x['values']) for x in numbers.values() if page.over_seeds(x)), default=1)
  over = [f'{seeds} seeds: mean ± sample standard deviation.', ''] if seeds > 1 else []
  advice = ': `python launch.py audit` does it, of a table' if 'audit' in run.verbs else ''
  audited = groups(run) or [f'It was not audited for groups{advice}.', '']
  reported = list(dict.fromkeys(metric for own in found.values() for metric in own))
  kind = 'episodes' if played(run) else 'split'
  evaluated = f'The {kind}{"s" * (kind == "split" and len(found) > 1)} {" and ".join(found)}'
  trained = f'What was played in {data}' if played(run) else data
  changed = run.stored.get('changed') or {}
  preparation = [f'{n}={page.plain(x)}' for n, x in changed.items() if n in ('validation', 'test', 'augment', 'lower')]
  ask = lambda heading: [*(f'- {question}' for question in QUESTIONS[heading]), '']
  sections = {
    'Model details': [*details(run, numbers), ''],
    'Intended use': ask('Intended use'),
    'Factors': ask('Factors'),
    'Metrics': [
      f'Reported are {", ".join(reported)}.' if reported else 'None was measured on validation or test.',
      '- Why these, and what is an error worth?',
      '',
    ],
    'Evaluation data': [f'{evaluated} of {data}, below.' if found else 'None.', ''],
    'Training data': [f'{trained}{"; " + ", ".join(preparation) if preparation else ""}', '', *data_table(run), ''],
    'Quantitative analyses': [*over, *tables.markdown(rows, heads), '', *audited],
    'Ethical considerations': ask('Ethical considerations'),
    'Caveats and recommendations': ask('Caveats and recommendations'),
  }
  body = [line for heading, lines in sections.items() for line in (f'## {heading}', '', *lines)]
  return '\n'.join([*head(run, name, numbers), f'# {name}', '', *body]).rstrip('\n') + '\n'


# ---- the verb ----


def marked(card: str) -> str:
  """The card with a line by which `edited` knows it as it was made."""
  return f'{card}\n<!-- as it was made: {zlib.crc32(card.encode()):08x} -->\n'


def edited(card: str) -> bool:
  """Whether somebody has written in it since it was made."""
  mark = MARK.search(card)
  return not mark or marked(card[: mark.start()]) != card


def place(run, chosen: Options) -> Path:
  return Path(chosen.output) if chosen.output else run.own_path(run.folder / 'card.md')


def encode(run, inputs, chosen: Options) -> dict:
  path = place(run, chosen)
  if 'parameters' not in run.summary:
    raise UsageError(f'{run.folder} is not finished: its card would have no numbers')
  if run.checkpoint not in ('best', 'last'):
    raise UsageError(f'checkpoint={run.checkpoint}: a card tells what training has measured; leave checkpoint out')
  if path.is_dir():
    raise UsageError(f'output={path} is a folder; a card is a file')
  if path.exists() and edited(path.read_text('utf-8', errors='replace')):
    raise UsageError(f'{path} has been edited, or is no card, and would be written over; choose another output=')
  return {}


def decode(run, outputs, inputs, chosen: Options):
  path = place(run, chosen)
  writers.write_bytes(path, marked(text(run, named(run))).encode())
  return [{'file': str(path)}]


VERB = verbs.Verb(
  'Writes a model card, whose questions its author answers.', encode, lambda run, chosen: lambda state, arrays: {}, decode,
  options=Options, writes=lambda run, inputs, chosen: [place(run, chosen)],
)  # fmt: skip
