"""DCGAN and its players' turns in PyTorch."""

import itertools

import torch
from torch import nn
from torch.nn import functional as F

PENALTY = 10.0


class Generator(nn.Module):
  def __init__(self, shape, widths, latent=100):
    super().__init__()
    self.size, self.first, self.depth = shape[0] // 2 ** len(widths), widths[0], len(widths)
    self.project = nn.Linear(latent, self.size**2 * widths[0], bias=False)
    for i, (inputs, outputs) in enumerate(itertools.pairwise((*widths, shape[2]))):
      setattr(self, f'norm{i}', nn.BatchNorm2d(inputs))
      last = i == len(widths) - 1
      setattr(self, 'out' if last else f'conv{i + 1}', nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=last))

  def forward(self, z):
    x = self.project(z).view(-1, self.size, self.size, self.first).permute(0, 3, 1, 2)
    for i in range(self.depth):
      layer = self.out if i == self.depth - 1 else getattr(self, f'conv{i + 1}')
      x = layer(F.relu(getattr(self, f'norm{i}')(x)))
    return torch.tanh(x)


class Discriminator(nn.Module):
  def __init__(self, shape, widths, norm):
    super().__init__()
    self.depth = len(widths)
    for i, (inputs, outputs) in enumerate(itertools.pairwise((shape[2], *widths)), start=1):
      setattr(self, f'conv{i}', nn.Conv2d(inputs, outputs, 4, 2, 1, bias=i == 1))
      if i > 1:
        setattr(self, f'norm{i}', nn.BatchNorm2d(outputs) if norm == 'batch' else nn.GroupNorm(1, outputs, eps=1e-6))
    self.score = nn.Linear((shape[0] // 2 ** len(widths)) ** 2 * widths[-1], 1)

  def forward(self, x):
    for i in range(1, self.depth + 1):
      x = getattr(self, f'conv{i}')(x)
      x = F.leaky_relu(x if i == 1 else getattr(self, f'norm{i}')(x), 0.2)
    return self.score(x.permute(0, 2, 3, 1).flatten(1))[:, 0]


class Game(nn.Module):
  def __init__(self, shape, widths, discriminator_widths, penalised):
    super().__init__()
    self.generator = Generator(shape, widths)
    self.discriminator = Discriminator(shape, discriminator_widths, 'layer' if penalised else 'batch')


def build(setup, options):
  penalised = setup.config['objective'] == 'wasserstein_gp'
  if not penalised and setup.config['objective'] != 'non_saturating':
    raise ValueError(f'objective {setup.config["objective"]} has no twin')
  return Game(setup.shape, options['widths'], options['discriminator_widths'], penalised)


def stepping(setup, game, rule, inputs, *, layout, timed):
  """One step, with the least work: what both players see of the generator is made once."""
  images = torch.from_numpy(inputs['images']).permute(0, 1, 4, 2, 3)
  images = [x.contiguous(memory_format=layout) for x in images]
  cycle = itertools.cycle(zip(images, *(torch.from_numpy(inputs[name]) for name in ('latents', 'between'))))
  generator, discriminator, rounds = game.generator, game.discriminator, setup.config['discriminator_steps']
  rules = {player: rule(player) for player in (generator, discriminator)}
  penalised = setup.config['objective'] == 'wasserstein_gp'

  def discriminators(real, fake, between):
    on_real, on_fake = discriminator(real), discriminator(fake)
    if not penalised:
      return (F.softplus(-on_real) + F.softplus(on_fake)).mean()
    u = between.view(-1, 1, 1, 1)
    points = (u * real + (1 - u) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(points).sum(), points, create_graph=True)
    norm = (gradient.flatten(1).square().sum(1) + 1e-12).sqrt()
    return (on_fake - on_real).mean() + PENALTY * (norm - 1).square().mean()

  def step():
    total, batch = 0.0, next(cycle)
    for part in range(rounds):
      real, z, between = (x[part::rounds] for x in batch)
      with torch.set_grad_enabled(part == rounds - 1):
        fake = generator(z)
      rules[discriminator].zero_grad(set_to_none=True)
      loss = discriminators(real, fake.detach(), between)
      loss.backward()
      rules[discriminator].step()
      total = total + loss.detach() / rounds
    rules[generator].zero_grad(set_to_none=True)
    scores = discriminator(fake)
    loss = (-scores).mean() if penalised else F.softplus(-scores).mean()
    loss.backward(inputs=list(generator.parameters()))
    rules[generator].step()
    return total + loss.detach()

  return step
