"""A checkpoint restores whole or not at all."""

import resource
import shutil
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax.errors import UsageError
from karpjax.train import checkpoint

TREE = {
  'w': jnp.arange(1000.0).reshape(10, 100),
  'key': jax.random.key(3),
  'step': jnp.int32(7),
  'none': None,
  'empty': {},
}
SHAPES = jax.eval_shape(lambda: TREE)


def saved(folder, steps=(10, 20, 30), keep=3, say=print):
  store = checkpoint.Checkpoints(folder, keep=keep, say=say)
  for step in steps:
    store.save(step, {**TREE, 'step': jnp.int32(step)}, {'note': step})
  store.wait()
  store.close()
  return store


@pytest.fixture(scope='module')
def three(tmp_path_factory):
  """A folder with checkpoints of steps 10, 20 and 30."""
  folder = tmp_path_factory.mktemp('three')
  saved(folder)
  return folder


def test_what_was_saved_is_restored_to_the_bit_keys_included(three):
  step, tree, meta = checkpoint.Checkpoints(three).restore(SHAPES)
  assert step == 30 and int(tree['step']) == 30 and meta['note'] == 30 and tree['none'] is None and tree['empty'] == {}
  np.testing.assert_array_equal(tree['w'], TREE['w'])
  assert jax.random.bits(tree['key']) == jax.random.bits(TREE['key'])


def test_the_last_few_are_kept_and_the_best_beside_them(tmp_path):
  store = checkpoint.Checkpoints(tmp_path, keep=2)
  for step in range(5):
    store.save(step, TREE, {})
    if step == 1:
      store.save(step, TREE, {}, kind='best')
  store.close()
  assert sorted(p.name for p in (tmp_path / 'last').iterdir()) == ['3', '4']
  assert sorted(p.name for p in (tmp_path / 'best').iterdir()) == ['1']


def test_one_in_so_many_seconds_is_written_and_the_newest_at_the_end(tmp_path, monkeypatch):
  now = types.SimpleNamespace(seconds=0)
  monkeypatch.setattr(checkpoint, 'time', types.SimpleNamespace(monotonic=lambda: now.seconds))
  store = checkpoint.Checkpoints(tmp_path, keep=5, seconds=2)
  for step in range(6):
    now.seconds = 100 + step
    if step in (1, 4):
      store.save(step, TREE, {}, kind='best')
    store.save(step, TREE, {})
    store.check()
  store.wait()
  assert store.steps('last') == [5, 4, 2] and store.steps('best') == [4]
  store.close()


def largest_file(folder):
  return max((p for p in Path(folder).rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(folder):
  file = largest_file(folder / 'state')
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(folder):
  file = largest_file(folder / 'state')
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


def empty(folder):
  shutil.rmtree(folder)
  folder.mkdir()


DAMAGES = {
  'truncated': truncate,
  'a bit flipped': flip_a_bit,
  'emptied': empty,
  'state file deleted': lambda folder: largest_file(folder / 'state').unlink(),
  'meta deleted': lambda folder: shutil.rmtree(folder / 'meta'),
  'state deleted': lambda folder: shutil.rmtree(folder / 'state'),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(tmp_path, damage, three):
  shutil.copytree(three, tmp_path, dirs_exist_ok=True)
  DAMAGES[damage](tmp_path / 'last' / '30')
  said = []
  store = checkpoint.Checkpoints(tmp_path, say=said.append)
  assert store.restore(SHAPES)[0] == 20
  assert len(said) == 1 and 'step 30 is damaged' in said[0]
  assert (tmp_path / 'damaged' / 'last-30').is_dir()
  if damage == 'emptied':
    store.save(30, TREE, {})  # it can be written again
    store.close()
    assert checkpoint.Checkpoints(tmp_path).restore(SHAPES)[0] == 30


def test_nothing_whole_is_none(tmp_path):
  assert checkpoint.Checkpoints(tmp_path).restore(SHAPES) is None
  saved(tmp_path, steps=(1,))
  empty(tmp_path / 'last' / '1')
  assert checkpoint.Checkpoints(tmp_path, say=lambda _: None).restore(SHAPES) is None


def test_of_a_full_disk_nothing_is_left_and_older_checkpoints_stay(tmp_path):
  """A limit on the size of files stands for the full disk: writes fail in the same place."""
  said = []
  store = saved(tmp_path, steps=(10,), say=said.append)
  large = {'w': jax.random.normal(jax.random.key(0), (1000, 1000))}
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
  try:
    with pytest.raises(OSError, match='File too large') as failed:
      store.save(20, large, {})
      store.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  store.close()
  assert failed.value.filename == str(tmp_path / 'last' / '20') and sorted(
    p.name for p in (tmp_path / 'last').iterdir()
  ) == ['10']
  assert checkpoint.Checkpoints(tmp_path, say=said.append).restore(SHAPES)[0] == 10
  store = checkpoint.Checkpoints(tmp_path, say=said.append)
  store.save(30, TREE, {})  # with room again, saving goes on
  store.close()
  assert checkpoint.Checkpoints(tmp_path).restore(SHAPES)[0] == 30


def test_what_does_not_fit_is_refused_by_name(three):
  store = checkpoint.Checkpoints(three)
  with pytest.raises(UsageError, match='has no extra'):
    store.restore({**SHAPES, 'extra': jax.ShapeDtypeStruct((), jnp.float32)})
  with pytest.raises(UsageError, match=r'w \[10, 100\] where \[10, 99\]'):
    store.restore({**SHAPES, 'w': jax.ShapeDtypeStruct((10, 99), jnp.float32)})


def test_a_buffer_may_be_donated_as_soon_as_save_returns(tmp_path):
  double = jax.jit(lambda x: x * 2, donate_argnums=0)
  store = checkpoint.Checkpoints(tmp_path)
  x = jnp.ones((2000, 1000))
  store.save(1, {'w': x}, {})
  for _ in range(5):
    x = double(x)
  store.close()
  assert (
    checkpoint.Checkpoints(tmp_path).restore({'w': jax.ShapeDtypeStruct((2000, 1000), jnp.float32)})[1]['w'] == 1
  ).all()
