"""Schedules against their closed forms, optimisers against their papers in NumPy."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from experiments import actor_critic_off_policy, gan, policy_gradient, value_learning
from karpjax import axes, config, errors, optim
from karpjax.durations import Pace
from karpjax.models import gan as models_gan
from karpjax.models import language, lenet, q_network, text, transformer
from karpjax.program import TrainState
from karpjax.train.prepare import prepare

RATE = 0.1


def settings(**options) -> config.Train:
  """A Config with its durations in steps."""
  resolved = dict(steps=100, learning_rate=RATE, warmup=0, decay_every=1, log_every=1, eval_every=1, checkpoint_every=1)
  return config.Train(**resolved | options)


def build(name, **options):
  return optim.configured(settings(optimiser=name, **options))


def rates(name, ts, pace=Pace(), **options):
  rate = optim.schedule(settings(schedule=name, **options), pace)
  return np.array([float(rate(t)) for t in ts])


def params_and_gradients():
  rng = np.random.default_rng(0)
  shapes = {'conv': {'kernel': (3, 3, 2, 4), 'bias': (5, 4)}, 'norm': {'scale': (4,), 'bias': (4,)}}
  shapes |= {'hidden': {'kernel': (6, 5)}, 'logits': {'kernel': (5, 3), 'bias': (3,)}}
  draw = lambda: jax.tree.map(
    lambda shape: rng.normal(size=shape).astype('f4'), shapes, is_leaf=lambda x: isinstance(x, tuple)
  )
  return draw(), [draw(), draw()]


def run(optimiser, params, gradients):
  @jax.jit
  def update(params, state, gradient):
    updates, state = optimiser.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  state = optimiser.init(params)
  for gradient in gradients:
    params, state = update(params, state, gradient)
  return params


@pytest.mark.parametrize(
  'name, options, ts, expected',
  [
    ('constant', {}, [0, 7, 99], [0.1, 0.1, 0.1]),
    ('constant', {'warmup': 4}, [0, 1, 3, 4, 50], [0.02, 0.04, 0.08, 0.1, 0.1]),
    ('linear', {}, [0, 25, 100, 120], [0.1, 0.075, 0, 0]),
    ('linear', {'final_learning_rate': 0.02, 'warmup': 20}, [9, 20, 60, 100], [0.1 * 10 / 21, 0.1, 0.06, 0.02]),
    ('cosine', {}, [0, 50, 100], [0.1, 0.05, 0]),
    ('cosine', {'final_learning_rate': 0.02}, [25, 100], [0.02 + 0.08 * (1 + np.sqrt(0.5)) / 2, 0.02]),
    ('step', {'boundaries': (10, 20)}, [9, 10, 19, 20, 99], [0.1, 0.01, 0.01, 0.001, 0.001]),
    ('step', {'boundaries': (10,), 'decay': 0.5, 'warmup': 4}, [0, 9, 10], [0.02, 0.1, 0.05]),
    ('exponential', {'decay': 0.5, 'decay_every': 10}, [0, 5, 20], [0.1, 0.1 * np.sqrt(0.5), 0.025]),
    ('exponential', {'decay': 0.5, 'decay_every': 10, 'warmup': 1}, [0, 1, 11], [0.05, 0.1, 0.05]),
    ('rsqrt', {}, [0, 3, 99], [0.1, 0.05, 0.01]),
    ('rsqrt', {'warmup': 3}, [0, 3, 15, 63], [0.025, 0.1, 0.05, 0.025]),
  ],
)
def test_schedules_follow_their_closed_forms(name, options, ts, expected):
  np.testing.assert_allclose(rates(name, ts, **options), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('updates, every, first', [(1, 1, 0), (4, 1, 7), (3, 2, 0), (3, 2, 5), (1, 3, 2)])
def test_a_pace_counts_the_updates_that_are_made(updates, every, first):
  made = []  # the steps of the updates, of which every `every`-th since the run began is this optimiser's
  for t in range(20):
    made += [t for i in range(updates) if t >= first and (t * updates + i + 1) % every == 0]
  pace = Pace(Fraction(updates, every), first)
  assert [pace.made(t) for t in range(21)] == [sum(at < t for at in made) for t in range(21)]


@pytest.mark.parametrize(
  'name, options, ts, expected',  # five updates in each step from step 20 on: 400 in all
  [
    ('cosine', {}, [0, 200, 400], [0.1, 0.05, 0]),
    ('linear', {'warmup': 4}, [0, 10, 20, 210, 400], [0.1 / 21, 0.1 * 11 / 21, 0.1, 0.05, 0]),
    ('step', {'boundaries': (10, 40)}, [0, 99, 100], [0.01, 0.01, 0.001]),
    ('exponential', {'decay': 0.5, 'decay_every': 10}, [0, 50, 100], [0.1, 0.05, 0.025]),
    ('rsqrt', {'warmup': 3}, [0, 15, 63, 255], [0.1 / 16, 0.1, 0.05, 0.025]),
  ],
)
def test_durations_are_steps_of_the_run_whatever_the_updates_of_one(name, options, ts, expected):
  np.testing.assert_allclose(rates(name, ts, Pace(5, first=20), **options), expected, rtol=1e-6, atol=1e-9)


TINY = dict(steps='8', schedule='step', boundaries=('5',), decay=0.0, widths=(8,))
OFF_POLICY = TINY | dict(batch_size=2, updates=3, replay_batch=4, buffer=100, episodes=2)


@pytest.mark.parametrize(
  'experiment, flags, first',
  [
    (gan, TINY | dict(model='mlp', discriminator_steps=3, batch_size=12, ema=0.0), 0),
    (policy_gradient, TINY | dict(batch_size=2, rollout=4, epochs=2, minibatches=2), 0),
    (value_learning, OFF_POLICY | dict(train_frequency=2, learning_starts=12), 2),
    pytest.param(
      *(actor_critic_off_policy, OFF_POLICY | dict(algorithm='td3', learning_starts=6), 2), marks=pytest.mark.slow
    ),
  ],
)
def test_a_rate_that_drops_to_0_at_a_step_stops_every_player_there(experiment, flags, first):
  program, data, resolved = prepare(experiment, experiment.Config(**flags))
  state, step = jax.jit(program.init)(jax.random.key(0)), jax.jit(program.step)
  numbers = np.arange(resolved.batch_size, dtype=np.int32)
  batch, moved = {**data.splits['train'].fetch(numbers), 'index': numbers}, []
  for _ in range(7):
    before, (state, _) = state.params, step(state, batch)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, state.params)
    players = changed.values() if isinstance(state.opt_state, dict) else [changed]
    moved.append({any(jax.tree.leaves(player)) for player in players})
  assert moved == [{first <= t < 5} for t in range(7)]


def test_more_updates_than_can_be_counted_are_refused():
  """Of all of a step, as 4,000,000 of a rollout."""
  config = settings(steps=1000)
  optim.configured(config, Pace(2_000_000))
  with pytest.raises(errors.UsageError, match='^steps=1000: their 4000000000 updates are more than the 2147483647'):
    optim.configured(config, Pace(4_000_000))


def test_independence_of_the_number_of_steps_is_as_declared():
  for name in optim.SCHEDULES:
    short, long = (rates(name, range(50), steps=steps, boundaries=(10, 20), warmup=5) for steps in (50, 100))
    same = bool((short == long).all())
    assert same == (name in optim.INDEPENDENT_OF_STEPS), name


def test_plain_sgd_adds_nothing_to_the_update():
  params, (gradient, _) = params_and_gradients()
  optimiser = build('sgd')
  assert jax.tree.leaves(optimiser.init(params)) == []
  jaxpr = jax.make_jaxpr(lambda g, p: optimiser.update(g, optimiser.init(p), p)[0])(gradient, params)
  assert [str(e.primitive) for e in jaxpr.eqns] == ['mul'] * len(jax.tree.leaves(params))
  new = run(optimiser, params, [gradient])
  expected = jax.tree.map(lambda p, g: p - np.float32(RATE) * g, params, gradient)
  jax.tree.map(lambda n, e: np.testing.assert_allclose(n, e, rtol=1e-6, atol=1e-7), new, expected)


# The rules of the papers: `gradients` are functions of the params where they are asked.


def sgd(p, gradients):
  for g in gradients:
    p = p - RATE * g(p)
  return p


def momentum(p, gradients, nesterov=False):
  v = 0
  for g in gradients:
    g = g(p)
    v = 0.9 * v + g
    p = p - RATE * (g + 0.9 * v if nesterov else v)
  return p


def adam(p, gradients, decay=0.0):
  m = s = 0
  for t, g in enumerate(gradients, 1):
    g = g(p)
    m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g**2
    p = p - RATE * (m / (1 - 0.9**t) / (np.sqrt(s / (1 - 0.999**t)) + 1e-8) + decay * p)
  return p


def rmsprop(p, gradients):
  s = 0
  for g in gradients:
    g = g(p)
    s = 0.9 * s + 0.1 * g**2
    p = p - RATE * g / (np.sqrt(s) + 1e-8)
  return p


def adagrad(p, gradients):
  s = 0
  for g in gradients:
    g = g(p)
    s = s + g**2
    p = p - RATE * g / np.sqrt(s)
  return p


def adadelta(p, gradients):
  s = d = 0
  for g in gradients:
    g = g(p)
    s = 0.95 * s + 0.05 * g**2
    change = np.sqrt(d + 1e-6) / np.sqrt(s + 1e-6) * g
    d = 0.95 * d + 0.05 * change**2
    p = p - RATE * change
  return p


def lion(p, gradients, decay=0.0):
  m = 0
  for g in gradients:
    g = g(p)
    p = p - RATE * (np.sign(0.9 * m + 0.1 * g) + decay * p)
    m = 0.99 * m + 0.01 * g
  return p


def orthogonal(m):
  """Jordan et al. 2024: five quintic Newton-Schulz iterations on the matrix over its Frobenius norm."""
  x = m / np.linalg.norm(m)
  x = x.T if m.shape[0] > m.shape[1] else x
  for _ in range(5):
    a = x @ x.T
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  return x.T if m.shape[0] > m.shape[1] else x


def muon(p, gradients, decay=0.0):
  """Nesterov's momentum as a running average freed of its start; its length is normalised away."""
  m = 0
  shape, matrix = p.shape, (-1, p.shape[-1])
  p = p.reshape(matrix)
  for t, g in enumerate(gradients, 1):
    g = g(p).reshape(matrix)
    m = 0.95 * m + 0.05 * g
    ahead = 0.95 * m / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
    p = p - RATE * (0.2 * np.sqrt(max(p.shape)) * orthogonal(ahead) + decay * p)
  return p.reshape(shape)


RULES = {
  'sgd': sgd,
  'momentum': momentum,
  'nesterov': lambda p, g: momentum(p, g, nesterov=True),
  'adam': adam,
  'adamw': adam,
  'rmsprop': rmsprop,
  'adagrad': adagrad,
  'adadelta': adadelta,
  'lion': lion,
  'muon': muon,
}


def expected(name, params, gradients, decay, everything=False):
  """The params after updates by the paper's rule, with decay of kernels, or of everything: decoupled, or L2."""

  def leaf(path, p, *gradients):
    kernel = path[-1].key == 'kernel'
    rule = adam if name == 'muon' and (not kernel or path[0].key == 'logits') else RULES[name]
    own = decay if kernel or everything else 0.0
    l2 = 0.0 if name in optim.DECOUPLED else own
    functions = [lambda p, g=g: g + l2 * p if l2 else g for g in gradients]
    return rule(p, functions, decay=own) if name in optim.DECOUPLED else rule(p, functions)

  double = lambda tree: jax.tree.map(lambda x: np.asarray(x, 'f8'), tree)
  return jax.tree.map_with_path(leaf, double(params), *map(double, gradients))


@pytest.mark.parametrize('name', RULES)
def test_two_updates_follow_the_paper_and_decay_spares_biases_and_norms(name):
  assert list(RULES) == list(optim.OPTIMISERS)
  params, gradients = params_and_gradients()
  new = run(build(name, weight_decay=0.3), params, gradients)
  close = lambda n, e: np.testing.assert_allclose(n, e, rtol=2e-4, atol=2e-5)
  jax.tree.map(close, new, expected(name, params, gradients, 0.3))


@pytest.mark.parametrize('name', ['momentum', 'adamw'])
def test_without_decay_and_with_decay_of_everything(name):
  params, gradients = params_and_gradients()
  for options, decay in (({}, 0.0), ({'weight_decay': 0.3, 'decay_all': True}, 0.3)):
    new = run(build(name, **options), params, gradients)
    close = lambda n, e: np.testing.assert_allclose(n, e, rtol=2e-4, atol=2e-5)
    jax.tree.map(close, new, expected(name, params, gradients, decay, everything=True))


def matrices(module, *inputs, **options):
  """({name: the letters of its axes} of the matrices among a module's parameters, {name: shape} of the others of rank > 1)."""
  each, name = [], lambda path: jax.tree_util.keystr(path, simple=True, separator='/')

  def init():
    boxed = module.init(jax.random.key(0), *inputs, **options)['params']
    plain = jax.tree_util.tree_leaves_with_path(nn.meta.unbox(boxed))
    each.extend((name(path), x.shape, letters) for (path, x), letters in zip(plain, axes.matrices(boxed)))

  jax.eval_shape(init)
  assert all(len(letters) in (0, len(shape)) for _, shape, letters in each)
  return {n: m for n, _, m in each if m}, {n for n, shape, m in each if not m and len(shape) > 1}


def test_what_is_a_matrix_is_said_where_it_is_made():
  tokens, image = jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 8, 8, 1))
  of, others = matrices(language.GPT(9, 4, layers=1, heads=2, width=8, tied=False), tokens)
  attention = {
    'blocks_0/attention/query': 'ioo',
    'blocks_0/attention/key_value': 'isoo',
    'blocks_0/attention/out': 'iio',
  }
  assert of == attention | {'blocks_0/up/kernel': 'io', 'blocks_0/down/kernel': 'io'}
  biases = {'blocks_0/attention/query_bias', 'blocks_0/attention/key_value_bias'}
  assert others == {'tokens/embedding', 'tokens/positions', 'head/kernel'} | biases
  encoder = transformer.Encoder(layers=1, heads=2, width=8, vocabulary=9, context=4)
  of, others = matrices(transformer.MaskedLanguageModel(encoder), tokens)
  assert of['transform/kernel'] == 'io' and 'encoder/tokens/embedding' in others  # whose transpose is the last layer
  of, others = matrices(text.BiLSTM(9, 2, embedding=4, units=(3,)), tokens)
  assert of == {'lstm/layer1/input_kernel': 'sio', 'lstm/layer1/state_kernel': 'sio'}
  assert others == {'embedding', 'logits/kernel', 'lstm/layer1/input_bias'}
  judges = q_network.critics(2, q_network.Actor(outputs=1, widths=(5, 4)))
  of, others = matrices(judges, jnp.zeros((1, 3)), jnp.zeros((1, 1)))
  assert of == {'critic1/kernel': 'sio', 'critic2/kernel': 'sio'} and 'value/kernel' in others
  for spectral in (False, True):
    options = dict(conditional='auxiliary', discriminator_widths=(4, 4), spectral_norm=spectral)
    judge = models_gan.DCGANDiscriminator((8, 8, 1), 3, **options)
    of, others = matrices(judge, image, jnp.zeros(1, jnp.int32), train=True)
    assert sorted(of.values()) == ['iiio', 'iiio'] and len(others) == 2  # 'score' and 'classes'
  of, others = matrices(lenet.LeNet1989(), jnp.zeros((1, 16, 16, 1)))
  assert set(of) == {'h1/kernel', 'h2/kernel', 'h3/kernel'} and 'out/kernel' in others


class Own(nn.Module):
  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(9, 4)(tokens)
    x = nn.Conv(4, (3,), name='z')(x)
    return nn.Dense(2, name='a')(nn.Dense(3, name='b')(x))


def test_of_a_model_of_linens_layers_the_last_made_is_the_last():
  of, others = matrices(Own(), jnp.zeros((1, 4), jnp.int32))
  assert of == {'z/kernel': 'iio', 'b/kernel': 'io'} and others == {'Embed_0/embedding', 'a/kernel'}


@pytest.mark.parametrize('letters, order, shape', [('sio', (0, 1, 2), (2, 4, 3)), ('isoo', (1, 0, 2, 3), (2, 5, 6))])
def test_matrices_are_orthogonalised_one_by_one_along_their_axes(letters, order, shape):
  draw = np.random.default_rng(0)
  sizes = {'sio': (2, 4, 3), 'isoo': (5, 2, 3, 2)}[letters]
  p, *gradients = (draw.normal(size=sizes).astype('f4') for _ in range(3))
  params = {'kernel': axes.Axes(jnp.asarray(p), (), matrix=letters), 'table': jnp.ones((3, 2))}
  optimiser = build('muon', weight_decay=0.3)
  state = TrainState.create(jax.random.key(0), {'params': params}, optimiser)
  new, opt_state = state.params, state.opt_state
  for g in gradients:
    updates, opt_state = optimiser.update({'kernel': g, 'table': jnp.ones((3, 2))}, opt_state, new)
    new = optax.apply_updates(new, updates)
  stacked = lambda x: x.transpose(order).reshape(shape).astype('f8')
  each = zip(stacked(p), *map(stacked, gradients))
  theirs = [muon(p, [lambda _, g=g: g for g in gradients], 0.3) for p, *gradients in each]
  np.testing.assert_allclose(stacked(np.asarray(new['kernel'])), theirs, rtol=2e-4, atol=2e-5)
  np.testing.assert_allclose(new['table'], adam(np.ones((3, 2)), [lambda _: 1.0] * 2, 0.3), rtol=1e-5)


def test_clipping_is_by_the_norm_of_all_gradients_together_and_comes_first():
  params, (gradient, _) = params_and_gradients()
  norm = np.sqrt(sum((g.astype('f8') ** 2).sum() for g in jax.tree.leaves(gradient)))
  for clip, factor in ((2.0, 2.0 / norm), (2 * norm, 1.0)):
    optimiser = build('sgd', clip=clip, weight_decay=0.5)
    updates, _ = jax.jit(optimiser.update)(gradient, optimiser.init(params), params)
    expected = -RATE * (factor * gradient['hidden']['kernel'] + 0.5 * params['hidden']['kernel'])
    np.testing.assert_allclose(updates['hidden']['kernel'], expected, rtol=1e-5)


def test_values_are_clipped_each_by_itself_behind_the_norm_and_before_the_rule():
  params, (gradient, _) = params_and_gradients()
  norm = np.sqrt(sum((g.astype('f8') ** 2).sum() for g in jax.tree.leaves(gradient)))
  for clip, factor in ((0.0, 1.0), (norm / 2, 0.5)):
    optimiser = build('sgd', clip=clip, clip_values=0.3, weight_decay=0.5)
    updates, _ = jax.jit(optimiser.update)(gradient, optimiser.init(params), params)
    clipped = np.clip(factor * gradient['hidden']['kernel'], -0.3, 0.3)
    expected = -RATE * (clipped + 0.5 * params['hidden']['kernel'])
    np.testing.assert_allclose(updates['hidden']['kernel'], expected, rtol=1e-5)
    assert (np.abs(clipped) == np.float32(0.3)).any() and (np.abs(clipped) < 0.3).any()


@pytest.mark.parametrize(
  'name',
  [name if name in ('adam', 'muon') else pytest.param(name, marks=pytest.mark.slow) for name in optim.OPTIMISERS],
)
def test_seeds_in_a_loop_train_as_each_alone(name):
  optimiser = build(name, schedule='cosine', steps=10, warmup=2, weight_decay=0.1, clip=1.0)

  @jax.jit
  def train(params):
    def body(_, carry):
      params, state = carry
      gradient = jax.tree.map(lambda p: jnp.sin(3 * p), params)
      updates, state = optimiser.update(gradient, state, params)
      return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, 3, body, (params, optimiser.init(params)))[0]

  params, gradients = params_and_gradients()
  params, *gradients = ({part: tree[part] for part in ('hidden', 'norm')} for tree in (params, *gradients))
  seeds = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, *gradients)  # [3, ...]
  together = jax.vmap(train)(seeds)
  alone = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(train, (params, *gradients)))
  jax.tree.map(lambda t, a: np.testing.assert_allclose(t, a, rtol=1e-4, atol=1e-5), together, alone)


@pytest.mark.parametrize(
  'options, said',
  [
    ({'schedule': 'cosin'}, 'Did you mean cosine?'),
    ({'learning_rate': float('inf')}, 'learning_rate=inf'),
    ({'schedule': 'step'}, 'needs boundaries'),
    ({'schedule': 'exponential', 'decay_every': '0'}, 'decay_every=0'),
    ({'optimiser': 'sgd', 'momentum': 0.9}, 'takes no momentum=0.9; these do: momentum, nesterov'),
    ({'optimiser': 'momentum', 'momentum': 1.0}, 'momentum=1.0: at least 0 and less than 1'),
    ({'weight_decay': -1}, 'weight_decay=-1: at least 0'),
    ({'clip': float('nan')}, 'clip=nan'),
  ],
)
def test_bad_values_are_named(options, said):
  with pytest.raises(errors.UsageError, match='(?s)' + said.replace('?', r'\?')) as error:
    optim.configured(config.resolve(config.Train(**{'steps': '100', 'batch_size': 10} | options), examples=100))
  assert '\n' not in str(error.value)


def test_norms_are_limited_per_unit_of_one_layer_after_the_update():
  params, gradients = params_and_gradients()
  plain = build('sgd')
  limited = optax.chain(plain, optim.limit_norms(1.5))
  expected, ours = run(plain, params, gradients[:1]), run(limited, params, gradients[:1])
  kernel = expected['logits']['kernel']  # [in, classes]
  norms = np.linalg.norm(kernel, axis=0)
  assert (norms < 1.5).any() and (norms > 1.5).any()  # of both kinds
  expected['logits']['kernel'] = kernel * np.minimum(1, 1.5 / norms)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, expected)
