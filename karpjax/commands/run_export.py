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
  function = jax.export.deserialize(bytearray((HERE / about['file']).read_bytes()))
  weights = np.load(HERE / 'params.npz') if about['params'] else {}
  params, call = jax.device_put({name: weights[name] for name in about['params']}), jax.jit(function.call)
  made = lambda **inputs: call(params, inputs)
  tree = function.in_tree.children()[0].children()[1]  # of the inputs, of which a state is a tree itself
  made.of_arrays = lambda arrays: call(params, jax.tree.unflatten(tree, [arrays[name] for name in about['inputs']]))
  return made


if __name__ == '__main__':
  function, source, target = sys.argv[1:]
  outputs, _ = jax.tree_util.tree_flatten_with_path(load(function).of_arrays(np.load(source)))
  np.savez(target, **{jax.tree_util.keystr(path, simple=True, separator='/') or 'output': x for path, x in outputs})
