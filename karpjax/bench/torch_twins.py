"""Our models in PyTorch, from the same papers and the same options. Nothing here imports JAX.

Each of a twin's parameters has our parameter's name, `conv1/kernel`, or names joined by +, and knows how our arrays become
its own.
"""

import itertools
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from karpjax.bench import setups

ACTIVATIONS = {'relu': F.relu, 'tanh': torch.tanh, 'gelu': lambda x: F.gelu(x, approximate='tanh')}


def as_given(array):
  return array


def conv_kernel(array):
  """[height, width, in, out] -> [out, in, height, width]."""
  return array.transpose(3, 2, 0, 1)


def dense_kernel(array):
  """[in, out] -> [out, in]."""
  return array.T


def flattened_kernel(places):
  """[height * width * channels, out] -> [out, channels * height * width]: PyTorch flattens channels first."""

  def convert(array):
    height, width, channels = places
    return array.reshape(height, width, channels, -1).transpose(3, 2, 0, 1).reshape(array.shape[1], -1)

  return convert


class Twin(nn.Module):
  """What all twins share: `weights`, our names -> (parameter, conversion of our array)."""

  def __init__(self):
    super().__init__()
    self.weights = {}

  def conv(self, name, inputs, outputs, window, *, size, stride=1, padding='SAME', bias=True):
    """A convolution called `name` over [size, size]; returns it and its output's size."""
    if padding == 'SAME':
      out = -(-size // stride)
      total = max((out - 1) * stride + window - size, 0)
      low, high = total // 2, total - total // 2
    else:
      low = high = 0 if padding == 'VALID' else int(padding)
      out = (size + 2 * low - window) // stride + 1
    layer = nn.Conv2d(inputs, outputs, window, stride, padding=low if low == high else 0, bias=bias)
    self.weights[f'{name}/kernel'] = layer.weight, conv_kernel
    if bias:
      self.weights[f'{name}/bias'] = layer.bias, as_given
    if low != high:
      layer = nn.Sequential(nn.ZeroPad2d((low, high, low, high)), layer)
    return layer, out

  def dense(self, name, inputs, outputs, *, bias=True, convert=dense_kernel):
    layer = nn.Linear(inputs, outputs, bias=bias)
    self.weights[f'{name}/kernel'] = layer.weight, convert
    if bias:
      self.weights[f'{name}/bias'] = layer.bias, as_given
    return layer

  def norm(self, name, channels, kind=nn.BatchNorm2d):
    layer = kind(channels)  # eps 1e-5 and momentum 0.1, which is our 0.9
    self.weights[f'{name}/scale'] = layer.weight, as_given
    self.weights[f'{name}/bias'] = layer.bias, as_given
    return layer

  def load(self, arrays):
    """Fills every parameter from ours; ValueError where names or shapes differ."""
    known = {part for name in self.weights for part in name.split('+')}
    if set(arrays) != known:
      raise ValueError(f'ours and the twin differ in {sorted(set(arrays) ^ known)}')
    with torch.no_grad():
      for name, (parameter, convert) in self.weights.items():
        array = np.ascontiguousarray(convert(*(arrays[part] for part in name.split('+'))))
        if array.shape != tuple(parameter.shape):
          raise ValueError(f'{name}: ours {array.shape}, the twin {tuple(parameter.shape)}')
        parameter.copy_(torch.from_numpy(array))


class MLP(Twin):
  """Dense layers; `places` (height, width, channels) is the shape before flattening."""

  def __init__(self, places, classes, widths=(128,), activation='relu', norm='none', prefix='', **options):
    super().__init__()
    refuse(options, residual=False, dropout=0.0, input_dropout=0.0)
    self.activation = ACTIVATIONS[activation]
    self.layers, self.norms = nn.ModuleList(), nn.ModuleList()
    inputs, convert = math.prod(places), flattened_kernel(places)
    for i, width in enumerate(widths, start=1):
      self.layers.append(self.dense(f'{prefix}hidden{i}', inputs, width, bias=norm == 'none', convert=convert))
      if norm == 'batch':
        self.norms.append(self.norm(f'{prefix}norm{i}', width, nn.BatchNorm1d))
      inputs, convert = width, dense_kernel
    self.logits = self.dense(f'{prefix}logits', inputs, classes, convert=convert)

  def forward(self, x):
    x = x.flatten(1)
    for layer, norm in itertools.zip_longest(self.layers, self.norms):
      x = layer(x)
      x = self.activation(x if norm is None else norm(x))
    return self.logits(x)


class CNN(Twin):
  """Convolutions, batch norms, activations and poolings, then an MLP."""

  def __init__(
    self,
    places,
    classes,
    widths=(32, 64),
    depth=1,
    kernel_size=3,
    stride=1,
    padding='SAME',
    pool=2,
    head='flatten',
    hidden=(128,),
    norm='none',
    activation='relu',
    **options,
  ):
    super().__init__()
    refuse(options, dropout=0.0, attention='none')
    if places[0] != places[1]:
      raise ValueError(f'the twin takes square images, not {places}')
    each = lambda values: values if isinstance(values, tuple) else (values,) * len(widths)
    size, _, channels = places
    self.convs, self.norms, self.pools = nn.ModuleList(), nn.ModuleList(), []
    self.activation, self.average = ACTIVATIONS[activation], head == 'average'
    for width, layers, window, step, pooling in zip(widths, each(depth), each(kernel_size), each(stride), each(pool)):
      for i in range(layers):
        name = len(self.convs) + 1
        conv, size = self.conv(
          f'conv{name}',
          channels,
          width,
          window,
          size=size,
          stride=step if i == 0 else 1,
          padding=padding,
          bias=norm == 'none',
        )
        self.convs.append(conv)
        if norm == 'batch':
          self.norms.append(self.norm(f'norm{name}', width))
        self.pools.append(pooling if i == layers - 1 else 1)
        channels = width
      size //= pooling
    places = (1, 1, channels) if self.average else (size, size, channels)
    self.head = MLP(places, classes, hidden, activation, norm, prefix='head/')
    self.weights |= self.head.weights

  def forward(self, x):
    for conv, norm, pool in itertools.zip_longest(self.convs, self.norms, self.pools):
      x = conv(x)
      x = self.activation(x if norm is None else norm(x))
      if pool > 1:
        x = F.max_pool2d(x, pool)
    return self.head(x.mean((2, 3)) if self.average else x)


class Block(Twin):
  """He et al. 2015: basic or bottleneck ("v1.5"); shortcut A (no params) or B where shapes differ."""

  def __init__(self, name, inputs, width, stride, bottleneck, projection):
    super().__init__()
    outputs = width * (4 if bottleneck else 1)
    layers = [(width, 3, stride), (outputs, 3, 1)]
    if bottleneck:
      layers = [(width, 1, 1), (width, 3, stride), (outputs, 1, 1)]
    branch, channels = [], inputs
    for i, (features, window, step) in enumerate(layers, start=1):
      conv, _ = self.conv(
        f'{name}/conv{i}', channels, features, window, size=0, stride=step, padding=window // 2, bias=False
      )
      branch += [conv, self.norm(f'{name}/norm{i}', features), nn.ReLU(inplace=True)]
      channels = features
    self.branch = nn.Sequential(*branch[:-1])
    self.stride, self.more, self.projection = stride, outputs - inputs, None
    self.same = stride == 1 and inputs == outputs
    if projection and not self.same:
      conv, _ = self.conv(f'{name}/projection', inputs, outputs, 1, size=0, stride=stride, padding=0, bias=False)
      self.projection = nn.Sequential(conv, self.norm(f'{name}/projection_norm', outputs))

  def forward(self, x):
    y = self.branch(x)
    if self.projection is not None:
      x = self.projection(x)
    elif not self.same:
      x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
    return F.relu(x + y)


class ResNet(Twin):
  """Stem, stages of blocks, the mean over places, one dense layer."""

  def __init__(self, places, classes, blocks, bottleneck, imagenet, widths, **options):
    super().__init__()
    refuse(options, attention='none')
    window, stride = (7, 2) if imagenet else (3, 1)
    stem, _ = self.conv('stem', places[2], widths[0], window, size=0, stride=stride, padding=window // 2, bias=False)
    layers = [stem, self.norm('stem_norm', widths[0]), nn.ReLU(inplace=True)]
    if imagenet:
      layers.append(nn.MaxPool2d(3, 2, padding=1))
    channels = widths[0]
    for stage, (count, width) in enumerate(zip(blocks, widths), start=1):
      for i in range(count):
        stride = 2 if stage > 1 and i == 0 else 1
        block = Block(f'stage{stage}_block{i + 1}', channels, width, stride, bottleneck, projection=imagenet)
        self.weights |= block.weights
        layers.append(block)
        channels = width * (4 if bottleneck else 1)
    self.body = nn.Sequential(*layers)
    self.logits = self.dense('logits', channels, classes)

  def forward(self, x):
    return self.logits(self.body(x).mean((2, 3)))


class LeNet1989(Twin):
  """LeCun et al. 1989: 5x5 by 2, borders of -1, a bias for each place; H2's planes see eight of H1's."""

  def __init__(self, places, classes, **options):
    super().__init__()
    refuse(options, activation='tanh', output='tanh', dropout=0.0)
    empty = lambda *shape: nn.Parameter(torch.empty(*shape))
    self.kernel1, self.bias1 = empty(12, 1, 5, 5), empty(12, 8, 8)
    self.kernel2, self.bias2 = empty(12, 8, 5, 5), empty(12, 4, 4)
    planes = lambda size: lambda array: array.reshape(size, size, 12).transpose(2, 0, 1)
    self.weights = {
      'h1/kernel': (self.kernel1, lambda array: array.reshape(12, 1, 5, 5)),
      'h1/bias': (self.bias1, planes(8)),
      'h2/kernel': (self.kernel2, lambda array: array.reshape(12, 5, 5, 8).transpose(0, 3, 1, 2)),
      'h2/bias': (self.bias2, planes(4)),
    }
    self.h3 = self.dense('h3', 192, 30, convert=flattened_kernel((4, 4, 12)))
    self.out = self.dense('out', 30, classes)

  def forward(self, x):
    x = F.pad(x, (2, 1, 2, 1), value=-1.0)
    x = torch.tanh(F.conv2d(x, self.kernel1, stride=2) + self.bias1)
    x = F.pad(x, (2, 1, 2, 1), value=-1.0)
    x = torch.cat([x[:, :8], x[:, 4:], x[:, :4], x[:, 8:]], 1)  # blocks 0 1, 1 2, 0 2: [batch, 24, 11, 11]
    x = torch.tanh(F.conv2d(x, self.kernel2, stride=2, groups=3) + self.bias2)
    x = torch.tanh(self.h3(x.flatten(1)))
    return torch.tanh(self.out(x))


def refuse(options, **twinned):
  """ValueError for an option which the twin lacks."""
  for name, value in options.items():
    if name not in twinned or value not in (twinned[name], (twinned[name],)):
      raise ValueError(f'no twin has {name}={value}')


def build(setup: setups.Setup) -> Twin:
  """The twin of a set-up, with weights still to be loaded."""
  options, shape, classes = dict(setup.options), setup.shape, setup.classes
  cifar = dict(bottleneck=False, imagenet=False, widths=(16, 32, 64))
  imagenet = dict(imagenet=True, widths=(64, 128, 256, 512))
  vgg = dict(widths=(64, 128, 256), depth=2, hidden=(256,), norm='batch')
  if setup.experiment == 'gan':
    from karpjax.bench import torch_gan

    return torch_gan.Game(setup)
  if setup.experiment == 'policy_gradient':
    from karpjax.bench import torch_rl

    return torch_rl.ActorCritic(setup)
  if setup.experiment != 'image_classification':
    from karpjax.bench import torch_language

    return torch_language.build(setup)
  match setup.model:
    case 'logistic':
      return MLP(shape, classes, widths=(), **options)
    case 'mlp':
      return MLP(shape, classes, **options)
    case 'lenet1989':
      return LeNet1989(shape, classes, **options)
    case 'cnn':
      return CNN(shape, classes, **options)
    case 'vgg':
      return CNN(shape, classes, **vgg | options)
    case 'resnet20':
      return ResNet(shape, classes, blocks=(3, 3, 3), **cifar | options)
    case 'resnet56':
      return ResNet(shape, classes, blocks=(9, 9, 9), **cifar | options)
    case 'resnet18':
      return ResNet(shape, classes, blocks=(2, 2, 2, 2), bottleneck=False, **imagenet | options)
    case 'resnet50':
      return ResNet(shape, classes, blocks=(3, 4, 6, 3), bottleneck=True, **imagenet | options)
  raise ValueError(f'{setup.model} has no twin')
