"""A run, asked why it says so of a text: the vectors of its tokens as an input of `karpjax.explaining.attribution`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from karpjax import config as configs
from karpjax.data import language
from karpjax.errors import UsageError
from karpjax.explaining.inputs import Asked, Options
from karpjax.layers import linear


@dataclasses.dataclass(frozen=True)
class PromptOptions(Options):
  target: str = configs.flag('', 'The next token that is explained. Default: the likeliest.')


@dataclasses.dataclass(frozen=True)
class WordOptions(Options):
  target: str = configs.flag('', 'The tag that is explained. Default: those that are predicted.')
  word: str = configs.flag(
    '', 'The word whose tag is explained: its number, from 1, or itself. Default: the tags of all.'
  )


class Texts(Asked):
  """The vectors of a text's tokens, before positions; the baseline is 0 (Sundararajan et al. 2017).

  A model looks them up by `linear.Lookup` or `nn.Embed`: there they are read, and there others are put in their place,
  by numbers that stand for the places of the text, from 1; 0 stays token 0.

  Attributes:
    arrays_of: the names of a batch's arrays whose vectors are a place's: its token, and others that are as many for each.
    padding: the token behind a text's end.
  """

  arrays_of: tuple[str, ...] = ('tokens',)
  padding = 0

  def predicted(self, state, batch, example):
    """The outputs [..., classes] of a batch of one example."""
    return self.program.predict(state, batch, jax.random.key(0))[0]

  def embed(self, state, example):
    found = {}

    def look(name, rows, index):
      if name in found:
        raise UsageError(f'explain: the model looks {name} up in several tables; those of one are explained')
      found[name] = rows(example[name])
      return rows(index)

    with self._lookups(look):
      self.predicted(state, {name: example[name][None] for name in self.arrays_of}, example)
    if 'tokens' not in found:
      raise UsageError('explain: the model has no vectors of tokens, by which texts are explained')
    return jnp.concatenate([x.reshape(len(x), -1) for x in found.values()], -1).astype(jnp.float32)

  def outputs(self, state, example, x):
    numbers = {}
    for name in self.arrays_of:
      real, size = example[name] != self.padding, example[name].size
      numbers[name] = jnp.where(real, 1 + jnp.arange(size).reshape(real.shape), 0)
    begin = 0

    def look(name, rows, index):
      nonlocal begin
      zero = rows(jnp.zeros(1, jnp.int32))  # [1, size]
      end = begin + zero.shape[-1] * numbers[name].size // len(x)
      own, begin = x[:, begin:end].reshape(-1, zero.shape[-1]), end
      return jnp.concatenate([zero, own.astype(zero.dtype)])[index]

    with self._lookups(look):
      batch = {name: number[None] for name, number in numbers.items()}
      return self.predicted(state, batch, example).astype(jnp.float32)

  def _lookups(self, change):
    """Where the model looks vectors up, they are change(name of the array, numbers -> their vectors, the numbers)."""

    def intercept(call, inputs, options, context):
      module, own = context.module, context.method_name == '__call__'
      if own and isinstance(module, linear.Lookup):
        table, index = inputs
        return change(module.of, lambda index: table[index], index)
      if own and isinstance(module, nn.Embed) and module.num_embeddings == self.spec.tokenisers['text'].size:
        return change('tokens', call, *inputs)
      return call(*inputs, **options)

    return nn.intercept_methods(intercept)

  def real(self, example):
    """[places] bool: which are no padding."""
    return example['tokens'] != self.padding

  def groups(self, example):
    real = self.real(example)
    return jnp.where(real, jnp.arange(len(real)), -1), len(real)

  def seen(self, example):
    return self.real(example) / self.real(example).sum()


class Prompts(Texts):
  """Texts, of which the next token is explained."""

  padding = -1  # token 0 is one of a text

  def predicted(self, state, batch, example):
    return super().predicted(state, batch, example)[self.real(example).sum() - 1]

  def number(self, target):
    tokeniser = self.spec.tokenisers['text']
    if self.spec.lines and target == '\n':
      return 0
    tokens, unknown = tokeniser.encode(target), tokeniser.unknown([target])
    if len(tokens) != 1 or unknown:
      what = 'never seen in training' if unknown else f'{len(tokens)} tokens, of which one can be next'
      raise UsageError(f'target={target}: {what}')
    return int(tokens[0])

  def named(self, example, target):
    return {'token': language.name(self.spec, int(target))}

  def seen(self, example):
    return jnp.arange(len(example['tokens'])) == self.real(example).sum() - 1


class Words(Texts):
  """Texts whose words have tags: a word is its vector, and those of its characters.

  `arrays` has 'weights' too, [n, words]: 1 for the words whose tags are explained, else 0.
  """

  arrays_of = 'tokens', 'characters'

  def predicted(self, state, batch, example):
    return self.program.logits(state, batch, jax.random.key(0))[0]

  def check(self):
    if self.chosen.method == 'gradcam':
      raise UsageError('method=gradcam: the model has no convolution over words, but over their characters')
    super().check()

  def weights(self, example):
    return example['weights']

  def likeliest(self, state, example, outputs):
    batch = {name: example[name][None] for name in self.arrays_of}
    return jnp.maximum(self.program.predict(state, batch, jax.random.key(0))[0], 0)

  def named(self, example, target):
    places = np.flatnonzero(example['weights'])
    return {'places': (1 + places).tolist(), 'tags': [self.spec.classes[tag] for tag in target[places]]}

  def number(self, target):
    if not self.chosen.word:
      raise UsageError(f'target={target}: the tag of which word? Give word= too')
    return super().number(target)
