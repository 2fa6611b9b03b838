"""What experiments in environments have in common: flags, their data, and how a run's worlds begin."""

import dataclasses

import jax
import jax.numpy as jnp

from karpjax import config, errors
from karpjax.data.dataset import Dataset
from karpjax.program import INITIALISE
from karpjax.rl import environments, rollout
from karpjax.rl.environment import Environment


@dataclasses.dataclass(frozen=True)
class Acting(config.Train):
  """The flags; an experiment adds `environment`, and gives `steps` and the schedule of logs and checkpoints defaults of its own."""

  episodes: int = config.flag(100, 'Of an evaluation; validation and test have episodes of their own.', may_change=True)
  batch_size: int = config.data_flag(1, 'Environments, side by side, over all devices.')
  eval_every: config.Duration = config.run_flag('0', 'Evaluate this often; 0: at the end only.', may_change=True)
  final_splits: tuple[str, ...] = config.run_flag(('test',), 'Splits evaluated once, at the end.', may_change=True)
  select: str = config.run_flag(
    '-validation/episode_return', 'The metric whose smallest value marks the best checkpoint; -NAME for the largest.'
  )
  order: str = config.data_flag('streams', 'Each environment goes on where it was.', choices=('streams',))


def data(config) -> Dataset:
  """The worlds that the flags `environment`, `batch_size` and `episodes` name; raises UsageError as `environments` does, and
  for environments on the host where the run is to be made many of, or cut.
  """
  environment = environments.make(config.environment)
  if environment.renew:
    layout = {'seeds': config.seeds > 1, 'parallel': config.parallel != 'none', 'mesh': config.mesh}
    layout |= {'distributed': config.distributed, 'coordinator': config.coordinator, 'topology': config.topology}
    for flag in (flag for flag, given in layout.items() if given):
      raise errors.UsageError(
        f'--{flag}={getattr(config, flag)}: {environment.name} lives on the host, outside of what is compiled, and can '
        f'neither be vmapped nor cut over devices; leave out --{flag}'
      )
  return environments.worlds(environment, config.batch_size, config.episodes)


def begin(environment: Environment, key, count: int) -> rollout.Running:
  """`count` new episodes from a run's first key: a world's does not depend on how many there are."""
  first = jax.random.fold_in(jax.random.fold_in(key, 0), INITIALISE)  # step 0's, of that purpose
  return rollout.start(environment, jax.vmap(jax.random.fold_in, (None, 0))(first, jnp.arange(count)))


def check_shares(config, *names: str) -> None:
  """Raises UsageError for flags that are not numbers from 0 to 1."""
  for name in names:
    if not 0 <= getattr(config, name) <= 1:
      raise errors.UsageError(f'--{name}={getattr(config, name)}: a number from 0 to 1 is needed')


def check_replay(config, n_step: int = 1) -> None:
  """Raises UsageError where the rings of `buffer` transitions cannot give `replay_batch`, or hold what is written or read at once."""
  worlds, ring = config.batch_size, config.buffer // config.batch_size
  if config.replay_batch % worlds:
    raise errors.UsageError(f'--replay_batch={config.replay_batch}: a multiple of the {worlds} environments is needed')
  if ring < max(config.train_frequency, n_step):
    also = f' or --n_step={n_step}' if n_step > 1 else ''
    raise errors.UsageError(
      f'--buffer={config.buffer}: {ring} transitions of each environment hold no '
      f'--train_frequency={config.train_frequency}{also}'
    )
  if config.learning_starts > config.buffer:
    raise errors.UsageError(
      f'--learning_starts={config.learning_starts} is more than --buffer={config.buffer} ever holds'
    )


def collecting(config, learning_starts: int) -> int:
  """A run's steps before `learning_starts` steps of its environments are there; raises UsageError where those are all."""
  steps = max(-(-learning_starts // (config.batch_size * config.train_frequency)) - 1, 0)
  if config.steps <= steps:
    raise errors.UsageError(f'--steps={config.steps} end before --learning_starts={learning_starts}')
  return steps


def updates(config, learning_starts: int) -> int:
  """How many a run makes once `learning_starts` steps are there; raises UsageError where that is none."""
  return (config.steps - collecting(config, learning_starts)) * config.updates
