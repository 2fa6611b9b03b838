"""Encoder and decoder: recurrent, without and with attention; and the models of translation by name.

Each model is called as (source, target_in) -> logits, and decodes with `encode` and `step`, see `karpjax.decoding`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from karpjax import decoding, errors
from karpjax.data import tokenisers
from karpjax.layers import initialisers, linear, recurrence, recurrent_attention
from karpjax.layers.dropout import Dropout
from karpjax.models import choices, mlp
from karpjax.models.transformer import Seq2SeqTransformer

ATTENTIONS = {
  'none': None,
  'additive': recurrent_attention.Additive,
  'multiplicative': recurrent_attention.Multiplicative,
}


class Decoder(nn.Module):
  """One time of a decoder that attends: reads where its last state looks, then says the next token.

  The context c_t that the last state h_{t−1} chooses enters the cell beside the token, and, with h_t and the token, the
  logits (Bahdanau et al. 2015, section A.2.2, with a dense layer for their maxout).

  Attributes:
    vocabulary: of the target.
    cell, units, dropout, dtype: as `recurrence.Stack`'s.
    attention: 'additive' or 'multiplicative'.
  """

  vocabulary: int
  cell: str
  units: tuple[int, ...]
  attention: str
  dropout: Any = 0.0
  dtype: Any = jnp.float32

  def setup(self):
    self.attend = ATTENTIONS[self.attention](self.units[-1], self.dtype)
    self.stack = recurrence.Stack(self.units, self.cell, dropout=self.dropout, dtype=self.dtype)
    self.drop, self.head = Dropout(self.dropout), linear.Dense(self.vocabulary, dtype=self.dtype)

  def keys(self, memory):
    """What the attention needs of the memory for all times."""
    return self.attend.keys(memory)

  def __call__(self, state, embedded, memory, *, train: bool = False):
    """One time.

    Args:
      state: of the stack.
      embedded: [batch, embedding], the last token.
      memory: (memory [batch, places, in], keys, seen [batch, places] bool).
      train: whether units are dropped.

    Returns:
      The next state; what the logits are made of, [batch, units + in + embedding], and the weights [batch, places].
    """
    memory, keys, seen = memory
    context, share = self.attend(state[-1][0], keys, memory, seen)
    x = jnp.concatenate([embedded, context.astype(embedded.dtype)], -1)
    out, state = self.stack(x[:, None], state, train=train)
    return state, (jnp.concatenate([out[:, 0], context.astype(out.dtype), embedded], -1), share)

  def logits(self, features, train: bool):
    """[…, units + in + embedding] -> […, vocabulary] float32."""
    return self.head(self.drop(features, train=train)).astype(jnp.float32)


class RecurrentSeq2Seq(nn.Module):
  """A recurrent encoder and decoder (Sutskever et al. 2014), with attention where asked. Token 0 is padding in both.

  Without attention all that the decoder knows of the source is the encoder's last state. With it the encoder reads both
  ways, and the decoder's first state is made of the last of both (Bahdanau et al. 2015).

  Attributes:
    source_vocabulary, vocabulary: how many tokens of the source and of the target.
    cell: 'rnn', 'lstm' or 'gru'.
    attention: 'none', 'additive' or 'multiplicative'.
    embedding: width of the embeddings.
    units: of each layer, of the encoder (for each direction) and of the decoder.
    dropout: rate on embeddings, between layers, and on what the logits are made of.
    dtype: of the computation; params, states and logits are float32.
  """

  source_vocabulary: int
  vocabulary: int
  cell: str = 'lstm'
  attention: str = 'additive'
  embedding: int = 128
  units: tuple[int, ...] = (128,)
  dropout: Any = 0.0
  dtype: Any = jnp.float32

  def setup(self):
    errors.choose('cell', self.cell, recurrence.CELLS)
    errors.choose('attention', self.attention, ATTENTIONS)
    mlp.check(embedding=self.embedding, units=self.units, dropout=self.dropout)
    embed = lambda size: nn.Embed(size, self.embedding, dtype=self.dtype, embedding_init=initialisers.normal(0.1))
    self.source_tokens, self.tokens = embed(self.source_vocabulary), embed(self.vocabulary)
    self.drop = Dropout(self.dropout)
    attends = self.attention != 'none'
    options = {'cell': self.cell, 'dropout': self.dropout, 'dtype': self.dtype}
    self.encoder = recurrence.Stack(self.units, bidirectional=attends, **options)
    if attends:
      self.decoder = Decoder(self.vocabulary, units=self.units, attention=self.attention, **options)
      self.bridges = [linear.Dense(units, dtype=self.dtype) for units in self.units]
    else:
      self.decoder, self.head = recurrence.Stack(self.units, **options), linear.Dense(self.vocabulary, dtype=self.dtype)

  def _read(self, source, train):
    """The decoder's first state, and what it attends to."""
    seen = source != 0
    outputs, finals = self.encoder(self.drop(self.source_tokens(source), train=train), mask=seen, train=train)
    if self.attention == 'none':
      return finals, ()
    bridged = tuple(
      tuple(jnp.tanh(bridge(x)).astype(jnp.float32) for x in state) for bridge, state in zip(self.bridges, finals)
    )
    return bridged, (outputs, self.decoder.keys(outputs), seen)

  def _decode(self, source, target_in, train):
    """Logits of all times, and the weights [batch, time, places] of the attention."""
    state, memory = self._read(source, train)
    x = self.drop(self.tokens(target_in), train=train)
    if self.attention == 'none':
      x, _ = self.decoder(x, state, train=train)
      return self.head(self.drop(x, train=train)).astype(jnp.float32), None
    over_time = nn.scan(
      lambda decoder, state, embedded: decoder(state, embedded, memory, train=train),
      variable_broadcast='params',
      split_rngs={'params': False, 'dropout': True},
      in_axes=1,
      out_axes=1,
    )
    _, (features, share) = over_time(self.decoder, state, x)
    return self.decoder.logits(features, train), share

  def __call__(self, source, target_in, *, train: bool = False):
    """source [batch, places], target_in [batch, time] int32 -> logits [batch, time, vocabulary] float32."""
    logits, share = self._decode(source, target_in, train)
    if share is not None and self.is_mutable_collection('intermediates'):
      self.sow('intermediates', 'attention', share[:, None])  # [batch, one head, time, places]
    return logits

  def encode(self, source, steps: int = 0):
    """What `step` begins with, every leaf [batch, …]: the state before the first token, and what no token changes. `steps` is
    for models that need room.
    """
    return self._read(source, False)

  def step(self, tokens, state, memory):
    """tokens [batch] int32 behind those of a state -> logits [batch, vocabulary] float32 of what follows, and the state."""
    embedded = self.tokens(tokens)
    if self.attention == 'none':
      out, state = self.decoder(embedded[:, None], state)
      return self.head(out[:, 0]).astype(jnp.float32), state
    state, (features, _) = self.decoder(state, embedded, memory)
    return self.decoder.logits(features, False), state


MODELS = {  # name -> constructor
  **{cell: functools.partial(RecurrentSeq2Seq, cell=cell) for cell in recurrence.CELLS},
  'transformer': Seq2SeqTransformer,
}
# fields that are no options: the data, or the model's name, decides them
_DECIDED = ('cell', 'source_vocabulary', 'vocabulary', 'source_context', 'context', 'dtype')


def build(
  name: str,
  vocabularies: Mapping[str, tokenisers.Tokeniser],
  lengths: Mapping[str, int],
  *,
  dtype=jnp.float32,
  options: Mapping[str, Any],
) -> nn.Module:
  """The model called `name`, traced once but not compiled.

  Args:
    name: a key of MODELS.
    vocabularies: the tokenisers of 'source' and 'target'.
    lengths: of the longest 'source' and 'target', for which a Transformer has positions.
    dtype: of the computation.
    options: what the user chose; None leaves the model's own default.

  Raises:
    UsageError: for an unknown name or option, or a value that makes no sense.
  """
  constructor = errors.choose('model', name, MODELS)
  chosen = choices.checked(name, constructor, options, _DECIDED)
  contexts = {'source_context': lengths['source'], 'context': lengths['target']} if name == 'transformer' else {}
  sizes = {'source_vocabulary': vocabularies['source'].size, 'vocabulary': vocabularies['target'].size}
  model = constructor(dtype=dtype, **sizes, **contexts, **chosen)
  if not any(isinstance(value, jax.Array) for value in jax.tree.leaves(chosen)):
    shapes = [jax.ShapeDtypeStruct((1, lengths[side]), jnp.int32) for side in ('source', 'target')]
    jax.eval_shape(model.init, jax.random.key(0), *shapes)
  return model


def translate(model: nn.Module, params, source, *, steps: int, beam: int = 1, length_penalty: float = 0.0):
  """The best translation of each source, greedily found or by a beam.

  Args:
    model: one of MODELS.
    params: its parameters.
    source: [batch, places] int32, with </s> at its end and 0 behind that.
    steps: the most tokens, the end included.
    beam: how many sequences are kept; 1: greedy.
    length_penalty: as `decoding.beam_search`'s.

  Returns:
    [batch, steps] int32: 0 follows </s>. What stands for no text (<pad>, <unk>, <s>) is never said.
  """
  silent = jnp.array([tokenisers.PAD, tokenisers.UNKNOWN, tokenisers.BEGIN])

  state, memory = model.apply({'params': params}, source, steps, method='encode')
  memory = decoding.repeat(memory, beam)

  def step(tokens, state):
    logits, state = model.apply({'params': params}, tokens, state, memory, method='step')
    return logits.at[:, silent].set(-jnp.inf), state

  first = jnp.full(len(source), tokenisers.BEGIN, jnp.int32)
  if beam == 1:
    return decoding.greedy(step, state, first, steps=steps, end=tokenisers.END)
  tokens, _ = decoding.beam_search(
    step, state, first, beam=beam, steps=steps, end=tokenisers.END, length_penalty=length_penalty
  )
  return tokens[:, 0]


def alignment(model: nn.Module, params, source, target_in):
  """Where the decoder looks: [batch, time, places] float32, a Transformer's heads of its last block averaged; or None."""
  _, seen = model.apply({'params': params}, source, target_in, mutable='intermediates')
  leaves = jax.tree_util.tree_leaves_with_path(seen)
  chosen = [x for path, x in leaves if 'cross' in jax.tree_util.keystr(path) or len(path) == 3]
  return chosen[-1].mean(1) if chosen else None
