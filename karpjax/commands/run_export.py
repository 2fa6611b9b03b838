"""Calls the functions that lie beside this file, of which manifest.json tells. It needs jax, numpy and flatbuffers alone.

python run.py FUNCTION INPUTS.npz OUTPUTS.npz            # arrays by the names that manifest.json gives them
import run; outputs = run.load('FUNCTION')(name=array)   # the same from Python
"""

import json
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np

HERE = Path(__file__).resolve().parent


def load(name):
  about = json.loads((HERE / 'manifest.json').read_text())['functions'][name]
  call = jax.jit(jax.export.deserialize(bytearray((HERE / about['file']).read_bytes())).call)
  weights = np.load(HERE / 'params.npz') if about['params'] else {}
  params = jax.device_put({name: weights[name] for name in about['params']})
  return lambda **inputs: call(params, inputs)


if __name__ == '__main__':
  function, source, target = sys.argv[1:]
  outputs, _ = jax.tree_util.tree_flatten_with_path(load(function)(**np.load(source)))
  np.savez(target, **{jax.tree_util.keystr(path, simple=True, separator='/') or 'output': x for path, x in outputs})
