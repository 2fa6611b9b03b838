"""What a compiled program costs, as its compiler says: FLOPs, bytes, memory and collectives of each device."""

import math
import re

import jax

BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'f16': 2, 'bf16': 2, 's32': 4, 'u32': 4, 'f32': 4}
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')


def compiled(lowered, devices: int = 1, *, of_one: bool = False, options=lambda flops: None):
  """A lowered program compiled, and the FLOPs of a call over all devices, or None where the backend counts none.

  They are counted before compilation where the backend can, for afterwards calls of a library, such as oneDNN, count as
  nothing. GPUs and TPUs count only what is compiled, which is one device's part.

  Args:
    lowered: by jit or pmap.
    devices: that run it.
    of_one: whether the lowered program too is one device's part.
    options: of the compiler, by FLOPs.
  """
  flops = _flops(lowered, devices if of_one else 1)
  made = lowered.compile(options(flops))
  return made, _flops(made, devices) if flops is None else flops


def _flops(program, times: int) -> float | None:
  try:
    counted = (program.cost_analysis() or {}).get('flops')
  except jax.errors.JaxRuntimeError:  # of a described topology
    return None
  return None if counted is None else counted * times


def figures(compiled) -> dict:
  """Bytes read and written by a program, of its arguments and of its temporaries, on one device."""
  memory = compiled.memory_analysis()
  return {
    'bytes': (compiled.cost_analysis() or {}).get('bytes accessed'),
    'argument_bytes': getattr(memory, 'argument_size_in_bytes', None),
    'temporary_bytes': getattr(memory, 'temp_size_in_bytes', None),
  }


def collectives(text: str) -> dict[str, tuple[int, int]]:
  """{kind: (how many, bytes of their results on one device)}, from the text of a compiled program; loops count once."""
  found = {}
  for shape, kind in re.findall(rf'= (.+?) ({"|".join(COLLECTIVES)})(?:-start)?\(', text):
    sizes = (
      BYTES.get(dtype, 8) * math.prod(int(n) for n in dims.split(',') if n)
      for dtype, dims in re.findall(r'(\w+)\[([\d,]*)\]', shape)
    )
    count, size = found.get(kind, (0, 0))
    found[kind] = count + 1, size + sum(sizes)
  return found
