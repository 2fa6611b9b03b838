"""A compiled step: what it costs, as its compiler says, and how many steps one call of it makes."""

import collections
import math
import re

import jax
import jax.extend as jex
from jax.interpreters import partial_eval

from karpjax.train import runtime

BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'f16': 2, 'bf16': 2, 's32': 4, 'u32': 4, 'f32': 4}
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
MOVES = {
  *('reshape', 'broadcast_in_dim', 'transpose', 'squeeze', 'slice', 'dynamic_slice', 'dynamic_update_slice', 'gather'),
  *('concatenate', 'pad', 'rev', 'convert_element_type', 'copy', 'stop_gradient', 'iota'),
}
LARGEST_CALL = 1024, 2**22  # steps, and example numbers of them


def estimate_flops(jaxpr, *, loops: bool = True) -> float:
  """Roughly the FLOPs of a jaxpr, on any backend; what nothing depends on counts nothing.

  Of products and convolutions twice the multiplications; of all else the size of the results, none where data are only
  moved. Loops of unknown length count once, and of branches the one with most FLOPs, or that of this platform.

  Args:
    jaxpr: of a step.
    loops: whether the body of a loop counts as often as it runs, or once.
  """
  jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return _flops(jaxpr, loops)


def _flops(jaxpr, loops: bool) -> float:
  total = 0.0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    inner = [_flops(x, loops) for x in _jaxprs(equation)]
    if inner:
      times = params['length'] if name == 'scan' and loops else 1
      total += times * (max(inner) if name == 'cond' else sum(inner))
      continue
    total += 0 if name in MOVES else _size(equation)
  return total


def _size(equation) -> float:
  """The FLOPs of an equation without inner jaxprs, whose data are not only moved."""
  name, params = equation.primitive.name, equation.params
  size = sum(math.prod(getattr(x.aval, 'shape', ())) for x in equation.outvars)
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    size *= 2 * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
  elif name == 'conv_general_dilated':
    kernel, numbers = equation.invars[1].aval.shape, params['dimension_numbers']
    size *= 2 * math.prod(kernel) / kernel[numbers.rhs_spec[0]]
  return size


def flops_by_input(jaxpr, owners) -> tuple[collections.Counter, list]:
  """({owner: FLOPs of the products and convolutions with an input of a jaxpr, however moved}, the owners of its outputs).

  Loops of unknown length are left out; of branches the first counts.

  Args:
    jaxpr: not closed.
    owners: what each of its inputs is called, None of those that do not matter.
  """
  of, found = dict(zip(jaxpr.invars, owners)), collections.Counter()
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    whose = [None if isinstance(x, jex.core.Literal) else of.get(x) for x in equation.invars]
    if inner := _jaxprs(equation) if name != 'while' else ():
      each, out = flops_by_input(inner[0], whose[-len(inner[0].invars) :])
      times = equation.params['length'] if name == 'scan' else 1
      found.update({owner: times * flops for owner, flops in each.items()})
      of.update(zip(equation.outvars, out))
    elif owner := next(filter(None, whose), None):
      if name in ('dot_general', 'conv_general_dilated'):
        found[owner] += _size(equation)
      elif name in MOVES:
        of[equation.outvars[0]] = owner
  return found, [None if isinstance(x, jex.core.Literal) else of.get(x) for x in jaxpr.outvars]


def largest_array(jaxpr) -> int:
  """Bytes of the largest array that no compiler leaves out: what products and convolutions take and give, and loops stack."""
  sizes = [max(map(largest_array, _jaxprs(equation)), default=0) for equation in jaxpr.eqns]
  for equation in jaxpr.eqns:
    if equation.primitive.name in ('dot_general', 'conv_general_dilated', 'scan'):
      arrays = [x.aval for x in (*equation.invars, *equation.outvars) if hasattr(x.aval, 'dtype')]
      sizes += [math.prod(x.shape) * x.dtype.itemsize for x in arrays]
  return max(sizes, default=0)


def contains_primitive(name: str, jaxpr) -> bool:
  """Whether a jaxpr, or what it calls, has this operation."""
  return any(e.primitive.name == name or any(contains_primitive(name, x) for x in _jaxprs(e)) for e in jaxpr.eqns)


def _jaxprs(equation):
  """The jaxprs inside an equation; where it chooses by platform, that of ours."""
  inner = [
    getattr(x, 'jaxpr', x)  # closed or not
    for value in equation.params.values()
    for x in (value if isinstance(value, (tuple, list)) else (value,))
    if hasattr(getattr(x, 'jaxpr', x), 'eqns')
  ]
  platforms = equation.params.get('branches_platforms')
  if platforms:
    here = jax.default_backend()
    return [next(x for x, names in zip(inner, platforms) if names is None or here in names)]
  return inner


def memory_analysis(compiled) -> dict:
  """Bytes read and written by a program, of its arguments and of its temporaries, on one device."""
  memory = compiled.memory_analysis()
  return {
    'bytes': (compiled.cost_analysis() or {}).get('bytes accessed'),
    'argument_bytes': getattr(memory, 'argument_size_in_bytes', None),
    'temporary_bytes': getattr(memory, 'temp_size_in_bytes', None),
  }


def collectives(text: str) -> dict[str, tuple[int, int]]:
  """{kind: (how many, bytes of their results on one device)}, from the text of a compiled program; loops count once."""
  totals = {}
  for shape, kind in re.findall(rf'= (.+?) ({"|".join(COLLECTIVES)})(?:-start)?\(', text):
    count, size = totals.get(kind, (0, 0))
    for dtype, dims in re.findall(r'(\w+)\[([\d,]*)\]', shape):
      size += BYTES.get(dtype, 8) * math.prod(int(n) for n in dims.split(',') if n)
    totals[kind] = count + 1, size
  return totals


def steps_per_call(steps: int, examples: int, flops: float) -> int:
  """How many steps a call of the program makes at the most: one, or many in a loop inside it.

  A loop saves what a call costs, which is much of a small step and nothing of a large one. It is decided by the step
  alone, not by a clock, so that the same command compiles the same program.

  Args:
    steps: of the whole run.
    examples: of one step, over all seeds.
    flops: of one step, over all seeds.
  """
  most, numbers = LARGEST_CALL
  return 1 if runtime.is_large(flops) else max(1, min(steps, most, numbers // examples))
