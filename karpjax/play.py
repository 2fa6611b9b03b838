"""`launch.py play WORKDIR`: an episode of a run's policy, by its best checkpoint, as GIF."""

import argparse
import sys
from pathlib import Path

from karpjax import errors, predict
from karpjax.report import animation, episodes


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog='launch.py play', description=__doc__)
  parser.add_argument('workdir', help='of a run of reinforcement learning')
  parser.add_argument('--seed', type=int, default=0, help='of the world and of the draws (default 0)')
  parser.add_argument('--stochastic', action='store_true', help='drawn actions, not the likeliest')
  parser.add_argument('--output', default='', help='of the GIF (default: WORKDIR/plots/episode_SEED.gif)')
  options = parser.parse_args(argv)
  try:
    _, state, _, experiment, settings = predict.load_run(options.workdir)
    if not hasattr(experiment, 'player'):
      raise errors.UsageError(f'{options.workdir} holds no run of reinforcement learning')
    environment, acting, noise = experiment.player(settings)
    if environment.render is None:
      raise errors.UsageError(
        f'{environment.name} draws no frames here; one of gymnasium may lack a package for that, such as pygame, or where there is '
        'no display MUJOCO_GL=egl'
      )
    path = Path(options.output or Path(options.workdir) / 'plots' / f'episode_{options.seed}.gif')
    if path.suffix.lower() != '.gif':
      raise errors.UsageError(f'--output={path}: a name that ends in .gif is needed')
    with errors.unwrap_callback_error():
      frames, total = episodes.frames(environment, acting, noise, state, options.seed, greedy=not options.stochastic)
  except (errors.UsageError, errors.CallbackError) as error:
    print(f'play: {error}', file=sys.stderr)
    return 2 if isinstance(error, errors.UsageError) else 1
  animation.write(path, frames, episodes.MILLISECONDS)
  print(f'return {total:g}: {path}')
  return 0
