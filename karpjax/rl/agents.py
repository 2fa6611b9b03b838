"""Flags and set-up shared by the experiments in environments, what their Programs have alike, and the verb `play`.

What stands for data: examples are worlds, each a number 'world' [] int32, from which its draws come.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from karpjax import config
from karpjax.config import flag
from karpjax.data.dataset import Dataset, Spec, Split
from karpjax.errors import UsageError
from karpjax.report import animation
from karpjax.rl import environments, rollout
from karpjax.rl.rollout import Policy
from karpjax.verbs import Verb

MILLISECONDS, MOST_FRAMES = 40, 250  # of a frame; of an episode's GIF


@config.defaults(eval_every='0', final_splits=('test',), select='-validation/episode_return')
class RLConfig(config.Train):
  environment: str = flag(
    'cartpole',
    f'{", ".join(environments.NAMES)}, gymnax:NAME, brax:NAME, or gymnasium:NAME on the host.',
  )
  episodes: int = flag(
    100, 'Episodes of an evaluation; validation and test have episodes of their own.', low=1, may_change=True
  )
  batch_size: int = config.data_flag(1, 'Environments, side by side, over all devices.', low=1)
  order: str = config.data_flag('streams', 'Each environment goes on where it was.', choices=('streams',))


@dataclasses.dataclass(frozen=True)
class ReplayFlags:
  """Of what learns from replay; steps are those of all environments together."""

  train_frequency: int = flag(1, 'Steps of each environment between updates.', low=1)
  updates: int = flag(1, 'Updates that follow them.', low=1)
  replay_batch: int = flag(128, 'Transitions of an update, as many from each environment.', low=1)
  buffer: int = flag(10_000, 'Transitions that are kept, of all environments together.', low=1)
  learning_starts: int = flag(10_000, 'No update before so many steps, whose actions are drawn.', low=0)
  tau: float = flag(1.0, 'How far the target networks move to the others; 1: a copy.', low=0, high=1)
  discount: float = flag(0.99, 'Discount factor γ.', low=0, high=1)


def with_own_values(config, values: dict):
  """The config with an algorithm's own values where a flag is None."""
  return dataclasses.replace(config, **{name: x for name, x in values.items() if getattr(config, name) is None})


def data(config: RLConfig) -> Dataset:
  """The worlds of a run; each split has its own.

  Raises:
    UsageError: as `environments.make`, and for environments on the host where the run is to be made many of, or cut.
  """
  environment, first = environments.make(config.environment), {'train': 0, 'validation': 2**20, 'test': 2**21}
  sizes = {'train': config.batch_size, 'validation': config.episodes, 'test': config.episodes}
  notes = (environments.describe(environment),)
  if environment.reset_done:
    for name in ('seeds', 'parallel', 'mesh', 'distributed', 'coordinator', 'topology'):
      if getattr(config, name) != getattr(RLConfig, name):
        raise UsageError(
          f'{name}={getattr(config, name)}: {environment.name} lives on the host, outside of what is compiled, and can '
          'neither be vmapped nor cut over devices'
        )
    # streamed, so that steps are made one a call, and none to find out how many a call should make
    split = lambda first, size: Split(size, None, lambda indices: {'world': np.int32(first + indices)})
    notes += ('it lives on the host: whatever of it a resumed run was in the midst of begins anew',)
  else:
    split = lambda first, size: Split.of(world=np.arange(first, first + size, dtype=np.int32))
  spec = Spec(environment.name, environment.observation.shape, (), 1.0, (), (), config.batch_size, 'float32')
  return Dataset(spec, {name: split(first[name], size) for name, size in sizes.items()}, notes)


def check_replay(config, n_step: int = 1) -> None:
  """Raises UsageError where the rings of `buffer` transitions cannot give `replay_batch`, or hold what is written or read at once."""
  worlds, ring = config.batch_size, config.buffer // config.batch_size
  if config.replay_batch % worlds:
    raise UsageError(f'replay_batch={config.replay_batch}: a multiple of the {worlds} environments is needed')
  if ring < max(config.train_frequency, n_step):
    also = f' or n_step={n_step}' if n_step > 1 else ''
    raise UsageError(
      f'buffer={config.buffer}: {ring} transitions of each environment hold no '
      f'train_frequency={config.train_frequency}{also}'
    )
  if config.learning_starts > config.buffer:
    raise UsageError(f'learning_starts={config.learning_starts} is more than buffer={config.buffer} ever holds')


def collecting(config) -> int:
  """A run's steps before `learning_starts` steps of its environments are there; raises UsageError where those are all."""
  steps = max(-(-config.learning_starts // (config.batch_size * config.train_frequency)) - 1, 0)
  if config.steps <= steps:
    raise UsageError(f'steps={config.steps} end before learning_starts={config.learning_starts}')
  return steps


def replay_steps(config) -> dict:
  """The parts of a Program that count the steps of what learns from replay."""
  return dict(collecting=collecting(config), environment_steps=config.batch_size * config.train_frequency)


def updates(config) -> int:
  """How many updates a run makes once `learning_starts` steps are there."""
  return (config.steps - collecting(config)) * config.updates


# ---- what a policy can show ----


def parts(policy: Policy) -> dict:
  """The parts of a Program that are alike for all policies: how they are evaluated, what they predict, and an episode as GIF."""

  def predict(state, batch, key):
    """What the policy makes of the first observation of each world."""
    return policy.predict(state, jax.vmap(policy.environment.reset)(rollout.world_keys(key, batch))[1])

  def report(state, t: int, folder: Path) -> None:
    if policy.environment.render:
      frames, _ = draw(policy, *jax.jit(lambda state: record(policy, state, t))(state))
      animation.write(folder / 'plots' / 'episode.gif', frames, MILLISECONDS)

  evaluate = functools.partial(rollout.evaluate, policy)
  return dict(evaluate=evaluate, summarise=rollout.summarise, predict=predict, report=report)


def record(policy: Policy, state, seed, greedy: bool = True):
  """(states, done, returns) of one episode, each [environment.limit + 1 | limit, …]."""
  act = lambda observation, noise: policy.act(state, observation, noise)
  noise = rollout.noise_of(policy, greedy)
  states, transitions = rollout.record(policy.environment, act, jax.random.key(seed), noise)
  return states, transitions.done, transitions.episode_return


def draw(policy: Policy, states, done, returns) -> tuple[list[Image.Image], float]:
  """(frames, return) of one recorded episode; long ones are thinned out evenly."""
  states, done, returns = jax.device_get((states, done, returns))
  end = int(np.argmax(done))
  shown = np.unique(np.linspace(0, end + 1, min(end + 2, MOST_FRAMES)).astype(int))
  frames = policy.environment.render(jax.tree.map(lambda x: x[shown], states))
  return [Image.fromarray(frame) for frame in frames], float(returns[end])


@dataclasses.dataclass(frozen=True)
class PlayOptions:
  seed: int = flag(0, 'The seed of the world and of the draws.', low=0)
  stochastic: bool = flag(False, 'Drawn actions, not the likeliest.')
  output: str = flag('', 'The GIF. Default: WORKDIR/plots/episode_SEED.gif.')


@functools.lru_cache(maxsize=1)
def _policy(run) -> Policy:
  return run.experiment.policy(run.config)


def _encode(run, inputs, options) -> dict:
  environment = _policy(run).environment
  if environment.render is None:
    raise UsageError(
      f'{environment.name} draws no frames here; one of gymnasium may lack a package for that, such as pygame, or where '
      'there is no display MUJOCO_GL=egl'
    )
  if options.output and Path(options.output).suffix.lower() != '.gif':
    raise UsageError(f'output={options.output}: a name that ends in .gif is needed')
  return {'seed': np.int32(options.seed)}


def _function(run, options):
  greedy = not options.stochastic
  return jax.jit(lambda state, arrays: record(_policy(run), state, arrays['seed'], greedy))


def _decode(run, outputs, inputs, options):
  frames, total = draw(_policy(run), *outputs)
  path = Path(options.output or run.folder / 'plots' / f'episode_{options.seed}.gif')
  animation.write(path, frames, MILLISECONDS)
  yield {'return': total, 'file': str(path)}


play = Verb(
  'An episode of the policy, as GIF.',
  _encode,
  _function,
  _decode,
  options=PlayOptions,
  show=lambda answer: f'return {answer["return"]:g}: {answer["file"]}\n',
)
