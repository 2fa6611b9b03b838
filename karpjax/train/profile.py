"""--profile=FIRST:LAST: which steps are traced."""

import re

from karpjax.errors import UsageError


def steps(text: str) -> tuple[int, int] | None:
  """'100:110' -> (100, 110): the trace begins before step 101 and ends after step 110; '' -> None.

  Raises:
    UsageError: for anything else.
  """
  if not text:
    return None
  match = re.fullmatch(r'(\d+):(\d+)', text)
  if not match or int(match[1]) >= int(match[2]):
    raise UsageError(f'--profile={text}: write FIRST:LAST in steps, as 100:110')
  return int(match[1]), int(match[2])
