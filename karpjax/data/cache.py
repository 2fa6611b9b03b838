"""Arrays that take long to make, kept as .npz files in KARPJAX_CACHE (by default ~/.cache/karpjax)."""

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def kept(title: str, of: Any, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """{name: array}, from a file in the cache; made and written there at first, or where the file is damaged.

  Args:
    title: with which the file's name begins.
    of: all that the arrays depend on, as JSON can hold it.
    make: gives them.
  """
  digest = hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]
  cache = Path(os.environ.get('KARPJAX_CACHE') or '~/.cache/karpjax').expanduser()
  path = cache / f'{title.replace("/", "-")}-{digest}.npz'
  broken = contextlib.suppress(OSError, ValueError, EOFError, zipfile.BadZipFile)  # it is not there, or not whole
  with broken, np.load(path, allow_pickle=False) as arrays:
    return dict(arrays)
  arrays = make()
  with contextlib.suppress(OSError):  # a full or read-only disk: the arrays are in memory all the same
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix='writing-', ignore_cleanup_errors=True) as temporary:
      np.savez(f'{temporary}/whole.npz', **arrays)
      os.replace(f'{temporary}/whole.npz', path)
  return arrays
