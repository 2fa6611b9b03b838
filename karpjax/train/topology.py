"""TPUs that are described and not there: what to compile for before a pod is rented."""

import importlib.util
import os

from karpjax.errors import UsageError


def devices(name: str) -> list:
  """The devices of a topology such as v5e:4x4, as libtpu describes them; they hold no arrays and run no program.

  Raises:
    UsageError: without libtpu, or for a topology that it does not know.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise UsageError(f'--topology={name} needs libtpu: pip install -r requirements-tpu.txt')
  # Off Google's cloud there is no metadata server to ask, and asking takes minutes.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  from jax.experimental import topologies

  try:
    return list(topologies.get_topology_desc(name, 'tpu').devices)
  except Exception as error:  # libtpu's own, of several classes
    why = str(error).splitlines()[0]
    raise UsageError(
      f'--topology={name}: {why}; write VERSION:CHIPS, as v5e:2x2, v5e:4x4, v6e:2x4, v4:2x2x1 or v5p:2x2x1'
    ) from None
