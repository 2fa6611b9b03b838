"""Recurrent layers: one matmul of the inputs for all times, and a scan over time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from karpjax import axes
from karpjax.layers import initialisers, linear

State = tuple  # of arrays [batch, directions * units] float32; the first is the output of the last time


def rnn_update(state, from_input, from_state):
  """h' = tanh(sum of both parts) (Elman 1990). state: ([..., units],); each part: [..., units]."""
  return (jnp.tanh(from_input + from_state),)


def lstm_update(state, from_input, from_state):
  """One step of long short-term memory (Hochreiter & Schmidhuber 1997; with forget gates, Gers et al. 2000).

  Args:
    state: (h, c), each [..., units] float32.
    from_input, from_state: [..., 4 units] float32, whose sum is for the input gate, the forget gate, the candidate and
      the output gate, as in PyTorch.
  """
  into, forget, candidate, out = jnp.split(from_input + from_state, 4, axis=-1)
  c = jax.nn.sigmoid(forget) * state[1] + jax.nn.sigmoid(into) * jnp.tanh(candidate)
  return jax.nn.sigmoid(out) * jnp.tanh(c), c


def gru_update(state, from_input, from_state):
  """One step of a gated recurrent unit (Cho et al. 2014), reset after the matmul as in cuDNN and PyTorch.

  Args:
    state: (h,), [..., units] float32.
    from_input, from_state: [..., 3 units] float32: for the reset gate, the update gate and the candidate.
  """
  reset_x, update_x, candidate_x = jnp.split(from_input, 3, axis=-1)
  reset_h, update_h, candidate_h = jnp.split(from_state, 3, axis=-1)
  update = jax.nn.sigmoid(update_x + update_h)
  candidate = jnp.tanh(candidate_x + jax.nn.sigmoid(reset_x + reset_h) * candidate_h)
  return (update * state[0] + (1 - update) * candidate,)


class Cell(NamedTuple):
  """Attributes:
  update: (state, the inputs' part, the state's part) -> state.
  gates: how many blocks of units the kernels give.
  arrays: how many the state has.
  state_bias: whether the state's part has a bias of its own.
  """

  update: Callable
  gates: int
  arrays: int
  state_bias: bool = False


CELLS = {'rnn': Cell(rnn_update, 1, 1), 'lstm': Cell(lstm_update, 4, 2), 'gru': Cell(gru_update, 3, 1, True)}


def scan_over_time(cell: Cell, initial, projected, kernel, bias, real, fresh):
  """A cell over a sequence.

  Args:
    cell: one of CELLS.
    initial: tuple of [batch, units] float32.
    projected: [time, batch, gates * units] float32, the inputs' part.
    kernel: [units, gates * units], in the dtype of the matmul.
    bias: [gates * units] float32, added to the state's part.
    real: [time, batch, 1] bool, False at padding, which leaves the state as it was; or None.
    fresh: [time, batch, 1] bool, True where a time begins with a state of zeros, whatever came before; or None.

  Returns:
    The final state, and of each time, [time, batch, …] float32, the state and the sum of both parts.
  """

  def step(state, now):
    from_input, real, fresh = now
    if fresh is not None:
      state = jax.tree.map(lambda s: jnp.where(fresh, 0, s), state)
    from_state = jnp.matmul(state[0].astype(kernel.dtype), kernel, preferred_element_type=jnp.float32) + bias
    new = cell.update(state, from_input, from_state)
    if real is not None:
      new = jax.tree.map(lambda a, b: jnp.where(real, a, b), new, state)
    return new, (new, from_input + from_state)

  return jax.lax.scan(step, initial, (projected, real, fresh))


class Recurrent(nn.Module):
  """One recurrent layer over a sequence, read forwards or both ways at once.

  Params, as in PyTorch, with a leading axis [directions] (1, or 2 when bidirectional): 'input_kernel'
  [in, gates * units], 'input_bias' [gates * units], 'state_kernel' [units, gates * units] and, for the GRU,
  'state_bias' [gates * units], each drawn from U(-1, 1) / sqrt(units); the biases of the LSTM's forget gates are 1
  (Jozefowicz et al. 2015).

  Attributes:
    units: of the state, for each direction.
    cell: 'rnn', 'lstm' or 'gru'.
    bidirectional: whether a second one reads the sequence from its end.
    dtype: of the matmuls and the output; the state and the gates stay float32.
  """

  units: int
  cell: str = 'gru'
  bidirectional: bool = False
  dtype: Any = jnp.float32

  def initial(self, batch: int) -> State:
    """The state before the first time: zeros."""
    width = self.units * (1 + self.bidirectional)
    return tuple(jnp.zeros((batch, width), jnp.float32) for _ in range(CELLS[self.cell].arrays))

  @nn.compact
  def __call__(self, x, initial: State | None = None, mask=None, fresh=None):
    """Reads a sequence.

    Args:
      x: [batch, time, in], or linear.Rows with an index [batch, time].
      initial: the state before the first time; zeros by default.
      mask: [batch, time] bool, False at padding: it leaves the state as it was, and its output is 0.
      fresh: [batch, time] bool, True where another sequence begins, with a state of zeros; read forwards only.

    Returns:
      outputs [batch, time, directions * units] of `dtype`, those of the second direction in the sequence's own order,
      and the final state.

    Raises:
      ValueError: for `fresh` in a bidirectional layer.
    """
    if fresh is not None and self.bidirectional:
      raise ValueError('sequences after each other, by `fresh`, are read forwards only')
    cell = CELLS[self.cell]
    directions, width = 1 + self.bidirectional, cell.gates * self.units
    uniform = initialisers.uniform(self.units**-0.5)

    def first_bias(key, shape):
      drawn = uniform(key, shape)
      return drawn.at[:, self.units : 2 * self.units].set(1.0) if self.cell == 'lstm' else drawn

    kernel = axes.declare(uniform, 'sio')
    input_kernel = self.param('input_kernel', kernel, (directions, x.shape[-1], width)).astype(self.dtype)
    input_bias = self.param('input_bias', first_bias, (directions, width))
    state_kernel = self.param('state_kernel', kernel, (directions, self.units, width)).astype(self.dtype)
    state_bias = jnp.zeros((directions, width))
    if cell.state_bias:
      state_bias = self.param('state_bias', uniform, (directions, width))
    x = linear.reorder(x.astype(self.dtype), lambda a: jnp.swapaxes(a, 0, 1))  # [time, batch, in]
    real, fresh = (None if m is None else m.T[..., None] for m in (mask, fresh))  # [time, batch, 1]
    initial = self.initial(x.shape[1]) if initial is None else initial
    finals, outputs = [], []
    for d in range(directions):
      turn = (lambda a: a) if d == 0 else (lambda a: None if a is None else a[::-1])
      # [time, batch, gates * units]
      projected = linear.project(linear.reorder(x, turn), input_kernel[d], jnp.float32) + input_bias[d]
      begun = tuple(s[:, d * self.units : (d + 1) * self.units] for s in initial)
      state = state_kernel[d], state_bias[d]
      final, (states, gates) = scan_over_time(cell, begun, projected, *state, turn(real), fresh)
      self.sow('intermediates', 'inside', {'states': states, 'gates': gates})  # for looking at
      finals.append(final)
      outputs.append(turn(states[0]))
    output = jnp.swapaxes(jnp.concatenate(outputs, -1), 0, 1)  # [batch, time, directions * units]
    if mask is not None:
      output = jnp.where(mask[..., None], output, 0)
    return output.astype(self.dtype), tuple(jnp.concatenate(parts, -1) for parts in zip(*finals))


class Stack(nn.Module):
  """Recurrent layers 'layer1', 'layer2', … on top of each other, with dropout between them (Zaremba et al. 2014).

  Attributes:
    units: of each layer, for each direction.
    cell, bidirectional, dtype: as `Recurrent`'s.
    dropout: rate between the layers.
  """

  units: tuple[int, ...]
  cell: str = 'lstm'
  bidirectional: bool = False
  dropout: Any = 0.0
  dtype: Any = jnp.float32

  def initial(self, batch: int) -> tuple[State, ...]:
    """The state of each layer before the first time: zeros."""
    return tuple(self._layer(n, parent=None).initial(batch) for n in self.units)

  def _layer(self, units, **options):
    return Recurrent(units, self.cell, self.bidirectional, self.dtype, **options)

  @nn.compact
  def __call__(self, x, initial: tuple[State, ...] | None = None, mask=None, *, train: bool = False):
    """x: as `Recurrent`'s -> outputs [batch, time, directions * units[-1]] and the final state of each layer."""
    finals = []
    for i, units in enumerate(self.units):
      if i:
        x = linear.Dropout(self.dropout)(x, train=train)
      x, final = self._layer(units, name=f'layer{i + 1}')(x, None if initial is None else initial[i], mask)
      finals.append(final)
    return x, tuple(finals)
