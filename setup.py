"""What pyproject.toml leaves open: the dependencies, which requirements files say once."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
  """The lines of a requirements file, without comments and without the files that it includes."""
  lines = (line.split('#')[0].strip() for line in (ROOT / name).read_text().splitlines())
  return [line for line in lines if line and not line.startswith('-')]


extras = {name: requirements(f'requirements-{name}.txt') for name in ('cuda', 'tpu', 'rl', 'fairness', 'serve', 'dev')}
setup(install_requires=requirements('requirements.txt'), extras_require=extras)
