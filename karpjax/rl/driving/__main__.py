"""How drivers that learn nothing do on roads they have not seen.

python -m karpjax.rl.driving --driver=pd --roads=200 --seed=1
"""

import argparse

import jax
import jax.numpy as jnp

from karpjax.rl.driving import drivers, environment
from karpjax.rl.driving.road import ROADS


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(prog='python -m karpjax.rl.driving', description=__doc__.splitlines()[0])
  parser.add_argument('--driver', choices=[*drivers.DRIVERS, 'all'], default='all')
  parser.add_argument('--roads', type=int, default=200, help='how many (default 200)')
  parser.add_argument('--kind', choices=ROADS, default='mixed', help='of roads (default mixed)')
  parser.add_argument('--seed', type=int, default=0, help='another is another set of roads (default 0)')
  options = parser.parse_args(argv)
  if options.roads < 1:
    parser.error(f'--roads={options.roads}: at least 1 is needed')
  world = environment.make(kind=options.kind)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(options.seed), jnp.arange(options.roads))
  for name in drivers.DRIVERS if options.driver == 'all' else [options.driver]:
    numbers = drivers.evaluate(world, drivers.DRIVERS[name], keys)
    shares = ' '.join(f'{key} {numbers[key]:6.1%}' for key in ('crash', 'collision', 'off_road', 'time_limit'))
    print(f'{name:10s} {shares} progress {numbers["progress"]:5.0f} m speed {numbers["speed"]:4.1f} m/s')
  return 0


if __name__ == '__main__':
  raise SystemExit(main())
