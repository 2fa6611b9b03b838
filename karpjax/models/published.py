"""Weights that others have published, under our names."""

import re
from collections.abc import Mapping

import numpy as np

GPT2_HEAD = 64  # units of a head in every GPT-2
TABLES = {'wte': 'embedding', 'wpe': 'positions'}
NORMS = {'ln_1': 'attention_norm', 'ln_2': 'mlp_norm', 'ln_f': 'norm'}
DENSE = {'mlp/c_fc': 'up', 'mlp/c_proj': 'down'}


def renamed(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Arrays of a published model under our names and in our shapes; all others as they are.

  Args:
    arrays: {name: array}, with / in the names. GPT-2's (Radford et al. 2019, as Hugging Face keeps them: [in, out] kernels,
      queries, keys and values side by side) are known by 'h/0/attn/c_attn/weight'.
  """
  bare = {name.removeprefix('transformer/'): array for name, array in arrays.items()}
  if 'h/0/attn/c_attn/weight' not in bare:
    return dict(arrays)
  matches = {name: re.fullmatch(r'(?:h/(\d+)/)?(.+)/(weight|bias)', name) for name in bare}
  ours = {}
  for name, match in matches.items():
    if match:
      block, part, kind = match.groups()
      ours |= _gpt2(f'params/blocks_{block}' if block else 'params', part, kind == 'bias', bare[name])
  return ours


def _gpt2(path: str, part: str, bias: bool, array: np.ndarray) -> dict[str, np.ndarray]:
  if part in TABLES:
    return {f'{path}/tokens/{TABLES[part]}': array}
  if part in NORMS:
    return {f'{path}/{NORMS[part]}/{"bias" if bias else "scale"}': array}
  if part in DENSE:
    return {f'{path}/{DENSE[part]}/{"bias" if bias else "kernel"}': array}
  attention, suffix = f'{path}/attention', '_bias' if bias else ''
  if part == 'attn/c_attn':  # [(width,) 3 · width] -> [(width,) 3, heads, head_dim]
    parts = array.reshape(*array.shape[:-1], 3, -1, GPT2_HEAD)
    return {f'{attention}/query{suffix}': parts[..., 0, :, :], f'{attention}/key_value{suffix}': parts[..., 1:, :, :]}
  if part == 'attn/c_proj':
    return {f'{attention}/out{suffix}': array if bias else array.reshape(-1, GPT2_HEAD, array.shape[-1])}
  return {}  # masks that some files hold
