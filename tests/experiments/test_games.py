"""What a Program of two players gets for nothing, whichever the family: resumes, seeds in one program, devices, microbatches."""

import json
import os
import signal

import numpy as np
import pytest

from experiments import gan, image_to_image, super_resolution
from karpjax.report import writers
from karpjax.train import checkpoint, loop

SHORT = dict(
  batch_size=24, steps='6', steps_per_call='2', log_every='2', eval_every='0', checkpoint_every='0', report_every='0',
  tensorboard=False, plots=False, ema=0.9, eval_splits=(), final_splits=(),
)  # fmt: skip
SGD = dict(
  steps='3', optimiser='sgd', learning_rate=0.05, beta1=None, beta2=None, steps_per_call='1'
)  # Adam would magnify roundings
GAMES = {
  'gan': (gan, dict(model='mlp', widths=(16, 16), latent=8, generator_norm='batch', subset='200/60:0')),
  'image_to_image': (
    image_to_image,
    dict(width=2, discriminator_width=2, layers=1, dropout=0.0, norm='batch', image_size=16, augment='shift:1'),
  ),
  'super_resolution': (
    super_resolution,
    dict(
      model='srresnet', blocks=1, width=4, factor=2, crop=8, adversarial=True, adversarial_weight=0.1,
      discriminator_widths=(4,), discriminator_hidden=4,
    ),
  ),
}  # fmt: skip
slow = pytest.mark.slow
games = pytest.mark.parametrize('game', GAMES)
TIMES = ('seconds', 'compile_seconds', 'steps_per_second')


@pytest.fixture
def run(tmp_path):
  def run(game, name, stops=False, **changes):
    def say(line):
      if stops and line.startswith('step 2/'):
        os.kill(os.getpid(), signal.SIGTERM)

    experiment, flags = GAMES[game]
    summary = loop.run(experiment, experiment.Config(**SHORT | flags | changes, workdir=str(tmp_path / name)), say=say)
    lines = map(json.loads, (tmp_path / name / writers.METRICS).read_text().splitlines())
    rows = [{n: x for n, x in row.items() if n not in TIMES} for row in lines]
    return checkpoint.to_arrays(summary.state), rows

  return run


@pytest.mark.parametrize(
  'game, path',
  [
    ('gan', dict(discriminator_steps=3)),
    pytest.param('gan', dict(seeds=2, spectral_norm=True, conditional='projection'), marks=slow),
    pytest.param('gan', dict(parallel='pmap', objective='wasserstein'), marks=slow),
    pytest.param('image_to_image', dict(dropout=0.5), marks=slow),
    pytest.param('super_resolution', {}, marks=slow),
  ],
)
def test_interrupted_and_continued_gives_the_same_bits(run, game, path):
  whole, rows = run(game, 'whole', **path)
  with pytest.raises(SystemExit) as stopped:
    run(game, 'parts', stops=True, **path)
  assert stopped.value.code == 128 + signal.SIGTERM
  parts, again = run(game, 'parts', **path)
  assert whole.keys() == parts.keys() and any(name.startswith('ema/generator') for name in whole)
  assert all(whole[name].tobytes() == parts[name].tobytes() for name in whole)
  assert rows == again


@slow
@games
def test_the_last_of_several_seeds_is_that_seed_alone(run, game):
  several, _ = run(game, 'several', seeds=3, **SGD)
  for name, x in run(game, 'alone', seed=2, **SGD)[0].items():
    there = several[name] if name == 'step' else several[name][2]
    np.testing.assert_allclose(there.astype(float), x.astype(float), atol=1e-5, err_msg=name)


@slow
@pytest.mark.parametrize(
  'game, other', [*((game, dict(parallel='pmap')) for game in GAMES), ('gan', dict(microbatches=3))]
)
def test_paths_agree(run, game, other):
  """Batch norm's moments are of the whole batch over devices; under microbatches there is none here."""
  own = dict(  # of pix2pix the L1 weighs 100: at a rate of 0.05 weights move by 3.5 in two steps, and magnify roundings
    gan=dict(r1=0.1, augment='shift:1'), image_to_image=dict(learning_rate=0.005)
  )
  plain = SGD | own.get(game, {})
  plain |= dict(generator_norm='none') if 'microbatches' in other else {}
  (a, rows), (b, others) = run(game, 'a', **plain), run(game, 'b', **plain | other)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_allclose(b[name].astype(float), a[name].astype(float), atol=2e-5, err_msg=name)
  for x, y in zip(rows, others):
    for name in x:
      np.testing.assert_allclose(y[name], x[name], atol=1e-4, rtol=1e-4, err_msg=name)
