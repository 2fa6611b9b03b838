import jax
import jax.numpy as jnp
import numpy as np

from karpjax.metrics.collect import collect


def test_sums_of_any_batches_are_all_rows_in_their_order():
  rows = {'tokens': np.arange(21).reshape(7, 3), 'score': np.arange(7) / 2}
  total = None
  for index, mask in (([4, 6, 0], [1, 1, 1]), ([5, 1, 3], [1, 1, 1]), ([2, 0, 0], [1, 0, 0])):
    index, mask = np.array(index), np.array(mask, bool)
    batch = {'tokens': rows['tokens'][index].astype(np.int32), 'score': rows['score'][index].astype(np.float32)}
    batch['score'][~mask] = np.nan  # what is masked may be anything
    part = jax.device_get(jax.jit(collect, static_argnums=3)(batch, index, mask, 9))
    total = part if total is None else jax.tree.map(np.add, total, part)
  for name, x in rows.items():
    np.testing.assert_array_equal(total[name][:7], x)
    assert not total[name][7:].any() and total[name].dtype == batch[name].dtype


def test_several_rows_of_one_index_are_added_up():
  np.testing.assert_array_equal(
    collect(jnp.ones(4), jnp.array([1, 1, 0, 1]), np.array([1, 1, 1, 0], bool), 3), [1, 2, 0]
  )
