import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import launch
from experiments import language_model
from karpjax import config
from karpjax.commands import check as recipe
from karpjax.commands import use
from karpjax.data import batches
from karpjax.train import loop
from karpjax.train.runner import Runner

SMALL = dict(
  steps='6', batch_size=8, context=16, log_every='2', eval_every='3', checkpoint_every='3', checkpoint_seconds=0, report_every='0',
  tensorboard=False,
)  # fmt: skip
MODELS = {
  'bigram': {},
  'mlp': dict(hidden=16, norm='batch'),
  'lstm': dict(units=(12,)),
  'wavenet': dict(hidden=12),
  'gpt': dict(layers=2, heads=2, width=16),
}


@pytest.fixture(scope='module')
def story(tmp_path_factory):
  folder = tmp_path_factory.mktemp('text')
  text = ' '.join(
    f'The {a} {b} went to the {c}.' for a in ('old', 'red', 'sly') for b in ('fox', 'cat') for c in ('sea', 'hill')
  )
  (folder / 'story.txt').write_text(text * 3)
  return f'text:{folder / "story.txt"}'


def settings(story, workdir, model='gpt', **changes):
  return language_model.Config(
    **SMALL | MODELS[model] | dict(dataset=story, model=model, workdir=str(workdir)) | changes
  )


slow = pytest.mark.slow


@pytest.fixture(scope='module')
def recurrent(story, tmp_path_factory):
  return loop.run(language_model, settings(story, tmp_path_factory.mktemp('whole'), 'lstm', order='streams'))


@pytest.mark.parametrize('model', ['lstm', *(pytest.param(m, marks=slow) for m in MODELS if m != 'lstm')])
def test_a_run_leaves_samples_and_resumes_to_the_bit(model, story, tmp_path, request):
  order = 'streams' if model == 'lstm' else 'reshuffle'
  if model == 'lstm':
    whole = request.getfixturevalue('recurrent')
  else:
    whole = loop.run(language_model, settings(story, tmp_path / 'whole', model, plots=model == 'gpt'))
  loop.run(language_model, settings(story, tmp_path / 'cut', model, order=order, steps='3', plots=False))
  again = loop.run(language_model, settings(story, tmp_path / 'cut', model, order=order, plots=False))
  same = jax.tree.map(np.array_equal, *(dataclasses.replace(r.state, key=0) for r in (whole, again)))
  assert jax.tree.all(same)
  assert again.numbers['validation/loss'] == whole.numbers['validation/loss']
  assert (whole.state.carried != {}) == (model == 'lstm')
  if model in ('lstm', 'gpt'):
    made = {'lstm': ['cells.html', 'plots/gate_saturation.png'], 'gpt': ['plots/attention_maps.png']}[model]
    assert all((whole.folder / name).stat().st_size > 1000 for name in made)
    assert 'step 6' in (whole.folder / 'texts' / 'samples.txt').read_text()


@pytest.mark.slow
def test_the_loss_is_that_of_every_token_of_the_split(story, tmp_path):
  """Perplexity and bits per character too, against a loop over the text."""
  summary = loop.run(language_model, settings(story, tmp_path / 'run', 'lstm', plots=False, overlap=4))
  given = settings(story, tmp_path / 'run', 'lstm', overlap=4)
  data = language_model.data(given)
  split, variables = data.splits['test'], {'params': summary.state.params}
  model = language_model.network(given, data.spec)
  rows = split.fetch(np.arange(split.size, dtype=np.int32))
  logits = np.asarray(model.apply(variables, rows['tokens']), np.float64)
  chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  losses = [-chances[i, j, t] for (i, j), t in np.ndenumerate(rows['targets']) if t >= 0]
  assert len(losses) == len(split.arrays['text']) - 1
  np.testing.assert_allclose(summary.numbers['test/loss'], np.mean(losses), rtol=1e-5)
  np.testing.assert_allclose(summary.numbers['test/perplexity'], math.exp(np.mean(losses)), rtol=1e-4)
  np.testing.assert_allclose(summary.numbers['test/bits_per_character'], np.mean(losses) / math.log(2), rtol=1e-5)


def test_counts_are_the_maximum_of_the_likelihood(tmp_path):
  (tmp_path / 'a.txt').write_text('abab\nab\nb\n')
  flags = dict(model='counts', smoothing=0.0, context=0, steps='1', batch_size=0, validation=0.0, test=0.0, plots=False)
  run = language_model.Config(
    **flags,
    dataset=f'lines:{tmp_path / "a.txt"}',
    workdir=str(tmp_path / 'run'),
    eval_every='0',
    eval_splits=(),
    final_splits=('train',),
  )
  numbers = loop.run(language_model, run).numbers
  # after the start: a a b; after a: b b b; after b: a, end, end, end
  expected = -(2 * math.log(2 / 3) + math.log(1 / 3) + math.log(1 / 4) + 3 * math.log(3 / 4)) / 10
  np.testing.assert_allclose(numbers['train/loss'], expected, rtol=1e-5)


def test_what_is_learnt_of_lines_does_not_depend_on_their_padding(tmp_path):
  (tmp_path / 'names.txt').write_text('anna\nbo\nemilia\nia\nkim\nnora')
  losses = []
  for context in (0, 20):
    given = dict(model='wavenet', context=context, validation=0.0, test=0.0, batch_size=6, eval_splits=())
    run = bound(f'lines:{tmp_path / "names.txt"}', **given)
    state, step = jax.jit(run.program.init)(jax.random.key(0)), jax.jit(run.program.step)
    batch = batches.fetch(run.dataset.splits['train'], np.arange(6))
    total, count = step(step(state, batch)[0], batch)[1]['loss']
    losses.append(total / count)
  assert count == 21 + 6  # letters and ends
  np.testing.assert_allclose(*losses, rtol=1e-5)


def test_bigram_of_names_is_2_454_nats(shared_data, tmp_path):
  """makemore part 1: 228,146 bigrams."""
  flags = dict(model='counts', smoothing=0.0, context=0, steps='1', batch_size=0, validation=0.0, test=0.0, plots=False)
  run = language_model.Config(
    **flags,
    dataset='names',
    data_dir=str(shared_data),
    workdir=str(tmp_path),
    eval_every='0',
    eval_splits=(),
    final_splits=('train',),
  )
  assert round(loop.run(language_model, run).numbers['train/loss'], 3) == 2.454


def bound(story, **changes):
  given = settings(story, '', **changes)
  data = language_model.data(given)
  resolved = config.resolve(given, data.spec.examples)
  return Runner(language_model.program(resolved, data), data, resolved)


def trained(story, **changes):
  runner = bound(story, **{'steps_per_call': '1', 'optimiser': 'adam', 'learning_rate': 0.01, **changes})
  carry, losses = runner.placement.put(runner.init()), []
  runner.compile(runner.config.steps_per_call)
  for t in range(4):
    carry = runner.run_steps(carry, t, t + 1, True)
    total, count = runner.to_host(carry.totals['loss'])
    losses.append(np.asarray(total / count))
  return np.array(losses), runner.evaluate(carry, 'validation'), carry


@pytest.mark.parametrize(
  'layout',
  [
    pytest.param(dict(parallel='pmap'), marks=slow),
    pytest.param(dict(parallel='fsdp'), marks=slow),
    pytest.param(dict(mesh='data:2,fsdp:2,tensor:2'), marks=slow),
    pytest.param(dict(mesh='data:2,tensor:4'), marks=slow),
    pytest.param(dict(microbatches=4), marks=slow),
  ],
  ids=str,
)
def test_every_layout_gives_a_transformers_losses_of_one_device(layout, story):
  options = dict(layers=1, heads=4, width=32, batch_size=16)
  losses, sums, _ = trained(story, **options)
  there, there_sums, carry = trained(story, **options, **layout)
  np.testing.assert_allclose(there, losses, rtol=2e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), there_sums, sums)
  if 'tensor:4' in layout.get('mesh', ''):
    query = carry.state.params['blocks_0']['attention']['query']
    assert {s.data.shape for s in query.addressable_shards} == {(32, 1, 8)}  # a head each


@pytest.mark.parametrize(
  'layout',
  [
    dict(parallel='pmap'),
    pytest.param(dict(parallel='data'), marks=slow),
    pytest.param(dict(microbatches=2), marks=slow),
  ],
  ids=str,
)
@pytest.mark.slow
def test_carried_states_are_those_of_one_device_on_every_layout(layout, story):
  options = dict(model='lstm', order='streams', batch_size=16)
  losses, _, carry = trained(story, **options)
  there, _, there_carry = trained(story, **options, **layout)
  np.testing.assert_allclose(there, losses, rtol=1e-4)
  if layout != dict(parallel='pmap'):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), there_carry.state.carried, carry.state.carried
    )


def test_a_stream_carries_its_state_and_begins_anew_with_each_epoch(story):
  """Two steps of half the context see what one step of the whole sees; the first step of an epoch forgets."""
  given = settings(story, '', 'lstm', order='streams', batch_size=2, context=8, learning_rate=1e-30)
  data = language_model.data(given)
  resolved = config.resolve(given, data.spec.examples)
  program = language_model.program(resolved, data)
  chunks, split = data.spec.examples // 2, data.splits['train']
  state, step = jax.jit(program.init)(jax.random.key(0)), jax.jit(program.step)
  model = language_model.network(given, data.spec)
  for t in range(chunks + 1):
    numbers = batches.indices(0, t, 1, batch_size=2, size=split.size, order='streams')[0]
    batch = {**split.fetch(numbers), 'index': numbers}
    state, metrics = step(state, batch)
    if t not in (2, chunks):  # of the first epoch, and the beginning of the second
      continue
    first = 0 if t < chunks else chunks
    history = [
      split.fetch(batches.indices(0, s, 1, batch_size=2, size=split.size, order='streams')[0])
      for s in range(first, t + 1)
    ]
    tokens = np.concatenate([h['tokens'] for h in history], 1)
    chances = jax.nn.log_softmax(model.apply({'params': state.params}, tokens))[:, -8:]
    expected = -np.take_along_axis(np.asarray(chances), batch['targets'][..., None], -1).mean()
    np.testing.assert_allclose(metrics['loss'][0] / metrics['loss'][1], expected, rtol=1e-4)


@pytest.mark.parametrize('model', ['gpt', pytest.param('lstm', marks=slow)])
@pytest.mark.slow
def test_the_recipe_passes(model, story, capsys):
  options = [f'--{name}={",".join(map(str, v)) if isinstance(v, tuple) else v}' for name, v in MODELS[model].items()]
  code = recipe.main(
    ['language_model', f'--dataset={story}', f'--model={model}', '--batch_size=16', '--learning_rate=0.03', *options]
  )
  said = capsys.readouterr().out
  assert code == 0 and 'see none from the future' in said and 'FAIL' not in said


def test_sampling_needs_no_data(recurrent, story, tmp_path, capsys):
  path = Path(story.removeprefix('text:'))
  path.rename(tmp_path / 'gone')
  command = [str(recurrent.folder), '--tokens=40', '--temperature=0.8', '--top_p=0.9', '--top_k=5']
  assert use.main('sample', [*command, '--prompt=The ']) == 0
  text = capsys.readouterr()
  assert text.out.startswith('The ') and len(text.out.rstrip('\n')) == 44
  assert re.search(r'\(40 tokens, [\d,]+ tokens/s\)', text.err)
  assert use.main('sample', [*command, '--prompt=The ']) == 0 and capsys.readouterr().out == text.out  # the same seed
  assert use.main('sample', [*command, '--prompt=The ', '--seed=1']) == 0 and capsys.readouterr().out != text.out
  assert use.main('sample', [*command, '--prompt=Ünd #']) == 2
  assert "2 characters are in none of the training texts: '#' 'Ü'" in capsys.readouterr().err
  assert use.main('sample', [*command, '--top_p=0']) == 2 and '--top_p=0' in capsys.readouterr().err
  assert use.main('sample', [*command, '--samples=2', '--json']) == 0
  pieces = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert {piece['sample'] for piece in pieces} == {0, 1}
  (tmp_path / 'gone').rename(path)


def test_sampled_lines_are_said_to_be_known_or_new(tmp_path):
  names = [a + b for a in ('anna', 'bert', 'carl') for b in ('', 'o', 'ia')]
  (tmp_path / 'names.txt').write_text('\n'.join(names))
  run = language_model.Config(
    **SMALL
    | dict(
      context=0,
      batch_size=4,
      dataset='names',
      data_dir=str(tmp_path),
      workdir=str(tmp_path / 'run'),
      model='bigram',
      test=2.0,
      validation=1.0,
    )
  )
  loop.run(language_model, run)
  lines = (tmp_path / 'run' / 'texts' / 'samples.txt').read_text().split('\n\n')[1].split('\n')
  for line in lines:
    text, where = re.fullmatch(r'(.*?) +(new|in train|in validation|in test)', line).groups()
    assert (where == 'new') == (text not in names)
  assert len(lines) == 20


def test_a_run_that_goes_on_from_another_reads_its_tokens(recurrent, story, tmp_path):
  """Weights mean the tokens they were trained on, though another text has other characters."""
  (tmp_path / 'other.txt').write_text('sly cats went to sea. ' * 20)
  other = f'text:{tmp_path / "other.txt"}'
  quick = dict(steps='1', learning_rate=1e-30, plots=False, eval_every='0', eval_splits=(), final_splits=())
  given = settings(other, tmp_path / 'second', 'lstm', init_from=str(recurrent.folder), **quick)
  tokens = [language_model.data(c).spec.tokenisers['text'] for c in (settings(story, ''), given, settings(other, ''))]
  assert tokens[0] == tokens[1] != tokens[2]
  second = loop.run(language_model, given)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), second.state.params, recurrent.state.params)


@slow
def test_seeds_in_one_program_are_the_seeds_alone(story):
  both = trained(story, seeds=2, seed=5)[0]
  alone = np.stack([trained(story, seed=s)[0] for s in (5, 6)], 1)
  np.testing.assert_allclose(both, alone, rtol=1e-4)


@slow
def test_a_step_of_gpt2s_size_runs():
  """124,439,808 params, one example of 1,024 tokens, within 24 GB."""
  code = (
    'import resource, jax, jax.numpy as jnp\n'
    'from experiments import language_model as lm\n'
    'from karpjax import config\n'
    'from karpjax.data import text, tokenisers\n'
    'from karpjax.data.dataset import Dataset\n'
    "many = tokenisers.Tokeniser('characters', tuple(map(str, range(50257))))\n"
    "spec = text.TextSpec('x', 10, {'text': many}, {'text': 1024})\n"
    "given = lm.Config(layers=12, heads=12, width=768, batch_size=1, context=1024, steps='1')\n"
    'program = lm.program(config.resolve(given, 10), Dataset(spec, {}))\n'
    'state = jax.jit(program.init)(jax.random.key(0))\n'
    'assert sum(x.size for x in jax.tree.leaves(state.params)) == 124439808\n'
    'numbers = jnp.arange(1025, dtype=jnp.int32)[None]\n'
    "batch = {'tokens': numbers[:, :-1], 'targets': numbers[:, 1:], 'index': jnp.zeros(1, jnp.int32)}\n"
    'state, metrics = jax.jit(program.step, donate_argnums=0)(state, batch)\n'
    "print(float(metrics['loss'][0] / metrics['loss'][1]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)\n"
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(launch.__file__).parent)
  assert done.returncode == 0, done.stderr
  loss, gigabytes = map(float, done.stdout.split())
  assert abs(loss - math.log(50257)) < 0.5 and gigabytes < 24
