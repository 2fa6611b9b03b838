"""Encoders and decoders: recurrent, without and with attention, and the Transformer.

Each model is called as (source, target_in) -> logits, and decodes with `encode` and `step`, see `karpjax.search`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax import search
from karpjax.data import tokenisers
from karpjax.layers import attention, initialisers, linear, recurrence
from karpjax.layers.transformer import Block, Tokens
from karpjax.models.transformer import Decoder, Encoder, Sizes
from karpjax.options import option, shared

ATTENTIONS = {
  'none': None,
  'additive': attention.Additive,
  'multiplicative': attention.Multiplicative,
}


class AttendingDecoder(nn.Module):
  """One step of a decoder that attends: reads the memory by its last state, then predicts the next token.

  The context c_t that the last state h_{t−1} chooses enters the cell beside the token, and, with h_t and the token, the
  logits (Bahdanau et al. 2015, section A.2.2, with a dense layer for their maxout).
  """

  vocabulary: int
  cell: str
  units: tuple[int, ...]
  attention: str
  dropout: float = 0.0
  dtype: Any = jnp.float32

  def setup(self):
    self.attend = ATTENTIONS[self.attention](self.units[-1], self.dtype)
    self.stack = recurrence.Stack(self.units, self.cell, dropout=self.dropout, dtype=self.dtype)
    self.drop, self.head = linear.Dropout(self.dropout), linear.Head(self.vocabulary, dtype=self.dtype)

  def __call__(self, state, embedded, memory, *, train: bool = False):
    """One step.

    Args:
      state: of the stack.
      embedded: [batch, embedding], the last token.
      memory: (memory [batch, source, in], its keys, mask [batch, source] bool).

    Returns:
      The next state; the features [batch, units + in + embedding] of the logits, and the weights [batch, source].
    """
    memory, keys, mask = memory
    context, weights = self.attend(state[-1][0], keys, memory, mask)
    x = jnp.concatenate([embedded, context.astype(embedded.dtype)], -1)
    out, state = self.stack(x[:, None], state, train=train)
    return state, (jnp.concatenate([out[:, 0], context.astype(out.dtype), embedded], -1), weights)

  def logits(self, features, train: bool):
    """[…, units + in + embedding] -> […, vocabulary] float32."""
    return self.head(self.drop(features, train=train)).astype(jnp.float32)


class RecurrentSeq2Seq(nn.Module):
  """A recurrent encoder and decoder (Sutskever et al. 2014), with attention where asked. Token 0 is padding in both.

  Without attention the decoder knows the source by the encoder's last state alone. With it the encoder reads both ways,
  and the decoder's first state is made of the last of both (Bahdanau et al. 2015).
  """

  source_vocabulary: int
  vocabulary: int
  cell: str = 'lstm'
  attention: str = option(
    'additive', 'Attention of the decoder: Bahdanau et al. 2015, or Luong et al. 2015.', choices=ATTENTIONS
  )
  embedding: int = option(128, 'Width of the embeddings.', low=1)
  units: tuple[int, ...] = option((128,), 'Units of each recurrent layer, of encoder and decoder.', low=1, least=1)
  dropout: float = option(0.0, "Dropout rate on each layer's input.", low=0, below=1)
  dtype: Any = jnp.float32

  def setup(self):
    embed = lambda size: nn.Embed(size, self.embedding, dtype=self.dtype, embedding_init=initialisers.normal(0.1))
    self.source_tokens, self.tokens = embed(self.source_vocabulary), embed(self.vocabulary)
    self.drop = linear.Dropout(self.dropout)
    attends = self.attention != 'none'
    options = {'cell': self.cell, 'dropout': self.dropout, 'dtype': self.dtype}
    self.encoder = recurrence.Stack(self.units, bidirectional=attends, **options)
    if attends:
      self.decoder = AttendingDecoder(self.vocabulary, units=self.units, attention=self.attention, **options)
      self.bridges = [linear.Dense(units, dtype=self.dtype) for units in self.units]
    else:
      self.decoder, self.head = recurrence.Stack(self.units, **options), linear.Head(self.vocabulary, dtype=self.dtype)

  def encode(self, source, steps: int = 0, train: bool = False):
    """(state before the first token, memory) for `step`, every leaf [batch, …]; `steps`: room that others need."""
    mask = source != 0
    outputs, finals = self.encoder(self.drop(self.source_tokens(source), train=train), mask=mask, train=train)
    if self.attention == 'none':
      return finals, ()
    bridged = tuple(
      tuple(jnp.tanh(bridge(x)).astype(jnp.float32) for x in state) for bridge, state in zip(self.bridges, finals)
    )
    return bridged, (outputs, self.decoder.attend.keys(outputs), mask)

  def aligned(self, source, target_in, train: bool = False):
    """Logits of all steps, and the weights [batch, time, source] of the attention, or None."""
    state, memory = self.encode(source, train=train)
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
    _, (features, weights) = over_time(self.decoder, state, x)
    return self.decoder.logits(features, train), weights

  def __call__(self, source, target_in, *, train: bool = False):
    """source [batch, source], target_in [batch, time] int32 -> logits [batch, time, vocabulary] float32."""
    return self.aligned(source, target_in, train)[0]

  def step(self, tokens, state, memory):
    """tokens [batch] int32 behind those of a state -> logits [batch, vocabulary] float32 of what follows,
    and the state.
    """
    embedded = self.tokens(tokens)
    if self.attention == 'none':
      out, state = self.decoder(embedded[:, None], state)
      return self.head(out[:, 0]).astype(jnp.float32), state
    state, (features, _) = self.decoder(state, embedded, memory)
    return self.decoder.logits(features, False), state


class Seq2SeqTransformer(Sizes, Decoder):
  """Encoder and decoder (Vaswani et al. 2017). Token 0 is padding in both."""

  source_vocabulary: int
  vocabulary: int
  source_context: int  # the largest numbers of positions
  context: int
  tied: bool = option(False, "Logits by the target's embeddings.")
  dtype: Any = jnp.float32

  def setup(self):
    sizes = {'vocabulary': self.source_vocabulary, 'context': self.source_context}
    self.encoder = Encoder(**shared(Encoder, self, **sizes, scaled=True, std=0, embedding_norm=False))
    self.tokens = Tokens(**shared(Tokens, self, scaled=True, std=self.width**-0.5))
    block = functools.partial(Block, **shared(Block, self, rotary=self.positions == 'rotary'))
    self.blocks = [block(crossed=True, std=0, out_std=0) for _ in range(self.layers)]
    self.drop = linear.Dropout(self.dropout)
    self.norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype) if self.pre_norm else None
    if not self.tied:
      named = {'kernel_init': initialisers.xavier_uniform, 'names': ('embed', 'vocabulary')}
      self.head = linear.Head(self.vocabulary, dtype=self.dtype, **named)

  def __call__(self, source, target_in, *, train: bool = False):
    """source [batch, source], target_in [batch, time] int32 -> logits [batch, time, vocabulary] float32."""
    memory, mask = self.encoder(source, train=train), (source != 0)[:, None, None]
    return self.read(target_in, train, memory, mask)  # causal: no target sees the padding behind it

  def encode(self, source, steps: int):
    """(state with room for `steps` tokens, memory) for `step`, every leaf [batch, …]."""
    memory = self.encoder(source)
    read = [block.remember(memory) for block in self.blocks]
    return self.empty(source.shape[0], steps), {'read': read, 'mask': source != 0}

  def step(self, tokens, state, memory):
    """tokens [batch] int32 behind those of a state -> logits [batch, vocabulary] float32 of what follows,
    and the state.
    """
    x, state = self.extend(tokens[:, None], state, memory['read'], memory['mask'][:, None, None])
    return self.logits(x)[:, 0], state


MODELS = {
  **{cell: functools.partial(RecurrentSeq2Seq, cell=cell) for cell in recurrence.CELLS},
  'transformer': functools.partial(Seq2SeqTransformer, layers=3, heads=8, width=256, hidden=512, activation='relu'),
}


def translate(
  model: nn.Module, params, source, *, steps: int, beam: int = 1, length_penalty: float = 0.0, unknown: bool = False
):
  """The best translation of each source, greedily or by beam search.

  Args:
    model: one of MODELS.
    params: its parameters.
    source: [batch, source] int32, with </s> at its end and 0 behind that.
    steps: the most tokens, the end included.
    beam: how many sequences are kept; 1: greedy.
    length_penalty: as `search.beam_search`'s.
    unknown: whether <unk> may be chosen; <pad> and <s> never are.

  Returns:
    [batch, steps] int32: 0 follows </s>.
  """
  silent = jnp.array([tokenisers.PAD, tokenisers.BEGIN, *([] if unknown else [tokenisers.UNKNOWN])])
  state, memory = model.apply({'params': params}, source, steps, method='encode')
  memory = search.repeat(memory, beam)

  def step(tokens, state):
    logits, state = model.apply({'params': params}, tokens, state, memory, method='step')
    return logits.at[:, silent].set(-jnp.inf), state

  first, limits = jnp.full(source.shape[:1], tokenisers.BEGIN, jnp.int32), {'steps': steps, 'end': tokenisers.END}
  if beam == 1:
    return search.greedy(step, state, first, **limits)
  return search.beam_search(step, state, first, beam=beam, length_penalty=length_penalty, **limits)[0][:, 0]


def alignment(model: nn.Module, params, source, target_in):
  """The decoder's attention [batch, time, source] float32, its last block's heads averaged; None where it has none."""
  if isinstance(model, RecurrentSeq2Seq):
    return model.apply({'params': params}, source, target_in, method='aligned')[1]
  _, sown = model.apply({'params': params}, source, target_in, mutable='intermediates')
  return sown['intermediates'][f'blocks_{model.layers - 1}']['cross']['attention'][0].mean(1)
