"""Makes `python experiments/NAME.py` the same as `python launch.py NAME`.

Python looks for `import karpjax` beside the script first, and finds this. It stands for nothing else.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path[:] = [str(HERE.parent), *(path for path in sys.path if Path(path or '.').resolve() != HERE)]
del sys.modules['karpjax']

import launch  # noqa: E402

script = Path(getattr(sys.modules['__main__'], '__file__', '')).resolve()
if script.parent == HERE:
  launch.command([script.stem, *sys.argv[1:]])
