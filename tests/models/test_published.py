"""Published weights under our names: made files against plain NumPy, and the one that is at hand against what it shows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from numpy.lib.stride_tricks import sliding_window_view
from scipy import special

from karpjax.data import image_files
from karpjax.data.dataset import Spec
from karpjax.models import published
from karpjax.models.efficientnet import EfficientNetLite0
from karpjax.models.resnet import ResNet
from karpjax.models.vit import ViT

DRAW = np.random.default_rng(0)


def random(*shape, scale=1.0):
  return (scale * DRAW.normal(size=shape)).astype('f4')


def applied(model, arrays, x):
  """The model's logits with all its arrays from `published.renamed`, of which none is left over."""
  ours = published.renamed({name.replace('.', '/'): value for name, value in arrays.items()})
  shapes = nn.meta.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(x))))
  wanted = {'/'.join(path): leaf.shape for path, leaf in traverse_util.flatten_dict(shapes).items()}
  assert {name: value.shape for name, value in ours.items()} == wanted
  variables = traverse_util.unflatten_dict({tuple(name.split('/')): value for name, value in ours.items()})
  return model.apply(variables, jnp.asarray(x))


# ---- as PyTorch computes, in NumPy: x [batch, channels, height, width] ----


def conv(x, kernel, stride, padding):
  x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
  windows = sliding_window_view(x, kernel.shape[2:], (2, 3))[:, :, ::stride, ::stride]
  return np.einsum('bchwij,ocij->bohw', windows, kernel)


def norm(x, arrays, name):
  of = lambda part: arrays[f'{name}.{part}'][:, None, None]
  return (x - of('running_mean')) / np.sqrt(of('running_var') + 1e-5) * of('weight') + of('bias')


def with_norm(arrays, name, channels):
  arrays |= {
    f'{name}.weight': random(channels),
    f'{name}.bias': random(channels),
    f'{name}.running_mean': random(channels),
  }
  arrays |= {f'{name}.running_var': np.abs(random(channels)) + 0.5, f'{name}.num_batches_tracked': np.array(7)}


def test_a_residual_network_of_torchvision():
  arrays, relu = {'conv1.weight': random(4, 3, 7, 7, scale=0.1)}, lambda x: np.maximum(x, 0)
  with_norm(arrays, 'bn1', 4)
  for stage, (inside, out) in enumerate([(4, 4), (4, 8)], 1):
    for block in range(2):
      path, channels = f'layer{stage}.{block}', inside if block == 0 else out
      for i, size in ((1, channels), (2, out)):
        arrays[f'{path}.conv{i}.weight'] = random(out, size, 3, 3, scale=0.2)
        with_norm(arrays, f'{path}.bn{i}', out)
      if block == 0 and inside != out:
        arrays[f'{path}.downsample.0.weight'] = random(out, inside, 1, 1)
        with_norm(arrays, f'{path}.downsample.1', out)
  arrays |= {'fc.weight': random(5, 8), 'fc.bias': random(5)}
  images = random(2, 3, 32, 32)

  x = relu(norm(conv(images, arrays['conv1.weight'], 2, 3), arrays, 'bn1'))
  padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
  x = sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2, ::2].max((-1, -2))
  for stage in (1, 2):
    for block in range(2):
      path, stride = f'layer{stage}.{block}', 2 if stage == 2 and block == 0 else 1
      y = relu(norm(conv(x, arrays[f'{path}.conv1.weight'], stride, 1), arrays, f'{path}.bn1'))
      y = norm(conv(y, arrays[f'{path}.conv2.weight'], 1, 1), arrays, f'{path}.bn2')
      if stride == 2:
        x = norm(conv(x, arrays[f'{path}.downsample.0.weight'], 2, 0), arrays, f'{path}.downsample.1')
      x = relu(x + y)
  theirs = x.mean((2, 3)) @ arrays['fc.weight'].T + arrays['fc.bias']
  ours = applied(ResNet(5, blocks=(2, 2), imagenet=True, widths=(4, 8)), arrays, images.transpose(0, 2, 3, 1))
  np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def layer_norm(x, arrays, name):
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return x * arrays[f'{name}.weight'] + arrays[f'{name}.bias']


TIMM = {
  'token': 'cls_token', 'positions': 'pos_embed', 'patches': 'patch_embed.proj', 'norm': 'norm', 'head': 'head',
  'block': 'blocks.{}.', 'first': 'norm1', 'qkv': 'attn.qkv.', 'out': 'attn.proj', 'second': 'norm2', 'up': 'mlp.fc1',
  'down': 'mlp.fc2',
}  # fmt: skip
TORCHVISION = {
  'token': 'class_token', 'positions': 'encoder.pos_embedding', 'patches': 'conv_proj', 'norm': 'encoder.ln', 'head': 'heads.head',
  'block': 'encoder.layers.encoder_layer_{}.', 'first': 'ln_1', 'qkv': 'self_attention.in_proj_', 'out': 'self_attention.out_proj',
  'second': 'ln_2', 'up': 'mlp.0', 'down': 'mlp.3',
}  # fmt: skip


@pytest.mark.parametrize('names', [TIMM, TORCHVISION], ids=['timm', 'torchvision'])
def test_a_vision_transformer(names):
  width, patch, hidden = 128, 4, 32
  dense = lambda name, out, inside: {f'{name}.weight': random(out, inside, scale=0.1), f'{name}.bias': random(out)}
  scaled = lambda name: {f'{name}.weight': random(width), f'{name}.bias': random(width)}
  arrays = {names['token']: random(1, 1, width), names['positions']: random(1, 5, width)}
  arrays |= {
    f'{names["patches"]}.weight': random(width, 3, patch, patch, scale=0.1),
    f'{names["patches"]}.bias': random(width),
  }
  for i in range(2):
    at = names['block'].format(i)
    arrays |= scaled(at + names['first']) | scaled(at + names['second']) | dense(at + names['out'], width, width)
    arrays |= dense(at + names['up'], hidden, width) | dense(at + names['down'], width, hidden)
    arrays |= {
      f'{at}{names["qkv"]}weight': random(3 * width, width, scale=0.1),
      f'{at}{names["qkv"]}bias': random(3 * width),
    }
  arrays |= scaled(names['norm']) | dense(names['head'], 5, width)
  images = random(2, 3, 8, 8)

  linear = lambda x, name: x @ arrays[f'{name}.weight'].T + arrays[f'{name}.bias']
  x = conv(images, arrays[f'{names["patches"]}.weight'], patch, 0) + arrays[f'{names["patches"]}.bias'][:, None, None]
  x = x.reshape(2, width, 4).transpose(0, 2, 1)
  x = np.concatenate([np.repeat(arrays[names['token']], 2, 0), x], 1) + arrays[names['positions']]
  for i in range(2):
    at = names['block'].format(i)
    qkv = (
      layer_norm(x, arrays, at + names['first']) @ arrays[f'{at}{names["qkv"]}weight'].T
      + arrays[f'{at}{names["qkv"]}bias']
    )
    q, k, v = qkv.reshape(2, 5, 3, 2, 64).transpose(2, 0, 3, 1, 4)
    mixed = special.softmax(q @ k.transpose(0, 1, 3, 2) / 8, -1) @ v
    x = x + linear(mixed.transpose(0, 2, 1, 3).reshape(2, 5, width), at + names['out'])
    y = linear(layer_norm(x, arrays, at + names['second']), at + names['up'])
    x = x + linear(y * (1 + special.erf(y / np.sqrt(2))) / 2, at + names['down'])
  theirs = linear(layer_norm(x, arrays, names['norm'])[:, 0], names['head'])
  model = ViT(5, patch=patch, width=width, depth=2, heads=2, hidden=hidden, activation='gelu_exact')
  np.testing.assert_allclose(applied(model, arrays, images.transpose(0, 2, 3, 1)), theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_efficientnet_lite0_knows_ants_from_bees(shared_data):
  """ImageNet's classes 310 and 309, of the first dozen photographs of each."""
  import safetensors.numpy

  arrays = safetensors.numpy.load_file(shared_data / 'files' / 'weights' / 'efficientnet_lite0.safetensors')
  pictures = []
  for kind in ('ants', 'bees'):
    for path in sorted((shared_data / 'files' / 'hymenoptera' / 'val' / kind).glob('*.jpg'))[:12]:
      whole = image_files.read(path, 3)
      side = int(0.875 * min(whole.shape[:2]))
      top, left = ((size - side) // 2 for size in whole.shape[:2])
      pictures.append(image_files.fit(whole[top : top + side, left : left + side], (224, 224)))
  spec = Spec('x', (224, 224, 3), (), 255.0)
  scores = np.asarray(applied(EfficientNetLite0(1000), arrays, spec.scale(np.stack(pictures), 'lite')))
  right = scores.argmax(1) == np.repeat([310, 309], 12)
  assert right.sum() >= 20


def test_scales_of_published_networks():
  spec = Spec('x', (1, 1, 3), (), 255.0)
  found = np.asarray(spec.scale(np.array([[[[0, 127, 255]]]], np.uint8), 'lite')).reshape(-1)
  np.testing.assert_allclose(found, [-127 / 128, 0, 1], atol=1e-6)
  found = np.asarray(spec.scale(np.array([[[[0, 255, 51]]]], np.uint8), 'imagenet')).reshape(-1)
  np.testing.assert_allclose(found, [-0.485 / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225], rtol=1e-5)
