"""The front door of karpjax.

python launch.py                              list the experiments
python launch.py NAME [--flag=value …]        run one; --help shows its flags
python launch.py check NAME [--flag=value …]  what a careful person checks before training
python launch.py reproduce NAME …|all         run flagfiles of experiments/papers/, ours beside theirs
python launch.py bench NAME                   our step against PyTorch's
python launch.py predict WORKDIR FILE|TEXT …  the classes of image files or texts, by a run's best checkpoint
python launch.py monitor WORKDIR FILE.csv     the classes of time-stamped texts, and an alert where a share jumps
python launch.py sample WORKDIR               a language model goes on with a text
python launch.py play WORKDIR                 an episode of a run's policy, as GIF
python launch.py translate WORKDIR TEXT …     translations by a run's best checkpoint
python launch.py translate_image WORKDIR IMAGE …  images of images by a run of image_to_image
python launch.py upscale WORKDIR IMAGE …      enlarges pictures by a run of super_resolution
python launch.py sweep NAME --grid FLAG=…     many settings, in one program where they can be
python launch.py tpu … -- NAME [flags]        run on all workers of a TPU VM
python launch.py slurm … -- NAME [flags]      submit to Slurm
python launch.py --processes=2 NAME [flags]   hosts as processes of this machine, to rehearse a pod
"""

import ast
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parent
COMMANDS = {
  'check': 'karpjax.commands.check',
  'reproduce': 'karpjax.commands.reproduce',
  'bench': 'karpjax.bench',
  'predict': 'karpjax.predict',
  'monitor': 'karpjax.monitor',
  'sample': 'karpjax.sample',
  'play': 'karpjax.play',
  'translate': 'karpjax.translate',
  'translate_image': 'karpjax.translate_image',
  'upscale': 'karpjax.upscale',
  'sweep': 'karpjax.commands.sweep',
  'tpu': 'karpjax.commands.launchers.tpu',
  'slurm': 'karpjax.commands.launchers.slurm',
}


def experiments() -> dict[str, str]:
  """{name: first line of its docstring}, read without importing anything."""
  files = sorted((ROOT / 'experiments').glob('[a-z]*.py'))
  return {f.stem: (ast.get_docstring(ast.parse(f.read_text())) or '').split('\n')[0] for f in files}


def main(argv: list[str]) -> int:
  known = experiments()
  if not argv or argv[0] in ('--help', '-h', 'list'):
    print(__doc__.strip(), '', 'experiments:', *(f'  {name:24} {line}' for name, line in known.items()), sep='\n')
    return 0
  name, *rest = argv
  sys.path.insert(0, str(ROOT))
  if name.split('=')[0] in ('--processes', '--devices'):
    from karpjax.commands import local_cluster

    return local_cluster.main(argv)
  if name in COMMANDS:
    return importlib.import_module(COMMANDS[name]).main(rest)
  if name not in known:
    from karpjax import errors

    print(f'launch.py: unknown experiment {name!r}.{errors.nearest(name, [*known, *COMMANDS])}', file=sys.stderr)
    return 2
  from karpjax import command_line

  module = importlib.import_module(f'experiments.{name}')
  return command_line.main(module, rest)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
