"""Our worker, `python -m karpjax.bench.ours JOB`: the step of image_classification, run as a real run is."""

import platform

import jax
import jax.numpy as jnp
import numpy as np

from experiments import image_classification
from karpjax import config, start_up
from karpjax import runner as runners
from karpjax.bench import setups, worker
from karpjax.data import batches, dataset

SEED = 0


def preprocess(image):
  """uint8 -> float32 in [-1, 1], as the experiment's scale 'symmetric'."""
  return image.astype('float32') / 127.5 - 1


def synthetic(setup: setups.Setup) -> dataset.Dataset:
  """Random images, as many as make epochs of a usual length but no more than 256 MB."""
  random = np.random.default_rng(0)
  size = max(2 * worker.LOSSES * setup.batch_size, min(8192, 2**28 // int(np.prod(setup.shape))))
  images = random.integers(0, 256, (size, *setup.shape), dtype=np.uint8)
  labels = random.integers(0, setup.classes, size, dtype=np.int32)
  channels = setup.shape[-1:]
  spec = dataset.Spec(
    name='synthetic',
    shape=setup.shape,
    classes=tuple(map(str, range(setup.classes))),
    maximum=255.0,
    mean=(0.5,) * channels[0],
    std=(0.5,) * channels[0],
    examples=size,
  )
  return dataset.Dataset(spec, {'train': dataset.Split.of(image=images, label=labels)})


def settings(setup: setups.Setup, seeds: int, steps_per_call: str, parallel: str) -> image_classification.Config:
  """The flags of a run that trains the set-up."""
  rule = dict(setup.optimiser)
  return image_classification.Config(
    model=setup.model,
    loss=setup.loss,
    scale='symmetric',
    batch_size=setup.batch_size,
    seed=SEED,
    seeds=seeds,
    parallel=parallel,
    steps=str(2**20),
    steps_per_call=steps_per_call,
    optimiser=rule.pop('name'),
    **rule,
    **setup.options,
  )


def our_step(setup: setups.Setup, seeds: int, steps_per_call: str, parallel: str):
  """The step as a run has it.

  Returns:
    run: (n) makes n steps and waits.
    first_losses: () makes the first steps, one by one, and gives their losses.
    facts: what was compiled.
    params: the initial ones.
  """
  data = synthetic(setup)
  resolved = config.resolve(settings(setup, seeds, steps_per_call, parallel), data.spec.examples)
  runner = runners.bind(image_classification.program(resolved, data.spec), data, resolved)
  carry = runner.place(runner.init())
  params = jax.device_get(carry.state.params)
  choices = {}
  figures = runner.prepare(carry, choices)
  at = {'carry': carry, 't': 0}

  def advance(stop, fresh=False):
    while at['t'] < stop:
      end = min(runner.call_end(at['t']), stop)
      at['carry'] = runner.advance(at['carry'], at['t'], end, fresh)
      at['t'] = end

  def run(steps):
    advance(at['t'] + steps)
    jax.block_until_ready(at['carry'])

  def first_losses():
    losses = []
    for t in range(worker.LOSSES):
      advance(t + 1, fresh=True)
      total, count = jax.device_get(at['carry'].totals['loss'])
      losses.append((total / count).tolist())
    return losses

  facts = {**figures, 'steps_per_call': choices['steps_per_call']}
  return run, first_losses, facts, params


def save(path, setup: setups.Setup, params) -> None:
  """The first weights and batches, for the twin: 'params/…'; 'images' and 'labels' [LOSSES, batch, …]."""
  flat = {'/'.join(k.key for k in p): x for p, x in jax.tree.leaves_with_path(params)}
  data = synthetic(setup)
  numbers = batches.indices(
    SEED, 0, worker.LOSSES, batch_size=setup.batch_size, size=data.spec.examples, order='reshuffle'
  )
  batch = batches.fetch(data.splits['train'], numbers)
  np.savez(
    path,
    images=preprocess(batch['image']),
    labels=batch['label'],
    **{f'params/{name}': x for name, x in flat.items()},
  )


def prepare():
  job = worker.job()
  setup = setups.from_json(job['setup'])
  start_up.cpu(job['threads'], job['parallel'])
  run, first_losses, facts, params = our_step(setup, job['seeds'], job['steps_per_call'], job['parallel'])
  if job.get('save'):
    save(job['save'], setup, params)
  facts['losses'] = first_losses()
  facts['versions'] = f'Python {platform.python_version()}, jax {jax.__version__}'
  facts['parameters'] = sum(x.size for x in jax.tree.leaves(params)) // job['seeds']
  a = jnp.ones((worker.MATRIX, worker.MATRIX))
  product = jax.jit(lambda a: a @ a)
  return facts, run, lambda: product(a).block_until_ready()


if __name__ == '__main__':
  start_up.keep_memory()
  worker.serve(prepare)
