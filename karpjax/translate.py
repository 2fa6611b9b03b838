"""`launch.py translate WORKDIR TEXT …`: translations by a run's best checkpoint; without TEXT, of the lines it is given.

Needs no data set.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import errors, predict
from karpjax.data import parallel, tokenisers
from karpjax.metrics import translation
from karpjax.train import runtime

BATCH = 32  # lines of a file that are translated together


def translator(experiment, settings, spec: parallel.Spec, params, beam: int) -> Callable[[Sequence[str]], list[str]]:
  """A function of texts, whatever their number and lengths; compiled for the longest of the training texts, so once.

  Args:
    experiment: has `translator`.
    settings, spec, params: of a run.
    beam: how many sequences are kept; 1: greedy.

  Raises:
    UsageError: (the function) for a text that the model has no positions for.
  """
  translated = experiment.translator(settings, spec)
  compiled = jax.jit(lambda params, source: translated(params, source, beam))
  length = spec.lengths['source']

  def translate(texts: Sequence[str]) -> list[str]:
    rows = parallel.encode(texts, spec.tokenisers['source'], reverse=spec.about['reverse'])
    longest = max(map(len, rows))
    if longest > length and settings.model == 'transformer':
      raise errors.UsageError(
        f'a text of {longest - 1} tokens is longer than the {length - 1} that this model has positions for; cut it'
      )
    rows += [rows[-1]] * (-len(rows) % (BATCH if len(rows) > 1 else 1))
    found = compiled(params, jnp.asarray(parallel.padded(rows, max(length, longest))))
    return [translation.text(tokens, spec.tokenisers['target']) for tokens in np.asarray(found)[: len(texts)]]

  return translate


def unknown(texts: Iterable[str], tokeniser: tokenisers.Tokeniser) -> list[str]:
  """The pieces of texts that the tokeniser has not, each once; of bpe there are none."""
  if tokeniser.kind == 'bpe':
    return []
  return [
    piece for piece in dict.fromkeys(p for t in texts for p in tokeniser.split(t)) if piece not in tokeniser.table
  ]


def chunks(lines: Iterable[str], size: int) -> Iterator[list[str]]:
  held = []
  for line in lines:
    held.append(line.strip())
    if len(held) == size:
      yield held
      held = []
  if held:
    yield held


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog='launch.py translate', description=__doc__)
  parser.add_argument('workdir', help='of a translation run')
  parser.add_argument('text', nargs='*', help='what to translate; none: the lines of standard input')
  parser.add_argument('--beam', type=int, default=5, help='sequences kept in the search; 1: greedy (default 5)')
  parser.add_argument('--length_penalty', type=float, help="power of (5 + length) / 6 (default: the run's)")
  options = parser.parse_args(argv)
  runtime.tune_malloc()
  runtime.enable_compilation_cache('')
  try:
    if options.beam < 1:
      raise errors.UsageError(f'--beam={options.beam}: at least 1 is needed')
    if options.length_penalty is not None and not options.length_penalty >= 0:
      raise errors.UsageError(f'--length_penalty={options.length_penalty}: a number that is not negative is needed')
    _, state, spec, experiment, settings = predict.load_run(options.workdir)
    if not isinstance(spec, parallel.Spec):
      raise errors.UsageError(f'{options.workdir} holds no run of translation')
    if options.length_penalty is not None:
      settings = dataclasses.replace(settings, length_penalty=options.length_penalty)
    translate = translator(experiment, settings, spec, state.eval_params, options.beam)
    texts = iter(options.text) if options.text else sys.stdin
    for some in chunks(texts, 1 if not options.text and sys.stdin.isatty() else BATCH):
      missing = unknown(some, spec.tokenisers['source'])
      if missing:
        shown = ' '.join(map(repr, missing[:8])) + (' …' if len(missing) > 8 else '')
        print(f'never seen in training, so translated as unknown: {shown}', file=sys.stderr)
      full = [text for text in some if text]
      found = iter(translate(full)) if full else iter(())
      for text in some:
        print(next(found) if text else '', flush=True)
  except errors.UsageError as error:
    print(f'translate: {error}', file=sys.stderr)
    return 2
  return 0
