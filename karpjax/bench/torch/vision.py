"""Image classifiers in PyTorch: perceptrons, convolutional networks, ResNets and LeCun's network of 1989."""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F


class Apply(nn.Module):
  """A function as a layer."""

  def __init__(self, function):
    super().__init__()
    self.function = function

  def forward(self, x):
    return self.function(x)


def sequential(**layers):
  return nn.Sequential(OrderedDict(layers))


def flatten():
  """Places before channels, as ours."""
  return Apply(lambda x: x.permute(0, 2, 3, 1).flatten(1))


def average():
  return Apply(lambda x: x.mean((2, 3)))


def mlp(inputs, classes, widths=(128,), norm='none', **before):
  layers = before
  for i, width in enumerate(widths, start=1):
    layers[f'hidden{i}'] = nn.Linear(inputs, width, bias=norm == 'none')
    layers[f'norm{i}'] = nn.BatchNorm1d(width) if norm == 'batch' else nn.Identity()
    layers[f'relu{i}'], inputs = nn.ReLU(), width
  return sequential(**layers, logits=nn.Linear(inputs, classes))


def cnn(shape, classes, widths=(32, 64), depth=1, head='flatten', hidden=(128,), norm='none'):
  """Blocks of 3x3 convolutions, each closed by a max pooling; then a perceptron."""
  layers, i, (height, width, channels) = {}, 0, shape
  for features in widths:
    for _ in range(depth):
      i += 1
      layers[f'conv{i}'] = nn.Conv2d(channels, features, 3, padding=1, bias=norm == 'none')
      layers[f'norm{i}'] = nn.BatchNorm2d(features) if norm == 'batch' else nn.Identity()
      layers[f'relu{i}'], channels = nn.ReLU(), features
    layers[f'pool{i}'], height, width = nn.MaxPool2d(2), height // 2, width // 2
  places = 1 if head == 'average' else height * width
  layers['places'] = average() if head == 'average' else flatten()
  return sequential(**layers, head=mlp(places * channels, classes, hidden, norm))


class Block(nn.Module):
  """He et al. 2015: basic or bottleneck ("v1.5"); shortcut A (no params) or B where shapes differ."""

  def __init__(self, inputs, width, stride, bottleneck, projection):
    super().__init__()
    outputs = width * (4 if bottleneck else 1)
    basic, deep = [(width, 3, stride), (outputs, 3, 1)], [(width, 1, 1), (width, 3, stride), (outputs, 1, 1)]
    layers, channels = deep if bottleneck else basic, inputs
    self.depth, self.stride, self.more = len(layers), stride, outputs - inputs
    for i, (features, window, step) in enumerate(layers, start=1):
      setattr(self, f'conv{i}', nn.Conv2d(channels, features, window, step, window // 2, bias=False))
      setattr(self, f'norm{i}', nn.BatchNorm2d(features))
      channels = features
    self.same, self.projected = stride == 1 and inputs == outputs, projection
    if projection and not self.same:
      self.projection, self.projection_norm = nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)

  def forward(self, x):
    y = x
    for i in range(1, self.depth + 1):
      y = getattr(self, f'norm{i}')(getattr(self, f'conv{i}')(y))
      y = F.relu(y, inplace=True) if i < self.depth else y
    if not self.same and self.projected:
      x = self.projection_norm(self.projection(x))
    elif not self.same:
      x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
    return F.relu(x + y)


def resnet(shape, classes, blocks, bottleneck=False, imagenet=False, widths=(16, 32, 64)):
  window, stride, channels = (7, 2, widths[0]) if imagenet else (3, 1, widths[0])
  stem = nn.Conv2d(shape[2], channels, window, stride, window // 2, bias=False)
  layers = {'stem': stem, 'stem_norm': nn.BatchNorm2d(channels), 'relu': nn.ReLU()}
  layers['pool'] = nn.MaxPool2d(3, 2, padding=1) if imagenet else nn.Identity()
  for stage, (count, width) in enumerate(zip(blocks, widths), start=1):
    for i in range(1, count + 1):
      stride = 2 if stage > 1 and i == 1 else 1
      layers[f'stage{stage}_block{i}'] = Block(channels, width, stride, bottleneck, projection=imagenet)
      channels = width * (4 if bottleneck else 1)
  return sequential(**layers, average=average(), logits=nn.Linear(channels, classes))


class LeNet1989(nn.Module):
  """LeCun et al. 1989: 5x5 by 2, borders of -1, a bias for each place; H2's planes see eight of H1's."""

  def __init__(self, classes):
    super().__init__()
    empty = lambda *shape: nn.Parameter(torch.empty(*shape))
    self.kernel1, self.bias1 = empty(12, 1, 5, 5), empty(12, 8, 8)
    self.kernel2, self.bias2 = empty(12, 8, 5, 5), empty(12, 4, 4)
    self.h3, self.out = nn.Linear(192, 30), nn.Linear(30, classes)

  def forward(self, x):
    x = F.pad(x, (2, 1, 2, 1), value=-1.0)
    x = torch.tanh(F.conv2d(x, self.kernel1, stride=2) + self.bias1)
    x = F.pad(x, (2, 1, 2, 1), value=-1.0)
    x = torch.cat([x[:, :8], x[:, 4:], x[:, :4], x[:, 8:]], 1)  # blocks 0 1, 1 2, 0 2: [batch, 24, 11, 11]
    x = torch.tanh(F.conv2d(x, self.kernel2, stride=2, groups=3) + self.bias2)
    x = torch.tanh(self.h3(x.permute(0, 2, 3, 1).flatten(1)))
    return torch.tanh(self.out(x))

  def ours(self, arrays):
    planes = lambda array, size: array.reshape(size, size, 12).transpose(2, 0, 1)
    return {
      'kernel1': arrays['h1/kernel'].reshape(12, 1, 5, 5),
      'bias1': planes(arrays['h1/bias'], 8),
      'kernel2': arrays['h2/kernel'].reshape(12, 5, 5, 8).transpose(0, 3, 1, 2),
      'bias2': planes(arrays['h2/bias'], 4),
      **{f'{name}.weight': arrays[f'{name}/kernel'].T for name in ('h3', 'out')},
      **{f'{name}.bias': arrays[f'{name}/bias'] for name in ('h3', 'out')},
    }


RESNETS = {
  'resnet20': dict(blocks=(3, 3, 3)),
  'resnet56': dict(blocks=(9, 9, 9)),
  'resnet18': dict(blocks=(2, 2, 2, 2), imagenet=True, widths=(64, 128, 256, 512)),
  'resnet50': dict(blocks=(3, 4, 6, 3), bottleneck=True, imagenet=True, widths=(64, 128, 256, 512)),
}


def build(setup, options):
  """The model of a set-up; `options` are those that its flags name."""
  name, shape, classes = setup.config['model'], setup.shape, setup.classes
  options = {key: value for key, value in options.items() if key != 'zero_head'}  # it begins at our weights
  if name in RESNETS:
    return resnet(shape, classes, **RESNETS[name] | options)
  if name == 'lenet1989':
    return LeNet1989(classes, **options)
  if name in ('mlp', 'logistic'):
    options = {'widths': ()} if name == 'logistic' else options
    return mlp(shape[0] * shape[1] * shape[2], classes, **options, flatten=flatten())
  vgg = dict(widths=(64, 128, 256), depth=2, hidden=(256,), norm='batch') if name == 'vgg' else {}
  return cnn(shape, classes, **vgg | options)


def batches(setup, arrays, layout):
  images = torch.from_numpy(arrays['images']).permute(0, 1, 4, 2, 3)  # [steps, batch, channels, height, width]
  return list(zip((x.contiguous(memory_format=layout) for x in images), torch.from_numpy(arrays['labels']).long()))


def loss(setup, model, images, labels):
  outputs = model(images)
  if setup.config['loss'] == 'cross_entropy':
    return F.cross_entropy(outputs, labels)
  return F.mse_loss(outputs, 2 * F.one_hot(labels, outputs.shape[1]).to(outputs.dtype) - 1)
