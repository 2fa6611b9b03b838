"""`launch.py sample WORKDIR [--prompt=…]`: a language model's run goes on with a text, token by token. Needs no data set."""

import argparse
import sys
import time

import jax
import numpy as np

from karpjax import errors, generation, predict
from karpjax.data import text
from karpjax.train import runtime


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog='launch.py sample', description=__doc__)
  parser.add_argument('workdir', help='of a language_model run')
  parser.add_argument('--prompt', default='', help='what the text begins with (default: a new line)')
  parser.add_argument('--tokens', type=int, default=500, help='how many at the most (default 500)')
  parser.add_argument('--samples', type=int, help='how many texts (default 1; of lines 20)')
  parser.add_argument('--temperature', type=float, default=1.0, help='0: always the most probable token (default 1)')
  parser.add_argument('--top_k', type=int, default=0, help='draw from the so many most probable; 0: all')
  parser.add_argument(
    '--top_p', type=float, default=1.0, help='draw from those that have this share together (default 1)'
  )
  parser.add_argument('--seed', type=int, default=0, help='of the draws')
  options = parser.parse_args(argv)
  runtime.tune_malloc()
  runtime.enable_compilation_cache('')
  try:
    _check(options)
    _, state, spec, module, settings = predict.load_run(options.workdir)
    if not isinstance(spec, text.TextSpec) or not hasattr(module, 'build'):
      raise errors.UsageError(f'{options.workdir} holds no run of language_model; sample goes on with texts')
    model = module.build(settings, spec)
    begun = _begun(options.prompt, spec)
  except errors.UsageError as error:
    print(f'sample: {error}', file=sys.stderr)
    return 2
  variables = {'params': state.eval_params, **state.collections}
  rules = dict(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
  tokeniser, lines = spec.tokenisers['text'], spec.lines
  keys = jax.random.split(jax.random.key(options.seed), options.samples or (20 if lines else 1))
  if lines:
    for row in generation.texts(
      model, variables, np.repeat(begun, len(keys), 0), keys, steps=options.tokens, end=0, **rules
    ):
      print(options.prompt + tokeniser.decode(row), flush=True)
    return 0
  for i, key in enumerate(keys):
    if i:
      print('\n――――')
    say(generation.stream(model, variables, begun, key[None], **rules), tokeniser, options.prompt, options.tokens)
  return 0


def _check(options) -> None:
  for name, low in (('tokens', 1), ('samples', 1), ('temperature', 0), ('top_k', 0)):
    value = getattr(options, name)
    if value is not None and not value >= low:
      raise errors.UsageError(f'--{name}={value}: at least {low} is needed')
  if not 0 < options.top_p <= 1:
    raise errors.UsageError(f'--top_p={options.top_p}: a share above 0, of at most 1, is needed')


def _begun(prompt: str, spec) -> np.ndarray:
  """[1, n] int32: the prompt's tokens, behind token 0 where texts are lines; a new line where there is none."""
  tokeniser = spec.tokenisers['text']
  tokens = tokeniser.encode(prompt) if prompt else np.zeros(0, np.int32)
  if spec.lines:
    return np.concatenate([[0], tokens])[None].astype(np.int32)
  return (tokens if len(tokens) else np.array([text.line_break(tokeniser)]))[None].astype(np.int32)


def say(chunks, tokeniser, prompt: str, count: int) -> None:
  """Prints a text as its tokens come, whole characters at a time, and how fast they came."""
  print(prompt, end='', flush=True)
  said, shown, begun, first = [], '', time.perf_counter(), None
  for chunk in chunks:
    if first is None:
      begun, first = time.perf_counter(), len(chunk[0])  # what came before was compilation, and the prompt
    said = [*said, *chunk[0].tolist()][:count]
    now = tokeniser.decode(said).removesuffix('\N{REPLACEMENT CHARACTER}')  # half a character waits for the other half
    print(now[len(shown) :], end='', flush=True)
    shown = now
    if len(said) >= count:
      break
  seconds = time.perf_counter() - begun
  rate = f', {(len(said) - first) / seconds:,.0f} tokens/s' if len(said) > first else ''
  print(f'\n({len(said)} tokens{rate})', file=sys.stderr)
