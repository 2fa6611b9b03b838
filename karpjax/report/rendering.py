"""A process beside a run that turns its figures into pictures, so that the run goes on meanwhile."""

import contextlib
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

STYLE = Path(__file__).with_name('plots.mplstyle')
beside: list['Process'] = []  # where one is at work


def png(figure) -> bytes:
  """A figure as a PNG, in the style in which it is drawn."""
  import matplotlib

  content = io.BytesIO()
  with matplotlib.rc_context(fname=STYLE):
    figure.savefig(content, format='png', dpi=144, facecolor='white', pil_kwargs={'compress_level': 4})
  return content.getvalue()


class Process:
  """Draws figures one after the other, in a process that knows nothing but Matplotlib."""

  def __init__(self):
    command = [sys.executable, '-P', __file__]
    self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    self.thread, self.begun = futures.ThreadPoolExecutor(1), []

  def draw(self, figure, write) -> None:
    """Calls `write` with a figure's PNG once it is drawn."""
    content = pickle.dumps(figure)
    self.begun.append((self.thread.submit(self._draw, content, write), content, write))

  def _draw(self, figure: bytes, write) -> bool:
    """Whether the process has drawn it: not where it was killed."""
    try:
      self.process.stdin.write(figure)
      self.process.stdin.flush()
      content = pickle.load(self.process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError):
      return False
    write(content)
    return True

  def wait(self) -> None:
    """Until all is drawn, and helps with it, from the end; raises what a write has raised.

    Matplotlib serves one thread at a time: what is drawn here is drawn by the one that waits.
    """
    while self.begun:
      drawing, figure, write = self.begun.pop()
      if drawing.cancel() or not drawing.result():
        write(png(pickle.loads(figure)))

  def close(self) -> None:
    self.thread.shutdown()
    self.process.kill()
    with contextlib.suppress(OSError):
      self.process.stdin.close()
    self.process.stdout.close()
    self.process.wait()


@contextlib.contextmanager
def aside(wanted: bool) -> Iterator[None]:
  """Figures that are drawn within are drawn by another process, if it is wanted and there is a core for it."""
  if not wanted or beside or (os.cpu_count() or 1) < 2:
    yield
    return
  process = Process()
  beside.append(process)
  try:
    yield
    process.wait()
  finally:
    beside.remove(process)
    process.close()


def draw(figure, write) -> None:
  """Calls `write` with a figure's PNG, at once or, within `aside`, by `wait`."""
  if beside:
    with contextlib.suppress(pickle.PicklingError, AttributeError, TypeError):  # of what a lambda formats
      return beside[0].draw(figure, write)
  write(png(figure))


def wait() -> None:
  """Until all figures are written."""
  for process in beside:
    process.wait()


def serve() -> None:
  """What the process does: figures come in, pictures go out, until nothing comes."""
  import matplotlib.backends.backend_agg

  assert matplotlib.backends.backend_agg
  while True:
    try:
      figure = pickle.load(sys.stdin.buffer)
    except (EOFError, pickle.UnpicklingError):  # the run is gone, perhaps within a figure
      return
    content = pickle.dumps(png(figure))
    try:
      os.write(sys.stdout.fileno(), content)
    except BrokenPipeError:
      return


if __name__ == '__main__':
  serve()
