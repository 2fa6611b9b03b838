"""`launch.py export WORKDIR`: what a run has learnt, as files that need neither karpjax nor the run.

The functions of `Program.exports` are lowered by `jax.export` for any batch and several platforms, each in one file;
beside them lie manifest.json, which says what they take and give, run.py, which calls them, and params.npz.
"""

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.interpreters import partial_eval

import karpjax
from karpjax import config, verbs
from karpjax.errors import UsageError, first_line
from karpjax.program import Input
from karpjax.report import writers
from karpjax.train import checkpoint, weights

PLATFORMS = 'cpu', 'cuda', 'rocm', 'tpu'
INSIDE = 2**20  # bytes of weights, in all functions together, up to which they lie inside
RUNNER, MANIFEST, PARAMS, WEIGHTS = 'run.py', 'manifest.json', 'params.npz', 'weights.safetensors'


@dataclasses.dataclass(frozen=True)
class Options:
  output: str = config.flag('', "The folder, a new one. Default: the run's folder export.", path=True)
  format: str = config.flag(
    'stablehlo', 'stablehlo: functions to call; safetensors: the weights alone.', choices=('stablehlo', 'safetensors')
  )
  platforms: tuple[str, ...] = config.flag(
    ('cpu', 'cuda', 'tpu'), 'Where the functions can run.', choices=PLATFORMS, least=1
  )
  batch: int = config.flag(0, 'The one size of batches that the functions take; 0: any.', low=0)
  params: str = config.flag(
    'auto', 'Weights inside of the functions, or beside them; auto: beside from 1 MiB on.',
    choices=('auto', 'inside', 'beside'),
  )  # fmt: skip


# ---- functions ----


def _shapes(inputs: Mapping[str, Any], batch: int):
  """Inputs, trees of `Input`, as ShapeDtypeStructs of so many examples; of 0 of any number, as names are of any size."""
  scope = export.SymbolicScope(['batch >= 1'])

  def shape(given: Input):
    text = ', '.join(map(str, (batch or 'batch', *given.shape)))
    return jax.ShapeDtypeStruct(export.symbolic_shape(text, scope=scope), given.dtype)

  return jax.tree.map(shape, dict(inputs))


def pure(function: Callable, state, inputs) -> tuple[Callable, dict[str, jax.Array]]:
  """A function of the arrays of a state that it reads: ((params, inputs) -> outputs, its params {path: array}).

  Args:
    function: (state, batch, key) -> outputs, as in `Program.exports`.
    state: a TrainState.
    inputs: {entry of the batch: ShapeDtypeStruct, or a tree of them}.
  """
  leaves, structure = jax.tree.flatten(state)
  names = checkpoint.names(state)

  def of_leaves(leaves, inputs):
    size = jax.tree.leaves(inputs)[0].shape[0]
    filled = {'index': jnp.arange(size), 'mask': jnp.ones(size, bool)}
    return function(jax.tree.unflatten(structure, leaves), {**filled, **inputs}, jax.random.key(0))

  jaxpr = jax.make_jaxpr(of_leaves)(leaves, inputs).jaxpr
  _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  read = {name: leaf for name, leaf, own in zip(names, leaves, used) if own}
  call = lambda params, inputs: of_leaves([params.get(name, leaf) for name, leaf in zip(names, leaves)], inputs)
  return call, read


@contextlib.contextmanager
def _refused(name: str, chosen: Options) -> Iterator[None]:
  """A UsageError for what cannot be lowered."""
  try:
    yield
  except (jax.errors.InconclusiveDimensionOperation, TypeError) as error:
    if isinstance(error, TypeError) and '_DimExpr' not in str(error):  # as of len(), which is a whole number
      raise
    why = f'{name} cannot be made for any batch: {first_line(error)}'
    raise UsageError(f'{why}; give it one size, as batch=1') from None
  except RuntimeError as error:
    where = f'platforms={",".join(chosen.platforms)}'
    raise UsageError(f'{where}: this jaxlib cannot lower {name} for them: {first_line(error)}') from None


def exported(name: str, function: Callable, inputs: Mapping[str, Any], state, chosen: Options, most: int = INSIDE):
  """(export.Exported of (params, inputs), its params {path: array}, whether they lie beside it, as more than `most` bytes)."""
  with _refused(name, chosen):
    shapes = _shapes(inputs, chosen.batch)
    call, params = pure(function, state, shapes)
    beside = sum(x.nbytes for x in params.values()) > most if chosen.params == 'auto' else chosen.params == 'beside'
    whole = call if beside else lambda _, inputs: call(params, inputs)
    taken = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in params.items()} if beside else {}
    return export.export(jax.jit(whole), platforms=chosen.platforms)(taken, shapes), params, beside


def _about(tree) -> dict[str, dict]:
  """{name: {'shape', 'dtype'}} of the arrays of a tree; sizes that are open are names."""
  sizes = lambda shape: [n if isinstance(n, int) else str(n) for n in shape]
  named = zip(checkpoint.names(tree), jax.tree.leaves(tree))
  return {name or 'output': {'shape': sizes(x.shape), 'dtype': str(x.dtype)} for name, x in named}


def functions(run, state, chosen: Options) -> tuple[dict[str, bytes], dict]:
  """({file: content} of the functions and their params, what the manifest says of them)."""
  files, about, beside, most = {}, {}, {}, INSIDE // len(run.program.exports)  # else each would hold them all
  for name, (function, inputs) in run.program.exports.items():
    made, params, outside = exported(name, function, inputs, state, chosen, most)
    file = f'{name}.jaxexport'
    files[file] = bytes(made.serialize())
    beside |= params if outside else {}
    about[name] = {
      'file': file,
      'params': list(params) if outside else [],
      'inputs': _about(_shapes(inputs, chosen.batch)),
      'outputs': _about(jax.tree.unflatten(made.out_tree, made.out_avals)),
      'calling_convention_version': made.calling_convention_version,
    }
  if beside:
    stream = io.BytesIO()
    np.savez(stream, **beside)
    files[PARAMS] = stream.getvalue()
  files[RUNNER] = Path(__file__).with_name('run_export.py').read_bytes()
  return files, {'platforms': list(chosen.platforms), 'functions': about}


def safetensors(state) -> tuple[dict[str, bytes], dict]:
  """The same of the weights alone, under the names by which `init_from` reads them."""
  import safetensors.numpy

  arrays = {n.replace(checkpoint.SEPARATOR, '.'): np.asarray(x) for n, x in weights.of_state(state).items()}
  return {WEIGHTS: safetensors.numpy.save(arrays)}, {'file': WEIGHTS, 'arrays': _about(arrays)}


# ---- the verb ----


def folder(run, chosen: Options) -> Path:
  return Path(chosen.output) if chosen.output else run.own_path(run.folder / 'export')


def encode(run, inputs, chosen: Options) -> dict:
  """Nothing: all is checked before anything is loaded."""
  place = folder(run, chosen)
  if place.exists() and not (place.is_dir() and not any(place.iterdir())):
    raise UsageError(f'{place} is there already, and nothing is written over: choose another output=')
  if chosen.format == 'stablehlo' and not run.program.exports:
    why = 'its Program has no exports, which say what to write and what it reads'
    raise UsageError(f'{run.folder} is a run of {run.stored["experiment"]}, which cannot be exported: {why}')
  return {}


def function(run, chosen: Options):
  """(state, nothing) -> {file: content}; pure."""

  def files(state, arrays):
    made, about = safetensors(state) if chosen.format == 'safetensors' else functions(run, state, chosen)
    versions = {'karpjax': karpjax.__version__, 'jax': jax.__version__, 'numpy': np.__version__}
    manifest = {'format': chosen.format, 'versions': versions, **describe(run), **about}
    return {**made, MANIFEST: (json.dumps(writers.plain(manifest), indent=2) + '\n').encode()}

  return files


def describe(run) -> dict[str, Any]:
  """What the manifest says of the run: among it the spec, with classes, scales and tokenisers."""
  names = 'experiment', 'command', 'git', 'spec'
  return {**{name: run.stored.get(name) for name in names}, 'step': run.step, 'weights': f'{run.checkpoint}{run.whose}'}


def decode(run, files, inputs, chosen: Options):
  place = folder(run, chosen)
  for name, content in files.items():  # the manifest last
    writers.write_bytes(place / name, content)
    yield {'file': str(place / name), 'bytes': len(content)}


HELP = 'Writes what it has learnt as files that run without karpjax: functions for any batch, or the weights.'
VERB = verbs.Verb(HELP, encode, function, decode, options=Options)
