"""The machine that a benchmark runs on, as a reader knows it."""

import contextlib
import os
import platform
import re
import subprocess
from pathlib import Path


def cores() -> int:
  """How many this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def processor() -> str:
  """The processor's model, as the system names it."""
  found = None
  with contextlib.suppress(OSError, subprocess.CalledProcessError):
    if platform.system() == 'Darwin':
      return subprocess.run(
        ['sysctl', '-n', 'machdep.cpu.brand_string'], capture_output=True, text=True, check=True
      ).stdout.strip()
    found = re.search(r'^(?:model name|Model|cpu)\s*:\s*(.+)$', Path('/proc/cpuinfo').read_text(), re.MULTILINE)
  return found[1].strip() if found else platform.processor() or platform.machine()


def name() -> str:
  """Its processor's model and cores, such as 'AMD EPYC, 2 cores'."""
  return f'{processor()}, {cores()} core{"s" if cores() > 1 else ""}'
