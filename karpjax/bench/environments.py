"""How many steps a second environments make under a random policy, in one compiled rollout.

python -m karpjax.bench.environments                       # all of ours, for 1, 64 and 2,048 worlds side by side
python -m karpjax.bench.environments gymnax:Breakout-MinAtar --worlds=2048
"""

import dataclasses
import statistics
import sys
import time

import jax
import jax.numpy as jnp

from karpjax import command_line, config, options
from karpjax.errors import UsageError
from karpjax.rl import environments, rollout
from karpjax.rl.environment import Discrete, Environment

TURNS = 5


@dataclasses.dataclass(frozen=True)
class Flags:
  worlds: tuple[int, ...] = config.flag((1, 64, 2048), 'Worlds side by side.', low=1)
  seconds: float = config.flag(1.0, 'Seconds of measurement for each number of worlds.', above=0)


def random_actions(environment: Environment, key, count: int):
  """Actions of `count` worlds; of an unbounded Box, within ±1."""
  action = environment.action
  if isinstance(action, Discrete):
    return jax.random.randint(key, (count,), 0, action.size)
  low, high = jnp.maximum(jnp.asarray(action.low), -1), jnp.minimum(jnp.asarray(action.high), 1)
  return jax.random.uniform(key, (count, *action.shape), jnp.float32, low, high)


def steps_per_second(environment: Environment, count: int, seconds: float) -> tuple[float, float]:
  """(steps a second of `count` worlds together, the median of some turns; seconds of compilation)."""
  length, keys = max(16, 16384 // count), jax.random.split(jax.random.key(0), count)

  @jax.jit
  def play(worlds, turn):
    now = jax.vmap(jax.random.fold_in, (0, None))(keys, turn)
    noise = jax.random.split(jax.random.fold_in(jax.random.key(1), turn), length)
    act = lambda observation, key: random_actions(environment, key, count)
    worlds, seen = rollout.rollout(environment, act, worlds, now, noise, length)
    return worlds, seen.reward.sum()

  start = time.perf_counter()
  worlds, _ = jax.block_until_ready(play(jax.jit(lambda keys: rollout.start(environment, keys))(keys), 0))
  compiling, rates, turn = time.perf_counter() - start, [], 0
  for _ in range(TURNS):
    calls, start = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - start < seconds / TURNS:
      turn, calls = turn + 1, calls + 1
      worlds, _ = jax.block_until_ready(play(worlds, turn))
    rates.append(calls * length * count / (time.perf_counter() - start))
  return statistics.median(rates), compiling


def main(argv: list[str]) -> int:
  names = [x for x in argv if not x.startswith('--')] or environments.NAMES
  try:
    flags = command_line.parse(Flags, [x for x in argv if x.startswith('--')])
    options.check(flags)
    chosen = [environments.make(name) for name in names]
  except UsageError as error:
    return command_line.refuse('environments', error, Flags)
  print(f'{"steps a second":24}' + ''.join(f'{f"{n:,} worlds":>16}' for n in flags.worlds) + f'{"compile s":>12}')
  for environment in chosen:
    found = [steps_per_second(environment, count, flags.seconds) for count in flags.worlds]
    rates = ''.join(f'{rate:16,.0f}' for rate, _ in found)
    print(f'{environment.name:24}{rates}{max(seconds for _, seconds in found):12.1f}', flush=True)
  return 0


if __name__ == '__main__':
  raise SystemExit(main(sys.argv[1:]))
