"""How a policy does: whole episodes in worlds of their own, by its likeliest actions and by drawn ones."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.rl import rollout
from karpjax.rl.environment import Environment


def world_keys(key, batch):
  """One key for each of batch['world'] [batch]: an episode is the same in whatever batch it is played."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, batch['world'])


def evaluate(environment: Environment, acting: Callable, noise: Callable, state, batch, key, stochastic: bool = True):
  """Sums over one episode in each world of a batch.

  Args:
    environment: of one world.
    acting: (state, greedy) -> act, as for `rollout.episodes`.
    noise: keys [batch] -> what act is given.
    state: of a Program.
    batch: 'world' [batch] int32, 'mask' [batch] bool.
    key: of the evaluation.
    stochastic: whether drawn actions play as well; not where a policy has none.
  """
  mask, sums = batch['mask'].astype(jnp.float32), {'episodes': batch['mask'].astype(jnp.float32).sum()}
  for prefix, greedy in (('', True), ('stochastic_', False))[: 1 + stochastic]:
    ends = rollout.episodes(environment, acting(state, greedy), world_keys(key, batch), noise)
    sums |= {
      f'{prefix}episode_return': (ends.total * mask).sum(),
      f'{prefix}episode_return_squared': (jnp.square(ends.total) * mask).sum(),
      f'{prefix}episode_length': (ends.length * mask).sum(),
    }
    outcomes = jax.vmap(environment.outcomes)(ends.state, ends.total)
    sums |= {f'{prefix}{name}': (outcome * mask).sum() for name, outcome in outcomes.items()}
  return sums


def summarise(sums) -> dict[str, float]:
  """Mean returns and lengths, the returns' deviation over episodes, and the mean of each of the environment's outcomes."""
  count = float(sums['episodes'])
  numbers = {name: float(total) / count for name, total in sums.items() if name != 'episodes'}
  for prefix in ('', 'stochastic_')[: 1 + ('stochastic_episode_return' in sums)]:
    variance = numbers.pop(f'{prefix}episode_return_squared') - numbers[f'{prefix}episode_return'] ** 2
    numbers[f'{prefix}episode_return_deviation'] = float(np.sqrt(max(variance, 0.0)))
  return numbers
