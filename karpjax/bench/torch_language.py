"""Our language models in PyTorch, and a text from one, token by token. Nothing here imports JAX."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from karpjax.bench import setups
from karpjax.bench.torch_twins import Twin, as_given, dense_kernel, refuse


class Norm(Twin):
  def __init__(self, name, width, bias):
    super().__init__()
    self.layer = nn.LayerNorm(width, bias=bias)
    self.weights[f'{name}/scale'] = self.layer.weight, as_given
    if bias:
      self.weights[f'{name}/bias'] = self.layer.bias, as_given

  def forward(self, x):
    return self.layer(x)


class Block(Twin):
  """Pre-norm; queries, keys and values by one matmul, as PyTorch is fastest; its own flash attention."""

  def __init__(self, name, width, heads, bias):
    super().__init__()
    self.heads = heads
    self.norm1, self.norm2 = Norm(f'{name}/attention_norm', width, bias), Norm(f'{name}/mlp_norm', width, bias)
    self.qkv, self.out = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
    self.weights = {
      **self.norm1.weights,
      **self.norm2.weights,
      f'{name}/attention/query+{name}/attention/key_value': (
        self.qkv.weight,
        lambda q, kv: np.concatenate([q.reshape(width, -1), kv.reshape(width, -1)], 1).T,
      ),
      f'{name}/attention/out': (self.out.weight, lambda a: a.reshape(-1, width).T),
    }
    if bias:
      self.weights[f'{name}/attention/query_bias+{name}/attention/key_value_bias'] = (
        self.qkv.bias,
        lambda q, kv: np.concatenate([q.reshape(-1), kv.reshape(-1)]),
      )
      self.weights[f'{name}/attention/out_bias'] = self.out.bias, as_given
    self.up = self.dense(f'{name}/up', width, 4 * width, bias=bias)
    self.down = self.dense(f'{name}/down', 4 * width, width, bias=bias)

  def _mlp(self, x):
    return x + self.down(F.gelu(self.up(self.norm2(x)), approximate='tanh'))

  def _project(self, x):
    batch, time, width = x.shape
    parts = self.qkv(self.norm1(x)).split(width, 2)
    return [p.view(batch, time, self.heads, -1).transpose(1, 2) for p in parts]

  def _read(self, x, y):
    return x + self.out(y.transpose(1, 2).reshape(x.shape))

  def forward(self, x):
    q, k, v = self._project(x)
    return self._mlp(self._read(x, F.scaled_dot_product_attention(q, k, v, is_causal=True)))

  def step(self, x, cache, length):
    """x: [batch, 1, width]; cache: keys and values [batch, heads, context, head_dim], written in place."""
    q, k, v = self._project(x)
    new = k.shape[2]
    cache[0][:, :, length : length + new], cache[1][:, :, length : length + new] = k, v
    keys, values = (c[:, :, : length + new] for c in cache)
    return self._mlp(self._read(x, F.scaled_dot_product_attention(q, keys, values, is_causal=new > 1)))


class GPT(Twin):
  """With learned positions and tied logits."""

  def __init__(self, context, vocabulary, layers=4, heads=4, width=128, bias=True):
    super().__init__()
    self.context, self.heads, self.width = context, heads, width
    self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
    self.blocks = nn.ModuleList(Block(f'blocks_{i}', width, heads, bias) for i in range(layers))
    self.last = Norm('norm', width, bias)
    self.weights = {
      'tokens/embedding': (self.tokens.weight, as_given),
      'tokens/positions': (self.positions.weight, as_given),
      **self.last.weights,
    }
    for block in self.blocks:
      self.weights |= block.weights

  def forward(self, tokens):
    x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
    for block in self.blocks:
      x = block(x)
    return F.linear(self.last(x), self.tokens.weight)

  def room(self, batch):
    shape = batch, self.heads, self.context, self.width // self.heads
    return [(torch.zeros(shape), torch.zeros(shape)) for _ in self.blocks]

  def step(self, tokens, caches, length):
    """tokens: [batch, new] -> logits [batch, vocabulary] of what follows."""
    x = self.tokens(tokens) + self.positions.weight[length : length + tokens.shape[1]]
    for block, cache in zip(self.blocks, caches):
      x = block.step(x, cache, length)
    return F.linear(self.last(x[:, -1]), self.tokens.weight)


class LSTM(Twin):
  def __init__(self, vocabulary, units=(128,)):
    super().__init__()
    self.embedding = nn.Embedding(vocabulary, units[0])
    self.weights['embed/embedding'] = self.embedding.weight, as_given
    self.layers, inputs = nn.ModuleList(), units[0]
    for i, n in enumerate(units, start=1):
      layer = nn.LSTM(inputs, n, batch_first=True)
      with torch.no_grad():
        layer.bias_hh_l0.zero_()  # ours has one bias
      layer.bias_hh_l0.requires_grad = False
      self.layers.append(layer)
      first = lambda a: a[0].T
      self.weights[f'stack/layer{i}/input_kernel'] = layer.weight_ih_l0, first
      self.weights[f'stack/layer{i}/state_kernel'] = layer.weight_hh_l0, first
      self.weights[f'stack/layer{i}/input_bias'] = layer.bias_ih_l0, lambda a: a[0]
      inputs = n
    self.head = self.dense('head', units[-1], vocabulary, convert=dense_kernel)

  def forward(self, tokens):
    x = self.embedding(tokens)
    for layer in self.layers:
      x, _ = layer(x)
    return self.head(x)


class Attended(Twin):
  """x + attention to itself or to a memory, normed behind the sum."""

  def __init__(self, name, width, heads):
    super().__init__()
    self.heads, self.last = heads, Norm(f'{name}_norm', width, bias=True)
    self.query, self.key_value, self.out = (nn.Linear(width, n * width) for n in (1, 2, 1))
    matrix = lambda a: a.reshape(width, -1).T
    self.weights = {
      **self.last.weights,
      f'{name}/query': (self.query.weight, matrix),
      f'{name}/key_value': (self.key_value.weight, matrix),
      f'{name}/out': (self.out.weight, lambda a: a.reshape(-1, width).T),
      f'{name}/query_bias': (self.query.bias, lambda a: a.reshape(-1)),
      f'{name}/key_value_bias': (self.key_value.bias, lambda a: a.reshape(-1)),
      f'{name}/out_bias': (self.out.bias, as_given),
    }

  def forward(self, x, memory, **options):
    apart = lambda a: a.unflatten(2, (self.heads, -1)).transpose(1, 2)
    key, value = self.key_value(memory).chunk(2, 2)
    y = F.scaled_dot_product_attention(apart(self.query(x)), apart(key), apart(value), **options)
    return self.last(x + self.out(y.transpose(1, 2).flatten(2)))


class PostNormBlock(Twin):
  def __init__(self, name, width, heads, hidden, crossed):
    super().__init__()
    self.own = Attended(f'{name}/attention', width, heads)
    self.cross = Attended(f'{name}/cross', width, heads) if crossed else None
    self.up, self.down = self.dense(f'{name}/up', width, hidden), self.dense(f'{name}/down', hidden, width)
    self.last = Norm(f'{name}/mlp_norm', width, bias=True)
    for part in filter(None, (self.own, self.cross, self.last)):
      self.weights |= part.weights

  def forward(self, x, mask=None, memory=None, seen=None):
    x = self.own(x, x, attn_mask=mask, is_causal=mask is None)
    x = x if memory is None else self.cross(x, memory, attn_mask=seen)
    return self.last(x + self.down(F.relu(self.up(x))))


class Embedded(Twin):
  """Embeddings, scaled by √width, and learned positions."""

  def __init__(self, name, context, vocabulary, width):
    super().__init__()
    self.tokens, self.positions, self.scale = nn.Embedding(vocabulary, width), nn.Embedding(context, width), width**0.5
    self.weights = {
      f'{name}/embedding': (self.tokens.weight, as_given),
      f'{name}/positions': (self.positions.weight, as_given),
    }

  def forward(self, tokens):
    return self.tokens(tokens) * self.scale + self.positions.weight[: tokens.shape[1]]


class Translator(Twin):
  """Post-norm, with tied logits, as Vaswani et al. 2017."""

  def __init__(self, context, vocabulary, layers, heads, width, hidden, **options):
    super().__init__()
    refuse(options, tied=True, dropout=0.0)
    self.source = Embedded('encoder/tokens', context, vocabulary, width)
    self.target = Embedded('tokens', context, vocabulary, width)
    block = lambda name, crossed: PostNormBlock(name, width, heads, hidden, crossed)
    self.encoder = nn.ModuleList(block(f'encoder/blocks_{i}', False) for i in range(layers))
    self.decoder = nn.ModuleList(block(f'blocks_{i}', True) for i in range(layers))
    for part in (self.source, self.target, *self.encoder, *self.decoder):
      self.weights |= part.weights

  def forward(self, given):
    source, target = given
    seen, memory = (source != 0)[:, None, None], self.source(source)
    for block in self.encoder:
      memory = block(memory, mask=seen)
    x = self.target(target)
    for block in self.decoder:
      x = block(x, memory=memory, seen=seen)
    return F.linear(x, self.target.tokens.weight)


def build(setup: setups.Setup) -> Twin:
  """The twin of a set-up, with weights still to be loaded."""
  if setup.experiment == 'translation':
    return Translator(setup.shape[0], setup.classes, **setup.options)
  if setup.model == 'gpt':
    return GPT(setup.shape[0], setup.classes, **setup.options)
  return LSTM(setup.classes, **setup.options)


def loss_of(logits, targets):
  return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


@torch.inference_mode()
def text(twin: GPT, batch: int):
  """Yields (tokens [batch], loss): greedy tokens behind token 0, with a cache that is read anew from its half when full."""
  caches, length, said = twin.room(batch), 0, [torch.zeros(batch, dtype=torch.long)]
  fed = said[-1][:, None]
  while True:
    if length + fed.shape[1] > twin.context:
      fed, length = torch.stack(said[-(twin.context // 2) :], 1), 0
    logits = twin.step(fed, caches, length)
    length += fed.shape[1]
    said.append(logits.argmax(-1))
    del said[: -twin.context]
    fed = said[-1][:, None]
    yield said[-1], logits
