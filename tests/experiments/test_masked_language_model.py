"""BERT's pretraining: what it begins with, that it learns, that it goes on to the same bits, and lends its encoder."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import karpjax
from experiments import masked_language_model as experiment
from karpjax.commands import check as recipe
from karpjax.commands import use
from karpjax.data import masking
from karpjax.models import text
from karpjax.program import TrainState
from karpjax.train import checkpoint, loop, weights

SMALL = dict(
  tokeniser='words', context=0, mask=0.25, positions='learned', layers=1, heads=2, width=32, dropout=0.05, batch_size=32, learning_rate=0.005, warmup='0', vocabulary=0,
  eval_every='0', checkpoint_every='0', steps='150', tensorboard=False, plots=False, steps_per_call='30', validation=0.1, test=0.1,
)  # fmt: skip
ANIMALS = {'cat': 'meows', 'dog': 'barks', 'cow': 'moos', 'hen': 'clucks', 'pig': 'grunts', 'owl': 'hoots'}


@pytest.fixture(scope='module')
def animals(tmp_path_factory):
  """Lines of four words, of which one is left out: the animal tells its verb, and the verb its animal."""
  path = tmp_path_factory.mktemp('text') / 'animals.txt'
  rng = np.random.default_rng(0)
  names = rng.choice(sorted(ANIMALS), 1500)
  path.write_text('\n'.join(f'the {name} {ANIMALS[name]} .' for name in names))
  return f'lines:{path}'


def run(folder, animals, **changes):
  settings = experiment.Config(**SMALL | {'dataset': animals} | changes, workdir=str(folder))
  return loop.run(experiment, settings, say=lambda _: None)


@pytest.fixture(scope='module')
def trained(animals, tmp_path_factory):
  return run(tmp_path_factory.mktemp('trained'), animals, plots=True)


@pytest.mark.slow
def test_it_learns_what_stands_beside_what(trained):
  assert trained.numbers['test/accuracy'] > 0.97
  np.testing.assert_allclose(trained.numbers['test/perplexity'], math.exp(trained.numbers['test/loss']))


def test_masks_are_filled_in_without_the_data(trained, capsys):
  folder = str(trained.folder)
  assert use.main('predict', [folder, 'The <mask> barks .', '<mask> cow <mask> .']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines] == ['The', 'dog', '<mask>', 'the', 'moos']
  for wrong, said in (('the cat', 'has no <mask>'), ('the <mask> ' * 10, 'has 20 tokens; this model takes 4')):
    assert use.main('predict', [folder, wrong]) == 2
    assert said in capsys.readouterr().err


def test_the_report_shows_guesses(trained):
  written = (trained.folder / 'report.txt').read_text()
  assert written.startswith('test split, step 150:') and '[' in written.splitlines()[4]


def test_what_evaluation_leaves_out_hangs_on_the_examples_number_alone(trained, animals):
  """Not on the step or a key."""
  run, numbers = karpjax.open(trained.folder), np.arange(64, dtype=np.int32)
  split = experiment.data(experiment.Config(**SMALL | dict(dataset=animals))).splits['train']
  batch, each = {**split.fetch(numbers), 'index': numbers}, jax.jit(run.program.example_losses)
  assert run.program.uninformed_loss == math.log(len(masking.SPECIALS) + 14)
  losses = each(run.state, batch, jax.random.key(0))
  np.testing.assert_array_equal(each(run.state.replace(step=jnp.int32(7)), batch, jax.random.key(3)), losses)
  assert (losses != each(run.state, {**batch, 'index': numbers + 64}, jax.random.key(0))).any()


@pytest.mark.slow
def test_resumed_equals_uninterrupted(trained, animals, tmp_path):
  run(tmp_path, animals, steps='67')
  resumed = run(tmp_path, animals)
  a, b = checkpoint.to_arrays(trained.state), checkpoint.to_arrays(resumed.state)
  assert a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)
  assert trained.numbers['test/loss'] == resumed.numbers['test/loss']


LAYOUTS = [dict(parallel='pmap', microbatches=2, eval_batch_size=24), dict(mesh='data:2,fsdp:2,tensor:2')]


@pytest.mark.slow
@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts_and_the_cut_of_the_evaluation_change_nothing(layout, animals, tmp_path):
  changes = dict(steps='3', steps_per_call='1', optimiser='sgd', tokeniser='bpe', vocabulary=262, dropout=0.0)
  one, many = (run(tmp_path / str(i), animals, **changes, **more).numbers for i, more in enumerate(({}, layout)))
  for name in ('train/loss', 'validation/loss', 'test/loss', 'test/accuracy'):
    np.testing.assert_allclose(many[name], one[name], rtol=1e-5, err_msg=name)


def test_its_encoder_begins_another_model(trained):
  """One with an Encoder called so; the test of fine-tuning is text_classification's."""
  classifier = text.Transformer(19, 3, 5, layers=1, heads=2, width=32)
  shapes = nn.meta.unbox(jax.eval_shape(classifier.init, jax.random.key(1), jnp.ones((1, 5), jnp.int32)))
  variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  state = TrainState.create(jax.random.key(1), variables, optax.sgd(0.1))
  state, rows = weights.replace_weights(state, weights.read(str(trained.folder)))
  said = {name: what for name, _, what in rows}
  assert all((said[name] == 'matched') == name.startswith('params/encoder/') for name in said)
  np.testing.assert_array_equal(
    state.params['encoder']['tokens']['embedding'], trained.state.params['encoder']['tokens']['embedding']
  )


@pytest.mark.slow
def test_the_recipe_passes_as_it_stands(capsys):
  assert recipe.main(['masked_language_model']) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_the_recipe_passes(animals, capsys):
  names = (
    'tokeniser',
    'context',
    'layers',
    'heads',
    'width',
    'batch_size',
    'learning_rate',
    'warmup',
    'mask',
    'positions',
  )
  flags = [f'--{name}={SMALL[name]}' for name in names]
  code = recipe.main(['masked_language_model', f'--dataset={animals}', '--dropout=0', *flags])
  assert code == 0, capsys.readouterr().out
