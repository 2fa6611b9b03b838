"""Language models, from counted bigrams to GPT.

python launch.py language_model                                                # a GPT on the documentation inside of Python
python launch.py language_model --dataset=text:PATH --model=lstm --order=streams
python launch.py language_model --dataset=names --data_dir=DIR --model=mlp     # lines: each one an example
python launch.py sample WORKDIR --prompt='def '
python launch.py reproduce gpt_shakespeare_cpu                                 # nanoGPT's figure for a CPU
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import collectives, config, generate, optim, options
from karpjax.data import text
from karpjax.data.dataset import Dataset
from karpjax.errors import UsageError
from karpjax.losses.language import cross_entropy
from karpjax.metrics import language as metrics
from karpjax.models import language as models
from karpjax.models import published
from karpjax.program import Program, TrainState, dropout_key, pair, partitioning
from karpjax.report import plots, texts, writers
from karpjax.train.step import train_step
from karpjax.verbs import Verb

Spec = text.TextSpec


@config.defaults(
  steps='2000', eval_every='500', checkpoint_every='500', report_every='500', batch_size=32, eval_batch_size=64,
  validation=0.05, optimiser='adamw',
)  # fmt: skip
class Config(config.Train, text.LanguageFlags, config.model_flags(models.MODELS)):
  overlap: int = config.flag(0, 'Tokens of context that an evaluated window sees but does not score.', low=0)
  model: str = config.flag(
    'gpt', "The model; its options are below, each by default the model's own.", choices=models.MODELS
  )
  sample_length: int = config.flag(
    256, 'Tokens of each sample of the report; lines end where they end.', low=1, may_change=True
  )


def data(config: Config) -> Dataset:
  stride = config.context if config.order == 'streams' else 1
  tokeniser = text.tokeniser_of_run(config.init_from)
  return text.load(config, overlap=config.overlap, train_stride=stride, tokeniser=tokeniser)


def network(config: Config, spec: Spec):
  context = spec.lengths['text']
  sizes = {'vocabulary': spec.tokenisers['text'].size, 'context': context, 'dtype': jnp.dtype(config.dtype)}
  return options.build(models.MODELS, config.model, config, jnp.zeros((1, context), jnp.int32), **sizes)


def program(config: Config, data: Dataset) -> Program:
  """The method: the cross-entropy of each next token."""
  spec, model, optimiser = data.spec, network(config, data.spec), optim.configured(config)
  if config.order == 'streams' and spec.lines:
    raise UsageError('order=streams is for running texts; lines do not go on from one to the next')
  carries = config.order == 'streams' and config.model in models.RECURRENT
  characters = spec.tokenisers['text'].characters()
  inputs = jnp.zeros((1, spec.lengths['text']), jnp.int32)

  def init(key):
    carried = model.initial(config.batch_size) if carries else {}
    return TrainState.create(key, model.init(key, inputs), optimiser, ema=config.ema > 0, carried=carried)

  def loss(params, collections, batch, key):
    variables, tokens, targets = {'params': params, **collections}, batch['tokens'], batch['targets']
    training = dict(train=True, rngs={'dropout': dropout_key(key, batch)}, mutable=list(collections))
    if carries:
      goes_on = batch['index'] % (spec.examples // config.batch_size) != 0  # the others are at a stream's beginning
      before = jax.tree.map(lambda x: x * goes_on[:, None], batch['carried'])
      (logits, after), collections = model.apply(variables, tokens, before, method='read', **training)
      carried = (jax.lax.stop_gradient(after),)
    else:
      logits, collections = model.apply(variables, tokens, **training)
      carried = ()
    return {'loss': pair(cross_entropy(logits, targets), targets >= 0)}, collections, *carried

  def predict(state, batch, key):
    return model.apply(state.variables(), batch['tokens'])

  def token_losses(state, batch, key):
    return cross_entropy(predict(state, batch, key), batch['targets'])

  def evaluate(state, batch, key):
    return metrics.sums(token_losses(state, batch, key), batch['targets'], batch['mask'], characters)

  def count(state, batch):  # the step of Counts, which no gradient has to find
    counts, targets = state.params['counts'], batch['targets']
    new = jnp.zeros_like(counts).at[batch['tokens'], jnp.maximum(targets, 0)].add(targets >= 0)
    state = state.replace(step=state.step + 1, params={'counts': counts + collectives.total(new)})
    return state, collectives.total({'loss': pair(token_losses(state, batch, None), targets >= 0)})

  return Program(
    init=init,
    step=count if config.model == 'counts' else train_step(loss, optimiser, config),
    evaluate=evaluate,
    summarise=metrics.summarise,
    predict=predict,
    example_losses=token_losses,
    causal=True,
    uninformed_loss=math.log(spec.tokenisers['text'].size),
    axes=partitioning(model, inputs),
    report=report(model, data, config.sample_length),
    rename_weights=published.renamed,
  )


# ---- what a run leaves: texts/samples.txt, and a look inside ----

NAMES, TEXTS = 20, 2  # samples of lines, of a running text
MAPPED, READ = 32, 600  # tokens of an attention map, and of the text that cells are coloured over
CELLS = 12  # of each layer: those that swing the most


def report(model, data: Dataset, length: int):
  tokeniser = data.spec.tokenisers['text']
  known = functools.cache(lambda: {name: lines_of(split) for name, split in data.splits.items()})

  def write(state, t, folder):
    variables = state.variables()
    texts.prepend_step(folder / 'texts' / 'samples.txt', t, samples(model, variables, data.spec, known, t, length))
    name = next(name for name in ('validation', 'test', 'train') if name in data.splits)
    split, about = data.splits[name], f'{name} split, step {t:,}'
    if isinstance(model, models.GPT):
      tokens = split.fetch(np.zeros(1, np.int32))['tokens'][:, :MAPPED]
      maps = models.attention_maps(model, variables, tokens)[:8, :8]  # [layers, heads, time, time]
      names = [tokeniser.name(token) for token in tokens[0]]
      places = list(np.ndindex(maps.shape[:2]))
      plots.heat_maps(
        [(maps[place], names, names) for place in places],
        folder,
        'attention_maps',
        columns=maps.shape[1],
        width=2.6,
        titles=[f'layer {layer + 1}, head {head + 1}' for layer, head in places],
        heading=f'Attention maps · {about}',
      )
    if isinstance(model, models.Recurrent):
      rows = split.fetch(np.arange(min(split.size, READ), dtype=np.int32))
      tokens = rows['tokens'][rows['targets'] >= 0][:READ]
      cells, gates = models.activations(model, variables, tokens)
      if gates[0]:
        texts.saturation(gates, f'Gate saturation · {about}', folder)
      swinging = {
        f'layer {layer}, cell {unit}': values[:, unit]
        for layer, values in enumerate(cells, start=1)
        for unit in np.argsort(-values.std(0), kind='stable')[:CELLS]
      }
      about += f': the {CELLS} cells of each layer whose values differ the most'
      page = texts.on_colours('Cells over text', about, [tokeniser.decode([token]) for token in tokens], swinging)
      writers.write_bytes(folder / 'cells.html', page)

  return write


def samples(model, variables, spec: Spec, known, t: int, length: int) -> str:
  """Some lines, each said to be of train, of another split or new; or texts that begin with a new line."""
  tokeniser, count = spec.tokenisers['text'], NAMES if spec.lines else TEXTS
  first = np.full((count, 1), 0 if spec.lines else text.line_break(tokeniser), np.int32)
  keys = jax.random.split(jax.random.key(t), count)
  rows = generate.texts(model, variables, first, keys, steps=length, end=0 if spec.lines else None)
  if not spec.lines:
    return '\n\n――――\n\n'.join(tokeniser.decode(row) for row in rows)
  origin = lambda row: next((f'in {name}' for name, lines in known().items() if line_of(row) in lines), 'new')
  return '\n'.join(f'{tokeniser.decode(row):24} {origin(row)}' for row in rows)


def line_of(tokens: np.ndarray) -> bytes:
  return tokens[tokens > 0].astype(np.int32).tobytes()


def lines_of(split) -> set[bytes]:
  return {line_of(row) for row in split.fetch(np.arange(split.size))['targets']}


# ---- what a run can do ----


@dataclasses.dataclass(frozen=True)
class Sampling:
  prompt: str = config.flag('', 'The beginning of the text. Default: a new line.')
  tokens: int = config.flag(500, 'The largest number of tokens.', low=1)
  samples: int | None = config.flag(None, 'The number of texts. Default: 1; of lines 20.', low=1)
  temperature: float = config.flag(1.0, 'The divisor of the logits; 0: always the most probable token.', low=0)
  top_k: int = config.flag(0, 'Draw from this many of the most probable tokens; 0: from all.', low=0)
  top_p: float = config.flag(1.0, 'Draw from the most probable that have this probability together.', above=0, high=1)
  seed: int = config.flag(0, 'The seed of the draws.', low=0)


def encode(run, inputs, chosen: Sampling):
  """The prompt's tokens [samples, n], behind token 0 where texts are lines; a new line where there is none."""
  tokeniser, lines = run.spec.tokenisers['text'], run.spec.lines
  tokens = [0] * lines + tokeniser.encode(chosen.prompt).tolist() or [text.line_break(tokeniser)]
  count = chosen.samples or (NAMES if lines else 1)
  return {'prompt': np.array([tokens] * count, np.int32), 'key': jax.random.split(jax.random.key(chosen.seed), count)}


def function(run, chosen: Sampling):
  model, spec = network(run.config, run.spec), run.spec
  rules = {name: getattr(chosen, name) for name in ('temperature', 'top_k', 'top_p')}

  def sample(state, arrays):
    """Tokens [n] of each line; of a running text a stream of [1, n] for each sample."""
    prompt, keys = arrays['prompt'], arrays['key']
    if spec.lines:
      return generate.texts(model, state.variables(), prompt, keys, steps=chosen.tokens, end=0, **rules)
    return [
      generate.stream(model, state.variables(), prompt[i : i + 1], keys[i : i + 1], **rules) for i in range(len(keys))
    ]

  return sample


def decode(run, outputs, inputs, chosen: Sampling):
  """Pieces of texts, as they come; `end` is what stands behind them on a terminal."""
  tokeniser = run.spec.tokenisers['text']
  for i, output in enumerate(outputs):
    if run.spec.lines:
      yield {'sample': i, 'text': chosen.prompt + tokeniser.decode(output), 'end': '\n'}
      continue
    yield {'sample': i, 'text': ('\n――――\n' if i else '') + chosen.prompt, 'end': ''}
    for piece in texts.typed(output, tokeniser.decode, chosen.tokens):
      yield {'sample': i, 'text': piece, 'end': ''}


verbs = {
  'sample': Verb(
    'Goes on with a text, token by token.', encode, function, decode, options=Sampling,
    show=lambda answer: answer['text'] + answer['end'],
  )
}  # fmt: skip
