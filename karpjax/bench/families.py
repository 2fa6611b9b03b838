"""What the benchmark's set-ups train on, and with which flags: for each experiment made data, as a real run would have."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments import gan, image_classification, language_model, policy_gradient, translation
from karpjax import config
from karpjax.bench import setups, worker
from karpjax.data import dataset, text, tokenisers
from karpjax.program import AUGMENT, LATENT, example_keys
from karpjax.rl import ppo

SEED = 0


def of_all(metrics):
  return np.divide(*metrics['loss'])


def of_players(metrics):
  return sum(np.divide(*metrics[f'{player}_loss']) for player in ('discriminator', 'generator'))


def of_policy(metrics):
  mean = lambda name: np.divide(*metrics[name])
  return mean('policy_loss') + 0.5 * mean('value_loss') - 0.01 * mean('entropy')  # the defaults of the experiment


class Family(NamedTuple):
  """Attributes:
  data: set-up -> Dataset.
  settings: (set-up, **changes) -> the experiment's Config.
  program: (resolved config, spec) -> Program.
  inputs: (set-up, batch) -> what the twin is given.
  loss: metrics' (sum, count) pairs -> the loss that is compared.
  model: set-up -> (module, its first params), where a step is no Program's.
  """

  data: Callable
  settings: Callable
  program: Callable
  inputs: Callable
  model: Callable | None = None
  loss: Callable = of_all


def images(setup: setups.Setup) -> dataset.Dataset:
  """Random images, as many as make epochs of a usual length but no more than 256 MB."""
  random = np.random.default_rng(0)
  size = max(2 * worker.LOSSES * setup.batch_size, min(8192, 2**28 // int(np.prod(setup.shape))))
  arrays = {
    'image': random.integers(0, 256, (size, *setup.shape), dtype=np.uint8),
    'label': random.integers(0, setup.classes, size, dtype=np.int32),
  }
  channels = setup.shape[-1]
  half, names = (0.5,) * channels, tuple(map(str, range(setup.classes)))
  spec = dataset.Spec('made', setup.shape, names, 255.0, half, half, size)
  return dataset.Dataset(spec, {'train': dataset.Split.of(**arrays)})


def as_floats(setup, batch):
  """'images' float32 in [-1, 1], as the experiment's scale 'symmetric', and 'labels'."""
  return {'images': batch['image'].astype('float32') / 127.5 - 1, 'labels': batch['label']}


def as_game(setup, batch):
  """Also 'latents' [steps, batch, 100] and 'between' [steps, batch], the draws of our step: see `experiments.gan`."""
  rounds, index = setup.options.get('discriminator_steps', 1), batch['index']
  latents, between = np.empty((*index.shape, 100), np.float32), np.empty(index.shape, np.float32)
  for t, part in np.ndindex(len(index), rounds):
    key = jax.random.fold_in(jax.random.key(SEED), t)
    key = jax.random.fold_in(key, part) if rounds > 1 else key
    rows = np.s_[t, part::rounds]
    of = lambda key: example_keys(key, {'index': jnp.asarray(index[rows])})
    latents[rows] = jax.vmap(lambda k: jax.random.normal(k, (100,)))(of(jax.random.fold_in(key, LATENT)))
    drawn = of(jax.random.fold_in(jax.random.fold_in(key, AUGMENT), 2))
    between[rows] = jax.vmap(lambda k: jax.random.uniform(k, ()))(drawn)
  return {**as_floats(setup, batch), 'latents': latents, 'between': between}


def vocabulary(setup: setups.Setup) -> tokenisers.Tokeniser:
  return tokenisers.Tokeniser('characters', tuple(chr(0x4E00 + i) for i in range(setup.classes)))


def tokens(setup: setups.Setup) -> dataset.Dataset:
  """A running text of random tokens."""
  drawn = np.random.default_rng(0).integers(0, setup.classes, 200_000)
  split, made = text.windowed(drawn, setup.shape[0], stride=1), vocabulary(setup)
  spec = text.TextSpec('made', split.size, {'text': made}, {'text': setup.shape[0]})
  return dataset.Dataset(spec, {'train': split})


def as_tokens(setup, batch):
  return {name: batch[name] for name in ('tokens', 'targets')}


def pairs(setup: setups.Setup) -> dataset.Dataset:
  """Sources and targets of random tokens, each of half to all of the length, with padding behind."""
  random, length, size = np.random.default_rng(0), setup.shape[0], 20 * setup.batch_size

  def side():
    real = np.arange(length) < random.integers(length // 2, length + 1, (size, 1))
    return np.where(real, random.integers(1, setup.classes, (size, length), dtype=np.int32), 0)

  source, target = side(), side()
  begun = np.concatenate([np.ones((size, 1), np.int32), target[:, :-1]], 1)
  given = {'source': source, 'target_in': begun, 'targets': np.where(target, target, -1)}
  split = dataset.Split.of(**given, reference=np.arange(size, dtype=np.int32))
  both = lambda x: {'source': x, 'target': x}
  spec = text.TextSpec('made', size, both(vocabulary(setup)), both(length), about={'language': False})
  return dataset.Dataset(spec, {'train': split})


def as_pairs(setup, batch):
  return {name: batch[name] for name in ('source', 'target_in', 'targets')}


def worlds(setup: setups.Setup) -> dataset.Dataset:
  return policy_gradient.data(of_policies(setup))


def as_rollouts(setup, batch):
  """The first rollouts, each [steps, time, environments, …], and 'order' [steps, epochs, time * environments]."""
  data = worlds(setup)
  settings = config.resolve(of_policies(setup), data.spec.examples)
  policy, program = policy_gradient.policy(settings), policy_gradient.program(settings, data)
  settings = policy_gradient.resolved(settings, policy.environment.limit)
  state, kept = jax.jit(program.init)(jax.random.key(SEED)), []

  @jax.jit
  def follow(state, batch):
    seen = ppo.collect(policy, settings, state, batch)[1]
    keys = ppo.shuffle_keys(state, settings.epochs)
    order = jax.vmap(lambda key: jax.random.permutation(key, seen.reward.size))(keys)
    return program.step(state, batch)[0], {**vars(seen), 'order': order}

  numbers = jnp.arange(setup.batch_size)  # an environment goes on where it was
  for _ in range(worker.LOSSES):
    state, seen = follow(state, {'world': numbers, 'index': numbers})
    kept.append(jax.device_get(seen))
  return jax.tree.map(lambda *x: np.stack(x), *kept)


def common(setup: setups.Setup, changes: dict) -> dict:
  """The flags that every experiment has."""
  rule = dict(setup.optimiser)
  return dict(
    model=setup.model,
    batch_size=setup.batch_size,
    seed=SEED,
    steps=str(2**20),
    optimiser=rule.pop('name'),
    **rule,
    **changes,
  )


def of_images(setup: setups.Setup, **changes):
  return image_classification.Config(loss=setup.loss, scale='symmetric', **common(setup, changes), **setup.options)


def of_game(setup: setups.Setup, **changes):
  return gan.Config(dataset='made', **common(setup, changes), **setup.options)


def of_tokens(setup: setups.Setup, **changes):
  return language_model.Config(context=setup.shape[0], **common(setup, changes), **setup.options)


def of_policies(setup: setups.Setup, **changes):
  flags = common(setup, changes)
  del flags['model']
  return policy_gradient.Config(schedule='constant', **flags, **setup.options)


def of_pairs(setup: setups.Setup, **changes):
  return translation.Config(clip=0, **common(setup, changes), **setup.options)


def language_module(setup: setups.Setup):
  model = language_model.build(of_tokens(setup), tokens(setup).spec)
  return model, nn.meta.unbox(jax.jit(model.init)(jax.random.key(SEED), jnp.zeros((1, setup.shape[0]), jnp.int32)))[
    'params'
  ]


FAMILIES = {
  'image_classification': Family(images, of_images, image_classification.program, as_floats),
  'gan': Family(images, of_game, gan.program, as_game, loss=of_players),
  'language_model': Family(tokens, of_tokens, language_model.program, as_tokens),
  'translation': Family(pairs, of_pairs, translation.program, as_pairs),
  'policy_gradient': Family(worlds, of_policies, policy_gradient.program, as_rollouts, loss=of_policy),
  'generation': Family(tokens, of_tokens, language_model.program, as_tokens, language_module),
}
