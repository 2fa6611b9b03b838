"""Variational autoencoders: images as codes, and images from codes.

python launch.py vae                                             # scikit-learn's digits
python launch.py vae --dataset=mnist --data_dir=DIR --latent=2   # a map of the latent plane
python launch.py sample WORKDIR --count=64 --output=samples.png  # images drawn from the prior
python launch.py encode WORKDIR IMAGE …                          # the mean code of each image

Kingma & Welling 2014. The loss is the negative ELBO in nats. `nll`, a bound on -log p(x) by importance sampling (Burda et al.
2016, equation 8), is the tighter the more samples it takes.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from karpjax import config, image_verbs, options
from karpjax.data import dataset, frequencies, images, splitting
from karpjax.models import vae
from karpjax.program import LATENT, Input, Program, example_keys, pair
from karpjax.report import pictures, plots
from karpjax.train.predict import predict_split
from karpjax.train.step import ordinary
from karpjax.verbs import Verb, predictions

MODELS = {'vae': vae.VAE}
SHOWN = 16  # images beside their reconstructions


@config.defaults(learning_rate=3e-3, steps='100epochs', eval_every='10epochs', checkpoint_every='10epochs')
class Config(config.Train, images.Flags, config.model_flags(MODELS)):
  binarise: bool = config.flag(True, 'Draw each pixel as 0 or 1 by its grey value, anew at each step.')
  importance_samples: int = config.flag(50, 'Samples of the bound `nll`, in evaluation.', low=1, may_change=True)


def data(config: Config) -> dataset.Dataset:
  return images.load(config, unlabelled=True)


def network(config: Config, spec: dataset.Spec) -> vae.VAE:
  return options.build(MODELS, 'vae', config, shape=spec.shape, dtype=jnp.dtype(config.dtype))


def program(config: Config, data: dataset.Dataset) -> Program:
  """The method: a code z is drawn for each image x, and log p(x | z) - KL(q(z | x) ‖ p(z)) is maximised."""
  spec, model = data.spec, network(config, data.spec)

  def draws(key, batch, *samples):
    """The images as the model sees them, [batch, *shape], and the noise of their codes, [batch, *samples, latent]."""
    keys = example_keys(jax.random.fold_in(key, LATENT), batch)
    x = spec.scale(batch['image'], 'unit')
    if config.binarise:
      x = jax.vmap(lambda k, x: jax.random.bernoulli(jax.random.fold_in(k, 1), x))(keys, x).astype(jnp.float32)
    return x, jax.vmap(lambda k: jax.random.normal(k, (*samples, model.latent)))(keys)

  def terms(variables, batch, key):
    """What is counted of each image, [batch] each."""
    x, noise = draws(key, batch)
    _, mean, log_variance, logits = model.apply(variables, x, noise)
    reconstruction, kl = -vae.log_bernoulli(x, logits), vae.kl_divergence(mean, log_variance)
    return {'loss': reconstruction + kl, 'reconstruction': reconstruction, 'kl': kl}

  def nll(variables, batch, key):
    """-log of the mean of p(x, z) / q(z | x) over samples z of q, [batch]."""
    x, noise = draws(key, batch, config.importance_samples)

    def log_weights(noise):  # [batch, latent] -> [batch]
      z, _, log_variance, logits = model.apply(variables, x, noise)
      prior, posterior = (jax.scipy.stats.norm.logpdf(a).sum(-1) for a in (z, noise))
      return vae.log_bernoulli(x, logits) + prior - posterior + log_variance.sum(-1) / 2

    weights = jax.lax.map(log_weights, noise.swapaxes(0, 1))  # [samples, batch]
    return math.log(config.importance_samples) - jax.nn.logsumexp(weights, 0)

  def loss(params, collections, batch, key):
    return {name: pair(x) for name, x in terms({'params': params}, batch, key).items()}, collections

  def evaluate(state, batch, key):
    each = terms(state.variables(), batch, key) | {'nll': nll(state.variables(), batch, key)}
    return {name: pair(x, batch['mask']) for name, x in each.items()}

  def predict(state, batch, key):
    """The mean codes, [batch, latent]."""
    return model.apply(state.variables(), spec.scale(batch['image'], 'unit'), method='encode')[0]

  def decode(state, batch, key):
    return model.apply(state.variables(), batch['code'], method='decode')

  def report(state, t, folder):
    name, split = data.reported(t == config.steps)
    decode = functools.partial(model.apply, state.variables(), method='decode')
    show = lambda z, columns, heading, name: pictures.grid(np.asarray(decode(z)), columns, heading, folder, name)
    show(jax.random.normal(jax.random.key(config.seed), (64, model.latent)), 8, f'Samples, step {t}', 'samples')
    codes = predict_split(predict, state, split)
    few = splitting.sample(split.size, SHOWN)
    originals = np.asarray(spec.scale(split.fetch(few)['image'], 'unit'))
    pairs = {'image': originals, 'reconstruction': np.asarray(decode(codes[few]))}
    pictures.beside(pairs, folder, 'reconstructions', f' · {name} split', examples=4)
    if model.latent == 2:
      labels = split.fetch(np.arange(split.size)).get('label')
      plots.scatter(codes, labels, spec.classes, f'Mean codes of the {name} split', folder, 'latent_codes')
      quantiles = special.ndtri((np.arange(20) + 0.5) / 20)
      plane = np.stack(np.meshgrid(quantiles, quantiles[::-1]), -1).reshape(-1, 2)
      show(plane, 20, 'The latent plane, by quantiles of the prior', 'latent_plane')

  def example_losses(state, batch, key):
    return terms(state.variables(), batch, key)['loss']

  inputs = np.zeros((1, *spec.shape), np.float32), np.zeros((1, model.latent), np.float32)
  images, codes = {'image': Input(spec.shape, spec.dtype)}, {'code': Input((model.latent,))}
  return ordinary(
    config, model, inputs, loss, evaluate=evaluate, predict=predict, report=report, example_losses=example_losses,
    exports={'encode': (predict, images), 'decode': (decode, codes)}, loss_floor=True,
    **frequencies.uninformed_bits(data, spec.maximum),
  )  # fmt: skip


def prior(run, inputs, chosen):
  """Codes [count, latent]."""
  return jax.random.normal(jax.random.key(chosen.seed), (chosen.count, network(run.config, run.spec).latent))


verbs = {
  'sample': image_verbs.sample(
    prior, lambda run, _: lambda state, z: network(run.config, run.spec).apply(state.variables(), z, method='decode')
  ),
  'encode': Verb(
    'The mean code of each image.',
    image_verbs.load,
    predictions,
    lambda run, codes, paths, _: ({'image': p, 'code': x.tolist()} for p, x in zip(paths, codes)),
    inputs='IMAGE …',
    expand=image_verbs.files,
  ),
}
