"""PyTorch's worker, `python -m karpjax.bench.torch_worker JOB`: a twin in training.

Nothing here imports JAX, so that PyTorch may live in another interpreter.
"""

import itertools
import os
import platform
import time

import numpy as np
import torch
from torch.nn import functional as F

from karpjax.bench import setups, torch_twins, worker

TRIAL_SECONDS = 0.3  # how long each combination of threads, layout and optimiser code is tried


def optimiser(rule: dict, twin: torch_twins.Twin, fused: bool) -> torch.optim.Optimizer:
  """The set-up's optimiser; biases and norms are spared by weight decay, as ours are."""
  kernels = [p for name, (p, _) in twin.weights.items() if name.endswith('/kernel')]
  spared = [p for name, (p, _) in twin.weights.items() if not name.endswith('/kernel')]
  groups = [{'params': kernels, 'weight_decay': rule.get('weight_decay', 0.0)}]
  if spared:
    groups.append({'params': spared, 'weight_decay': 0.0})
  rate = {'lr': rule['learning_rate'], 'fused': fused}
  match rule['name']:
    case 'sgd':
      return torch.optim.SGD(groups, **rate)
    case 'momentum' | 'nesterov' as name:
      momentum = rule.get('momentum', 0.9)
      return torch.optim.SGD(groups, momentum=momentum, nesterov=name == 'nesterov', **rate)
    case 'adam' | 'adamw' as name:
      betas = rule.get('beta1', 0.9), rule.get('beta2', 0.999)
      kind = torch.optim.Adam if name == 'adam' else torch.optim.AdamW
      return kind(groups, betas=betas, eps=rule.get('eps', 1e-8), **rate)
  raise ValueError(f'{rule["name"]} has no twin')


def squared_error(outputs, labels):
  """The mean over outputs of the squared distance to +1 at the label and -1 elsewhere."""
  targets = 2 * F.one_hot(labels, outputs.shape[1]).to(outputs.dtype) - 1
  return F.mse_loss(outputs, targets)


LOSSES = {'cross_entropy': F.cross_entropy, 'squared_error': squared_error}


def training(setup, arrays, *, channels_last: bool, fused: bool):
  """step () -> loss tensor: training from our first weights, on our first batches over and over."""
  twin = torch_twins.build(setup)
  twin.load({name.removeprefix('params/'): x for name, x in arrays.items() if name.startswith('params/')})
  images = torch.from_numpy(arrays['images']).permute(0, 1, 4, 2, 3)  # [steps, batch, channels, height, width]
  layout = torch.channels_last if channels_last else torch.contiguous_format
  images = [x.contiguous(memory_format=layout) for x in images]
  twin = twin.to(memory_format=layout)
  labels = list(torch.from_numpy(arrays['labels']).long())
  rule, loss_of = optimiser(setup.optimiser, twin, fused), LOSSES[setup.loss]
  cycle = itertools.cycle(zip(images, labels))

  def step():
    image, label = next(cycle)
    rule.zero_grad(set_to_none=True)
    loss = loss_of(twin(image), label)
    loss.backward()
    rule.step()
    return loss

  return step


def fastest(setup, arrays) -> dict:
  """Tries all combinations of threads, layout and optimiser code; the one with the shortest median step."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  threads = sorted({1, max(1, cores // 2), cores})
  found = []
  for number, channels_last, fused in itertools.product(threads, (False, True), (False, True)):
    torch.set_num_threads(number)
    step = training(setup, arrays, channels_last=channels_last, fused=fused)
    for _ in range(2):
      step()
    seconds, begun = [], time.perf_counter()
    while len(seconds) < 3 or time.perf_counter() - begun < TRIAL_SECONDS:
      last = time.perf_counter()
      step().item()
      seconds.append(time.perf_counter() - last)
    found.append((float(np.median(seconds)), number, channels_last, fused))
  _, number, channels_last, fused = min(found)
  return {'threads': number, 'channels_last': channels_last, 'fused': fused}


def prepare():
  job = worker.job()
  setup = setups.from_json(job['setup'])
  with np.load(job['load'], allow_pickle=False) as file:
    arrays = dict(file)
  chosen = fastest(setup, arrays)
  torch.set_num_threads(chosen['threads'])
  step = training(setup, arrays, channels_last=chosen['channels_last'], fused=chosen['fused'])
  first = {
    **chosen,
    'losses': [step().item() for _ in range(worker.LOSSES)],
    'versions': f'Python {platform.python_version()}, torch {torch.__version__}',
  }
  a = torch.ones(worker.MATRIX, worker.MATRIX)

  def run(steps):
    for _ in range(steps):
      step()

  return first, run, lambda: a @ a


if __name__ == '__main__':
  worker.serve(prepare)
