"""Variational autoencoders: the ELBO against its definition, the importance bound, and what a run leaves and can do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

import karpjax
from experiments import vae as experiment
from karpjax import config
from karpjax.data import batches
from karpjax.models import vae
from karpjax.train import loop

SMALL = dict(
  widths=(16,), latent=2, steps='40', batch_size=100, eval_every='0', checkpoint_every='20', checkpoint_seconds=0, seed=3, tensorboard=False,
  steps_per_call='20', importance_samples=20, final_splits=('test',),
)  # fmt: skip


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('vae') / 'run'
  return folder, loop.run(experiment, experiment.Config(**SMALL, workdir=str(folder)), say=str)


def test_the_terms_are_those_of_the_definition():
  random = np.random.default_rng(0)
  mean, log_variance = random.normal(size=(2, 5, 3))
  variance = np.exp(log_variance)
  gaussians = 0.5 * (variance + mean**2 - 1 - log_variance).sum(-1)
  np.testing.assert_allclose(vae.kl_divergence(mean, log_variance), gaussians, rtol=1e-5)
  logits, x = random.normal(size=(4, 2, 2, 1)), random.integers(0, 2, (4, 2, 2, 1))
  expected = stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-logits))).reshape(4, -1).sum(-1)
  np.testing.assert_allclose(vae.log_bernoulli(jnp.asarray(x, jnp.float32), logits), expected, rtol=1e-5)


def test_parameters_of_the_paper_on_mnist():
  """784 x 500 + 500 x 40 of the encoder, 20 x 500 + 500 x 784 of the decoder, and their biases."""
  model = vae.VAE(shape=(28, 28, 1))
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)), jnp.zeros((1, 20)))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == 785 * 500 + 501 * 40 + 21 * 500 + 501 * 784


def test_importance_samples_tighten_the_bound_and_one_is_the_elbo(trained):
  folder, summary = trained
  run = karpjax.open(folder)
  data = experiment.data(run.config)
  split = data.splits['test']
  batch = {**batches.fetch(split, np.arange(split.size)), 'mask': np.ones(split.size, bool)}
  found = {}
  for samples in (1, 20):
    program = experiment.program(dataclasses.replace(run.config, importance_samples=samples), data)
    found[samples] = program.summarise(jax.jit(program.evaluate)(run.state, batch, jax.random.key(0)))
  assert found[1]['loss'] == pytest.approx(found[1]['reconstruction'] + found[1]['kl'], rel=1e-6)
  assert found[1]['nll'] == pytest.approx(found[1]['loss'], rel=0.02)  # the same bound, of other draws
  assert found[1]['nll'] > found[20]['nll']
  assert found[20]['nll'] == pytest.approx(summary.numbers['test/nll'], rel=0.01)


def test_a_run_learns_and_leaves_its_pictures(trained):
  folder, summary = trained
  assert summary.numbers['test/loss'] < 64 * np.log(2)  # of a guess that knows nothing
  pictures = {path.stem for path in (folder / 'plots').glob('*.png')}
  assert {'samples', 'reconstructions', 'latent_codes', 'latent_plane'} <= pictures


def test_what_a_run_can_do(trained, tmp_path):
  run = karpjax.open(trained[0])
  (answer,) = run.sample(count=9, output=str(tmp_path / 'drawn.png'))
  assert Image.open(answer['file']).size == (3 * 9 - 1, 3 * 9 - 1)  # 8 x 8 each, a pixel between
  Image.fromarray(np.full((8, 8), 200, np.uint8)).save(tmp_path / 'grey.png')
  (answer,) = run.encode(tmp_path / 'grey.png')
  assert len(answer['code']) == 2 and np.isfinite(answer['code']).all()


@pytest.mark.slow
def test_resumes_to_the_same_bits_and_seeds_are_those_of_single_runs(trained, tmp_path):
  whole = trained[1].state
  loop.run(experiment, experiment.Config(**SMALL | {'steps': '20'}, workdir=str(tmp_path / 'cut')), say=str)
  again = loop.run(experiment, experiment.Config(**SMALL, workdir=str(tmp_path / 'cut')), say=str).state
  jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
  short = config.resolve(experiment.Config(**SMALL), 100)
  data = experiment.data(short)
  program = experiment.program(short, data)
  batch = batches.fetch(data.splits['train'], np.arange(100))
  both = jax.vmap(program.init)(jax.vmap(jax.random.key)(jnp.array([3, 4])))
  together = jax.jit(jax.vmap(program.step, (0, None)))(both, batch)[0]
  alone = jax.jit(program.step)(program.init(jax.random.key(4)), batch)[0]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-5), together.params, alone.params)
