"""Weights that others have published, under our names."""

import re
from collections.abc import Mapping

import numpy as np

GPT2_HEAD = 64  # units of a head in every GPT-2


def renamed(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Arrays of a published model under our names and in our shapes; all others as they are.

  Args:
    found: {name: array}, with / in the names. GPT-2's (Radford et al. 2019, as Hugging Face keeps them: [in, out] kernels,
      queries, keys and values side by side) are known by 'h/0/attn/c_attn/weight'.
  """
  bare = {re.sub(r'^transformer/', '', name): array for name, array in found.items()}
  return _gpt2(bare) if 'h/0/attn/c_attn/weight' in bare else dict(found)


def _gpt2(found) -> dict[str, np.ndarray]:
  ours = {}
  for name, array in found.items():
    block = re.fullmatch(r'h/(\d+)/(.+)/(weight|bias)', name)
    if block:
      ours |= _gpt2_block(f'params/blocks_{block[1]}', block[2], block[3], array)
    elif name == 'wte/weight':
      ours['params/tokens/embedding'] = array
    elif name == 'wpe/weight':
      ours['params/tokens/positions'] = array
    elif name in ('ln_f/weight', 'ln_f/bias'):
      ours['params/norm/scale' if name.endswith('weight') else 'params/norm/bias'] = array
  return ours


def _gpt2_block(path: str, part: str, kind: str, array: np.ndarray) -> dict[str, np.ndarray]:
  norms, dense = {'ln_1': 'attention_norm', 'ln_2': 'mlp_norm'}, {'mlp/c_fc': 'up', 'mlp/c_proj': 'down'}
  if part in norms:
    return {f'{path}/{norms[part]}/{"scale" if kind == "weight" else "bias"}': array}
  if part in dense:
    return {f'{path}/{dense[part]}/{"kernel" if kind == "weight" else "bias"}': array}
  suffix = '' if kind == 'weight' else '_bias'
  if part == 'attn/c_attn':  # [(width,) 3 · width] -> [(width,) 3, heads, head_dim]
    parts = array.reshape(*array.shape[:-1], 3, -1, GPT2_HEAD)
    attention = f'{path}/attention'
    return {f'{attention}/query{suffix}': parts[..., 0, :, :], f'{attention}/key_value{suffix}': parts[..., 1:, :, :]}
  if part == 'attn/c_proj':
    out = array if suffix else array.reshape(-1, GPT2_HEAD, array.shape[-1])
    return {f'{path}/attention/out{suffix}': out}
  return {}  # masks that some files hold
