"""Requests answered together: programs of a few sizes, compiled before the first one comes, and a bounded queue."""

import asyncio
import contextlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from karpjax.errors import UsageError
from karpjax.serving.inputs import KINDS, filled
from karpjax.train.predict import Predictions

SIZES = 1, 8, 32  # examples of a program
WAIT = 0.005  # seconds that a request waits for others
Arrays = dict[str, np.ndarray]


class Full(Exception):
  """More is waiting than may."""


def served(run, chosen) -> tuple[str, Predictions] | None:
  """(name, function) of the first of a run's verbs that looks at each example alone; None where it has none.

  Args:
    chosen: verb -> its options.
  """
  for name, verb in run.verbs.items():
    if verb.inputs in KINDS and isinstance(function := verb.function(run, chosen(verb)), Predictions):
      return name, function
  return None


class Predictor:
  """A verb's arrays -> outputs by programs of SIZES, padded; no call compiles.

  Args:
    run: whose weights answer.
    function: of the verb.
    example: arrays of one example, which tell shapes and types of all.
  """

  def __init__(self, run, function: Predictions, example: Arrays):
    self.example, self._state = example, jax.device_put(run.state)
    call = jax.jit(lambda state, batch: function.predict(state, batch, jax.random.key(0)))
    self._programs = {n: call.lower(self._state, _padded(example, n)).compile() for n in SIZES}

  def check(self, arrays: Arrays) -> int:
    """How many examples there are; a UsageError where they are larger than the run takes."""
    for name, known in self.example.items():
      if arrays[name].shape[1:] != known.shape[1:]:
        raise UsageError(f'an input of {arrays[name].shape[1]:,} tokens; this run takes {known.shape[1]:,}')
    return len(arrays[name])

  def __call__(self, arrays: Arrays):
    """A pytree of NumPy arrays [examples, …]."""
    size, most, parts = len(next(iter(arrays.values()))), SIZES[-1], []
    for start in range(0, size, most):
      part = {name: x[start : start + most] for name, x in arrays.items()}
      n = min(most, size - start)
      outputs = self._programs[next(s for s in SIZES if s >= n)](self._state, _padded(part, n))
      parts.append(jax.tree.map(lambda x: np.asarray(x)[:n], outputs))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _padded(arrays: Arrays, n: int) -> Arrays:
  """A batch of the smallest of SIZES that holds n examples, filled up with the first."""
  numbers = np.arange(next(s for s in SIZES if s >= n), dtype=np.int32)
  size = len(next(iter(arrays.values())))
  batch = {name: x[np.where(numbers < size, numbers, 0)] for name, x in arrays.items()}
  return {**batch, 'index': numbers, 'mask': numbers < size}


def example(run, verb, chosen) -> Arrays:
  """The arrays of one example, as a verb encodes them; what it says of them is of no interest."""
  with contextlib.redirect_stderr(io.StringIO()):
    return filled(run, verb.encode(run, KINDS[verb.inputs].example(run), chosen))


class Batcher:
  """Answers requests together, in the order in which they come.

  Args:
    predict: arrays [examples, …] -> outputs [examples, …]; called in a thread of its own.
    most: examples that may wait.
  """

  def __init__(self, predict, most: int):
    self._predict, self._most, self.waiting = predict, most, 0
    self._queue, self._thread = asyncio.Queue(), ThreadPoolExecutor(1)

  async def ask(self, arrays: Arrays, size: int):
    """The outputs of so many examples; raises Full where too many are waiting."""
    if self.waiting + size > self._most and self.waiting:
      raise Full
    answer = asyncio.get_running_loop().create_future()
    self.waiting += size
    try:
      await self._queue.put((arrays, size, answer))
      return await answer
    finally:
      self.waiting -= size

  async def work(self) -> None:
    """Answers without end, until it is cancelled."""
    loop = asyncio.get_running_loop()
    while True:
      asked = [await self._queue.get()]
      deadline = loop.time() + WAIT
      while sum(size for _, size, _ in asked) < SIZES[-1]:
        try:
          async with asyncio.timeout_at(deadline):  # what is there already is taken at any time
            asked.append(await self._queue.get())
        except TimeoutError:
          break
      await self._answer(loop, [each for each in asked if not each[2].done()])

  async def _answer(self, loop, asked: Sequence) -> None:
    if not asked:
      return  # all of them have left
    try:
      together = {name: np.concatenate([arrays[name] for arrays, _, _ in asked]) for name in asked[0][0]}
      outputs, at = await loop.run_in_executor(self._thread, self._predict, together), 0
    except Exception as error:
      for _, _, answer in asked:
        if not answer.done():
          answer.set_exception(error)
      return
    for _, size, answer in asked:
      if not answer.done():
        answer.set_result(jax.tree.map(lambda x: x[at : at + size], outputs))
      at += size
