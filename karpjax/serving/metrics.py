"""What a server has done, in the text form that Prometheus reads."""

import collections
from collections.abc import Callable

BOUNDS = 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0  # seconds


class Metrics:
  """Counts of a server; of one thread.

  Attributes:
    waiting: -> how many examples or texts are waiting.
    tokens: {'prompt' or 'completion': how many}.
  """

  def __init__(self, waiting: Callable[[], int]):
    self.waiting, self.tokens = waiting, collections.Counter()
    self._requests, self._buckets = collections.Counter(), collections.Counter()
    self._seconds, self._count = collections.Counter(), collections.Counter()

  def note(self, path: str, status: int, seconds: float) -> None:
    """A request that has been answered; the seconds are to the end of its answer."""
    self._requests[path, status] += 1
    self._seconds[path] += seconds
    self._count[path] += 1
    self._buckets.update((path, bound) for bound in BOUNDS if seconds <= bound)

  def text(self) -> str:
    name, lines = 'karpjax_request_seconds', ['# TYPE karpjax_requests_total counter']
    for (path, status), n in sorted(self._requests.items()):
      lines.append(f'karpjax_requests_total{{path="{path}",status="{status}"}} {n}')
    lines.append(f'# TYPE {name} histogram')
    for path, count in sorted(self._count.items()):
      for bound in BOUNDS:
        lines.append(f'{name}_bucket{{path="{path}",le="{bound}"}} {self._buckets[path, bound]}')
      lines.append(f'{name}_bucket{{path="{path}",le="+Inf"}} {count}')
      lines += [f'{name}_sum{{path="{path}"}} {self._seconds[path]:.6f}', f'{name}_count{{path="{path}"}} {count}']
    lines += ['# TYPE karpjax_queue_length gauge', f'karpjax_queue_length {self.waiting()}']
    lines.append('# TYPE karpjax_tokens_total counter')
    lines += [f'karpjax_tokens_total{{kind="{kind}"}} {n}' for kind, n in sorted(self.tokens.items())]
    return '\n'.join(lines) + '\n'
