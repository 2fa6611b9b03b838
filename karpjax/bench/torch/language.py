"""Language models and a translator in PyTorch, and a text from one, token by token."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
  """Queries, keys and values by one matmul, as PyTorch is fastest; its own flash attention."""

  def __init__(self, width, heads, bias):
    super().__init__()
    self.heads, self.width = heads, width
    self.qkv, self.out = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)

  def ours(self, arrays):
    kernels = np.concatenate([arrays[n].reshape(self.width, -1) for n in ('query', 'key_value')], 1).T
    found = {'qkv.weight': kernels, 'out.weight': arrays['out'].reshape(-1, self.width).T}
    if self.qkv.bias is not None:
      biases = np.concatenate([arrays[n].reshape(-1) for n in ('query_bias', 'key_value_bias')])
      found |= {'qkv.bias': biases, 'out.bias': arrays['out_bias']}
    return found

  def split(self, parts):
    """[batch, time, width], each -> [batch, heads, time, head_dim]."""
    return (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)

  def forward(self, x, memory=None, **options):
    parts = self.qkv(x).chunk(3, 2) if memory is None else self.cross(x, memory)
    attended = F.scaled_dot_product_attention(*self.split(parts), **options)
    return self.out(attended.transpose(1, 2).flatten(2))

  def cross(self, x, memory):
    """Queries of x, keys and values of the memory."""
    (query, rest), biases = (w.split((self.width, 2 * self.width)) for w in (self.qkv.weight, self.qkv.bias))
    return F.linear(x, query, biases[0]), *F.linear(memory, rest, biases[1]).chunk(2, 2)

  def step(self, x, cache, length):
    """x: [batch, new, width]; cache: keys and values [batch, heads, context, head_dim], written in place."""
    query, key, value = self.split(self.qkv(x).chunk(3, 2))
    end = length + x.shape[1]
    cache[0][:, :, length:end], cache[1][:, :, length:end] = key, value
    y = F.scaled_dot_product_attention(query, cache[0][:, :, :end], cache[1][:, :, :end], is_causal=x.shape[1] > 1)
    return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
  """Norms before each part, as GPT-2's."""

  def __init__(self, width, heads, bias):
    super().__init__()
    self.attention_norm, self.mlp_norm = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
    self.attention = Attention(width, heads, bias)
    self.up, self.down = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)

  def mlp(self, x):
    return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate='tanh'))

  def forward(self, x):
    return self.mlp(x + self.attention(self.attention_norm(x), is_causal=True))

  def step(self, x, cache, length):
    return self.mlp(x + self.attention.step(self.attention_norm(x), cache, length))


class Embedded(nn.Module):
  """Embeddings of tokens, scaled, and learned positions."""

  def __init__(self, context, vocabulary, width, scale=1.0):
    super().__init__()
    self.embedding = nn.Parameter(torch.empty(vocabulary, width))
    self.positions, self.scale = nn.Parameter(torch.empty(context, width)), scale

  def ours(self, arrays):
    return arrays

  def forward(self, tokens, start=0):
    return F.embedding(tokens, self.embedding) * self.scale + self.positions[start : start + tokens.shape[1]]


class GPT(nn.Module):
  """With learned positions and tied logits."""

  def __init__(self, context, vocabulary, layers=4, heads=4, width=128, bias=True):
    super().__init__()
    self.context, self.tokens = context, Embedded(context, vocabulary, width)
    self.blocks = nn.ModuleList(Block(width, heads, bias) for _ in range(layers))
    self.norm = nn.LayerNorm(width, bias=bias)

  def forward(self, tokens):
    x = self.tokens(tokens)
    for block in self.blocks:
      x = block(x)
    return F.linear(self.norm(x), self.tokens.embedding)

  def cache(self, batch):
    heads, width = self.blocks[0].attention.heads, self.tokens.embedding.shape[1]
    return [tuple(torch.zeros(2, batch, heads, self.context, width // heads)) for _ in self.blocks]

  def step(self, tokens, caches, length):
    """tokens: [batch, new] -> logits [batch, vocabulary] of what follows."""
    x = self.tokens(tokens, length)
    for block, cache in zip(self.blocks, caches):
      x = block.step(x, cache, length)
    return F.linear(self.norm(x[:, -1]), self.tokens.embedding)


class LSTMLayer(nn.LSTM):
  def __init__(self, inputs, units):
    super().__init__(inputs, units, batch_first=True)
    nn.init.zeros_(self.bias_hh_l0)  # ours has one bias
    self.bias_hh_l0.requires_grad = False

  def ours(self, arrays):
    theirs = {'weight_ih_l0': 'input_kernel', 'weight_hh_l0': 'state_kernel', 'bias_ih_l0': 'input_bias'}
    return {name: arrays[own][0].T for name, own in theirs.items()}


class LSTM(nn.Module):
  def __init__(self, vocabulary, units=(128,)):
    super().__init__()
    self.embed = nn.Embedding(vocabulary, units[0])
    layers = enumerate(zip((units[0], *units), units), start=1)
    self.stack = nn.ModuleDict({f'layer{i}': LSTMLayer(inputs, n) for i, (inputs, n) in layers})
    self.head = nn.Linear(units[-1], vocabulary)

  def forward(self, tokens):
    x = self.embed(tokens)
    for layer in self.stack.values():
      x, _ = layer(x)
    return self.head(x)


class PostNormBlock(nn.Module):
  """Norms behind each part, as Vaswani et al. 2017; with attention to the memory in the decoder."""

  def __init__(self, width, heads, hidden, crossed):
    super().__init__()
    self.attention, self.attention_norm = Attention(width, heads, True), nn.LayerNorm(width)
    if crossed:
      self.cross, self.cross_norm = Attention(width, heads, True), nn.LayerNorm(width)
    self.up, self.down, self.mlp_norm = nn.Linear(width, hidden), nn.Linear(hidden, width), nn.LayerNorm(width)

  def forward(self, x, mask=None, memory=None, seen=None):
    x = self.attention_norm(x + self.attention(x, attn_mask=mask, is_causal=mask is None))
    if memory is not None:
      x = self.cross_norm(x + self.cross(x, memory, attn_mask=seen))
    return self.mlp_norm(x + self.down(F.relu(self.up(x))))


class Encoder(nn.Module):
  def __init__(self, context, vocabulary, layers, heads, width, hidden):
    super().__init__()
    self.tokens = Embedded(context, vocabulary, width, width**0.5)
    self.blocks = nn.ModuleList(PostNormBlock(width, heads, hidden, False) for _ in range(layers))

  def forward(self, source, seen):
    x = self.tokens(source)
    for block in self.blocks:
      x = block(x, mask=seen)
    return x


class Translator(nn.Module):
  """With tied logits, as Vaswani et al. 2017."""

  def __init__(self, context, vocabulary, layers, heads, width, hidden, **_):
    super().__init__()
    self.encoder = Encoder(context, vocabulary, layers, heads, width, hidden)
    self.tokens = Embedded(context, vocabulary, width, width**0.5)
    self.blocks = nn.ModuleList(PostNormBlock(width, heads, hidden, True) for _ in range(layers))

  def forward(self, source, target):
    seen = (source != 0)[:, None, None]
    memory, x = self.encoder(source, seen), self.tokens(target)
    for block in self.blocks:
      x = block(x, memory=memory, seen=seen)
    return F.linear(x, self.tokens.embedding)


def build(setup, options):
  if setup.experiment == 'translation':
    return Translator(setup.shape[0], setup.classes, **options)
  if setup.config['model'] == 'gpt':
    return GPT(setup.shape[0], setup.classes, **options)
  return LSTM(setup.classes, **options)


def batches(setup, arrays, layout):
  """[(inputs …, targets)] of the first batches."""
  names = ('source', 'target_in', 'targets') if setup.experiment == 'translation' else ('tokens', 'targets')
  return list(zip(*(torch.from_numpy(arrays[name]).long() for name in names)))


def loss(setup, model, *batch):
  *inputs, targets = batch
  return F.cross_entropy(model(*inputs).flatten(0, 1), targets.flatten(), ignore_index=-1)


@torch.inference_mode()
def text(model: GPT, batch: int):
  """Yields (tokens [batch], logits): greedy tokens behind token 0, with a cache that is read anew from its half when
  full.
  """
  caches, length, tokens = model.cache(batch), 0, [torch.zeros(batch, dtype=torch.long)]
  fed = tokens[-1][:, None]
  while True:
    if length + fed.shape[1] > model.context:
      fed, length = torch.stack(tokens[-(model.context // 2) :], 1), 0
    logits = model.step(fed, caches, length)
    length += fed.shape[1]
    tokens.append(logits.argmax(-1))
    del tokens[: -model.context]
    fed = tokens[-1][:, None]
    yield tokens[-1], logits
