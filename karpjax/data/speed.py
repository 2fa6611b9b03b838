"""How many images a second a data set yields: streamed by this thread, by threads, by processes; and on the device.

python -m karpjax.data.speed digits cifar10 --data_dir=DIR
python -m karpjax.data.speed folder:PATH --image_size=224 --workers 2 8
"""

import argparse
import functools
import itertools
import sys
import time

import jax

from karpjax import errors
from karpjax.data import batches, dataset


def numbers_of(size: int, batch_size: int, t: int):
  """The example numbers of step t; a function of the module, since worker processes need to pickle it."""
  return batches.indices(0, t, 1, batch_size=batch_size, size=size)[0]


def images_per_second(made, batch_size: int, seconds: float) -> float:
  """Of an endless iterator of batches, after two of them, over at least `seconds`."""
  for _ in range(2):
    jax.block_until_ready(next(made))
  begun, count = time.perf_counter(), 0
  while count < 3 or time.perf_counter() - begun < seconds:
    jax.block_until_ready(next(made))
    count += 1
  return count * batch_size / (time.perf_counter() - begun)


def ways(streamed: dataset.Split, resident: dataset.Split | None, batch_size: int, workers: list[int]):
  """How a batch can come to be: {name: endless iterator}; `resident` is None where it is too large for memory."""
  numbers = functools.partial(numbers_of, streamed.size, batch_size)
  made = {'one thread': (batches.fetch(streamed, numbers(t)) for t in itertools.count())}
  for count in (0, *workers):
    name = f'{count} processes' if count else 'threads'
    made[name] = batches.stream(streamed, numbers, 0, 2**31, workers=count)
  if resident is not None:
    arrays, gather = jax.device_put(resident.arrays), jax.jit(resident.gather)
    made['on the device'] = (gather(arrays, numbers(t)) for t in itertools.count())
  return made


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
    prog='python -m karpjax.data.speed', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('dataset', nargs='*', default=['digits'], help='as --dataset of image_classification (digits)')
  parser.add_argument('--data_dir', default='', help='where prepared sets are found')
  parser.add_argument('--batch_size', type=int, default=128, help='images a batch (128)')
  parser.add_argument('--image_size', type=int, default=0, help='to resize to; 0: as stored')
  parser.add_argument('--resident_mb', type=int, default=2048, help='larger sets are only streamed (2048)')
  parser.add_argument('--workers', type=int, nargs='*', default=[2], help='processes that decode (2)')
  parser.add_argument('--seconds', type=float, default=2.0, help='of measurement for each (2)')
  options = parser.parse_args(argv)
  try:
    if options.batch_size < 1 or not options.seconds > 0 or min(options.workers, default=1) < 1:
      raise errors.UsageError('--batch_size, --seconds and --workers must be positive')
    load = functools.partial(dataset.load, data_dir=options.data_dir, image_size=options.image_size)
    for name in options.dataset:
      streamed, whole = (load(name, resident_bytes=n).splits['train'] for n in (0, options.resident_mb * 2**20))
      if options.batch_size > streamed.size:
        raise errors.UsageError(f'--batch_size={options.batch_size}: {name} has {streamed.size} examples')
      made = ways(streamed, None if whole.arrays is None else whole, options.batch_size, options.workers)
      found = ((way, images_per_second(made[way], options.batch_size, options.seconds)) for way in made)
      print(f'{name}, images a second: ' + ', '.join(f'{way} {rate:,.0f}' for way, rate in found), flush=True)
  except errors.UsageError as error:
    print(f'speed: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  raise SystemExit(main())
