"""Our DCGAN in PyTorch, and both players' turns. Nothing here imports JAX."""

import itertools

import torch
from torch import nn
from torch.nn import functional as F

from karpjax.bench import setups
from karpjax.bench.torch_twins import Twin, as_given, flattened_kernel, refuse

OBJECTIVES = 'non_saturating', 'wasserstein_gp'
PENALTY = 10.0


def transposed_kernel(array):
  """[height, width, out, in] -> [in, out, height, width]."""
  return array.transpose(3, 2, 0, 1)


class Norm(Twin):
  """Batch norm, or layer norm over all of an image with a gain for each channel."""

  def __init__(self, name, channels, kind):
    super().__init__()
    self.layer = nn.BatchNorm2d(channels) if kind == 'batch' else nn.GroupNorm(1, channels, eps=1e-6)
    name = name if kind == 'batch' else f'{name}/norm'
    self.weights = {f'{name}/scale': (self.layer.weight, as_given), f'{name}/bias': (self.layer.bias, as_given)}

  def forward(self, x):
    return self.layer(x)


class Generator(Twin):
  def __init__(self, shape, latent, widths, prefix):
    super().__init__()
    self.size, self.first = shape[0] // 2 ** len(widths), widths[0]
    self.project = self.dense(
      f'{prefix}/project', latent, self.size**2 * widths[0], bias=False, convert=self.channels_first
    )
    self.norms = nn.ModuleList(Norm(f'{prefix}/norm{i}', width, 'batch') for i, width in enumerate(widths))
    self.layers = nn.ModuleList()
    for i, (inputs, outputs) in enumerate(itertools.pairwise((*widths, shape[-1])), start=1):
      last = i == len(widths)
      layer = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=last)
      name = f'{prefix}/out' if last else f'{prefix}/conv{i}'
      self.weights[f'{name}/kernel'] = layer.weight, transposed_kernel
      if last:
        self.weights[f'{name}/bias'] = layer.bias, as_given
      self.layers.append(layer)
    for norm in self.norms:
      self.weights |= norm.weights

  def channels_first(self, array):
    """[latent, height * width * channels] -> [channels * height * width, latent]."""
    latent = array.shape[0]
    return array.reshape(latent, self.size, self.size, self.first).transpose(3, 1, 2, 0).reshape(-1, latent)

  def forward(self, z):
    x = self.project(z).view(-1, self.first, self.size, self.size)
    for norm, layer in zip(self.norms, self.layers):
      x = layer(F.relu(norm(x)))
    return torch.tanh(x)


class Discriminator(Twin):
  def __init__(self, shape, widths, norm, prefix):
    super().__init__()
    self.layers, self.norms = nn.ModuleList(), nn.ModuleList()
    for i, (inputs, outputs) in enumerate(itertools.pairwise((shape[-1], *widths)), start=1):
      self.layers.append(
        self.conv(f'{prefix}/conv{i}', inputs, outputs, 4, size=shape[0], stride=2, padding=1, bias=i == 1)[0]
      )
      if i > 1:
        self.norms.append(Norm(f'{prefix}/norm{i}', outputs, norm))
        self.weights |= self.norms[-1].weights
    size = shape[0] // 2 ** len(widths)
    self.score = self.dense(
      f'{prefix}/score', size**2 * widths[-1], 1, convert=flattened_kernel((size, size, widths[-1]))
    )

  def forward(self, x):
    for layer, norm in zip(self.layers, (nn.Identity(), *self.norms)):
      x = F.leaky_relu(norm(layer(x)), 0.2)
    return self.score(x.flatten(1))[:, 0]


class Game(Twin):
  """Both players; a forward pass is not asked for."""

  def __init__(self, setup: setups.Setup):
    super().__init__()
    options = dict(setup.options)
    widths, own = options.pop('widths'), options.pop('discriminator_widths')
    self.objective = options.pop('objective', 'non_saturating')
    self.rounds = options.pop('discriminator_steps', 1)
    refuse(options, ema=0.0)
    if self.objective not in OBJECTIVES or setup.model != 'dcgan':
      raise ValueError(f'{setup.model} under {self.objective} has no twin')
    self.penalised = self.objective == 'wasserstein_gp'
    self.generator = Generator(setup.shape, 100, widths, 'generator')
    norm = 'layer' if self.penalised else 'batch'
    self.discriminator = Discriminator(setup.shape, own, norm, 'discriminator')
    self.weights = {**self.generator.weights, **self.discriminator.weights}

  def discriminators(self, real, fake, between):
    on_real, on_fake = self.discriminator(real), self.discriminator(fake)
    if not self.penalised:
      return (F.softplus(-on_real) + F.softplus(on_fake)).mean()
    u = between.view(-1, 1, 1, 1)
    points = (u * real + (1 - u) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(self.discriminator(points).sum(), points, create_graph=True)
    norm = (gradient.flatten(1).square().sum(1) + 1e-12).sqrt()
    return (on_fake - on_real).mean() + PENALTY * (norm - 1).square().mean()

  def generators(self, fake):
    scores = self.discriminator(fake)
    return (-scores).mean() if self.penalised else F.softplus(-scores).mean()


def turns(twin: Game, optimisers, batch):
  """One step, as PyTorch does it with the least work: what both players see of the generator is made once.

  Args:
    twin: both players.
    optimisers: {'generator', 'discriminator'}.
    batch: (images, latents, between), each [batch, …], of all rounds.

  Returns:
    The discriminator's mean loss over the rounds plus the generator's.
  """
  total = 0.0
  for part in range(twin.rounds):
    real, z, between = (x[part :: twin.rounds] for x in batch)
    with torch.set_grad_enabled(part == twin.rounds - 1):
      fake = twin.generator(z)
    optimisers['discriminator'].zero_grad(set_to_none=True)
    loss = twin.discriminators(real, fake.detach(), between)
    loss.backward()
    optimisers['discriminator'].step()
    total = total + loss.detach() / twin.rounds
  optimisers['generator'].zero_grad(set_to_none=True)
  loss = twin.generators(fake)
  parameters = list(twin.generator.parameters())
  for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
    parameter.grad = gradient
  optimisers['generator'].step()
  return total + loss.detach()
