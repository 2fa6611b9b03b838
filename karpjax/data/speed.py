"""How many images a second a data set yields: streamed by this thread, by threads, by processes; and on the device.

python -m karpjax.data.speed digits cifar10 --data_dir=DIR
python -m karpjax.data.speed folder:PATH --image_size=224 --workers 2 8
"""

import argparse
import dataclasses
import functools
import itertools
import sys
import time

import jax

from karpjax import config, paths
from karpjax.data import batches, dataset, images
from karpjax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Config(config.Train, images.Flags):
  """What a data set is read with."""


def images_per_second(iterator, batch_size: int, seconds: float) -> float:
  """Of an endless iterator of batches, after two of them, over at least `seconds`."""
  for _ in range(2):
    jax.block_until_ready(next(iterator))
  start, count = time.perf_counter(), 0
  while count < 3 or time.perf_counter() - start < seconds:
    jax.block_until_ready(next(iterator))
    count += 1
  return count * batch_size / (time.perf_counter() - start)


def ways(streamed: dataset.Split, whole: dataset.Split, batch_size: int, workers: list[int]):
  """How a batch can come to be: {name: endless iterator}; on the device only where `whole` fits in memory."""
  size = streamed.size
  numbers = lambda t: batches.indices(0, t, 1, batch_size=batch_size, size=size)[0]
  iterators = {'one thread': (batches.fetch(streamed, numbers(t)) for t in itertools.count())}
  for count in (0, *workers):
    name = f'{count} processes' if count else 'threads'
    iterators[name] = batches.stream(streamed, numbers, 0, 2**31, workers=count)
  if whole.arrays is not None:
    arrays, gather = jax.device_put(whole.arrays), jax.jit(whole.gather)
    iterators['on the device'] = (gather(arrays, numbers(t)) for t in itertools.count())
  return iterators


def rates(name: str, options) -> str:
  """The line of one data set."""
  read = Config(dataset=name, data_dir=options.data_dir, image_size=options.image_size, validation=0.0)
  train = lambda mb: images.load(dataclasses.replace(read, resident_mb=mb)).splits['train']
  streamed, whole = train(0), train(options.resident_mb)
  if not 1 <= options.batch_size <= streamed.size:
    raise UsageError(f'--batch_size={options.batch_size}: {name} has {streamed.size} examples')
  iterators = ways(streamed, whole, options.batch_size, options.workers)
  figures = ((way, images_per_second(it, options.batch_size, options.seconds)) for way, it in iterators.items())
  return f'{name}, images a second: ' + ', '.join(f'{way} {rate:,.0f}' for way, rate in figures)


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
    prog='python -m karpjax.data.speed', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flag = functools.partial(parser.add_argument, type=int)
  flag(
    'dataset', nargs='*', default=['digits'], type=paths.expand, help='as --dataset of image_classification (digits)'
  )
  flag('--data_dir', default='', type=paths.expand, help='where prepared sets are found')
  flag('--batch_size', default=128, help='images a batch (128)')
  flag('--image_size', default=0, help='to resize to; 0: as stored')
  flag('--resident_mb', default=2048, help='larger sets are only streamed (2048)')
  flag('--workers', nargs='*', default=[2], help='processes that decode (2)')
  flag('--seconds', type=float, default=2.0, help='of measurement for each (2)')
  options = parser.parse_args(argv)
  try:
    if not options.seconds > 0 or min(options.workers, default=1) < 1:
      raise UsageError('--seconds and --workers must be positive')
    for name in options.dataset:
      print(rates(name, options), flush=True)
  except UsageError as error:
    print(f'speed: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  raise SystemExit(main())
