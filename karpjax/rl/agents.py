"""Flags and set-up shared by the experiments in environments, what their Programs have alike, and the verb `play`.

What stands for data: examples are worlds, each a number 'world' [] int32, from which its draws come.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from karpjax import config, options
from karpjax.config import flag
from karpjax.data.dataset import Dataset, Spec, Split
from karpjax.durations import Pace
from karpjax.errors import UsageError
from karpjax.program import Input, Program, TrainState
from karpjax.report import pictures
from karpjax.rl import environments, replay, rollout
from karpjax.rl.environment import Environment, WithMemory
from karpjax.rl.rollout import Policy
from karpjax.verbs import Verb

MILLISECONDS, MOST_FRAMES = 40, 250  # of a frame; of an episode's GIF
WORLDS = 2**20  # of a split, at the most: each split has others
NAMES = ', '.join(environments.NAMES)


@config.defaults(eval_every='0', final_splits=('test',), select='-validation/episode_return')
class RLConfig(config.Train):
  environment: str = flag('cartpole', f'{NAMES}, gymnax:NAME, brax:NAME, or gymnasium:NAME on the host.')
  episodes: int = flag(
    100, 'Episodes of an evaluation; validation and test have their own.', low=1, high=WORLDS, may_change=True
  )
  batch_size: int = config.data_flag(1, 'Environments, side by side, over all devices.', low=1, high=WORLDS)
  order: str = config.data_flag('streams', 'Each environment goes on where it was.', choices=('streams',))


@dataclasses.dataclass(frozen=True)
class ReplayConfig(RLConfig):
  """Of what learns from replay; steps are those of all environments together."""

  train_frequency: int = flag(1, 'Steps of each environment between updates.', low=1)
  updates: int = flag(1, 'Updates that follow them.', low=1)
  replay_batch: int = flag(128, 'Transitions of an update, as many from each environment.', low=1)
  buffer: int = flag(10_000, 'Transitions that are kept, of all environments together.', low=1)
  learning_starts: int = flag(10_000, 'No update before so many steps, whose actions are drawn.', low=0)
  tau: float = flag(1.0, 'How far the target networks move to the others; 1: a copy.', low=0, high=1)
  discount: float = flag(0.99, 'Discount factor γ.', low=0, high=1)
  n_step: ClassVar[int] = 1  # where no flag says otherwise
  priority: ClassVar[float] = 0.0  # likewise

  def environment_steps(self):
    return self.batch_size * self.train_frequency


def data(config: RLConfig) -> Dataset:
  """The worlds of a run; each split has its own.

  Raises:
    UsageError: as `environments.make`, and for environments on the host where the run is to be made many of, or cut.
  """
  environment = environments.make(config.environment)
  notes, split = [environments.describe(environment)], lambda numbers: Split.of(world=numbers)
  if environment.reset_done:
    for name in ('seeds', 'parallel', 'mesh', 'distributed', 'coordinator', 'topology'):
      if (value := getattr(config, name)) != getattr(RLConfig, name):
        raise UsageError(
          f'{name}={value}: {environment.name} lives on the host, which cannot be vmapped or cut over devices'
        )
    # streamed, so that steps are made one a call, and none to find out how many a call should make
    split = lambda numbers: Split(len(numbers), None, lambda indices: {'world': numbers[indices]})
    notes.append('it lives on the host: whatever of it a resumed run was in the midst of begins anew')
  numbers = ('train', config.batch_size), ('validation', config.episodes), ('test', config.episodes)
  worlds = {name: (i * WORLDS, n) for i, (name, n) in enumerate(numbers)}
  splits = {name: split(np.arange(first, first + n, dtype=np.int32)) for name, (first, n) in worlds.items()}
  spec = Spec(environment.name, environment.observation.shape, (), 1.0, (), (), config.batch_size, 'float32')
  return Dataset(spec, splits, tuple(notes))


def network(models: Mapping[str, Callable], config: RLConfig, environment: Environment, **decided):
  """The one model of `models` by a config's flags: (init: key -> variables, apply: (params, observation [batch,
  …]) -> outputs).
  """
  first = jnp.zeros((1, *environment.observation.shape))
  model = options.build(models, *models, config, first, dtype=jnp.dtype(config.dtype), **decided)
  return lambda key: model.init(key, first), lambda params, observation: model.apply({'params': params}, observation)


# ---- what learns from replay ----


def collecting(config) -> int:
  """A run's steps before `learning_starts` steps of its environments are there.

  Raises:
    UsageError: where those are all, or the rings cannot give `replay_batch`, or hold what is written or read at once.
  """
  worlds, ring, each = config.batch_size, config.buffer // config.batch_size, config.environment_steps()
  steps = max(-(-config.learning_starts // each) - 1, 0)
  at_once = f'train_frequency={config.train_frequency} and n_step={config.n_step}'
  for wrong, message in (
    (config.replay_batch % worlds, f'replay_batch={config.replay_batch}: a multiple of the {worlds} environments is needed'),
    (ring < max(config.train_frequency, config.n_step), f'buffer={config.buffer}: {ring} transitions of each environment do not hold {at_once}'),
    (config.learning_starts > config.buffer, f'learning_starts={config.learning_starts} is more than buffer={config.buffer} ever holds'),
    (config.steps <= steps, f'steps={config.steps}, {config.steps * each} of environments, end before learning_starts={config.learning_starts} of them'),
  ):  # fmt: skip
    if wrong:
      raise UsageError(message)
  return steps


def pace(config, every: int = 1) -> Pace:
  """That of an optimiser which makes one of `every` updates, once `learning_starts` steps are there;
  raises as `collecting`.
  """
  return Pace(Fraction(config.updates, every), collecting(config))


def replay_program(config, policy: Policy, optimiser, step, target: Callable) -> Program:
  """The Program of what learns from replay.

  Args:
    config: a `ReplayConfig`.
    policy: what acts and learns.
    optimiser: of its params, or {player: optimiser}.
    step: of `replay.train_step`.
    target: variables -> those params of which there are target networks.
  """
  worlds = config.batch_size

  def init(key):
    variables = policy.init(key)
    return TrainState.create(
      key,
      variables,
      optimiser,
      target=jax.tree.map(jnp.copy, target(nn.meta.unbox(variables))),
      carried={'worlds': rollout.first_episodes(policy.environment, key, worlds)},
      buffers=replay.empty(policy.environment, worlds, config.buffer // worlds, config.priority > 0),
    )

  return Program(init=init, step=step, collecting=collecting(config), **parts(policy, config))


# ---- what a policy can show ----


def parts(policy: Policy, config: RLConfig) -> dict:
  """The parts of a Program that are alike for all policies: how they are evaluated, what they predict,
  and an episode as GIF.
  """

  def predict(state, batch, key):
    """What the policy makes of the first observation of each world."""
    return policy.predict(state, jax.vmap(policy.environment.reset)(rollout.world_keys(key, batch))[1])

  def report(state, t: int, folder: Path) -> None:
    if policy.environment.render:
      recorded = jax.jit(lambda state: rollout.record(policy, state, jax.random.key(t)))(state)
      write_episode(policy, recorded, folder / 'plots' / 'episode.gif')

  worlds = config.batch_size if 'train' in config.eval_splits + config.final_splits else 1
  evaluate = functools.partial(rollout.evaluate, policy, max(config.episodes, worlds))
  exports = {'act': (functools.partial(best_action, policy), seen_by(policy))}
  return dict(evaluate=evaluate, summarise=rollout.summarise, predict=predict, report=report, exports=exports)


def seen_by(policy: Policy) -> dict:
  """What `best_action` reads of a batch, as `Program.exports` says it."""
  box, memory = policy.environment.observation, {} if policy.memory is None else {'memory': policy.memory}
  return {'observation': Input(box.shape, box.dtype), **jax.tree.map(lambda x: Input(x.shape, str(x.dtype)), memory)}


def best_action(policy: Policy, state, batch, key) -> dict:
  """{'action', and 'memory' where there is one} after batch['observation'], and what was remembered before."""
  if policy.memory is None:
    return {'action': policy.act(state, batch['observation'], None)}
  return dict(zip(('action', 'memory'), policy.act(state, WithMemory(batch['observation'], batch['memory']), None)))


def write_episode(policy: Policy, recorded, path: Path) -> float:
  """Draws what `rollout.record` gives as GIF, long episodes thinned out evenly, and returns the episode's return."""
  states, done, returns = jax.device_get(recorded)
  end = int(np.argmax(done))
  shown = np.unique(np.linspace(0, end + 1, min(end + 2, MOST_FRAMES)).astype(int))
  frames = policy.environment.render(jax.tree.map(lambda x: x[shown], states))
  pictures.write_animation([Image.fromarray(frame) for frame in frames], MILLISECONDS, path)
  return float(returns[end])


@dataclasses.dataclass(frozen=True)
class PlayOptions:
  seed: int = config.seed_flag('The seed of the world and of the draws.')
  stochastic: bool = flag(False, 'Drawn actions, not the likeliest.')
  output: str = flag('', 'The GIF. Default: WORKDIR/plots/episode_SEED.gif.', path=True)


@functools.lru_cache(maxsize=1)
def _policy(run) -> Policy:
  return run.experiment.policy(run.config)


def _encode(run, inputs, chosen) -> dict:
  environment = _policy(run).environment
  if environment.render is None:
    why = 'one of gymnasium may lack a package for that, such as pygame, or where there is no display MUJOCO_GL=egl'
    raise UsageError(f'{environment.name} draws no frames here; {why}')
  if chosen.output and Path(chosen.output).suffix.lower() != '.gif':
    raise UsageError(f'output={chosen.output}: a name that ends in .gif is needed')
  return {'seed': np.uint32(chosen.seed)}


def _function(run, chosen):
  return jax.jit(
    lambda state, arrays: rollout.record(_policy(run), state, jax.random.key(arrays['seed']), not chosen.stochastic)
  )


def _writes(run, inputs, chosen) -> list[Path]:
  return [Path(chosen.output or run.own_path(run.folder / 'plots' / f'episode_{chosen.seed}.gif'))]


def _decode(run, outputs, inputs, chosen):
  [path] = _writes(run, inputs, chosen)
  yield {'return': write_episode(_policy(run), outputs, path), 'file': str(path)}


play = Verb(
  'An episode of the policy, as GIF.',
  _encode,
  _function,
  _decode,
  options=PlayOptions,
  show=lambda answer: f'return {answer["return"]:g}: {answer["file"]}\n',
  writes=_writes,
)
