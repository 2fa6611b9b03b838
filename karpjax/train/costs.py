"""What a compiled program costs, as its compiler says: FLOPs, bytes, memory and collectives of each device."""

import math
import re

import jax

BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'f16': 2, 'bf16': 2, 's32': 4, 'u32': 4, 'f32': 4}
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')


def compiled(lowered, jaxpr, devices: int = 1, *, of_one: bool = False, options: dict | None = None):
  """A lowered program compiled, and the FLOPs of a call over all devices, or None where the backend counts none.

  They are counted before compilation where the backend can, for afterwards calls of a library, such as oneDNN, count as
  nothing. GPUs and TPUs count only what is compiled, which is one device's part. They all count the body of a loop
  once, which is put right by the jaxpr.

  Args:
    lowered: by jit or pmap.
    jaxpr: that was lowered.
    devices: that run it.
    of_one: whether the lowered program too is one device's part.
    options: of the compiler.
  """
  flops = _flops(lowered, devices if of_one else 1)
  made = lowered.compile(options)
  flops = _flops(made, devices) if flops is None else flops
  once, all_ = work(jaxpr)
  return made, flops * all_ / once if flops and once else flops


def work(jaxpr) -> tuple[float, float]:
  """Roughly the FLOPs of a jaxpr, (bodies of loops counted once, counted as often as they run).

  Of products and convolutions twice the multiplications, of all else the numbers that are made. Loops of unknown length count
  once in both, and of branches the one with most work, or that of this platform.
  """
  once = all_ = 0.0
  for equation in jaxpr.eqns:
    params, size = equation.params, sum(math.prod(getattr(x.aval, 'shape', ())) for x in equation.outvars)
    inner = [work(x) for x in _jaxprs(equation)]
    if equation.primitive.name == 'cond':
      inner = [max(inner, key=lambda counted: counted[1])]
    elif equation.primitive.name == 'dot_general':
      (contracted, _), _ = params['dimension_numbers']
      size *= 2 * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    elif equation.primitive.name == 'conv_general_dilated':
      kernel, numbers = equation.invars[1].aval.shape, params['dimension_numbers']
      size *= 2 * math.prod(kernel) / kernel[numbers.rhs_spec[0]]
    times = params['length'] if equation.primitive.name == 'scan' else 1
    once += sum(a for a, _ in inner) if inner else size
    all_ += sum(b for _, b in inner) * times if inner else size
  return once, all_


def uses(primitive: str, jaxpr) -> bool:
  """Whether a jaxpr, or what it calls, has this operation."""
  return any(e.primitive.name == primitive or any(uses(primitive, x) for x in _jaxprs(e)) for e in jaxpr.eqns)


def _jaxprs(equation):
  """Those inside an equation; where it chooses by platform, that of ours."""
  found = [
    getattr(x, 'jaxpr', x)  # closed or not
    for value in equation.params.values()
    for x in (value if isinstance(value, (tuple, list)) else (value,))
    if hasattr(getattr(x, 'jaxpr', x), 'eqns')
  ]
  platforms = equation.params.get('branches_platforms')
  if platforms:
    here = jax.default_backend()
    return [next(x for x, names in zip(found, platforms) if names is None or here in names)]
  return found


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
