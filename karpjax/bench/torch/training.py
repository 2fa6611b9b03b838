"""PyTorch's worker, `python -m karpjax.bench.torch.training JOB`: a twin in training.

Nothing here imports JAX, so that PyTorch may live in another interpreter.
"""

import functools
import importlib
import itertools
import platform
import time

import numpy as np
import torch
from torch import nn

from karpjax.bench import machine, worker
from karpjax.bench import setup as setups

# Our name of the weights of PyTorch's layers; a kernel is [height, width, in, out], a transposed one's […, out, in].
LAYERS = {
  'kernel': (nn.Conv2d, nn.ConvTranspose2d, nn.Linear),
  'embedding': nn.Embedding,
  'scale': (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm),
}
TRIAL_SECONDS = 0.3  # how long each combination of threads, layout and optimiser code is tried


def load(model: nn.Module, arrays: dict) -> None:
  """Fills a model from our params {'conv1/kernel': array}; its modules have our names.

  A module with weights of its own kind says by `ours` what its parameters are of our arrays, {'out.weight': array}.

  Raises:
    ValueError: where names or shapes differ.
  """
  used = set()

  def fill(parameter, name, array):
    if tuple(array.shape) != tuple(parameter.shape):
      raise ValueError(f'{name}: ours {array.shape}, the twin {tuple(parameter.shape)}')
    with torch.no_grad():
      parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)))

  def visit(module, prefix):
    if hasattr(module, 'ours'):
      own = {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}
      used.update(prefix + name for name in own)
      for name, array in module.ours(own).items():
        fill(module.get_parameter(name), prefix + name, array)
      return
    for weight in (name for name, kinds in LAYERS.items() if isinstance(module, kinds)):
      inner = prefix if prefix + weight in arrays else f'{prefix}norm/'
      for name, parameter in ((weight, module.weight), ('bias', getattr(module, 'bias', None))):
        if parameter is not None:
          x = arrays[inner + name]
          used.add(inner + name)
          fill(parameter, inner + name, x.transpose(3, 2, 0, 1) if x.ndim == 4 else x if name == 'embedding' else x.T)
    for name, child in module.named_children():
      visit(child, f'{prefix[:-1]}_{name}/' if name.isdigit() else f'{prefix}{name}/')

  visit(model, '')
  if set(arrays) != used:
    raise ValueError(f'ours and the twin differ in {sorted(set(arrays) ^ used)}')


def optimiser(config: dict, model: nn.Module, fused: bool) -> torch.optim.Optimizer:
  """The set-up's optimiser; biases and norms are spared by weight decay, as ours are."""
  params = [p for p in model.parameters() if p.requires_grad]
  groups = [
    {'params': [p for p in params if p.ndim > 1], 'weight_decay': config['weight_decay']},
    {'params': [p for p in params if p.ndim < 2], 'weight_decay': 0.0},
  ]
  groups, options = [group for group in groups if group['params']], {'lr': config['learning_rate'], 'fused': fused}
  given = lambda name, default: default if config[name] is None else config[name]
  if config['optimiser'] in ('sgd', 'momentum'):
    return torch.optim.SGD(groups, momentum=given('momentum', 0.9 * (config['optimiser'] == 'momentum')), **options)
  kind = {'adam': torch.optim.Adam, 'adamw': torch.optim.AdamW}[config['optimiser']]
  return kind(groups, betas=(given('beta1', 0.9), given('beta2', 0.999)), eps=given('epsilon', 1e-8), **options)


def build(setup: setups.Setup, arrays: dict):
  """(the twin's module, its model with our weights, or without any where there are none)."""
  twin = importlib.import_module(f'karpjax.bench.torch.{setup.twin}')
  model = twin.build(setup, setup.options)
  if arrays:
    load(model, {name.removeprefix('params/'): x for name, x in arrays.items() if name.startswith('params/')})
  return twin, model


def training(setup, arrays, *, channels_last: bool, fused: bool, compiled: bool = False, timed: bool = False):
  """step () -> loss tensor: training from our first weights, on our first batches over and over.

  A twin with a `stepping` of its own makes its step itself; `timed` tells it that no first losses are wanted.
  """
  twin, model = build(setup, arrays)
  layout = torch.channels_last if channels_last else torch.contiguous_format
  model = model.to(memory_format=layout)
  inputs = {name.removeprefix('inputs/'): x for name, x in arrays.items() if name.startswith('inputs/')}
  if hasattr(twin, 'stepping'):
    rule = lambda part: optimiser(setup.config, part, fused)
    return twin.stepping(setup, model, rule, inputs, layout=layout, timed=timed)
  rule, cycle = optimiser(setup.config, model, fused), itertools.cycle(twin.batches(setup, inputs, layout))
  called = torch.compile(model) if compiled else model

  def step():
    rule.zero_grad(set_to_none=True)
    loss = twin.loss(setup, called, *next(cycle))
    loss.backward()
    rule.step()
    return loss

  return step


def fastest(make, generation: bool, images: bool) -> dict:
  """Tries all combinations of threads, layout and optimiser code; the one with the shortest median step."""
  cores = machine.cores()
  layouts, codes, found = (False, True)[: 1 + images], (False, True)[: 2 - generation], []
  for threads, channels_last, fused in itertools.product({1, max(1, cores // 2), cores}, layouts, codes):
    torch.set_num_threads(threads)
    step, seconds, start = make(channels_last=channels_last, fused=fused, timed=True), [], time.perf_counter()
    while len(seconds) < 5 or time.perf_counter() - start < TRIAL_SECONDS:
      last = time.perf_counter()
      step()
      seconds.append(time.perf_counter() - last)
    found.append((float(np.median(seconds[2:])), threads, channels_last, fused))
  return dict(zip(('threads', 'channels_last', 'fused'), min(found)[1:]))


def prepare(job: dict):
  setup, arrays = setups.from_json(job['setup']), {}
  if 'weights' in job:
    with np.load(job['weights'], allow_pickle=False) as file:
      arrays = dict(file)
  make = functools.partial(training, setup, arrays)
  if setup.generation:
    twin, model = build(setup, arrays)
    stream = twin.text(model, setup.config['batch_size'])
    make = lambda **_: lambda: next(stream)
  facts = job.get('way') or fastest(make, setup.generation, len(setup.shape) == 3)
  torch.set_num_threads(facts['threads'])
  layout = {'channels_last': facts['channels_last'], 'fused': facts['fused']}
  step = make(**layout, compiled=job.get('compiled', False), timed='steps' in job)
  compiled = ', compiled' if job.get('compiled') else ''
  facts['versions'] = f'Python {platform.python_version()}, torch {torch.__version__}{compiled}'
  if 'steps' not in job and setup.generation:
    first = itertools.islice(twin.text(model, setup.config['batch_size']), worker.LOSSES)
    facts['losses'] = [nn.functional.cross_entropy(x, token).item() for token, x in first]
  elif 'steps' not in job:
    facts['losses'] = [step().item() for _ in range(worker.LOSSES)]
  a = torch.ones(worker.MATRIX, worker.MATRIX)
  return facts, lambda n: [step() for _ in range(n)], lambda: a @ a


if __name__ == '__main__':
  worker.serve(prepare)
