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

from karpjax.bench import setups, torch_gan, torch_language, torch_rl, torch_twins, worker

TRIAL_SECONDS = 0.3  # how long each combination of threads, layout and optimiser code is tried


def optimiser(rule: dict, twin: torch_twins.Twin, fused: bool) -> torch.optim.Optimizer:
  """The set-up's optimiser; biases and norms are spared by weight decay, as ours are."""
  kernels = [p for name, (p, _) in twin.weights.items() if not name.endswith(('bias', 'scale'))]
  spared = [p for name, (p, _) in twin.weights.items() if name.endswith(('bias', 'scale'))]
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
      return kind(groups, betas=betas, eps=rule.get('epsilon', 1e-8), **rate)
  raise ValueError(f'{rule["name"]} has no twin')


def squared_error(outputs, labels):
  """The mean over outputs of the squared distance to +1 at the label and -1 elsewhere."""
  targets = 2 * F.one_hot(labels, outputs.shape[1]).to(outputs.dtype) - 1
  return F.mse_loss(outputs, targets)


LOSSES = {'cross_entropy': F.cross_entropy, 'squared_error': squared_error}


def inputs(setup, arrays, layout) -> list:
  """[(input, label)] of the first batches; the input of a translation is (source, target so far)."""
  of = lambda name: torch.from_numpy(arrays[f'inputs/{name}']).long()
  if setup.experiment == 'language_model':
    return list(zip(of('tokens'), of('targets')))
  if setup.experiment == 'translation':
    return list(zip(zip(of('source'), of('target_in')), of('targets')))
  images = torch.from_numpy(arrays['inputs/images']).permute(0, 1, 4, 2, 3)  # [steps, batch, channels, height, width]
  images = [image.contiguous(memory_format=layout) for image in images]
  if setup.experiment == 'gan':
    return list(zip(images, *(torch.from_numpy(arrays[f'inputs/{name}']) for name in ('latents', 'between'))))
  return list(zip(images, of('labels')))


def training(setup, arrays, *, channels_last: bool, fused: bool, compiled: bool = False, timed: bool = False):
  """step () -> loss tensor: training from our first weights, on our first batches over and over.

  PPO makes its updates from our first rollouts, then, or from the beginning where it is `timed`, from its own.
  """
  twin = torch_twins.build(setup)
  twin.load({name.removeprefix('params/'): x for name, x in arrays.items() if name.startswith('params/')})
  if setup.experiment == 'policy_gradient':
    rule = optimiser(setup.optimiser, twin, fused)
    kind = torch_rl.quickest(torch_rl.GYMNASIUM[twin.environment], setup.batch_size)
    own = torch_rl.played(twin, kind, setup.batch_size)
    rollouts = itertools.chain([] if timed else torch_rl.recorded(arrays), own)
    return lambda: torch_rl.update(twin, rule, next(rollouts))
  layout = torch.channels_last if channels_last else torch.contiguous_format
  twin = twin.to(memory_format=layout)
  cycle = itertools.cycle(inputs(setup, arrays, layout))
  if setup.experiment == 'gan':
    players = {'generator': twin.generator, 'discriminator': twin.discriminator}
    rules = {name: optimiser(setup.optimiser, player, fused) for name, player in players.items()}
    return lambda: torch_gan.turns(twin, rules, next(cycle))
  rule = optimiser(setup.optimiser, twin, fused)
  loss_of = LOSSES[setup.loss] if setup.experiment == 'image_classification' else torch_language.loss_of
  called = torch.compile(twin) if compiled else twin

  def step():
    given, label = next(cycle)
    rule.zero_grad(set_to_none=True)
    loss = loss_of(called(given), label)
    loss.backward()
    rule.step()
    return loss

  return step


def fastest(setup, arrays) -> dict:
  """Tries all combinations of threads, layout and optimiser code; the one with the shortest median step."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  threads = sorted({1, max(1, cores // 2), cores})
  found = []
  layouts = (False, True) if setup.experiment in ('image_classification', 'gan') else (False,)
  for number, channels_last, fused in itertools.product(threads, layouts, (False, True)):
    torch.set_num_threads(number)
    step = training(setup, arrays, channels_last=channels_last, fused=fused, timed=True)
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


def generating(setup, arrays):
  """(what was chosen, step, the losses of the first tokens): a text, by the number of threads that is the fastest."""
  twin = torch_twins.build(setup)
  twin.load({name.removeprefix('params/'): x for name, x in arrays.items() if name.startswith('params/')})
  stream = torch_language.text(twin, setup.batch_size)
  first = [F.cross_entropy(logits, token).item() for token, logits in itertools.islice(stream, worker.LOSSES)]
  found = []
  for number in (1, os.cpu_count()):
    torch.set_num_threads(number)
    begun = time.perf_counter()
    for _ in range(100):
      next(stream)
    found.append((time.perf_counter() - begun, number))
  torch.set_num_threads(min(found)[1])
  return {'threads': min(found)[1], 'channels_last': False, 'fused': False}, lambda: next(stream), first


def prepare():
  job = worker.job()
  imported = time.time() - job['started']
  setup = setups.from_json(job['setup'])
  with np.load(job['load'], allow_pickle=False) as file:
    arrays = dict(file)
  a = torch.ones(worker.MATRIX, worker.MATRIX)
  versions = f'Python {platform.python_version()}, torch {torch.__version__}'
  if setup.experiment == 'generation':
    chosen, step, first_losses = generating(setup, arrays)
    return {**chosen, 'losses': first_losses, 'versions': versions}, lambda n: [step() for _ in range(n)], lambda: a @ a
  chosen = fastest(setup, arrays)
  torch.set_num_threads(chosen['threads'])
  begun = time.perf_counter()  # the trials are over
  step = training(
    setup, arrays, channels_last=chosen['channels_last'], fused=chosen['fused'], compiled=job.get('compiled', False)
  )
  losses = [step().item() for _ in range(worker.LOSSES)]
  first = {
    **chosen,
    'losses': losses,
    'start_seconds': imported + time.perf_counter() - begun,
    'versions': versions + (', compiled' if job.get('compiled') else ''),
  }

  def run(steps):
    for _ in range(steps):
      step()

  return first, run, lambda: a @ a


if __name__ == '__main__':
  worker.serve(prepare)
