"""Exports answer as their runs do, in a process that has no karpjax, for batches of any size."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import karpjax
import launch
from experiments import language_model
from karpjax import command_line, errors
from karpjax.commands import export
from karpjax.program import Input, Program
from karpjax.train import loop, weights

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def exported(classifier, tmp_path_factory):
  """The export of a classifier, its weights inside."""
  folder = tmp_path_factory.mktemp('export') / 'digits'
  assert launch.main(['export', classifier, f'--output={folder}']) == 0
  return folder


@pytest.fixture(scope='module')
def gpt(tmp_path_factory):
  """A language model of one layer, as it begins."""
  folder = tmp_path_factory.mktemp('gpt')
  config = language_model.Config(
    layers=1, width=16, heads=2, context=8, steps='1', batch_size=4, workdir=str(folder), plots=False, tensorboard=False,
    eval_splits=(), final_splits=(),
  )  # fmt: skip
  loop.run(language_model, config, say=lambda _: None)
  return karpjax.open(folder)


def run_elsewhere(folder: Path, code: str):
  """Runs Python in a folder, where karpjax cannot be imported."""
  alone = f'import sys; sys.modules["karpjax"] = sys.modules["flax"] = None\n{code}'
  done = subprocess.run([sys.executable, '-c', alone], cwd=folder, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr


def test_an_export_answers_as_its_run_where_karpjax_is_not(classifier, exported):
  run, images = karpjax.open(classifier), np.random.default_rng(0).integers(0, 17, (7, 8, 8, 1)).astype(np.uint8)
  np.save(exported / 'images.npy', images)
  run_elsewhere(
    exported,
    'import numpy as np, run\n'
    "predict, images = run.load('predict'), np.load('images.npy')\n"
    'np.savez("out.npz", **{f"of{n}": predict(image=images[:n]) for n in (1, 2, 7)})',
  )
  expected = np.asarray(run.program.predict(run.state, {'image': images}, None))
  found = np.load(exported / 'out.npz')
  for n in (1, 2, 7):
    np.testing.assert_allclose(found[f'of{n}'], expected[:n], rtol=1e-5, atol=1e-5)


def test_the_manifest_says_what_the_functions_take_and_give(classifier, exported):
  about = json.loads((exported / 'manifest.json').read_text())
  predict = about['functions']['predict']
  assert predict['inputs'] == {'image': {'shape': ['batch', 8, 8, 1], 'dtype': 'uint8'}}
  assert predict['outputs'] == {'output': {'shape': ['batch', 10], 'dtype': 'float32'}}
  assert about['platforms'] == ['cpu', 'cuda', 'tpu'] and about['spec']['classes'] == [*'0123456789']
  assert about['versions']['jax'] == jax.__version__ and predict['calling_convention_version'] >= 9
  assert about['step'] == 60 and predict['params'] == [] and not (exported / 'params.npz').exists()
  assert str(Path(classifier)) not in (exported / 'manifest.json').read_text()
  assert len((exported / 'run.py').read_text().splitlines()) < 36


def test_forms_for_the_cpu_are_in_what_cpus_run_alone(classifier):
  run = karpjax.open(classifier)
  text = {}
  for platform in ('cpu', 'cuda', 'tpu'):
    chosen = export.Options(platforms=(platform,))
    text[platform] = export.exported('predict', *run.program.exports['predict'], run.state, chosen)[0].mlir_module()
  pooling = {platform: set(re.findall(r'stablehlo\.reduce\w*', each)) for platform, each in text.items()}
  assert pooling == {
    'cpu': {'stablehlo.reduce'},
    'cuda': {'stablehlo.reduce_window'},
    'tpu': {'stablehlo.reduce_window'},
  }
  for each in text.values():
    assert {*re.findall(r'custom_call @(\w+)', each)} == {'shape_assertion'}


def test_a_language_model_goes_on_with_prompts_of_any_length(gpt, tmp_path, monkeypatch):
  size = sum(x.nbytes for x in jax.tree.leaves(gpt.state.params))
  monkeypatch.setattr(export, 'INSIDE', 2 * size)  # three functions would hold more
  gpt.export(output=str(tmp_path / 'e'), platforms=('cpu',))
  tokens = np.random.default_rng(0).integers(1, 20, (3, 8)).astype(np.int32)
  np.save(tmp_path / 'e' / 'tokens.npy', tokens)
  run_elsewhere(
    tmp_path / 'e',
    'import numpy as np, run\n'
    "tokens, prefill, step = np.load('tokens.npy'), run.load('prefill'), run.load('step')\n"
    'length = np.array([3, 1, 5], np.int32)\n'
    'out = prefill(tokens=tokens, length=length)\n'
    'first = out["logits"]\n'
    'out = step(token=tokens[np.arange(3), length], state=out["state"])\n'
    'np.savez("out.npz", first=first, then=out["logits"], all=run.load("predict")(tokens=tokens))',
  )
  expected = np.asarray(gpt.program.predict(gpt.state, {'tokens': tokens}, None))
  found, rows = np.load(tmp_path / 'e' / 'out.npz'), np.arange(3)
  np.testing.assert_allclose(found['all'], expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(found['first'], expected[rows, [2, 0, 4]], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(found['then'], expected[rows, [3, 1, 5]], rtol=1e-5, atol=1e-5)
  assert (tmp_path / 'e' / 'params.npz').exists()
  np.savez(tmp_path / 'e' / 'begin.npz', tokens=tokens, length=np.array([3, 1, 5], np.int32))
  run_elsewhere(
    tmp_path / 'e',
    'import runpy, sys, numpy as np\n'
    'ask = lambda *given: (setattr(sys, "argv", ["run.py", *given]), runpy.run_path("run.py", run_name="__main__"))\n'
    'ask("prefill", "begin.npz", "made.npz")\n'
    'made, tokens = np.load("made.npz"), np.load("tokens.npy")\n'
    'state = {name: x for name, x in made.items() if name != "logits"}\n'
    'np.savez("next.npz", token=tokens[np.arange(3), [3, 1, 5]], **state)\n'
    'ask("step", "next.npz", "after.npz")',
  )
  np.testing.assert_allclose(np.load(tmp_path / 'e' / 'after.npz')['logits'], found['then'], rtol=1e-5, atol=1e-5)


def test_weights_as_safetensors_are_those_that_init_from_reads(classifier, tmp_path):
  assert launch.main(['export', classifier, '--format=safetensors', f'--output={tmp_path / "w"}']) == 0
  read, own = weights.read(str(tmp_path / 'w' / 'weights.safetensors')), weights.read(classifier)
  assert read.keys() == own.keys()
  jax.tree.map(np.testing.assert_array_equal, read, own)
  _, rows = weights.replace_weights(karpjax.open(classifier).state, read)
  assert {what for _, _, what in rows} == {'matched'}


def test_what_is_there_is_not_written_over_and_bad_input_is_one_line(classifier, exported, tmp_path, capsys):
  before = {path.name: path.read_bytes() for path in exported.iterdir()}
  for flags, said in (
    ([f'--output={exported}'], 'is there already'),
    (['--platforms=cpu,metal'], 'rocm, tpu is needed'),
    (['--platforms='], 'at least 1'),
    (['--format=onnx'], 'stablehlo'),
    (['--batch=-1'], 'at least 0'),
  ):
    capsys.readouterr()
    assert launch.main(['export', classifier, f'--output={tmp_path / "x"}', *flags]) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and said in error, error
  assert {path.name: path.read_bytes() for path in exported.iterdir()} == before and not (tmp_path / 'x').exists()


def test_what_has_no_open_batch_or_no_form_for_a_platform_is_said_in_a_line(gpt):
  taken = {'x': Input((2,))}
  even = lambda state, batch, key: batch['x'].sum() if len(batch['x']) % 2 else batch['x']
  with pytest.raises(errors.UsageError, match='f cannot be made for any batch: .*batch=1'):
    export.exported('f', even, taken, gpt.state, export.Options())
  assert export.exported('f', even, taken, gpt.state, export.Options(batch=3))[0].out_avals[0].shape == ()
  schur = lambda state, batch, key: jax.lax.linalg.schur(batch['x'])
  with pytest.raises(errors.UsageError, match='platforms=cpu,tpu: this jaxlib cannot lower f for .*schur'):
    export.exported('f', schur, {'x': Input((2, 2))}, gpt.state, export.Options(platforms=('cpu', 'tpu'), batch=1))


def test_a_program_without_exports_says_what_it_lacks(gpt, monkeypatch):
  monkeypatch.setitem(vars(gpt), 'program', Program(None, None, None))
  with pytest.raises(errors.UsageError, match='its Program has no exports'):
    gpt.export()


SMALL = {
  'translation': {'examples': 200}, 'gan': {'scorer': ''}, 'image_to_image': {'image_size': 32}, 'language_model': {'layers': 1},
  'masked_language_model': {'layers': 1}, 'policy_gradient': {'batch_size': 8, 'memory': 'lstm'},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(launch.experiments()))
def test_every_experiment_is_exported_for_any_batch(name):
  experiment = command_line.experiment(name)
  program, _, _ = loop.prepare(experiment, experiment.Config(**SMALL.get(name, {})))
  state, sizes = program.init(jax.random.key(0)), {'height': 6, 'width': 9}
  assert program.exports
  for function, (call, inputs) in program.exports.items():
    made, _, _ = export.exported(function, call, inputs, state, export.Options(params='inside'))
    for size in (1, 2, 7):
      shape = lambda x: (size, *(sizes.get(n, n) for n in x.shape))
      batch = jax.tree.map(lambda x: (np.arange(np.prod(shape(x))).reshape(shape(x)) % 5).astype(x.dtype), inputs)
      filled = {'index': np.arange(size), 'mask': np.ones(size, bool), **batch}
      expected = jax.jit(call)(state, filled, jax.random.key(0))
      close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
      jax.tree.map(close, jax.jit(made.call)({}, batch), expected)


# ---- recipes of docs/deploy.md ----


def recipe(kind: str) -> str:
  text = (ROOT / 'docs' / 'deploy.md').read_text()
  return re.search(rf'<!-- recipe: {kind} -->\n```python\n(.*?)```', text, re.DOTALL)[1]


@pytest.fixture
def desk(classifier, tmp_path, monkeypatch):
  """A folder in which runs/digits is a classifier; and images for it."""
  shutil.copytree(classifier, tmp_path / 'runs' / 'digits')
  monkeypatch.chdir(tmp_path)
  return np.random.default_rng(0).integers(0, 17, (1, 8, 8, 1)).astype(np.uint8)


def test_the_recipe_for_onnx(desk):
  if jax.__version_info__ >= (0, 11):
    pytest.skip('jax2onnx 0.17 does not know this jax')
  pytest.importorskip('jax2onnx', reason='jax2onnx is not installed: it asks for an older orbax-checkpoint')
  onnxruntime = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
  made: dict = {}
  exec(recipe('onnx'), made)
  session = onnxruntime.InferenceSession('digits.onnx')
  [logits] = session.run(None, {session.get_inputs()[0].name: desk})
  np.testing.assert_allclose(logits, made['predict'](desk), rtol=1e-4, atol=1e-4)


def test_the_recipe_for_a_savedmodel(desk):
  tf = pytest.importorskip('tensorflow', reason='tensorflow is not installed: 1.4 GB')
  made: dict = {}
  exec(recipe('savedmodel'), made)
  logits = tf.saved_model.load('digits_savedmodel').predict(desk)
  np.testing.assert_allclose(logits, made['predict'](desk), rtol=1e-4, atol=1e-4)
