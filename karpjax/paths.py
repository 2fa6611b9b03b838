"""Where paths of the user's are read: `--workdir=~/runs`, which a shell leaves as it is, means a folder at home."""

import os
import re
from pathlib import Path


def expand(text: str | Path) -> str:
  """A path with homes for ~ and ~NAME, also behind a colon or a comma: folder:~/pictures, files:~/a,~/b."""
  return re.sub(r'(?:^|(?<=[:,]))~[\w.-]*(?=/|,|$)', lambda match: os.path.expanduser(match[0]), str(text))
