"""Our worker, `python -m karpjax.bench.ours JOB`: a step run as a real run is."""

import dataclasses
import importlib
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import config as configs
from karpjax import generate
from karpjax.bench import random_data, worker
from karpjax.bench import setup as setups
from karpjax.data import batches
from karpjax.program import AUGMENT, LATENT, example_keys
from karpjax.rl import ppo
from karpjax.train import runner, runtime


def prepared(setup: setups.Setup, **changes):
  """(experiment, program, data, resolved config) of a set-up."""
  experiment = importlib.import_module(f'experiments.{setup.experiment}')
  given = dataclasses.replace(configs.from_json(experiment.Config, setup.config), **changes)
  data = random_data.DATA[setup.experiment](setup, given)
  config = configs.resolve(given, data.spec.examples)
  return experiment, experiment.program(config, data), data, config


def loss_of(setup: setups.Setup, metrics) -> np.ndarray:
  """The loss that is compared, of metrics' (sum, count) pairs."""
  mean = lambda name: np.divide(*metrics[name])
  if setup.experiment == 'gan':
    return mean('discriminator_loss') + mean('generator_loss')
  if setup.experiment == 'policy_gradient':
    return mean('policy_loss') + setup.config['value'] * mean('value_loss') - setup.config['entropy'] * mean('entropy')
  return mean('loss')


def training(setup: setups.Setup, **changes):
  """The step as a run has it.

  Returns:
    run: (n) makes n steps and waits.
    first_losses: () makes the first steps, one by one, and gives their losses.
    facts: what was compiled.
    params: the initial ones.
  """
  _, program, data, config = prepared(setup, **changes)
  bound = runner.Runner(program, data, config)
  carry = bound.placement.put(bound.init())
  params = jax.device_get(carry.state.params)
  facts = bound.compile(config.steps_per_call)
  at = {'carry': carry, 't': 0}

  def advance(stop, reset=False):
    while at['t'] < stop:
      end = min(bound.next_boundary(at['t']), stop)
      at['carry'] = bound.run_steps(at['carry'], at['t'], end, reset)
      at['t'] = end

  def run(steps):
    advance(at['t'] + steps)
    jax.block_until_ready(at['carry'])

  def first_losses():
    losses = []
    for t in range(worker.LOSSES):
      advance(t + 1, reset=True)
      losses.append(loss_of(setup, jax.device_get(at['carry'].totals)).tolist())
    return losses

  return run, first_losses, {**facts, 'steps_per_call': bound.steps_per_call}, params


def generation(setup: setups.Setup, seeds: int = 1, steps_per_call: str = 'auto', **_):
  """As `training`, a step being one token of a text that never ends."""
  experiment, program, data, config = prepared(setup)
  model, count = experiment.network(config, data.spec), config.batch_size
  params = jax.device_get(jax.jit(program.init)(jax.random.key(0)).params)
  start, prompt = time.perf_counter(), np.zeros((count, 1), np.int32)
  chunk = {} if steps_per_call == 'auto' else {'chunk': int(steps_per_call)}
  keys = jax.random.split(jax.random.key(0), count)
  stream = generate.stream(model, {'params': params}, prompt, keys, temperature=0.0, **chunk)
  first, left = next(stream), {'tokens': 0}
  compile_seconds = time.perf_counter() - start

  def run(steps):
    while left['tokens'] < steps:
      left['tokens'] += next(stream).shape[1]
    left['tokens'] -= steps

  def first_losses():
    tokens = np.concatenate([prompt, first], 1)[:, : worker.LOSSES + 1]
    log_probs = jax.nn.log_softmax(jax.jit(model.apply)({'params': params}, tokens[:, :-1]))
    return (-np.take_along_axis(np.asarray(log_probs), tokens[:, 1:, None], -1)[..., 0].mean(0)).tolist()

  flops = 2 * sum(x.size for x in jax.tree.leaves(params)) * count
  facts = {'flops': flops, 'compile_seconds': compile_seconds, 'steps_per_call': first.shape[1]}
  return run, first_losses, facts, params


# ---- what a twin is given ----


def game_draws(setup: setups.Setup, index: np.ndarray) -> dict[str, np.ndarray]:
  """'latents' [steps, batch, 100] and 'between' [steps, batch]: the draws of our step, see `experiments.gan`."""
  rounds = setup.config['discriminator_steps']
  latents, between = np.empty((*index.shape, 100), np.float32), np.empty(index.shape, np.float32)
  for t, part in np.ndindex(len(index), rounds):
    key = jax.random.fold_in(jax.random.key(0), t)
    key = jax.random.fold_in(key, part) if rounds > 1 else key
    rows = np.s_[t, part::rounds]
    keys = lambda key: example_keys(key, {'index': jnp.asarray(index[rows])})
    latents[rows] = jax.vmap(lambda k: jax.random.normal(k, (100,)))(keys(jax.random.fold_in(key, LATENT)))
    drawn = keys(jax.random.fold_in(jax.random.fold_in(key, AUGMENT), 2))
    between[rows] = jax.vmap(lambda k: jax.random.uniform(k, ()))(drawn)
  return {'latents': latents, 'between': between}


def first_inputs(setup: setups.Setup) -> dict[str, np.ndarray]:
  """The first batches, each [LOSSES, batch, …]: images in [-1, 1], tokens, or rollouts [LOSSES, time, environments, …]."""
  experiment, program, data, config = prepared(setup)
  if setup.experiment == 'policy_gradient':
    return rollouts(experiment, program, config)
  numbers = batches.indices(0, 0, worker.LOSSES, batch_size=config.batch_size, size=data.spec.examples)
  batch = batches.fetch(data.splits['train'], numbers)
  if 'image' not in batch:
    return batch
  arrays = {'images': batch['image'].astype('float32') / 127.5 - 1, 'labels': batch['label']}
  return {**arrays, **(game_draws(setup, numbers) if setup.experiment == 'gan' else {})}


def rollouts(experiment, program, config) -> dict[str, np.ndarray]:
  """The first rollouts, and 'order' [steps, epochs, time * environments] of the examples in their updates."""
  agent = experiment.policy(config)
  config = experiment.resolved(config, agent.environment.limit)

  @jax.jit
  def follow(state, batch):
    seen = ppo.collect(agent, config, state, batch)[1]
    keys = ppo.shuffle_keys(state, config.epochs)
    order = jax.vmap(lambda key: jax.random.permutation(key, seen.reward.size))(keys)
    return program.step(state, batch)[0], {**vars(seen), 'order': order}

  state, each, numbers = jax.jit(program.init)(jax.random.key(0)), [], jnp.arange(config.batch_size)
  for _ in range(worker.LOSSES):
    state, seen = follow(state, {'world': numbers, 'index': numbers})
    each.append(jax.device_get(seen))
  return jax.tree.map(lambda *x: np.stack(x), *each)


def save(path, setup: setups.Setup, params) -> None:
  """The first weights and batches, for the twin: 'params/…' and 'inputs/…'."""
  flat = {'params/' + '/'.join(k.key for k in p): x for p, x in jax.tree.leaves_with_path(params)}
  np.savez(path, **flat, **{f'inputs/{name}': x for name, x in first_inputs(setup).items()})


def prepare(job: dict):
  setup = setups.from_json(job['setup'])
  runtime.set_up(job['threads'], job['parallel'], 'off')
  make = generation if setup.generation else training
  changes = {'seeds': job['seeds'], 'steps_per_call': str(job['steps_per_call']), 'parallel': job['parallel']}
  run, first_losses, facts, params = make(setup, **changes)
  facts['versions'] = f'Python {platform.python_version()}, jax {jax.__version__}'
  facts['parameters'] = sum(x.size for x in jax.tree.leaves(params)) // job['seeds']
  facts |= {'other': True} if job.get('other') else {}
  if 'steps' not in job:
    facts['losses'] = first_losses()
  if job.get('save'):
    save(job['weights'], setup, params)
  a = jnp.ones((worker.MATRIX, worker.MATRIX))
  product = jax.jit(lambda a: a @ a)
  return facts, run, lambda: product(a).block_until_ready()


if __name__ == '__main__':
  worker.serve(prepare)
