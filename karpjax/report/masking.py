"""What a masked language model makes of texts: guesses beside what stood there, and <mask>s of the user's filled in."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import errors
from karpjax.data import masking, tokenisers
from karpjax.report import writers

SHOWN = 20
GUESSES = 5


def draw(program, dataset, leave_out, state, t: int, folder: Path, *, seeds: int = 1) -> None:
  """A Program's `report`: report.txt, texts of the test split (else validation, else train) with what was left out filled in.

  Args:
    program: its `predict` gives logits [batch, time, vocabulary].
    dataset: as `masking.load` gives it.
    leave_out: (keys, batch) -> (tokens, places, targets), as `masking.mask`.
    state: of one seed.
    t: the step, for the heading.
    folder: the run's folder.
    seeds: how many the run has; `state` is that of the first.
  """
  name = next(name for name in ('test', 'validation', 'train') if name in dataset.splits)
  split, tokeniser = dataset.splits[name], dataset.spec.tokenisers['text']
  numbers = np.unique(np.linspace(0, split.size - 1, SHOWN).astype(np.int32))
  batch = {**split.fetch(numbers), 'index': numbers}

  @jax.jit
  def guess(state, batch):
    tokens, places, targets = leave_out(masking.fixed_keys(batch), batch)
    best = program.predict(state, {**batch, 'tokens': tokens}, jax.random.key(0)).argmax(-1)  # [batch, time]
    return places, targets, jnp.take_along_axis(best, places, 1)

  places, targets, guesses = map(np.asarray, guess(state, batch))
  right = ((guesses == targets) & (targets >= 0)).sum()
  note = f' · first of {seeds} seeds' if seeds > 1 else ''
  lines = [
    f'{name} split, step {t}{note}: {right:,} of {(targets >= 0).sum():,} tokens guessed right',
    '',
    '[guess] is right, [guess | truth] is not; a place may show the model <mask>, another token or the true one.',
    '',
  ]
  for row in range(len(numbers)):
    stood = {p: (g, y) for p, g, y in zip(places[row], guesses[row], targets[row]) if y >= 0}
    lines += [filled(tokeniser, batch['targets'][row], stood), '']
  writers.write_bytes(folder / 'report.txt', '\n'.join(lines).encode())


def filled(tokeniser: tokenisers.Tokeniser, tokens: Sequence[int], guesses: dict[int, tuple[int, int]]) -> str:
  """A text on one line.

  Args:
    tokeniser: of the tokens.
    tokens: [time] as they stood.
    guesses: place -> (guess, truth).
  """
  space = ' ' if tokeniser.kind == 'words' else ''
  shown = lambda token: (
    tokeniser.symbols[token] if token < tokeniser.specials else tokeniser.decode([token]).strip() or '␣'
  )
  pieces, run = [], []
  for place, token in enumerate([*tokens, None]):
    if token is not None and place not in guesses:
      run.append(token)
      continue
    pieces.append(tokeniser.decode(run))
    run = []
    if token is not None:
      guess, truth = guesses[place]
      blank = ' ' if tokeniser.decode([truth]).startswith(' ') else ''
      pieces.append(f'{blank}[{shown(guess)}]' if guess == truth else f'{blank}[{shown(guess)} | {shown(truth)}]')
  return ' '.join(space.join(piece for piece in pieces if piece).split())


def fill(program, state, spec, texts: Sequence[str]) -> list[str]:
  """For `launch.py predict`: of each <mask> in the texts, the most probable tokens.

  Raises:
    UsageError: for a text without <mask>, or with more tokens than the model has positions.
  """
  tokeniser, lines = spec.tokenisers['text'], []
  for text in texts:
    parts = [tokeniser.encode(part) for part in text.split(tokenisers.MASK)]
    if len(parts) < 2:
      raise errors.UsageError(f'{text!r} has no {tokenisers.MASK}: write one for each token to be guessed')
    tokens = [tokenisers.BEGIN, *parts[0]]
    for part in parts[1:]:
      tokens += [masking.MASK, *part]
    if len(tokens) > spec.lengths['text']:
      raise errors.UsageError(f'{text!r} has {len(tokens) - 1} tokens; this model takes {spec.lengths["text"] - 1}')
    row = np.zeros((1, spec.lengths['text']), np.int32)
    row[0, : len(tokens)] = tokens
    batch = {'tokens': row, 'index': np.zeros(1, np.int32)}
    call = jax.jit(lambda state, batch: jax.nn.softmax(program.predict(state, batch, jax.random.key(0))))
    probabilities = np.array(call(state, batch))[0]
    probabilities[:, : tokeniser.specials] = 0
    lines.append(text)
    for place in (i for i, token in enumerate(tokens) if token == masking.MASK):
      best = np.argsort(-probabilities[place])[:GUESSES]
      lines.append('  ' + '  '.join(f'{tokeniser.decode([g]).strip()} {probabilities[place, g]:.4f}' for g in best))
  return lines
