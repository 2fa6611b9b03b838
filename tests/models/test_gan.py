"""Generators and discriminators: counts with their sources, shapes, what a class changes, spectral norms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.gan import Config, players
from karpjax import errors
from karpjax.data.dataset import Spec
from karpjax.models.gan import CONDITIONALS, EMBEDDING


def build(name, shape, *, classes=10, **flags):
  spec = Spec('made', shape, tuple(map(str, range(classes))), 255.0)
  return players(Config(model=name, **flags), spec)


def initialise(pair, shape, key, latent=100):
  generator, discriminator = pair
  z, x, label = jnp.zeros((1, latent)), jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32)
  keys = jax.random.split(key)
  return {
    'discriminator': discriminator.init(keys[0], x, label, train=True),
    'generator': generator.init(keys[1], z, label, train=True),
  }


def shapes(pair, shape, latent=100):
  return jax.eval_shape(lambda key: initialise(pair, shape, key, latent), jax.random.key(0))


def init(pair, shape):
  return jax.jit(lambda key: initialise(pair, shape, key))(jax.random.key(1))


def count(variables):
  return {n: sum(math.prod(x.shape) for x in jax.tree.leaves(v['params'])) for n, v in variables.items()}


@pytest.mark.parametrize(
  'name, shape, widths, options, generator, discriminator',
  [
    # 100-128-256-512-784 and back: (n + 1) m for each layer
    ('mlp', (28, 28, 1), None, {}, 12_928 + 33_024 + 131_584 + 402_192, 401_920 + 131_328 + 32_896 + 129),
    # PyTorch's DCGAN tutorial (nz 100, ngf = ndf 64): 3,576,704 and 2,765,568, without biases in the layers at the ends:
    # 3 at the images, 64 at the first convolution, 1 at the score
    ('dcgan', (64, 64, 3), None, {}, 3_576_704 + 3, 2_765_568 + 65),
    # projection, norm, 128 to 64 channels, norm, 64 to 1 and a bias
    ('dcgan', (28, 28, 1), None, {}, 627_200 + 256 + 131_072 + 128 + 1_025, 1_088 + 131_072 + 256 + 6_273),
    # 4 → 7 → 14 → 28
    (
      'dcgan', (28, 28, 1), (128, 64, 32), {},
      204_800 + 256 + 131_072 + 128 + 32_768 + 64 + 513, 544 + 32_768 + 128 + 131_072 + 256 + 2_049,
    ),
    ('dcgan', (8, 8, 1), (128, 64), {'norm': 'none'}, 51_200 + 256 + 131_072 + 128 + 1_025, 1_088 + 131_200 + 513),
    # Miyato et al. 2018, table 3, for 32×32, latents of 128 numbers; block: two 3×3 convolutions, norms, 1×1 shortcut
    (
      'sngan', (32, 32, 3), (256,) * 3, {'discriminator_widths': (128,) * 4},
      528_384 + 3 * (2 * (512 + 590_080) + 65_792) + 512 + 6_915,
      (3_584 + 147_584 + 512) + (2 * 147_584 + 16_512) + 2 * 2 * 147_584 + 129,
    ),
  ],
)  # fmt: skip
def test_parameter_counts(name, shape, widths, options, generator, discriminator):
  latent = 128 if name == 'sngan' else 100
  pair = build(name, shape, latent=latent, widths=widths, **options)
  assert count(shapes(pair, shape, latent)) == {'generator': generator, 'discriminator': discriminator}


@pytest.mark.parametrize('size', [8, 28, 64])
@pytest.mark.parametrize('name', ['mlp', 'dcgan', 'sngan'])
def test_shapes_and_ranges(name, size):
  shape = (size, size, 3)
  pair = build(name, shape)
  state = shapes(pair, shape)
  z, x, labels = jnp.zeros((5, 100)), jnp.zeros((5, *shape)), jnp.zeros(5, jnp.int32)
  made = jax.eval_shape(lambda v: pair[0].apply(v, z, labels, train=False), state['generator'])
  scores, logits = jax.eval_shape(lambda v: pair[1].apply(v, x, labels, train=False), state['discriminator'])
  assert made.shape == (5, *shape) and scores.shape == (5,) and logits is None
  assert made.dtype == scores.dtype == jnp.float32
  if name != 'mlp':
    kernel = state['generator']['params']['project']['kernel']
    assert kernel.shape[1] == {8: 2, 28: 7, 64: 4}[size] ** 2 * pair[0].widths[0]


def test_a_dcgan_makes_and_sees_every_pixel_of_images_of_odd_size_and_begins_with_small_weights():
  shape = (7, 6, 1)
  generator, discriminator = pair = build('dcgan', shape, widths=(8, 8), norm='none')
  variables, labels = init(pair, shape), jnp.zeros(2, jnp.int32)
  for player in variables.values():  # of a deviation of two hundredths
    for path, x in jax.tree_util.tree_leaves_with_path(player['params']):
      if 'kernel' in jax.tree_util.keystr(path):
        assert abs(float(x.std()) - 0.02) < 5 * 0.02 / math.sqrt(2 * x.size)
  z, x = jax.random.normal(jax.random.key(1), (2, 100)), jax.random.normal(jax.random.key(2), (2, *shape))

  @jax.jit
  def both(x):
    score = lambda x: discriminator.apply(variables['discriminator'], x, labels, train=False)[0].sum()
    return generator.apply(variables['generator'], z, labels, train=False), jax.grad(score)(x)

  made, slopes = both(x)
  assert made.shape == (2, *shape) and np.all(made != 0) and np.all(slopes != 0)


def test_images_lie_between_minus_one_and_one_and_rows_of_numbers_anywhere():
  for shape in ((2, 2, 1), (2,)):
    generator, _ = build('mlp', shape, widths=(16,))
    z, label = 100 * jax.random.normal(jax.random.key(1), (50, 100)), jnp.zeros(50, jnp.int32)
    made, _ = jax.jit(lambda z, g=generator, label=label: g.init_with_output(jax.random.key(0), z, label, train=False))(
      z
    )
    assert (np.abs(made).max() <= 1) == (len(shape) == 3)


@pytest.mark.parametrize('conditional', [pytest.param('none', marks=pytest.mark.slow), *CONDITIONALS[1:]])
def test_what_a_class_changes(conditional):
  shape = (8, 8, 1)
  name = 'dcgan' if conditional == 'embedding' else 'mlp'  # beside an image it lies as channels
  pair = build(name, shape, conditional=conditional, norm='none', widths=(8, 8))
  variables = init(pair, shape)
  z, x = jax.random.normal(jax.random.key(1), (4, 100)), jax.random.normal(jax.random.key(2), (4, *shape))
  zero, one = jnp.zeros(4, jnp.int32), jnp.ones(4, jnp.int32)
  make = jax.jit(lambda labels: pair[0].apply(variables['generator'], z, labels, train=False))
  assert np.allclose(make(zero), make(one)) == (conditional == 'none')
  judge = jax.jit(lambda weights, labels: pair[1].apply(weights, x, labels, train=False))
  (a, logits), (b, _) = (judge(variables['discriminator'], labels) for labels in (zero, one))
  assert np.allclose(a, b) == (conditional in ('none', 'auxiliary'))
  assert (logits is None) == (conditional != 'auxiliary') and (logits is None or logits.shape == (4, 10))
  if conditional == 'projection':  # (Miyato & Koyama 2018, eq. 3): linear in the embedding
    weights = variables['discriminator']
    table = weights['params']['projection']['embedding']
    swapped = jax.tree.map(jnp.copy, weights)
    swapped['params']['projection']['embedding'] = table.at[0].set(2 * table[0] - table[1])
    c, _ = judge(swapped, zero)
    np.testing.assert_allclose(c - a, a - b, atol=1e-6)


def test_spectral_norm_divides_by_the_largest_singular_value():
  shape = (8, 8, 1)
  _, discriminator = build('mlp', shape, widths=(12, 6), spectral_norm=True)
  x, label = jax.random.normal(jax.random.key(1), (3, *shape)), jnp.zeros(3, jnp.int32)
  variables = nn.meta.unbox(jax.jit(lambda x: discriminator.init(jax.random.key(0), x, label, train=True))(x))
  variables['params'] = jax.tree.map(lambda w: 7 * w, variables['params'])
  step = jax.jit(lambda v: discriminator.apply(v, x, label, train=True, mutable=['batch_stats']))
  for _ in range(200):
    (scores, _), new = step(variables)
    variables = {**variables, **new}
  y = x.reshape(3, -1)
  for name in ('hidden1', 'hidden2', 'score'):
    kernel, bias = (np.asarray(variables['params'][name][n]) for n in ('kernel', 'bias'))
    largest = np.linalg.svd(kernel, compute_uv=False)[0]
    found = variables['batch_stats'][f'spectral_{name}'][f'{name}/kernel/sigma']
    assert float(found) == pytest.approx(largest, rel=1e-3)
    y = y @ (kernel / largest) + bias
    y = np.where(y > 0, y, 0.2 * y) if name != 'score' else y
  np.testing.assert_allclose(scores, y[:, 0], rtol=2e-3, atol=1e-4)


def test_layer_norm_keeps_examples_apart_and_batch_norm_does_not():
  x, label = jax.random.normal(jax.random.key(1), (4, 8, 8, 1)), jnp.zeros(4, jnp.int32)
  for norm in ('layer', 'batch'):
    _, discriminator = build('dcgan', (8, 8, 1), norm=norm, widths=(8, 8))
    score = jax.jit(lambda x, d=discriminator: d.init_with_output(jax.random.key(0), x, label, train=True)[0][0])
    assert np.allclose(score(x)[1:], score(x.at[0].set(3.0))[1:], atol=1e-5) == (norm == 'layer')
  assert build('dcgan', (8, 8, 1), r1=1.0)[1].norm == 'layer'


@pytest.mark.parametrize(
  'name, shape, options, message',
  [
    ('sngan', (27, 27, 1), {}, r'images of 27×27 cannot be halved 1 times.*an image_size that 2 divides'),
    ('sngan', (28, 28, 1), {'widths': (64, 32, 16)}, r'cannot be halved 3 times.*an image_size that 8 divides'),
    ('dcgan', (28, 28, 1), {'widths': (8,) * 6}, r'images of 28×28 cannot be halved 6 times.*give 5 widths at most'),
    ('dcgan', (2,), {}, r'makes images, not rows of 2 numbers: model=mlp is needed'),
    ('dcgan', (8, 8, 1), {'norm': 'batsh'}, r'norm=batsh: unknown. Did you mean batch\?'),
    ('dcgan', (8, 8, 1), {'norm': 'batch', 'r1': 1.0}, r'norm=layer or none is needed, not batch'),
    ('sngan', (8, 8, 1), {'norm': 'batch'}, r'norm=batch: unknown. Known: none'),
    ('dcgan', (8, 8, 1), {'widths': ()}, r'widths= leaves model dcgan no layer'),
    ('mlp', (8, 8, 1), {'widths': (0,)}, r'widths=0: at least 1 is needed'),
    ('gcgan', (8, 8, 1), {}, r"unknown model 'gcgan'. Did you mean dcgan\?"),
  ],
)
def test_bad_input_is_refused(name, shape, options, message):
  with pytest.raises(errors.UsageError, match=message):
    build(name, shape, **options)


def perturbed(generator, z, labels):
  """Variables with other params than at the beginning, when every class of an SNGAN has the same gain and bias."""
  variables = jax.jit(functools.partial(generator.init, train=True))(jax.random.key(0), z, labels)
  draw = np.random.default_rng(0)
  moved = jax.tree.map(
    lambda x: np.asarray(x) + 0.3 * draw.normal(size=x.shape).astype(np.float32), variables['params']
  )
  return {**variables, 'params': moved}


@pytest.mark.parametrize('name, norm', [('dcgan', 'norm0'), ('sngan', 'block1_norm1')])
def test_classes_do_not_take_part_in_what_normalises_the_latent(name, norm):
  """Else what tells them apart may grow until nothing of the latent is left: one sample for each class."""
  generator, _ = build(name, (4, 4, 1), conditional='projection', widths=(4,))
  z, labels = jax.random.normal(jax.random.key(1), (6, 100)), jnp.arange(6)
  variables = perturbed(generator, z, labels)
  apply = jax.jit(lambda labels: generator.apply(variables, z, labels, train=True, mutable=['batch_stats']))
  (made, one), (other, two) = apply(labels), apply(labels[::-1])
  jax.tree.map(np.testing.assert_array_equal, one['batch_stats'][norm], two['batch_stats'][norm])
  assert not np.allclose(made, other)


@pytest.mark.slow
@pytest.mark.parametrize('norm', ['batch', 'none'])
def test_an_sngan_makes_many_samples_of_a_class_and_others_of_another(norm):
  generator, _ = build(
    'sngan', (4, 4, 1), classes=3, latent=5, conditional='projection', widths=(8, 4), generator_norm=norm
  )
  z, labels = jax.random.normal(jax.random.key(1), (4, 5)), jnp.array([0, 0, 1, 1])
  variables = perturbed(generator, z, labels)
  shapes = {name: {n: x.shape for n, x in layer.items()} for name, layer in nn.meta.unbox(variables['params']).items()}
  if norm == 'batch':  # nothing beside the latent; a row for each class in every norm
    norms = {'block1_norm1': 8, 'block1_norm2': 8, 'block2_norm1': 8, 'block2_norm2': 4, 'norm': 4}
    assert {n: x for n, x in shapes.items() if 'norm' in n} == {
      n: {'scale': (3, c), 'bias': (3, c)} for n, c in norms.items()
    }
    assert shapes['project']['kernel'] == (5, 8) and 'class' not in shapes
  else:
    assert shapes['project']['kernel'] == (5 + EMBEDDING, 8) and shapes['class'] == {'embedding': (3, 32)}
    assert not any('norm' in name for name in shapes)
  apply = jax.jit(lambda z, labels: generator.apply(variables, z, labels, train=False))
  a, b, c, d = apply(z, labels)
  assert not np.allclose(a, b, atol=1e-3) and not np.allclose(c, d, atol=1e-3)  # of one class
  same = apply(jnp.stack([z[0], z[0], z[0], z[1]]), jnp.array([0, 1, 2, 0]))
  np.testing.assert_allclose(same[0], a, rtol=1e-5, atol=1e-6)
  assert not np.allclose(same[0], same[1], atol=1e-3) and not np.allclose(same[1], same[2], atol=1e-3)  # of one latent


def test_a_class_trains_its_own_gain_and_bias_alone():
  generator, _ = build('sngan', (4, 4, 1), classes=3, conditional='projection', widths=(4,))
  z, labels = jax.random.normal(jax.random.key(1), (4, 100)), jnp.array([0, 2, 2, 0])
  variables = perturbed(generator, z, labels)
  loss = lambda params: generator.apply(
    {**variables, 'params': params}, z, labels, train=True, mutable=['batch_stats']
  )[0][..., 0].sum()  # fmt: skip
  for name, layer in jax.jit(jax.grad(loss))(variables['params']).items():
    if 'norm' in name:
      moved = {n: np.abs(x).max(1) > 0 for n, x in layer.items()}
      assert all(list(x) == [True, False, True] for x in moved.values()), (name, moved)
