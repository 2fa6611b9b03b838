"""How many steps a second environments make under a random policy, in one compiled rollout.

python -m karpjax.rl.speed                       # all of ours, for 1, 64 and 2,048 worlds side by side
python -m karpjax.rl.speed gymnax:Breakout-MinAtar --worlds=2048
"""

import argparse
import statistics
import sys
import time

import jax
import jax.numpy as jnp

from karpjax import errors
from karpjax.rl import environments, rollout
from karpjax.rl.environment import Discrete, Environment

TURNS = 5


def drawn(environment: Environment, key, count: int):
  """Actions of `count` worlds; of an unbounded Box, within ±1."""
  action = environment.action
  if isinstance(action, Discrete):
    return jax.random.randint(key, (count,), 0, action.size)
  low, high = jnp.maximum(jnp.asarray(action.low), -1), jnp.minimum(jnp.asarray(action.high), 1)
  return jax.random.uniform(key, (count, *action.shape), jnp.float32, low, high)


def steps_per_second(environment: Environment, worlds: int, seconds: float) -> tuple[float, float]:
  """(steps a second of all worlds together, the median of some turns; seconds of compilation)."""
  length = max(16, 16384 // worlds)
  keys = jax.random.split(jax.random.key(0), worlds)

  @jax.jit
  def play(running, turn):
    now = jax.vmap(jax.random.fold_in, (0, None))(keys, turn)
    act = lambda observation, key: drawn(environment, key, worlds)
    noise = jax.random.split(jax.random.fold_in(jax.random.key(1), turn), length)
    running, seen = rollout.rollout(environment, act, running, now, noise, length)
    return running, seen.reward.sum()

  begun = time.perf_counter()
  running, _ = jax.block_until_ready(play(jax.jit(lambda keys: rollout.start(environment, keys))(keys), 0))
  compiling, found, turn = time.perf_counter() - begun, [], 0
  for _ in range(TURNS):
    calls, begun = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - begun < seconds / TURNS:
      turn, calls = turn + 1, calls + 1
      running, _ = jax.block_until_ready(play(running, turn))
    found.append(calls * length * worlds / (time.perf_counter() - begun))
  return statistics.median(found), compiling


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
    prog='python -m karpjax.rl.speed', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    'environment',
    nargs='*',
    help=f'of {", ".join(environments.NAMES)}, gymnax:NAME, brax:NAME, gymnasium:NAME (default: ours)',
  )
  parser.add_argument('--worlds', type=int, nargs='+', default=[1, 64, 2048], help='side by side (default 1 64 2048)')
  parser.add_argument('--seconds', type=float, default=1.0, help='of measurement for each (default 1)')
  options = parser.parse_args(argv)
  try:
    made = [environments.make(name) for name in options.environment or environments.NAMES]
    if min(options.worlds) < 1 or not options.seconds > 0:
      raise errors.UsageError('--worlds and --seconds must be positive')
  except errors.UsageError as error:
    print(f'speed: {error}', file=sys.stderr)
    return 2
  print(f'{"steps a second":24}' + ''.join(f'{f"{n:,} worlds":>16}' for n in options.worlds) + f'{"compile s":>12}')
  for environment in made:
    found = [steps_per_second(environment, worlds, options.seconds) for worlds in options.worlds]
    rates = ''.join(f'{rate:16,.0f}' for rate, _ in found)
    print(f'{environment.name:24}{rates}{max(seconds for _, seconds in found):12.1f}', flush=True)
  return 0


if __name__ == '__main__':
  raise SystemExit(main())
