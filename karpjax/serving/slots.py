"""Texts of many requests in one batch: each has a slot, goes in and out on its own, and nothing is compiled anew.

A request's text is that of `generate.stream` with the same seed: token t is drawn from its key folded with t, and a model
whose cache is full reads the last half of its context once more.
"""

import asyncio
import collections
import dataclasses
import functools
import math
import sys
import threading
import traceback
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import generate
from karpjax.serving.batching import Full

STRIDE = 4  # tokens of a call
PARTS = 32, 8, 2, 1  # of a context: prompts are filled up to one of these lengths
SHORTEST = 8


@dataclasses.dataclass(frozen=True)
class Rules:
  """How the tokens of a text are drawn: `temperature` 0 takes the most probable; `top_p` as for `generate.filter_logits`."""

  temperature: float = 1.0
  top_p: float = 1.0
  seed: int = 0


@dataclasses.dataclass(eq=False)
class Text:
  """A text that goes on: its prompt, how many tokens it may have, and those that have come.

  `news` holds lists of tokens, then None, or what went wrong. Who has read enough sets `gone`.
  """

  tokens: list[int]
  most: int
  rules: Rules
  news: asyncio.Queue = dataclasses.field(default_factory=asyncio.Queue)
  gone: bool = False
  made: int = 0
  length: int = 0  # of what the cache holds


def draw(logits, keys, t, temperature, top_p):
  """The next token of each row, as `generate.next_tokens` with rules of its own; [slots] each but logits."""
  divided = logits / jnp.where(temperature > 0, temperature, 1)[:, None]
  limited = lambda: jnp.where(top_p[:, None] < 1, generate.nucleus(divided, top_p[:, None]), divided)
  own = jax.vmap(jax.random.fold_in)(keys, t)
  drawn = jax.vmap(jax.random.categorical)(own, jax.lax.cond((top_p < 1).any(), limited, lambda: divided))
  return jnp.where(temperature > 0, drawn, logits.argmax(-1)).astype(jnp.int32)


class Programs:
  """What is compiled: a prompt into a slot, for each length that prompts are filled up to; and STRIDE tokens of all slots.

  Args:
    model, variables: as for `generate.stream`.
    slots: how many texts go on at once.
  """

  def __init__(self, model, variables, slots: int):
    self.model, self.slots, self.context = model, slots, model.context
    self.limited, self.chunk = hasattr(model, 'begin'), generate.chunk_of(model)
    self.stride = math.gcd(STRIDE, self.chunk)
    self.sizes = sorted({n for part in PARTS if (n := self.context // part) >= SHORTEST} | {self.context})
    self.sizes = self.sizes if self.limited else [self.context]
    self._variables = jax.device_put(variables)
    self._state = self.empty()
    last, one = np.zeros(1, np.int32), np.int32(0)
    self._begin = {}
    for n in self.sizes:
      given = np.zeros((1, n), np.int32), last + 1, one, np.uint32(0), one, np.float32(1), np.float32(1)
      filled = jax.jit(functools.partial(_filled, model), donate_argnums=1)
      self._begin[n] = filled.lower(self._variables, self._state, *given).compile()
    step = jax.jit(functools.partial(_stepped, model, self.stride), donate_argnums=1)
    self._step = step.lower(self._variables, self._state).compile()

  def empty(self):
    """The state of slots that hold nothing."""
    n = self.slots
    first = np.zeros((n, self.sizes[0]), np.int32), np.ones(n, np.int32)
    logits, inner = jax.eval_shape(functools.partial(generate.begin, self.model), self._variables, *first)
    made = {'logits': logits, 'model': inner} | dict.fromkeys(('temperature', 'top_p'), np.ones(n, np.float32))
    made = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), made | {'t': np.ones(n, np.int32)})
    return {**made, 'keys': jax.random.split(jax.random.key(0), n)}

  def reset(self) -> None:
    self._state = self.empty()

  def begin(self, slot: int, tokens: Sequence[int], rules: Rules, t: int) -> None:
    """A slot goes on behind these tokens, at most `context`, of which it has drawn t."""
    size = next(n for n in self.sizes if n >= len(tokens))
    padded = np.zeros((1, size), np.int32)
    padded[0, : len(tokens)] = tokens
    numbers = np.uint32(rules.seed), np.int32(t), np.float32(rules.temperature), np.float32(rules.top_p)
    length = np.full(1, len(tokens), np.int32)
    self._state = self._begin[size](self._variables, self._state, padded, length, np.int32(slot), *numbers)

  def step(self) -> np.ndarray:
    """The next tokens of all slots, [slots, stride] int32; those of slots that hold nothing mean nothing."""
    self._state, tokens = self._step(self._variables, self._state)
    return np.asarray(tokens)


def _filled(model, variables, state, tokens, length, slot, seed, t, temperature, top_p):
  logits, inner = generate.begin(model, variables, tokens, length)
  keys = jax.random.split(jax.random.key(seed), 1)
  new = {
    'logits': logits,
    'model': inner,
    'keys': keys,
    't': t[None],
    'temperature': temperature[None],
    'top_p': top_p[None],
  }
  return jax.tree.map(lambda all, one: all.at[slot].set(one[0]), state, new)


def _stepped(model, stride, variables, state):
  def one(state, _):
    tokens = draw(*(state[name] for name in ('logits', 'keys', 't', 'temperature', 'top_p')))
    logits, inner = model.apply(variables, tokens[:, None], state['model'], method='step')
    return {**state, 'logits': logits, 'model': inner, 't': state['t'] + 1}, tokens

  state, tokens = jax.lax.scan(one, state, length=stride)
  return state, tokens.T


class Slots:
  """Goes on with texts in a thread of its own.

  Args:
    programs: compiled.
    end: the token that ends a text, or None.
    most: texts that may wait for a slot.
  """

  def __init__(self, programs: Programs, end: int | None, most: int):
    self._programs, self._end, self._most = programs, end, most
    self._waiting, self._texts = collections.deque(), [None] * programs.slots
    self._change, self._stopped = threading.Condition(), False
    self._loop = asyncio.get_running_loop()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def waiting(self) -> int:
    return len(self._waiting)

  def busy(self) -> int:
    """How many slots hold a text."""
    return sum(text is not None for text in self._texts)

  def ask(self, text: Text) -> None:
    """Has a text go on; raises Full where too many wait."""
    with self._change:
      if len(self._waiting) >= self._most:
        raise Full
      self._waiting.append(text)
      self._change.notify()

  def stop(self) -> None:
    with self._change:
      self._stopped = True
      self._change.notify()
    self._thread.join()

  def _run(self) -> None:
    while True:
      with self._change:
        self._change.wait_for(lambda: self._stopped or self._waiting or any(self._texts))
      if self._stopped:
        return
      try:
        self._admit()
        news = self._extend()
      except Exception as error:
        traceback.print_exc(file=sys.stderr)
        news = [(text, RuntimeError(str(error))) for text in self._texts if text]
        self._texts = [None] * len(self._texts)
        self._programs.reset()
      if news:
        self._loop.call_soon_threadsafe(_tell, news)

  def _admit(self) -> None:
    """Texts that nobody waits for leave, others come into their slots, and what has filled its cache reads again."""
    p = self._programs
    with self._change:
      self._waiting = collections.deque(text for text in self._waiting if not text.gone)
      for slot, text in enumerate(self._texts):
        if text is None or text.gone:
          self._texts[slot] = self._waiting.popleft() if self._waiting else None
    for slot, text in enumerate(self._texts):
      if text and (not text.length or (p.limited and text.made % p.chunk == 0 and text.length + p.chunk > p.context)):
        read = text.tokens[-(p.context // 2 if text.length else p.context - p.chunk if p.limited else p.context) :]
        p.begin(slot, read, text.rules, text.made)
        text.length = len(read)

  def _extend(self) -> list[tuple[Text, list[int] | None]]:
    """The next tokens of each text, and None behind its last."""
    news, tokens = [], self._programs.step() if any(self._texts) else None
    for slot, text in enumerate(self._texts):
      if text is None:
        continue
      new = tokens[slot].tolist()[: text.most - text.made]
      ends = self._end in new
      new = new[: new.index(self._end)] if ends else new
      text.tokens, text.made, text.length = (
        [*text.tokens, *new][-self._programs.context :],
        text.made + len(new),
        text.length + len(new),
      )
      news.append((text, new))
      if ends or text.made >= text.most:
        news.append((text, None))
        self._texts[slot] = None
    return news


def _tell(news) -> None:
  for text, what in news:
    text.news.put_nowait(what)
