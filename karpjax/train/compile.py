"""A compiled step: what it costs, as its compiler says, and how many steps one call of it should make."""

import math
import re
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from karpjax.train import hosts

BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'f16': 2, 'bf16': 2, 's32': 4, 'u32': 4, 'f32': 4}
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
MOVES = {
  *('reshape', 'broadcast_in_dim', 'transpose', 'squeeze', 'slice', 'dynamic_slice', 'dynamic_update_slice', 'gather'),
  *('concatenate', 'pad', 'rev', 'convert_element_type', 'copy', 'stop_gradient', 'iota'),
}
CALL_SECONDS = 0.25  # of a call of many steps: short enough to be stopped, long enough to hide dispatch
LARGEST_CALL = 8192  # steps


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
    size = sum(math.prod(getattr(x.aval, 'shape', ())) for x in equation.outvars)
    if name == 'dot_general':
      (contracted, _), _ = params['dimension_numbers']
      size *= 2 * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    elif name == 'conv_general_dilated':
      kernel, numbers = equation.invars[1].aval.shape, params['dimension_numbers']
      size *= 2 * math.prod(kernel) / kernel[numbers.rhs_spec[0]]
    total += 0 if name in MOVES else size
  return total


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


def measure_steps_per_call(carry, steps: int, run: Callable, compile_many: Callable) -> int:
  """How many steps a call should make: many only where that measures faster than one.

  A loop inside the program can be slower than the dispatch it saves (convolutions on CPU).

  Args:
    carry: on the devices; it is left as it is.
    steps: of the whole run.
    run: (carry, start, stop) -> carry, in one call, which is that of one step at first.
    compile_many: (steps) makes it one of up to so many.
  """
  one = hosts.from_host0(_seconds(run, carry, 1))  # all hosts have to choose alike
  if one > CALL_SECONDS / 4 or steps == 1:
    return 1
  in_a_row = max(1, min(steps, 8, int(CALL_SECONDS / one)))  # the first after a copy is slower
  one = hosts.from_host0(_seconds(run, carry, 1, calls=in_a_row))
  many = int(min(LARGEST_CALL, steps, 2 ** np.ceil(np.log2(CALL_SECONDS / one) + 2)))
  compile_many(many)
  first = hosts.from_host0(_seconds(run, carry, 1, times=1))
  trial = max(1, min(many, int(CALL_SECONDS / first)))
  return many if hosts.from_host0(_seconds(run, carry, trial)) < one else 1


def _seconds(run: Callable, carry, steps: int, times: int = 3, calls: int = 1) -> float:
  """Median seconds of a step, in so many calls of so many steps on a copy of the carry."""
  measured = []
  for _ in range(times + 1):
    copy = jax.block_until_ready(jax.tree.map(jnp.copy, carry))
    start_time = time.perf_counter()
    for start in range(0, calls * steps, steps):
      copy = run(copy, start, start + steps)
    jax.block_until_ready(copy)
    measured.append((time.perf_counter() - start_time) / (calls * steps))
  return sorted(measured[1:])[times // 2]
