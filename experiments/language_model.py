"""Language models, from counted bigrams to GPT.

python launch.py language_model                                                # a GPT on the documentation inside of Python
python launch.py language_model --dataset=text:PATH --model=lstm --order=streams
python launch.py language_model --dataset=names --data_dir=DIR --model=mlp     # lines: each one an example
python launch.py sample WORKDIR --prompt='def '
python launch.py reproduce gpt_shakespeare_cpu                                 # nanoGPT's figure for a CPU
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import collectives, config, generate, options
from karpjax.commands import explain
from karpjax.data import bucketing, frequencies, language, splitting, text
from karpjax.data.dataset import Dataset
from karpjax.explaining import texts as explaining
from karpjax.lean import distillation
from karpjax.losses.language import cross_entropy
from karpjax.metrics import language as metrics
from karpjax.models import language as models
from karpjax.program import Input, Program, dropout_key, pair
from karpjax.report import texts
from karpjax.train.step import ordinary
from karpjax.verbs import Verb

Spec = text.TextSpec
NAMES, TEXTS = 20, 2  # samples of the report: lines, running texts


@config.defaults(
  steps='2000', eval_every='500', checkpoint_every='500', report_every='500', batch_size=32, eval_batch_size=64,
  validation=0.05, optimiser='adamw', models={'bigram': {'learning_rate': 0.05}},  # a table of logits, each its own weight
)  # fmt: skip
class Config(config.Train, language.LanguageFlags, config.model_flags(models.MODELS, 'gpt')):
  overlap: int = config.flag(0, 'Tokens of context that an evaluated window sees but does not score.', low=0)
  sample_length: int = config.flag(
    256, 'Tokens of each sample of the report; lines end where they end.', low=1, may_change=True
  )


def data(config: Config) -> Dataset:
  tokeniser = text.tokeniser_of_run(config.init_from)
  return language.load(config, overlap=config.overlap, streams=config.order == 'streams', tokeniser=tokeniser)


def network(config: Config, spec: Spec):
  context = spec.lengths['text']
  sizes = {'vocabulary': spec.tokenisers['text'].size, 'context': context, 'dtype': jnp.dtype(config.dtype)}
  return options.build(models.MODELS, config.model, config, np.zeros((1, context), np.int32), **sizes)


def program(config: Config, data: Dataset) -> Program:
  """The method: the cross-entropy of each next token."""
  spec, model, streams = data.spec, network(config, data.spec), config.order == 'streams'
  if spec.lines:
    text.refuse_streams(config, 'lines')
  carries, tokeniser = streams and isinstance(model, models.Recurrent), spec.tokenisers['text']
  # counting minimises no loss
  taught = distillation.Teaching() if config.model == 'counts' else distillation.configured(config, data)
  characters, of_bytes = (count(lines=spec.lines) for count in (tokeniser.characters, tokeniser.bytes))

  def measured(logits, batch):
    targets = batch['targets']
    return taught({'loss': pair(cross_entropy(logits, targets), targets >= 0)}, logits, batch, targets >= 0)

  def loss(params, collections, batch, key):
    variables, tokens, targets = {'params': params, **collections}, batch['tokens'], batch['targets']
    training = dict(train=True, rngs={'dropout': dropout_key(key, batch)}, mutable=list(collections))
    if isinstance(model, models.Windowed):
      training['mask'] = targets >= 0
    if not carries:
      logits, collections = model.apply(variables, tokens, **training)
      return measured(logits, batch), collections
    goes_on = batch['index'] % (spec.examples // config.batch_size) != 0  # the others are at a stream's beginning
    before = jax.tree.map(lambda x: x * goes_on[:, None], batch['carried'])
    (logits, after), collections = model.apply(variables, tokens, before, method='read', **training)
    return measured(logits, batch), collections, jax.lax.stop_gradient(after)

  def predict(state, batch, key):
    return model.apply(state.variables(), batch['tokens'])

  def token_losses(state, batch, key):
    return cross_entropy(predict(state, batch, key), batch['targets'])

  def evaluate(state, batch, key):
    losses, targets = token_losses(state, batch, key), batch['targets']
    return metrics.sums(losses, targets, batch['mask'], characters, of_bytes=of_bytes)

  def count(state, batch):  # the step of Counts, which no gradient has to find
    counts, targets = state.params['counts'], batch['targets']
    new = jnp.zeros_like(counts).at[batch['tokens'], jnp.maximum(targets, 0)].add(targets >= 0)
    state = state.replace(step=state.step + 1, params={'counts': counts + collectives.total(new)})
    return state, collectives.total({'loss': pair(token_losses(state, batch, None), targets >= 0)})

  return ordinary(
    config,
    model,
    [np.zeros((1, spec.lengths['text']), np.int32)],
    loss,
    carried=lambda: model.initial(config.batch_size) if carries else {},
    step=count if config.model == 'counts' else None,
    evaluate=evaluate,
    summarise=metrics.summarise,
    predict=predict,
    exports={'predict': (predict, {'tokens': Input((spec.lengths['text'],), 'int32')}), **generate.exports(model)},
    example_losses=token_losses,
    causal=True,
    frozen=taught.frozen,
    lent=taught.lent,
    **frequencies.uninformed(data, 'targets', tokeniser.size),
    report=report(model, data, config),
    rename_weights=models.renamed,
  )


def report(model, data: Dataset, config: Config):
  """Leaves texts/samples.txt, of lines with the split that has the same one, and a look inside of the model."""
  spec, tokeniser = data.spec, data.spec.tokenisers['text']
  line_of = lambda tokens: tokens[tokens > 0].astype(np.int32).tobytes()

  @functools.cache
  def known(last: bool) -> dict[bytes, str]:
    splits = [(name, split) for name, split in reversed(data.splits.items()) if last or name != 'test']
    return {line_of(row): f'in {name}' for name, split in splits for row in split.column('targets')}

  def samples(variables, t):
    count, first = (NAMES, 0) if spec.lines else (TEXTS, language.line_break(tokeniser))
    keys, prompt = jax.random.split(jax.random.key(t), count), np.full((count, 1), first, np.int32)
    rows = generate.texts(model, variables, prompt, keys, steps=config.sample_length, end=0 if spec.lines else None)
    if not spec.lines:
      return '\n\n――――\n\n'.join(map(tokeniser.decode, rows))
    return '\n'.join(f'{tokeniser.decode(row):24} {known(t == config.steps).get(line_of(row), "new")}' for row in rows)

  def write(state, t, folder):
    variables, (name, split) = state.variables(), data.reported(t == config.steps)
    texts.prepend_step(folder / 'texts' / 'samples.txt', t, samples(variables, t))
    few = splitting.sample(split.size, texts.READ) if spec.lines else np.arange(min(split.size, texts.READ))
    about, rows = f'{name} split, step {t:,}', split.fetch(few.astype(np.int32))
    if isinstance(model, models.GPT):
      tokens = rows['tokens'][:1, : texts.MAPPED]
      names = [tokeniser.name(token) for token in tokens[0]]
      texts.attention_maps(models.attention_maps(model, variables, tokens), names, about, folder)
    if isinstance(model, models.Recurrent):
      tokens = rows['tokens'][rows['targets'] >= 0][: texts.READ]
      cells, gates = models.activations(model, variables, tokens, texts.CELLS)
      texts.cells(tokeniser.pieces(tokens), cells, gates, about, folder)

  return write


# ---- what a run can do ----


@dataclasses.dataclass(frozen=True)
class Sampling:
  prompt: str = config.flag('', 'The beginning of the text. Default: a new line.')
  tokens: int = config.flag(500, 'The largest number of tokens.', low=1)
  samples: int | None = config.flag(None, 'The number of texts. Default: 1; of lines 20.', low=1)
  temperature: float = config.flag(1.0, 'The divisor of the logits; 0: always the most probable token.', low=0)
  top_k: int = config.flag(0, 'Draw from this many of the most probable tokens; 0: from all.', low=0)
  top_p: float = config.flag(1.0, 'Draw from the most probable that have this probability together.', above=0, high=1)
  seed: int = config.seed_flag('The seed of the draws.')


def encode(run, inputs, chosen: Sampling):
  """The prompt's tokens [samples, n], as `language.prompt`."""
  tokens, count = language.prompt(run.spec, chosen.prompt), chosen.samples or (NAMES if run.spec.lines else 1)
  return {'prompt': np.array([tokens] * count, np.int32), 'key': jax.random.split(jax.random.key(chosen.seed), count)}


def function(run, chosen: Sampling):
  """Tokens [n] of each line; of a running text a stream of [1, n] for each sample."""
  model = network(run.config, run.spec)
  rules = {name: getattr(chosen, name) for name in ('temperature', 'top_k', 'top_p')}

  def sample(state, arrays):
    variables, prompt, keys = state.variables(), arrays['prompt'], arrays['key']
    if run.spec.lines:
      return generate.texts(model, variables, prompt, keys, steps=chosen.tokens, end=0, **rules)
    return [generate.stream(model, variables, prompt[:1], keys[i : i + 1], **rules) for i in range(len(keys))]

  return sample


def decode(run, outputs, inputs, chosen: Sampling):
  """Pieces of texts, as they come; `end` is what stands behind them on a terminal."""
  tokeniser, lines = run.spec.tokenisers['text'], run.spec.lines
  before = tokeniser.encode(chosen.prompt).tolist()
  decoded = lambda tokens: tokeniser.decode([*before, *tokens])[len(tokeniser.decode(before)) :]
  for i, output in enumerate(outputs):
    begin = ('\n――――\n' if i and not lines else '') + chosen.prompt
    typed = itertools.chain([begin], texts.typed(output, decoded, chosen.tokens))
    pieces = [begin + decoded(output)] if lines else typed
    yield from ({'sample': i, 'text': piece, 'end': '\n' if lines else ''} for piece in pieces)


def encode_why(run, given, chosen):
  """{'tokens' [n, L]}, −1 behind the end: prompts, of which a model of so many positions sees the last ones."""
  model, tokeniser = network(run.config, run.spec), run.spec.tokenisers['text']
  most = model.context if hasattr(model, 'begin') else None
  rows = [language.prompt(run.spec, prompt)[-most if most else None :] for prompt in given]
  tokeniser.warn_of_unknown(given)
  return {'tokens': bucketing.padded(rows, max(map(len, rows)), fill=-1)}


def pieces(spec, prompt, tokens):
  """What each token adds to the prompt, with spaces visible."""
  tokeniser = spec.tokenisers['text']
  named = (piece or language.name(spec, token) for piece, token in zip(tokeniser.pieces(tokens), tokens))
  return [name.replace(' ', '␣').replace('\n', '↵') for name in named]


verbs = {
  'sample': Verb(
    'Goes on with a text, token by token.', encode, function, decode, options=Sampling,
    show=lambda answer: answer['text'] + answer['end'], model=lambda run: network(run.config, run.spec),
  ),
  'explain': explain.text_verb(
    'What tokens of a prompt make the next one likely.', encode_why, explaining.Prompts, explaining.PromptOptions, pieces, '',
  ),
}  # fmt: skip
