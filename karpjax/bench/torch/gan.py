"""DCGAN and its players' turns in PyTorch."""

import itertools

import torch
from torch import nn
from torch.nn import functional as F

from karpjax.bench.torch.vision import Apply, flatten, sequential

PENALTY, LATENT = 10.0, 100


def generator(shape, widths):
  size, layers = shape[0] // 2 ** len(widths), {}
  project = nn.Linear(LATENT, size**2 * widths[0], bias=False)
  image = Apply(lambda x: x.view(-1, size, size, widths[0]).permute(0, 3, 1, 2))
  for i, (inputs, outputs) in enumerate(itertools.pairwise((*widths, shape[2]))):
    last = i == len(widths) - 1
    layers |= {f'norm{i}': nn.BatchNorm2d(inputs), f'relu{i}': nn.ReLU()}
    layers['out' if last else f'conv{i + 1}'] = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=last)
  return sequential(project=project, image=image, **layers, tanh=nn.Tanh())


def discriminator(shape, widths, norm):
  layers = {}
  for i, (inputs, outputs) in enumerate(itertools.pairwise((shape[2], *widths)), start=1):
    layers[f'conv{i}'] = nn.Conv2d(inputs, outputs, 4, 2, 1, bias=i == 1)
    if i > 1:
      layers[f'norm{i}'] = nn.BatchNorm2d(outputs) if norm == 'batch' else nn.GroupNorm(1, outputs, eps=1e-6)
    layers[f'relu{i}'] = nn.LeakyReLU(0.2)
  score = nn.Linear((shape[0] // 2 ** len(widths)) ** 2 * widths[-1], 1)
  return sequential(**layers, flatten=flatten(), score=score, scalar=nn.Flatten(0))


def build(setup, options):
  norm = {'wasserstein_gp': 'layer', 'non_saturating': 'batch'}[setup.config['objective']]
  networks = {'generator': generator(setup.shape, options['widths'])}
  return nn.ModuleDict(networks | {'discriminator': discriminator(setup.shape, options['discriminator_widths'], norm)})


def stepping(setup, game, rule, inputs, *, layout, timed):
  """One step, with the least work: what both players see of the generator is made once."""
  images = torch.from_numpy(inputs['images']).permute(0, 1, 4, 2, 3)
  images = [x.contiguous(memory_format=layout) for x in images]
  cycle = itertools.cycle(zip(images, *(torch.from_numpy(inputs[name]) for name in ('latents', 'between'))))
  generator, discriminator, rounds = game['generator'], game['discriminator'], setup.config['discriminator_steps']
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
