"""Files of few bits: the weights of a run whose kernels are integers with a scale for each output channel.

In a file a kernel NAME is NAME/int8, int8 of its shape, or NAME/int4, uint8, of two numbers the first lower, from 8 for 0, with
NAME/shape; and NAME/scale, float32. All else is as it was.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from karpjax import paths
from karpjax.errors import UsageError
from karpjax.lean import quantisation

OFFERED = {'int8': 8, 'int4': 4}


def file_of(which: str | int, place: Callable[[str], Path], asked: Sequence[str]) -> Path | None:
  """The file that a verb's `checkpoint` names, or None where it is a checkpoint of the run.

  Args:
    which: int8, int4 or FILE.safetensors.
    place: the name of a file -> where the run has it.
    asked: what a command line says of the run: its folder, and flags.

  Raises:
    UsageError: where the run has none.
  """
  if which not in OFFERED:
    return Path(paths.expand(str(which))) if str(which).endswith('.safetensors') else None
  if not (path := place(f'{which}.safetensors')).exists():
    command = shlex.join(['python', 'launch.py', 'quantise', *asked, f'--bits={OFFERED[which]}'])
    raise UsageError(f'checkpoint={which}: no {path}; {command} writes it')
  return path


def packed(arrays: Mapping[str, np.ndarray], kernels: Mapping[str, str], bits: int, clip: float = 1.0):
  """{name: array} of a file of few bits.

  Args:
    arrays: as `weights.of_state`.
    kernels: {name of one that is quantised: as `axes.kernels`}.
    bits: 8 or 4.
    clip: as `quantisation.integers`'s.
  """
  file = {name: x for name, x in arrays.items() if name not in kernels}
  for name, matrix in kernels.items():
    whole, scale = map(np.asarray, quantisation.integers(arrays[name], bits, quantisation.inputs(matrix), clip))
    file[f'{name}/scale'] = scale
    if bits == 8:
      file[f'{name}/int8'] = whole.astype(np.int8)
    else:
      pairs = np.pad((whole + 8).astype(np.uint8).ravel(), (0, whole.size % 2)).reshape(-1, 2)
      file |= {f'{name}/int4': pairs[:, 0] | pairs[:, 1] << 4, f'{name}/shape': np.array(whole.shape, np.int32)}
  return file


def unpacked(file: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The reverse, in float32; of a file without integers the same.

  Raises:
    ValueError: where a part is missing, or of another shape.
  """
  kernels = {n.rpartition('/')[0]: n.rpartition('/')[2] for n in file if n.endswith(tuple(f'/{o}' for o in OFFERED))}
  arrays = {n: x for n, x in file.items() if n.rpartition('/')[0] not in kernels}
  for name, kind in kernels.items():
    parts = [f'{name}/{part}' for part in ('scale', 'shape')[: 1 + (kind == 'int4')]]
    if missing := [part for part in parts if part not in file]:
      raise ValueError(f'it has {name}/{kind} and no {missing[0]}')
    whole, scale, *shape = file[f'{name}/{kind}'], *(file[part] for part in parts)
    if shape:
      pairs = np.stack([whole & 15, whole >> 4], -1).ravel()
      whole = pairs[: shape[0].prod()].reshape(shape[0]).astype(np.int8) - 8
    arrays[name] = whole.astype(np.float32) * scale
  return arrays
