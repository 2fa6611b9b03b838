"""What a language model's run leaves beside its curves: samples, and a look inside."""

import re
from pathlib import Path

import jax
import numpy as np

from karpjax import generation
from karpjax.data import text
from karpjax.report import inside, writers

NAMES, TEXTS = 20, 2  # samples of lines, of a running text
SHOWN = 600  # tokens of the text that cells are coloured over
LOOKED_AT = 32  # tokens of an attention map


def draw(model, dataset, state, t: int, folder: Path, *, length: int) -> None:
  """A Program's `report`.

  Args:
    model: of `models.language`.
    dataset: of `data.text.load`.
    state: of one seed.
    t: the step.
    folder: the run's folder.
    length: tokens of a sample.
  """
  variables = {'params': state.eval_params, **state.collections}
  folder = Path(folder)
  add(folder / 'texts' / 'samples.txt', t, samples(model, variables, dataset, t, length))
  name = next(name for name in ('validation', 'test', 'train') if name in dataset.splits)
  split, about = dataset.splits[name], f'{name} split, step {t:,}'
  symbols = lambda tokens: [dataset.spec.tokenisers['text'].decode([token]) for token in tokens]
  if hasattr(model, 'heads'):
    tokens = split.fetch(np.zeros(1, np.int32))['tokens'][:, :LOOKED_AT]
    inside.draw_attention(inside.attention(model, variables, tokens), symbols(tokens[0]), folder, about)
  if hasattr(model, 'cell'):
    tokens = running(split, SHOWN)
    cells, gates = inside.activations(model, variables, tokens)
    inside.draw_saturation(gates, folder, about)
    writers.write_bytes(folder / 'cells.html', inside.coloured(cells, symbols(tokens), about).encode())


def add(path: Path, t: int, new: str) -> None:
  """Writes a step's text at the head of a file, in one piece; what the file has of this step or later ones is replaced."""
  path.parent.mkdir(parents=True, exist_ok=True)
  blocks = re.split(r'^(?=step [\d,]+\n)', path.read_text(encoding='utf-8'), flags=re.M) if path.exists() else []
  step = lambda block: int(re.match(r'step ([\d,]+)\n', block)[1].replace(',', ''))
  older = [block for block in blocks if block.startswith('step ') and step(block) < t]
  writers.write_bytes(path, (f'step {t:,}\n\n{new}\n\n' + ''.join(older)).encode())


def running(split, count: int) -> np.ndarray:
  """The first tokens of a split, [at most count] int32; of lines, one behind the other."""
  rows = split.fetch(np.arange(min(split.size, count), dtype=np.int32))
  return rows['tokens'][rows['targets'] >= 0][:count]


# ---- samples ----


def samples(model, variables, dataset, t: int, length: int) -> str:
  """Some lines, each said to be of train, of another split or new; or texts that begin with a new line."""
  tokeniser = dataset.spec.tokenisers['text']
  lines, count = dataset.spec.lines, NAMES if dataset.spec.lines else TEXTS
  first = np.full((count, 1), 0 if lines else text.line_break(tokeniser), np.int32)
  keys = jax.random.split(jax.random.key(t), count)
  rows = generation.texts(model, variables, first, keys, steps=length, end=0 if lines else None)
  if not lines:
    return '\n\n――――\n\n'.join(tokeniser.decode(row) for row in rows)
  found = known(dataset)
  return '\n'.join(f'{tokeniser.decode(row):24} {membership(row, found)}' for row in rows)


def known(dataset) -> dict[str, set[bytes]]:
  """{split: its lines, as bytes of their tokens}."""
  rows = {}
  for name, split in dataset.splits.items():
    targets = split.fetch(np.arange(split.size))['targets']
    rows[name] = {row[row > 0].astype(np.int32).tobytes() for row in targets}
  return rows


def membership(tokens: np.ndarray, found: dict[str, set[bytes]]) -> str:
  """'in train', 'in validation', 'in test' or 'new'."""
  line = tokens[tokens > 0].astype(np.int32).tobytes()
  return next((f'in {name}' for name in ('train', 'validation', 'test') if line in found.get(name, ())), 'new')
