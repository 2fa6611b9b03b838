"""What a compiled program costs, as its compiler says: FLOPs, bytes, memory and collectives of each device."""

import math
import re

BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'f16': 2, 'bf16': 2, 's32': 4, 'u32': 4, 'f32': 4}
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')


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
