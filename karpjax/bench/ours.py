"""Our worker, `python -m karpjax.bench.ours JOB`: a step run as a real run is."""

import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import config, generate
from karpjax.bench import families, setups, worker
from karpjax.data import batches
from karpjax.train import runtime
from karpjax.train.runner import Runner


def our_step(setup: setups.Setup, seeds: int, steps_per_call: str, parallel: str):
  """The step as a run has it.

  Returns:
    run: (n) makes n steps and waits.
    first_losses: () makes the first steps, one by one, and gives their losses.
    facts: what was compiled.
    params: the initial ones.
  """
  family = families.FAMILIES[setup.experiment]
  data = family.data(setup)
  given = family.settings(setup, seeds=seeds, steps_per_call=steps_per_call, parallel=parallel)
  resolved = config.resolve(given, data.spec.examples)
  runner = Runner(family.program(resolved, data), data, resolved)
  carry = runner.placement.put(runner.init())
  params = jax.device_get(carry.state.params)
  figures = runner.compile(carry, steps_per_call)
  at = {'carry': carry, 't': 0}

  def advance(stop, fresh=False):
    while at['t'] < stop:
      end = min(runner.next_boundary(at['t']), stop)
      at['carry'] = runner.run_steps(at['carry'], at['t'], end, fresh)
      at['t'] = end

  def run(steps):
    advance(at['t'] + steps)
    jax.block_until_ready(at['carry'])

  def first_losses():
    losses = []
    for t in range(worker.LOSSES):
      advance(t + 1, fresh=True)
      losses.append(family.loss(jax.device_get(at['carry'].totals)).tolist())
    return losses

  facts = {**figures, 'steps_per_call': runner.steps_per_call}
  return run, first_losses, facts, params


def our_generation(setup: setups.Setup, seeds: int, steps_per_call: str, parallel: str):
  """As `our_step`, a step being one token of a text that never ends."""
  family = families.FAMILIES[setup.experiment]
  model, params = family.model(setup)
  options = dict(temperature=0.0, **({} if steps_per_call == 'auto' else {'chunk': int(steps_per_call)}))
  begun = time.perf_counter()
  keys = jax.random.split(jax.random.key(families.SEED), setup.batch_size)
  prompt = np.zeros((setup.batch_size, 1), np.int32)
  stream = generate.stream(model, {'params': params}, prompt, keys, **options)
  said = [next(stream)]
  compile_seconds = time.perf_counter() - begun
  left = {'tokens': 0}

  def run(steps):
    while left['tokens'] < steps:
      left['tokens'] += next(stream).shape[1]
    left['tokens'] -= steps

  def first_losses():
    tokens = np.concatenate([prompt, *said], 1)[:, : worker.LOSSES + 1]
    chances = jax.nn.log_softmax(jax.jit(model.apply)({'params': params}, tokens[:, :-1]))
    return (-np.take_along_axis(np.asarray(chances), tokens[:, 1:, None], -1)[..., 0].mean(0)).tolist()

  flops = 2 * sum(x.size for x in jax.tree.leaves(params)) * setup.batch_size
  facts = {'flops': flops, 'compile_seconds': compile_seconds, 'steps_per_call': said[0].shape[1]}
  return run, first_losses, facts, params


def save(path, setup: setups.Setup, params) -> None:
  """The first weights and batches, for the twin: 'params/…'; 'inputs/…', each [LOSSES, batch, …]."""
  family = families.FAMILIES[setup.experiment]
  flat = {'params/' + '/'.join(k.key for k in p): x for p, x in jax.tree.leaves_with_path(params)}
  data = family.data(setup)
  numbers = batches.indices(families.SEED, 0, worker.LOSSES, batch_size=setup.batch_size, size=data.spec.examples)
  batch = family.inputs(setup, batches.fetch(data.splits['train'], numbers))
  np.savez(path, **flat, **{f'inputs/{name}': x for name, x in batch.items()})


def prepare():
  job = worker.job()
  setup = setups.from_json(job['setup'])
  runtime.tune_malloc()
  runtime.set_cpu(job['threads'], job['parallel'])
  make = our_generation if setup.experiment == 'generation' else our_step
  run, first_losses, facts, params = make(setup, job['seeds'], str(job['steps_per_call']), job['parallel'])
  facts['losses'] = first_losses()
  facts['start_seconds'] = time.time() - job['started']
  if job.get('save'):
    save(job['save'], setup, params)
  facts['versions'] = f'Python {platform.python_version()}, jax {jax.__version__}'
  facts['parameters'] = sum(x.size for x in jax.tree.leaves(params)) // job['seeds']
  a = jnp.ones((worker.MATRIX, worker.MATRIX))
  product = jax.jit(lambda a: a @ a)
  return facts, run, lambda: product(a).block_until_ready()


if __name__ == '__main__':
  worker.serve(prepare)
