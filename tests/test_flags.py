"""Every flag is heeded or refused: what an experiment's data and program read of its config, traced; nothing is compiled."""

import dataclasses
import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax import config as configs
from karpjax.train.prepare import prepare

QUICK = {'evolution', 'image_classification', 'policy_gradient', 'regression', 'vae'}
SLOW = {
  *('actor_critic_off_policy', 'gan', 'image_to_image', 'language_model', 'masked_language_model', 'super_resolution'),
  *('self_supervised', 'text_classification', 'token_classification', 'translation', 'value_learning'),
}
ENGINE = {'batch_size', 'order'}  # of what feeds steps
OF_DATA = {'data_dir', 'resident_mb', 'workers'}  # where there are none, or none so large
WHERE = {  # what is refused where other flags do not call for it, and what does
  'actor_critic_off_policy': {('smoothing_limit', 'exploration'): {'algorithm': 'td3'}},
  'gan': {('gradient_penalty',): {'objective': 'wasserstein_gp'}, ('clip_weights',): {'objective': 'wasserstein'}},
  'image_classification': {
    ('attack_norm', 'attack_epsilon', 'attack_step'): {'adversary': 'fgsm'},
    ('attack_steps', 'trades_beta'): {'adversary': 'trades'},
  },
  'self_supervised': {
    ('barlow_weight',): {'method': 'barlow'},
    ('target_decay',): {'method': 'byol'},
    ('masked', 'decoder'): {'method': 'mae', 'model': 'vit'},
  },
  'super_resolution': {('adversarial_weight',): {'adversarial': True, 'discriminator_widths': (4,)}},
  'value_learning': {('lowest', 'highest'): {'atoms': 51}},
}
PRUNING = {
  'sparsity_from': '10%',
  'sparsity_until': '50%',
  'sparsity_every': '7%',
  'sparsity_scope': 'global',
  'structured': True,
}
FILES = {
  'encoding',
  'columns',
  'distinct',
  'scorer_weight',
  'tag_loss',
  'target',
  'task',
}  # likewise, of files that a user has
DISTILLATION = {'teacher', 'temperature', 'teacher_weight'}  # and of a run
WORLDS = {'validation', 'split_seed'}  # of which no split is cut
LINES = {name: {'split_seed'} for name in ('language_model', 'masked_language_model')}  # drawn; running texts are cut
VALUES = {
  'data_dir': '.',
  'workers': 2,
  'split_seed': 1,
  'encoding': 'latin-1',
  'columns': ('a', 'b'),
  'distinct': True,
  'target': 'b',
  'task': 'numbers',
  'teacher': 'runs/a',
  'tag_loss': 'focal',
  'attack_norm': 'l2',
  'attack_steps': 3,
  'decoder': (32, 1),
  **PRUNING,
}
PRIVATE = {'dp_epsilon': 1000.0, 'dp_clip': 0.5, 'dp_delta': 1e-6, 'dp_accept_shuffle': True}


def load(name):
  return importlib.import_module(f'experiments.{name}')


def trace(program, data, batch_size: int):
  """A step, and an evaluation of four examples."""
  state = jax.eval_shape(program.init, jax.random.key(0))
  example = data.splits['train'].fetch(np.zeros(1, np.int32)) | {'index': np.zeros(1, np.int32)}
  batch = lambda n: {k: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype) for k, x in example.items()}
  jax.eval_shape(program.step, state, batch(batch_size))
  mask = {'mask': jax.ShapeDtypeStruct((4,), jnp.bool_)}
  jax.eval_shape(program.evaluate, state, batch(4) | mask, jax.random.key(0))


def reads(name, **flags) -> set[str]:
  """The fields of a Config that its data, its program, a step and an evaluation read."""
  config, read = load(name).Config(**flags), set()
  data = load(name).data(configs.watched(config, read))
  config = configs.resolve(config, data.spec.examples)
  trace(load(name).program(configs.watched(config, read), data), data, config.batch_size)
  return read


@pytest.mark.parametrize('name', [*sorted(QUICK), *(pytest.param(n, marks=pytest.mark.slow) for n in sorted(SLOW))])
def test_every_flag_of_an_experiment_is_heeded_or_refused(name):
  Config = load(name).Config
  fields = {f.name: configs.metadata(f) for f in dataclasses.fields(Config)}
  # `options.build` refuses a model's that it does not have; what may change, logging and reports read
  ours, read = {n for n, about in fields.items() if about['group'] not in ('Run', 'Hosts', 'Model')}, reads(name)
  ours = {n for n in ours if not fields[n]['may_change']} | {
    'data_dir',
    *(() if 'resident_mb' in read else ['workers']),
  }
  unread = ours - read - ENGINE - {'dp_noise', *PRIVATE}
  value = lambda flag: VALUES[flag] if flag in VALUES else getattr(Config, flag) / 2 or 0.5
  program, data, config = prepare(load(name), Config(**{flag: value(flag) for flag in unread}))
  trace(program, data, config.batch_size)
  assert set(program.unread()) == unread
  pruning = {(*PRUNING,): {'sparsity': 0.5, 'sparsity_until': '50%', 'ema': 0.0}}
  for flags, others in (WHERE.get(name, {}) | pruning).items():
    assert unread >= set(flags) and reads(name, **others) >= set(flags)
    unread -= set(flags)
  unread -= FILES | DISTILLATION | OF_DATA | LINES.get(name, set()) | {'ema', 'decay'}
  assert unread <= (WORLDS if 'environment' in fields else set())
  program, *_ = prepare(load(name), Config(**PRIVATE, order=Config.order.replace('bucketed', 'reshuffle')))
  assert set(program.unread()) == (set() if 'dp_noise' in read else {'dp_noise', *PRIVATE})


def test_every_experiment_and_every_flag_of_the_engine_is_looked_at():
  assert {path.stem for path in Path('experiments').glob('[a-z]*.py')} == QUICK | SLOW
  source = '\n'.join(path.read_text() for path in Path('karpjax').rglob('*.py') if path.name != 'config.py')
  of_all = [f.name for f in dataclasses.fields(configs.Train) if configs.metadata(f)['group'] in ('Run', 'Hosts')]
  assert [name for name in of_all if not re.search(rf'config\.{name}\b', source)] == []
