"""What a run can do, from Python as a notebook asks it and from the command line."""

import dataclasses
import io
import json
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import karpjax
import launch
from experiments import image_classification as experiment
from karpjax import command_line, config, errors, image_verbs, options, verbs
from karpjax.commands import monitor, use
from karpjax.data import fingerprint
from karpjax.report import pictures, writers
from karpjax.rl import agents
from karpjax.train import loop, prepare, run_dir


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A run of two seeds that has just been trained, and an image beside it."""
  root = tmp_path_factory.mktemp('runs')
  short = dict(
    steps='20', eval_every='10', batch_size=32, log_every='5', seeds=2, keep=1, plots=False, tensorboard=False
  )
  config = experiment.Config(model='mlp', widths=(8,), workdir=str(root / 'digits'), **short)
  loop.run(experiment, config, say=lambda _: None)
  Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(root / 'seven.png')
  return root / 'digits'


@pytest.fixture(scope='module')
def image(folder):
  return str(folder.parent / 'seven.png')


# ---- from Python ----


def test_a_run_opens_as_in_a_notebook(folder, image):
  run = karpjax.open(folder)
  assert run.config.model == 'mlp' and run.config.steps == 20 and run.spec.shape == (8, 8, 1)
  assert run.summary['steps'] == 20 and 'test/error' in run.summary
  assert [row['step'] for row in run.metrics] == [5, 10, 15, 20] and 'train/loss' in run.metrics[0]
  assert run.state.params and run.state.step == run.step
  assert [*run.verbs] == ['predict', 'annotate', 'explain', 'audit', *launch.OF_ANY_RUN]
  (answer,) = run.predict(image, top=2)
  assert answer['input'] == image and len(answer['classes']) == 2
  assert run.predict([image, image])[1]['classes'] == pytest.approx(run.predict([image])[0]['classes'])
  with pytest.raises(AttributeError, match='image_classification has no sample'):
    run.sample  # noqa: B018


def test_the_parts_of_a_verb_are_usable_apart(folder, image):
  run = karpjax.open(folder, 20)  # the number of a step, as 'last' would be
  arrays = run.predict.encode([image])
  assert arrays['image'].shape == (1, 8, 8, 1) and run.step == 20
  probabilities = run.predict.function(run.state, arrays)
  np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)
  # The function is pure: another state gives another answer.
  other = run.state.replace(params=jax.tree.map(lambda x: x * 0, run.state.params))
  np.testing.assert_allclose(run.predict.function(other, arrays), 0.1, rtol=1e-6)
  (answer,) = run.predict.decode(probabilities, [image], top=1)
  assert answer == run.predict([image], top=1)[0] and json.loads(json.dumps(answer)) == answer


def test_wrong_options_are_refused_from_python_too(folder, image):
  run = karpjax.open(folder)
  with pytest.raises(errors.UsageError, match='Did you mean top'):
    run.predict(image, tops=2)
  with pytest.raises(errors.UsageError, match='top=0: at least 1'):
    run.predict(image, top=0)


# ---- from the command line ----


def test_the_command_prints_text_or_json(folder, image, monkeypatch, capsys):
  assert use.main('predict', [str(folder), image, '--top=1']) == 0
  captured = capsys.readouterr()
  assert captured.out.startswith(f'{image}  ') and captured.out.count('\n') == 1
  assert captured.err.startswith('weights of step ') and captured.err.endswith('(best), of the first of 2 seeds\n')
  monkeypatch.setattr('sys.stdin', io.StringIO(f'{image}\n{image}\n'))
  assert use.main('predict', [str(folder), '-', '--json', '--checkpoint=last']) == 0
  answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [answer['input'] for answer in answers] == [image] * 2 and len(answers[0]['classes']) == 3


def test_a_folder_is_described_with_what_it_can_do(folder, capsys):
  assert use.describe(folder) == 0
  out = capsys.readouterr().out
  assert 'a run of image_classification, finished' in out and f'python launch.py predict {folder} IMAGE …' in out
  assert '--model=mlp' in out and 'test/error' in out and '--workdir' not in out


def test_what_is_to_be_typed_is_quoted_for_the_shell(folder, tmp_path, capsys):
  (spaced := tmp_path / 'a run').symlink_to(folder)
  assert use.describe(spaced) == 0
  assert f"python launch.py predict '{spaced}' IMAGE …" in capsys.readouterr().out
  with pytest.raises(errors.UsageError, match=f"launch.py quantise '{spaced}' --member=1 --bits=4 writes it"):
    assert karpjax.open(spaced, 'int4', member=1).state
  for argv in ([str(folder), '--help'], [str(folder), '-h'], ['-h', str(folder)]):
    assert use.main('predict', argv) == 0
    help = capsys.readouterr().out
    assert '--top=int (default 3)' in help and '--json=bool' in help and '--checkpoint=text (default best)' in help


def other_format(folder, number):
  """The folder's config.json, as of another version of karpjax."""
  stored = json.loads((folder / 'config.json').read_text())
  return json.dumps({**stored, 'format': number})


@pytest.mark.parametrize(
  'name, argv, message',
  [
    ('predict', [], 'which run? python launch.py predict WORKDIR'),
    ('predict', ['-h'], 'which run? python launch.py predict WORKDIR'),
    ('predict', ['RUN'], 'predict wants IMAGE …, or - for the lines of standard input'),
    ('predict', ['RUN', '/nowhere.png'], '/nowhere.png'),
    ('predict', ['RUN', 'IMAGE', '--top=0'], '--top=0: at least 1 is needed'),
    ('predict', ['RUN', 'IMAGE', '--top=x'], 'top'),
    ('predict', ['RUN', 'IMAGE', '--tops=1'], 'unknown flag --tops. Did you mean --top?'),
    ('predict', ['RUN', 'IMAGE', '--member=-1'], '--member=-1: at least 0 is needed'),
    (
      'predict',
      ['RUN', 'IMAGE', '--checkpoint=7'],
      '=7: best, last, int8, int4, FILE.safetensors, or one of the steps kept: ',
    ),
    ('sample', ['RUN'], 'is a run of image_classification, which cannot sample; it can predict'),
    ('predict', ['/nowhere', 'IMAGE'], '/nowhere: no such folder'),
    ('predict', ['EMPTY', 'IMAGE'], 'is no run: it holds no config.json'),
    ('predict', ['BROKEN', 'IMAGE'], 'config.json cannot be read'),
    ('predict', ['UNTRAINED', 'IMAGE'], 'holds no checkpoint yet'),
    ('predict', ['NEWER', 'IMAGE'], 'was written by a newer version of karpjax, which this one cannot read'),
    ('predict', ['OLDER', 'IMAGE'], 'was written by an older version of karpjax, which this one cannot read'),
  ],
)
def test_bad_input_is_one_line(name, argv, message, folder, image, tmp_path, capsys):
  contents = {
    'EMPTY': None,
    'BROKEN': '{',
    'UNTRAINED': (folder / 'config.json').read_text(),
    'NEWER': other_format(folder, 99),
    'OLDER': other_format(folder, 1),
  }
  places = {'RUN': str(folder), 'IMAGE': image} | {key: str(tmp_path / key) for key in contents}
  for key in set(argv) & set(contents):
    (tmp_path / key).mkdir()
    if contents[key]:
      (tmp_path / key / 'config.json').write_text(contents[key])
  assert use.main(name, [places.get(word, word) for word in argv]) == 2
  captured = capsys.readouterr()
  assert captured.out == '' and captured.err.startswith(f'{name}: ') and message in captured.err, captured.err
  assert captured.err.count('\n') == 1, captured.err


def test_a_verb_without_inputs_takes_none(folder, monkeypatch, capsys):
  run = karpjax.open(folder)
  plain = dataclasses.replace(run.verbs['predict'], inputs='')
  monkeypatch.setitem(experiment.verbs, 'predict', plain)
  assert use.main('predict', [str(folder), 'stray']) == 2
  assert "stray argument 'stray': predict takes flags alone" in capsys.readouterr().err


def test_seeds_of_verbs_are_those_that_jax_tells_apart(monkeypatch):
  """A larger one would wrap round, and draw as another does."""
  modules = [command_line.experiment(path.stem) for path in Path('experiments').glob('[a-z]*.py')]
  kinds = [verb.options for module in modules for verb in getattr(module, 'verbs', {}).values()]
  seeded = [kind for kind in kinds if hasattr(kind, 'seed')]
  assert len({*seeded}) >= 4
  for kind in seeded:
    options.check(kind(seed=2**32 - 1))
    for seed in (-1, 2**32, 10**30):
      with pytest.raises(errors.UsageError, match=f'seed={seed}: at least 0 and at most 4294967295 is needed'):
        options.check(kind(seed=seed))
  rendered = types.SimpleNamespace(environment=types.SimpleNamespace(render=True))
  monkeypatch.setattr(agents, '_policy', lambda run: rendered)
  assert agents._encode(None, [], agents.PlayOptions(seed=2**32 - 1))['seed'] == 2**32 - 1


def test_an_output_that_cannot_be_written_is_one_line(folder, tmp_path, capsys, monkeypatch):
  (tmp_path / 'file').write_text('')
  decode = lambda run, outputs, inputs, chosen: [
    {'file': str(pictures.write_image(np.zeros((2, 2, 1)), chosen.output))}
  ]
  draws = verbs.Verb('', lambda *_: (), lambda *_: lambda *_: (), decode, options=image_verbs.Sampling)
  monkeypatch.setattr(verbs.Run, 'verb', lambda run, name: verbs.Bound(run, draws))
  place = tmp_path / 'file' / 'a.png'
  assert use.main('sample', [str(folder), f'--output={place}']) == 2
  said = capsys.readouterr().err.splitlines()
  assert said[-1] == f'sample: {tmp_path / "file"} cannot be read or written: File exists' and len(said) == 2
  (tmp_path / 'b.png.tmp').symlink_to('/dev/full')  # as it is called while it is written
  with pytest.raises(SystemExit) as ended:
    launch.command(['sample', str(folder), f'--output={tmp_path}/b.png'])
  said = capsys.readouterr().err.splitlines()
  why = f'{tmp_path}/b.png could not be written (No space left on device)'
  assert ended.value.code == 1 and said[-1] == f'launch.py: the disk is full: {why}' and len(said) == 2


def test_what_a_member_writes_is_named_by_it_and_other_members_keep_theirs(folder, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  play, sample = agents.play, image_verbs.sample(None, None)
  enlarge = image_verbs.of_each('', None, None, lambda run: '_x2')
  written = lambda verb, run, inputs=(), **chosen: [str(p) for p in verb.writes(run, inputs, verb.options(**chosen))]
  for member, own in ((None, ''), (0, '_member_0'), (1, '_member_1')):
    run = karpjax.open(folder, member=member)
    assert written(play, run) == [str(folder / 'plots' / f'episode_0{own}.gif')]
    assert written(sample, run) == [f'samples{own}.png'] and written(sample, run, output='a.png') == ['a.png']
    assert written(enlarge, run, ['b/c.jpg']) == [f'b/c_x2{own}.png']
    assert written(monitor.VERB, run, ['d.csv'])[0] == str(folder / 'monitor' / f'd{own}.csv')
  Path('sweep').mkdir()
  Path('sweep/sweep.json').write_text('{}')
  Path('sweep/trials.csv').write_text(f'trial,lr,status,folder,member\n2,1,done,{folder},\n1,2,done,{folder},\n')
  for asked, own in (({}, '_trial_2'), ({'trial': 1, 'member': 1}, '_trial_1_member_1')):
    assert written(play, karpjax.open('sweep', **asked)) == [str(folder / 'plots' / f'episode_0{own}.gif')]


def test_the_numbers_of_an_evaluation_stand_under_each_other():
  names = 'test/loss', 'train/stochastic_episode_return_deviation'
  lines = verbs.of_any_run()['evaluate'].show(dict.fromkeys(names, 1.5)).splitlines()
  assert [line.split() for line in lines] == [[name, '1.5000'] for name in names] and len(set(map(len, lines))) == 1


@pytest.mark.parametrize('many', [1000, 1])
def test_no_picture_that_a_run_has_read_is_written_over(many, tmp_path, monkeypatch):
  monkeypatch.setattr(fingerprint, 'MANY', many)
  module, pixels = command_line.experiment('image_classification'), np.random.default_rng(0).integers(0, 256, (8, 8))
  for name in ('train/a/0.png', 'train/a/1.png', 'train/b/0.png', 'train/b/1.png', 'out/0.png'):
    pictures.write_image(pixels[..., None] / 255, tmp_path / name)
  settings = module.Config(dataset=f'folder:{tmp_path}', validation=0.0)
  data = prepare.read_data(module, settings)
  (tmp_path / 'run').mkdir()
  stored = {'format': run_dir.FORMAT, 'experiment': 'image_classification', 'flags': config.to_json(settings)}
  writers.write_json(tmp_path / 'run' / 'config.json', stored)
  writers.write_json(tmp_path / 'run' / run_dir.DATA, fingerprint.of(data))
  ask = lambda name: verbs.Bound(verbs.Run(tmp_path / 'run'), image_verbs.sample(None, None))._given(
    [], {'output': name}
  )
  (tmp_path / 'link').symlink_to(tmp_path / 'train')
  for name in ('train/b/1.png', 'link/b/1.png'):
    with pytest.raises(errors.UsageError, match=f'{name} would be written over, which the run was made with'):
      ask(str(tmp_path / name))
  ask(str(tmp_path / 'train/b/2.png'))
  ask(str(tmp_path / 'out/0.png'))
