"""Adversarial examples: within their bounds, as bad as they can be, the same in every layout."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from experiments import image_classification as experiment
from karpjax import adversary
from karpjax.adversary import Attack
from karpjax.data.dataset import Spec
from karpjax.errors import UsageError
from karpjax.report import robustness
from karpjax.train import loop

IMAGES = np.random.default_rng(0).random((12, 4, 4, 1)).astype('f4')
LABELS = np.arange(12) % 3
WEIGHTS = np.random.default_rng(1).normal(size=(16, 3)).astype('f4')
KEYS = jax.random.split(jax.random.key(0), 12)


def logits(x):
  return x.reshape(len(x), -1) @ WEIGHTS


def objective(x):
  found = logits(x)
  return jax.nn.logsumexp(found, -1) - found[jnp.arange(len(x)), LABELS], found.argmax(-1) == LABELS


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('steps, restarts', [(1, 1), (7, 1), (3, 3)])
def test_changes_are_within_the_distance_and_in_the_picture(norm, steps, restarts):
  attack = Attack(0.3, 0.2, steps, restarts, norm, until_wrong=False)
  new = np.asarray(attack.perturbed(KEYS, objective, IMAGES))
  change = (new - IMAGES).reshape(12, -1)
  size = np.abs(change).max(1) if norm == 'linf' else np.linalg.norm(change, axis=1)
  assert (size <= 0.3 + 1e-6).all() and new.min() >= 0 and new.max() <= 1 and (size > 0.1).all()


def test_of_two_classes_and_a_linear_model_it_finds_the_worst_there_is():
  w = WEIGHTS[:, 0] - WEIGHTS[:, 1]
  margin = lambda x: x.reshape(len(x), -1) @ w
  grow = lambda x: (jax.nn.softplus(margin(x)), jnp.ones(len(x), bool))
  images = 0.4 + 0.2 * IMAGES  # from whose edges all are far
  worst = np.asarray(Attack(0.1, 0.25, 1, until_wrong=False).perturbed(KEYS, grow, images))
  np.testing.assert_allclose(margin(worst), margin(images) + 0.1 * np.abs(w).sum(), rtol=1e-4)
  worst = np.asarray(Attack(0.1, 0.05, 40, norm='l2', until_wrong=False).perturbed(KEYS, grow, images))
  np.testing.assert_allclose(margin(worst), margin(images) + 0.1 * np.linalg.norm(w), rtol=1e-3)


def test_what_is_wrong_already_is_left_and_more_starts_mislead_no_fewer():
  right = lambda x: np.asarray(objective(x)[1])
  one, many = (Attack(0.05, 0.01, 3, restarts).perturbed(KEYS, objective, IMAGES) for restarts in (1, 6))
  assert not right(one)[~right(IMAGES)].all() and (right(many) <= right(one)).all()
  started = Attack(0.05, 0.01, 1).perturbed(KEYS, lambda x: (objective(x)[0], jnp.zeros(12, bool)), IMAGES)
  again = Attack(0.05, 0.01, 9).perturbed(KEYS, lambda x: (objective(x)[0], jnp.zeros(12, bool)), IMAGES)
  np.testing.assert_array_equal(started, again)


def test_an_example_s_change_depends_on_no_other():
  attack = Attack(0.1, 0.05, 4)
  few = lambda x: (jax.nn.logsumexp(f := logits(x), -1) - f[:, 0], f.argmax(-1) == 0)
  whole, part = (attack.perturbed(KEYS[at], few, IMAGES[at]) for at in (slice(0, 12), slice(3, 5)))
  np.testing.assert_allclose(whole[3:5], part, atol=1e-6)


def test_the_difference_that_trades_counts_is_scipy_s():
  clean, changed = logits(IMAGES), logits(1 - IMAGES)
  theirs = special.rel_entr(special.softmax(clean, -1), special.softmax(changed, -1)).sum(-1)
  np.testing.assert_allclose(adversary.divergence(clean, changed), theirs, rtol=1e-4, atol=1e-6)


RUN = dict(
  model='cnn', widths=(8,), hidden=(16,), steps='4', batch_size=16, plots=False, tensorboard=False, log_every='0',
  attack_epsilon=0.2, steps_per_call='2', evaluate_attack='3:2', subset='128/32:0', )  # fmt: skip


def run(folder, **changes):
  return loop.run(experiment, experiment.Config(**RUN | changes, workdir=str(folder)), say=lambda _: None)


@pytest.mark.parametrize('kind, layout', [
  pytest.param('fgsm', dict(parallel='pmap'), marks=pytest.mark.slow), pytest.param('pgd', dict(seeds=2), marks=pytest.mark.slow),
  ('trades', dict(mesh='data:8')),
])  # fmt: skip
def test_every_layout_attacks_as_one_device(tmp_path, kind, layout):
  quiet = dict(adversary=kind, model='logistic', widths=None, hidden=None) | (
    {} if kind == 'fgsm' else {'attack_steps': 3}
  )
  alone, other = run(tmp_path / 'a', **quiet).numbers, run(tmp_path / 'b', **quiet, **layout).numbers
  first = lambda x: x['values'][0] if isinstance(x, dict) else x
  for name in ('train/loss', 'test/loss', 'test/robust_accuracy'):
    assert first(other[name]) == pytest.approx(first(alone[name]), rel=2e-3, abs=1e-3), name


@pytest.mark.slow
def test_training_against_it_resists_it_and_its_report_says_whether_to_believe_it(tmp_path):
  longer = dict(steps='400', subset='', attack_epsilon=0.15, evaluate_attack='20:2', widths=(16, 32), plots=True)
  plain, robust = run(tmp_path / 'a', **longer).numbers, run(tmp_path / 'b', **longer, adversary='pgd').numbers
  assert robust['test/robust_accuracy'] > plain['test/robust_accuracy'] + 0.2 and robust['test/accuracy'] > 0.85
  found = json.loads((tmp_path / 'b' / 'robustness.json').read_text())
  assert all(check['passes'] for check in found['checks'].values()) and found['accuracies'][-1]['epsilon'] == 1.0
  accuracies = [each['accuracy'] for each in found['accuracies']]
  assert accuracies == sorted(accuracies, reverse=True) and accuracies[-1] < 0.05
  assert (tmp_path / 'b' / 'plots' / 'adversarial_examples.png').exists()


def test_a_model_that_hides_its_gradient_is_found_out():
  attack = adversary.Adversary(evaluation=Attack(0.3, 0.1, 10), maximum=1.0)
  batch = {'image': IMAGES, 'label': logits(IMAGES).argmax(-1), 'index': np.arange(12)}
  hidden = lambda x: logits(jnp.round(x * 3) / 3 + 0 * x)  # whose gradient is 0
  assert not robustness.sanity(attack, hidden, {**batch, 'label': hidden(IMAGES).argmax(-1)})[robustness.SANE[0]][0]
  assert all(passes for passes, _ in robustness.sanity(attack, logits, batch).values())


@pytest.mark.parametrize(
  'changes, says',
  [
    (dict(adversary='pgd', attack_step=0.5), 'a step of 0.5 is more than from one side to the other, 0.4'),
    (dict(evaluate_attack='50'), 'evaluate_attack=50: write STEPS:RESTARTS'),
    (dict(evaluate_attack='50:1:.0'), 'evaluate_attack=50:1:.0: a step of 0'),
    (dict(adversary='fgsm', augment='mixup:0.2'), 'needs the class of an image, and augment=mixup:0.2 mixes two'),
    (dict(adversary='fgsm', dataset='mnist1d', subset=''), 'is for images of one class each'),
    (dict(adversary='fgsm', attack_epsilon=1.5), 'attack_epsilon'),
  ],
)
def test_what_makes_no_sense_is_refused(changes, says):
  with pytest.raises(UsageError, match=says):
    run('', **changes)


def test_the_spec_decides_what_can_be_attacked():
  tags = Spec('x', (4, 4, 1), ('a', 'b'), 1.0, multi_label=True)
  config = dataclasses.replace(experiment.Config(), adversary='fgsm')
  with pytest.raises(UsageError, match='x has others'):
    adversary.configured(config, tags)
