"""Attributions where the truth is known, what tests of them say, and the verb of images, texts and tables."""

import csv
import json
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import karpjax
import launch
from experiments import image_classification, regression, text_classification
from karpjax import models
from karpjax.data.dataset import Spec
from karpjax.explaining import attribution, inputs
from karpjax.explaining.attribution import METHODS, Options
from karpjax.models.text import Transformer
from karpjax.models.vit import ViT
from karpjax.program import TrainState
from karpjax.report import explanations
from karpjax.train import loop

KEY, WEIGHTS = jax.random.key(0), jnp.array([3.0, -2.0, 0.0, 0.5])
X, BASELINE = jnp.array([[1.0], [2.0], [-1.0], [4.0]]), jnp.array([[0.5], [0.0], [2.0], [1.0]])  # [places, channels]
LINEAR, EACH = lambda x: WEIGHTS @ x[:, 0] + 7, Options(jnp.arange(4), 4, steps=3)
WHERE = [row[:, 0] for row in (X, BASELINE)]


def attributed(method, score, x, baseline, options):
  return np.asarray(jax.jit(lambda x: METHODS[method](score, x, baseline, KEY, options))(x))


# ---- methods ----


@pytest.mark.parametrize('method', ['saliency', 'smoothgrad'])
def test_saliency_of_a_linear_model_is_the_magnitude_of_its_weights(method):
  np.testing.assert_allclose(attributed(method, LINEAR, X, BASELINE, EACH), abs(WEIGHTS), rtol=1e-6)


@pytest.mark.parametrize('method', ['integrated', 'occlusion', 'shapley'])
def test_a_linear_model_adds_its_weights_times_what_differs_from_the_baseline(method):
  exact = WEIGHTS * (WHERE[0] - WHERE[1])
  np.testing.assert_allclose(attributed(method, LINEAR, X, BASELINE, EACH), exact, atol=1e-5)


def test_places_of_a_group_share_what_it_adds_and_padding_adds_nothing():
  groups = Options(jnp.array([0, 0, 1, -1]), 2, steps=2)
  both = WEIGHTS[:2] @ (WHERE[0] - WHERE[1])[:2] / 2
  for method in ('occlusion', 'shapley'):
    np.testing.assert_allclose(attributed(method, LINEAR, X, BASELINE, groups), [both, both, 0, 0], atol=1e-5)


def test_shapley_values_share_what_places_do_together():
  both = lambda x: 6 * x[0, 0] * x[1, 0]  # worth nothing without the other
  found = attributed('shapley', both, jnp.ones((3, 1)), jnp.zeros((3, 1)), Options(jnp.arange(3), 3, steps=400))
  np.testing.assert_allclose(found, [3, 3, 0], atol=0.5)
  np.testing.assert_allclose(found.sum(), 6, rtol=1e-5)


def test_integrated_gradients_are_complete_within_a_hundredth():
  draw = np.random.default_rng(0)
  first, second = draw.normal(size=(12, 20)), draw.normal(size=20)
  score = lambda x: jnp.tanh(x.reshape(-1) @ first) @ second
  x, baseline = jnp.asarray(draw.normal(size=(6, 2)), jnp.float32), jnp.zeros((6, 2))
  found = attributed('integrated', score, x, baseline, Options(jnp.arange(6), 6))
  rise = float(score(x) - score(baseline))
  assert abs(found.sum() - rise) < 0.01 * abs(rise)


def test_gradcam_of_a_mean_and_a_dense_layer_is_the_class_activation_map():
  model = models.MODELS['cnn'](classes=3, widths=(4, 5), pool=1, head='average', hidden=(), zero_head=False)
  x = jax.random.normal(KEY, (6, 8, 2))
  variables = nn.meta.unbox(jax.jit(model.init)(KEY, x[None]))
  found = attributed('gradcam', lambda x: model.apply(variables, x[None])[0, 1], x, x, None)
  seen = []

  def intercept(call, inputs, options, context):
    seen.append(call(*inputs, **options)) if isinstance(context.module, attribution.FeatureMaps) else None
    return seen[-1] if isinstance(context.module, attribution.FeatureMaps) else call(*inputs, **options)

  with nn.intercept_methods(intercept):
    model.apply(variables, x[None])
  cam = seen[-1][0] @ variables['params']['head']['logits']['kernel'][:, 1]  # Zhou et al. 2016
  assert cam.max() > 0
  np.testing.assert_allclose(found, np.maximum(cam, 0) / cam.size, atol=1e-6)


def test_gradcam_lays_small_maps_over_the_image():
  model = models.MODELS['resnet20'](classes=3, widths=(2, 2, 2), blocks=(1, 1, 1))
  x = jax.random.normal(KEY, (8, 8, 1))
  variables = jax.jit(model.init)(KEY, x[None])
  assert attributed('gradcam', lambda x: model.apply(variables, x[None])[0, 1], x, x, None).shape == (8, 8)


def test_rollout_of_one_layer_is_its_mean_attention_with_the_residual():
  model = Transformer(vocabulary=9, classes=2, context=6, layers=1, heads=2, width=8)
  tokens = jnp.array([[3, 4, 5, 6, 0, 0]])
  variables = jax.tree.map(lambda x: 3 * x, nn.meta.unbox(jax.jit(model.init)(KEY, tokens)))
  _, sown = jax.jit(lambda variables: model.apply(variables, tokens, mutable='intermediates'))(variables)
  [weights] = jax.tree.leaves(sown)  # [1, heads, time, time]
  exact = ((weights[0].mean(0) + jnp.eye(6)) / 2)[:4].mean(0)
  options = Options(jnp.array([0, 1, 2, 3, -1, -1]), 6, seen=jnp.array([1, 1, 1, 1, 0, 0]) / 4)
  found = attributed('rollout', lambda x: model.apply(variables, tokens)[0, 0], jnp.zeros((6, 8)), None, options)
  np.testing.assert_allclose(found, exact, atol=1e-6)
  assert found[4:].tolist() == [0, 0] and found.sum() == pytest.approx(1)


@pytest.mark.parametrize('head', ['token', 'average'])
def test_rollout_lays_the_patches_of_a_vision_transformer_over_the_image(head):
  model, x = ViT(classes=3, patch=2, width=8, depth=2, heads=2, head=head), jax.random.normal(KEY, (4, 6, 1))
  variables = nn.meta.unbox(jax.jit(model.init)(KEY, x[None]))
  options = Options(jnp.arange(24).reshape(4, 6), 24)
  found = attributed('rollout', lambda x: model.apply(variables, x[None])[0, 0], x, x, options)
  assert found.shape == (4, 6) and found[0, 0] == found[1, 1] != found[0, 2]
  assert found[::2, ::2].sum() == pytest.approx(1) if head == 'average' else 0 < found[::2, ::2].sum() < 1


# ---- tests of attributions ----


def test_deletion_and_insertion_know_what_matters():
  matters = jnp.zeros((8, 8)).at[2:4, 3:5].set(1.0)
  measure = lambda x: jax.nn.sigmoid(4 * (matters * x[..., 0]).sum() - 8)
  x, baseline, options = jnp.ones((8, 8, 1)), jnp.zeros((8, 8, 1)), Options(jnp.arange(64).reshape(8, 8), 64)
  curves = jax.jit(lambda values: attribution.curves(measure, x, baseline, values, KEY, options))
  (deletion, chance), (insertion, by_chance) = attribution.area(curves(matters))
  assert deletion < chance - 0.1 and insertion > by_chance + 0.1
  (worst, _), (worst_insertion, _) = attribution.area(curves(-matters))
  assert worst > chance + 0.1 and worst_insertion < by_chance - 0.1
  assert curves(matters)[0, 0, 0] == measure(x) == curves(matters)[1, 0, -1]
  assert curves(matters)[0, 0, -1] == measure(baseline) == curves(matters)[1, 0, 0]


def test_padding_is_neither_deleted_nor_inserted():
  options = Options(jnp.array([0, 1, -1, -1]), 4)
  measure = lambda x: x[:2].sum() + 100 * (x[2:] != 1).sum()
  curves = attribution.curves(measure, jnp.ones((4, 1)), jnp.zeros((4, 1)), jnp.array([1.0, 2, 9, 9]), KEY, options)
  assert curves[0, 0].tolist() == [2, 1, 1, 0, 0]


def test_rank_correlation_is_scipys_and_none_of_what_is_constant():
  assert attribution.rank_correlation([[1, 2], [3, 4]], [[1, 3], [9, 27]]) == pytest.approx(1)
  assert np.isnan(attribution.rank_correlation([1, 2], [5, 5]))


# ---- images ----


@pytest.fixture(scope='module')
def seven(tmp_path_factory):
  from sklearn import datasets

  path = tmp_path_factory.mktemp('images') / 'seven.png'
  Image.fromarray((datasets.load_digits().images[7] * (255 / 16)).astype(np.uint8)).save(path)
  return str(path)


def test_a_run_explains_an_image_and_its_attributions_follow_the_weights(classifier, seven, tmp_path, capsys):
  run = karpjax.open(classifier)
  [answer] = run.explain([seven], method='saliency', randomise=True, output=str(tmp_path))
  assert np.shape(answer['attributions']) == (8, 8) and answer['score'] > answer['baseline']
  assert list(answer['randomised']) == ['head/logits', 'head/hidden1', 'conv2', 'conv1']  # from the top
  assert np.nanmean(list(answer['randomised'].values())) < 0.6
  assert answer['deletion']['by_method'] < answer['deletion']['at_random']
  assert answer['file'] == str(tmp_path / 'plots' / 'seven_saliency.png') and Image.open(answer['file']).width > 600
  argv = [
    'explain',
    classifier,
    seven,
    '--steps=4',
    f'--output={tmp_path}',
    '--target=3',
    '--method=integrated',
    '--json',
  ]
  assert launch.main(argv) == 0
  answer = json.loads(capsys.readouterr().out)
  assert answer['class'] == '3' and answer['gap'] == pytest.approx(
    abs(answer['sum'] - (answer['score'] - answer['baseline'])), abs=1e-5
  )


def test_maps_within_what_is_computed_anew_are_seen():
  named = dict(classes=2, widths=(2, 2, 2), blocks=(1, 1, 1))

  def program(settings, data):
    model = models.MODELS['resnet20'](**named, remat=settings.remat)
    return types.SimpleNamespace(predict=lambda state, batch, key: model.apply(state.variables(), batch['image']))

  image = jax.random.normal(KEY, (8, 8, 1))
  variables = jax.jit(models.MODELS['resnet20'](**named).init)(KEY, image[None])
  spec, settings = Spec('made', (8, 8, 1), ('a', 'b'), 1.0, (0.5,)), image_classification.Config(remat='full')
  run = types.SimpleNamespace(experiment=types.SimpleNamespace(program=program), config=settings, spec=spec)
  asked = inputs.Images(run, {'image': image[None]}, inputs.ImageOptions('gradcam'))
  state = TrainState.create(KEY, variables, optax.identity())
  assert jax.jit(asked.attribute)(state, {'image': image}, image, image, jnp.int32(0), KEY).shape == (8, 8)


def test_shapley_values_of_an_image_sum_to_what_the_score_rises_by(classifier, seven, tmp_path):
  run = karpjax.open(classifier)
  [answer] = run.explain([seven], method='shapley', steps=2, patch=3, curves=False, output=str(tmp_path))
  values = np.array(answer['attributions'])
  assert answer['gap'] < 1e-3 and (values[:3, :3] == values[0, 0]).all() and 'deletion' not in answer
  assert launch.main(['explain', classifier, seven, '--nocurves', '--method=gradcam', f'--output={tmp_path}']) == 0


@pytest.mark.parametrize(
  ('flags', 'why'),
  [
    (['--method=rollout'], 'method=rollout: the model has no attention'),
    (['--target=seven'], 'target=seven: unknown. Known: 0, 1'),
    (['--steps=0'], 'steps=0: at least 1'),
    (['--method=gradcan'], 'gradcam, occlusion, shapley, rollout is needed'),
    (['--method=occlusion', '--patch=9'], 'patch=9: the images have 8×8 pixels'),
  ],
)
def test_what_an_image_classifier_cannot_explain_is_refused_in_one_line(classifier, seven, capsys, flags, why):
  assert launch.main(['explain', classifier, seven, *flags]) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert why in line


def test_what_is_no_image_and_what_would_be_written_over_are_refused(classifier, seven, tmp_path, capsys):
  (tmp_path / 'no.png').write_text('no image')
  assert launch.main(['explain', classifier, str(tmp_path / 'no.png')]) == 2
  assert 'no.png' in capsys.readouterr().err
  (tmp_path / 'plots').mkdir()
  own = tmp_path / 'plots' / 'a_saliency.png'
  Image.open(seven).save(own)
  Image.open(seven).save(tmp_path / 'a.png')
  argv = ['explain', classifier, str(tmp_path / 'a.png'), str(own), '--method=saliency', f'--output={tmp_path}']
  assert launch.main(argv) == 2 and 'would be written over' in capsys.readouterr().err


def test_names_with_dollar_signs_are_no_formulas(tmp_path):
  explanations.image(np.zeros((4, 4, 1)), np.eye(4), None, '$\\x$', 'colours', tmp_path, 'a')
  explanations.table({'$\\x$': {'$\\y$': 1.0, 'b': -2.0}}, None, 'h', tmp_path, 'b')
  assert sorted(path.name for path in (tmp_path / 'plots').iterdir()) == ['a.png', 'b.png']


# ---- texts ----

QUICK = dict(
  batch_size=16, buckets=1, baseline=False, tensorboard=False, plots=False, log_every='0', eval_splits=(), final_splits=(),
  learning_rate=0.02,
)  # fmt: skip


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  """{model: the workdir of a classifier that has learnt that sun is hot and ice is cold}."""
  folder, draw = tmp_path_factory.mktemp('texts'), np.random.default_rng(0)
  rows = []
  for i in range(160):
    words = draw.choice(['and', 'the', 'wind', 'sea'], draw.integers(2, 6)).tolist()
    words.insert(draw.integers(len(words)), ('sun', 'ice')[i % 2])
    rows.append((' '.join(words), ('hot', 'cold')[i % 2]))
  with open(folder / 'mine.csv', 'w', newline='') as file:
    csv.writer(file).writerows([('text', 'label'), *rows])
  sizes = {
    'textcnn': dict(embedding=6, channels=8, windows=(2,)),
    'transformer': dict(layers=1, heads=2, width=8, ema=0.5),
  }
  for model, size in sizes.items():
    own = dict(
      model=model, steps='60', steps_per_call='30', dataset=str(folder / 'mine.csv'), workdir=str(folder / model)
    )
    loop.run(text_classification, text_classification.Config(**QUICK | size | own), say=lambda _: None)
  return {model: str(folder / model) for model in sizes}


@pytest.mark.parametrize(('model', 'method'), [('textcnn', 'integrated'), ('transformer', 'shapley')])
def test_words_that_decide_a_text_are_found(texts, tmp_path, model, method):
  run = karpjax.open(texts[model])
  given = ['and the sun the', 'the ice', 'brandnew sun <wind']
  answers = run.explain(given, method=method, output=str(tmp_path))
  for text, answer in zip(given, answers):
    assert answer['class'] == ('cold' if 'ice' in text else 'hot')
    words, values = zip(*answer['attributions'])
    assert max(zip(values, words))[1] in ('sun', 'ice') and answer['gap'] < 0.05 * abs(
      answer['score'] - answer['baseline']
    )
  assert [word for word, _ in answers[2]['attributions']] == ['brandnew', 'sun', '<', 'wind']
  expected = [answer['classes'][each['class']] for answer, each in zip(run.predict(given), answers)]
  np.testing.assert_allclose([each['probability'] for each in answers], expected, atol=1e-5)
  page = (tmp_path / f'texts_{method}.html').read_text()
  assert 'brandnew</span>' in page and '&lt;</span>' in page and f'src="plots/texts_{method}.png"' in page
  assert (tmp_path / 'plots' / f'texts_{method}.png').exists()


def test_a_text_is_explained_in_a_terminal(texts, tmp_path, capsys, monkeypatch):
  argv = [
    'explain',
    texts['transformer'],
    'the sun' + 100 * ' the',
    '--method=rollout',
    f'--output={tmp_path}',
    '--nocurves',
  ]
  assert launch.main(argv) == 0
  assert '2. sun' in (out := capsys.readouterr().out) and '█' in out and 'texts_rollout.html' in out
  monkeypatch.setattr('sys.stdout.isatty', lambda: True)
  monkeypatch.delenv('NO_COLOR', raising=False)
  assert launch.main(argv) == 0
  assert 'msun\x1b[0m' in capsys.readouterr().out


def test_methods_that_a_model_of_texts_cannot_have_are_refused(texts, capsys):
  for method, why in (('gradcam', 'no convolution over the 1 axes'), ('rollout', 'no attention')):
    assert launch.main(['explain', texts['textcnn'], 'sun', f'--method={method}']) == 2
    assert f'method={method}: the model has {why}' in capsys.readouterr().err
  assert launch.main(['explain', texts['textcnn'], ' ']) == 2 and 'text 1 is empty' in capsys.readouterr().err


# ---- tables ----


@pytest.fixture(scope='module')
def houses(tmp_path_factory):
  """A run that predicts a price linearly, and its table."""
  folder = tmp_path_factory.mktemp('houses')
  rows = [f'{i % 7},{("Oslo", "Rome", "Bern")[i % 3]},{100 + 30 * (i % 7) + 20 * (i % 3)}' for i in range(60)]
  (folder / 'houses.csv').write_text('\n'.join(['rooms,town,price', *rows]) + '\n')
  settings = regression.Config(
    dataset=str(folder / 'houses.csv'), target='price', workdir=str(folder / 'run'), steps='100', steps_per_call='50',
    tensorboard=False, plots=False, eval_every='0', log_every='0',
  )  # fmt: skip
  loop.run(regression, settings, say=lambda _: None)
  return str(folder / 'run'), str(folder / 'houses.csv')


def test_shapley_values_of_a_linear_regression_are_exact(houses, tmp_path):
  folder, table = houses
  run = karpjax.open(folder)
  answers = run.explain(table, method='shapley', steps=1, output=str(tmp_path))
  kernel = np.asarray(run.state.params['logits']['kernel'])[:, 0] * run.spec.target_std
  features = run.predict.encode([table])['features']
  exact = kernel * (features - np.array(run.spec.mean)) / np.array(run.spec.std)  # w · (x - mean)
  assert [*answers[0]['attributions']] == ['rooms', 'town'] and len(answers) == 60
  found = np.array([[*each['attributions'].values()] for each in answers])
  np.testing.assert_allclose(found[:, 0], exact[:, 0], atol=1e-2)
  np.testing.assert_allclose(found[:, 1], exact[:, 1:].sum(1), atol=1e-2)  # the words of a column are one
  assert max(each['gap'] for each in answers) < 1e-2 and 'class' not in answers[0]
  assert answers[0]['score'] == pytest.approx(run.predict(table)[0]['numbers']['price'], rel=1e-5)
  assert Image.open(answers[-1]['file']).height > 300 and 'file' not in answers[0]


def test_rows_are_explained_by_bars_and_a_regression_has_no_classes(houses, tmp_path, capsys):
  folder, table = houses
  assert launch.main(['explain', folder, table, '--method=saliency', f'--output={tmp_path}', '--nocurves']) == 0
  assert 'line 2' in (out := capsys.readouterr().out) and 'rooms' in out and '█' in out
  assert launch.main(['explain', folder, table, '--target=Oslo']) == 2
  assert 'predicts numbers, and has no classes' in capsys.readouterr().err
  assert launch.main(['explain', folder, table, '--method=gradcam']) == 2
  assert 'method=gradcam: the model has no convolution' in capsys.readouterr().err
