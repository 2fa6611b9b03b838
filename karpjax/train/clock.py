"""Where a run's time goes, by the host's clock."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
  """Seconds of training, evaluation, logging and saving since it was made.

  Attributes:
    steps: how many were trained.
  """

  def __init__(self):
    self.start = self.mark = time.perf_counter()
    self.steps, self.training = 0, 0.0
    self.others = {'evaluation': 0.0, 'logging': 0.0, 'saving': 0.0}

  def seconds(self) -> float:
    """Since it was made."""
    return time.perf_counter() - self.start

  def trained(self, steps: int) -> float:
    """Ends a stretch of training of so many steps; returns its steps per second."""
    elapsed = time.perf_counter() - self.mark
    self.steps, self.training = self.steps + steps, self.training + elapsed
    return steps / elapsed

  def resume(self) -> None:
    """Begins the next stretch of training."""
    self.mark = time.perf_counter()

  @contextlib.contextmanager
  def spend(self, what: str) -> Iterator[None]:
    """Counts the time of a context as evaluation, logging or saving."""
    start = time.perf_counter()
    try:
      yield
    finally:
      self.others[what] += time.perf_counter() - start

  def shares(self, waited: float) -> dict[str, float]:
    """{'input_share': …, 'step_share': …, …}: fractions of all time, of which `waited` seconds went into input."""
    seconds = {'input': waited, 'step': max(0.0, self.training - waited), **self.others}
    whole = sum(seconds.values()) or 1.0
    return {f'{name}_share': value / whole for name, value in seconds.items()}
