"""`python -m karpjax.commands.sweep FOLDER` runs one part of a sweep in its folder: the process that `processes.run` starts."""

import sys
from pathlib import Path

from karpjax.commands.sweep import vmapped

sys.exit(vmapped.main(Path(sys.argv[1])))
