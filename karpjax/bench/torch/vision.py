"""Image classifiers in PyTorch: perceptrons, convolutional networks, ResNets and LeCun's network of 1989."""

import itertools

import torch
from torch import nn
from torch.nn import functional as F

ACTIVATIONS = {'relu': F.relu, 'tanh': torch.tanh, 'gelu': lambda x: F.gelu(x, approximate='tanh')}


class MLP(nn.Module):
  def __init__(self, inputs, classes, widths=(128,), activation='relu', norm='none'):
    super().__init__()
    self.activation, self.depth = ACTIVATIONS[activation], len(widths)
    for i, (before, width) in enumerate(itertools.pairwise((inputs, *widths)), start=1):
      setattr(self, f'hidden{i}', nn.Linear(before, width, bias=norm == 'none'))
      setattr(self, f'norm{i}', nn.BatchNorm1d(width) if norm == 'batch' else nn.Identity())
    self.logits = nn.Linear((inputs, *widths)[-1], classes)

  def forward(self, x):
    if x.ndim == 4:
      x = x.permute(0, 2, 3, 1).flatten(1)
    for i in range(1, self.depth + 1):
      x = self.activation(getattr(self, f'norm{i}')(getattr(self, f'hidden{i}')(x)))
    return self.logits(x)


class SameConv2d(nn.Conv2d):
  """Padded as TensorFlow's 'SAME': what is odd goes behind."""

  def forward(self, x):
    total = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(x.shape[2:], self.stride, self.kernel_size)]
    low = [n // 2 for n in total]
    if all(a * 2 == n for a, n in zip(low, total)):
      return F.conv2d(x, self.weight, self.bias, self.stride, tuple(low))
    (top, left), (height, width) = low, total
    return F.conv2d(F.pad(x, (left, width - left, top, height - top)), self.weight, self.bias, self.stride)


class CNN(nn.Module):
  """Blocks of convolution, norm and activation, each closed by a max pooling; then an MLP."""

  def __init__(
    self,
    shape,
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
  ):
    super().__init__()
    each = lambda x: x if len(x := x if isinstance(x, tuple) else (x,)) > 1 else x * len(widths)
    self.activation, self.average, self.pools, channels = ACTIVATIONS[activation], head == 'average', [], shape[2]
    for width, layers, window, step, pooling in zip(widths, each(depth), each(kernel_size), each(stride), each(pool)):
      for layer in range(layers):
        name, options = len(self.pools) + 1, {'stride': step if layer == 0 else 1, 'bias': norm == 'none'}
        if padding == 'SAME':
          conv = SameConv2d(channels, width, window, **options)
        else:
          conv = nn.Conv2d(channels, width, window, padding=0 if padding == 'VALID' else int(padding), **options)
        setattr(self, f'conv{name}', conv)
        setattr(self, f'norm{name}', nn.BatchNorm2d(width) if norm == 'batch' else nn.Identity())
        self.pools.append(pooling if layer == layers - 1 else 1)
        channels = width
    with torch.no_grad():
      inputs = self.features(torch.zeros(1, shape[2], *shape[:2])).numel()
    self.head = MLP(inputs, classes, hidden, activation, norm)

  def features(self, x):
    for i, pool in enumerate(self.pools, start=1):
      x = self.activation(getattr(self, f'norm{i}')(getattr(self, f'conv{i}')(x)))
      x = F.max_pool2d(x, pool) if pool > 1 else x
    return x.mean((2, 3)) if self.average else x

  def forward(self, x):
    return self.head(self.features(x))


class Block(nn.Module):
  """He et al. 2015: basic or bottleneck ("v1.5"); shortcut A (no params) or B where shapes differ."""

  def __init__(self, inputs, width, stride, bottleneck, projection):
    super().__init__()
    outputs = width * (4 if bottleneck else 1)
    layers = (
      [(width, 1, 1), (width, 3, stride), (outputs, 1, 1)] if bottleneck else [(width, 3, stride), (outputs, 3, 1)]
    )
    self.depth, self.stride, self.more, channels = len(layers), stride, outputs - inputs, inputs
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
    if not self.same:
      if self.projected:
        x = self.projection_norm(self.projection(x))
      else:
        x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
    return F.relu(x + y)


class ResNet(nn.Module):
  def __init__(self, shape, classes, blocks, bottleneck=False, imagenet=False, widths=(16, 32, 64)):
    super().__init__()
    window, stride = (7, 2) if imagenet else (3, 1)
    self.stem = nn.Conv2d(shape[2], widths[0], window, stride, window // 2, bias=False)
    self.stem_norm, self.imagenet, channels, self.names = nn.BatchNorm2d(widths[0]), imagenet, widths[0], []
    for stage, (count, width) in enumerate(zip(blocks, widths), start=1):
      for i in range(count):
        block = Block(channels, width, 2 if stage > 1 and i == 0 else 1, bottleneck, projection=imagenet)
        self.names.append(f'stage{stage}_block{i + 1}')
        setattr(self, self.names[-1], block)
        channels = width * (4 if bottleneck else 1)
    self.logits = nn.Linear(channels, classes)

  def forward(self, x):
    x = F.relu(self.stem_norm(self.stem(x)))
    x = F.max_pool2d(x, 3, 2, padding=1) if self.imagenet else x
    for name in self.names:
      x = getattr(self, name)(x)
    return self.logits(x.mean((2, 3)))


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
    """{parameter: its value} of those that no rule of `bench.torch.training.load` knows."""
    planes = lambda array, size: array.reshape(size, size, 12).transpose(2, 0, 1)
    return {
      'kernel1': arrays['h1/kernel'].reshape(12, 1, 5, 5),
      'bias1': planes(arrays['h1/bias'], 8),
      'kernel2': arrays['h2/kernel'].reshape(12, 5, 5, 8).transpose(0, 3, 1, 2),
      'bias2': planes(arrays['h2/bias'], 4),
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
  if name in RESNETS:
    return ResNet(shape, classes, **RESNETS[name] | options)
  if name == 'lenet1989':
    return LeNet1989(classes, **options)
  if name in ('mlp', 'logistic'):
    return MLP(shape[0] * shape[1] * shape[2], classes, **({'widths': ()} if name == 'logistic' else {}) | options)
  vgg = dict(widths=(64, 128, 256), depth=2, hidden=(256,), norm='batch') if name == 'vgg' else {}
  return CNN(shape, classes, **vgg | options)


def batches(setup, arrays, layout):
  images = torch.from_numpy(arrays['images']).permute(0, 1, 4, 2, 3)  # [steps, batch, channels, height, width]
  return list(zip((x.contiguous(memory_format=layout) for x in images), torch.from_numpy(arrays['labels']).long()))


def loss(setup, model, images, labels):
  outputs = model(images)
  if setup.config['loss'] == 'cross_entropy':
    return F.cross_entropy(outputs, labels)
  return F.mse_loss(outputs, 2 * F.one_hot(labels, outputs.shape[1]).to(outputs.dtype) - 1)
