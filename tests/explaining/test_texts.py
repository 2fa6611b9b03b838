"""What of a prompt makes a language model's next token, and what of a sentence the tags of its words."""

import json
import types
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import language_model, text_classification, token_classification
from karpjax import config
from karpjax.data import tagged
from karpjax.data.dataset import Dataset
from karpjax.data.text import TextSpec
from karpjax.data.tokenisers import SPECIALS, Tokeniser
from karpjax.errors import UsageError
from karpjax.explaining import texts
from karpjax.explaining.inputs import Options
from karpjax.program import TrainState

KEY = jax.random.key(0)
LETTERS = Tokeniser('characters', tuple('\n abcde'))
WORDS = Tokeniser('words', (*SPECIALS, 'anna', 'in', 'oslo', 'lives'), len(SPECIALS), True)


class Sums(nn.Module):
  """A classifier of one's own, which adds up the vectors of tokens, of their positions, and maybe of tokens once more."""

  twice: bool = False

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(8, 4)(tokens) + nn.Embed(5, 4)(jnp.arange(tokens.shape[1]))
    x = x + nn.Embed(8, 4)(tokens) if self.twice else x
    return nn.Dense(2)(jnp.where(tokens[..., None] > 0, x, 0).sum(1))


@pytest.mark.parametrize('twice', [False, True])
def test_words_of_a_linear_model_of_ones_own_add_their_vectors_and_not_their_positions(twice):
  model, tokens = Sums(twice), np.array([[3, 5, 3, 0]], np.int32)
  variables = model.init(KEY, tokens)
  predict = lambda state, batch, key: model.apply({'params': state.params}, batch['tokens'])
  own = types.SimpleNamespace(
    program=lambda settings, data: types.SimpleNamespace(predict=predict, init=lambda key: state)
  )
  spec = TextSpec('made', 10, {'text': WORDS}, {'text': 4}, ('a', 'b'))
  state = TrainState.create(KEY, variables, optax.identity())
  run = types.SimpleNamespace(
    experiment=own, config=text_classification.Config(), spec=spec, program=own.program(None, None)
  )
  asked = texts.Texts(run, {'tokens': tokens}, Options('occlusion', 'b', curves=False))
  if twice:
    with pytest.raises(UsageError, match='the model looks tokens up in several tables'):
      asked.check()
    return
  asked.check()
  [each] = asked.findings(state)
  exact = variables['params']['Embed_0']['embedding'][tokens[0]] @ variables['params']['Dense_0']['kernel'][:, 1]
  np.testing.assert_allclose(each['values'], np.where(tokens[0] > 0, exact, 0), atol=1e-6)


def opened(experiment, spec, ended=lambda x: x, **flags):
  """What stands for a run that has just begun, and its state, whose params `ended` changes."""
  settings = config.resolve(experiment.Config(**flags), 100)
  program = experiment.program(settings, Dataset(spec, {}))
  state = jax.jit(program.init)(KEY)
  run = types.SimpleNamespace(experiment=experiment, config=settings, spec=spec, program=program, folder='here')
  return run, state.replace(params=jax.tree.map(ended, state.params))


def language(model, **flags):
  spec = TextSpec('made', 10, {'text': LETTERS}, {'text': 6}, lines=False)
  return opened(language_model, spec, lambda x: 4 * x, model=model, context=6, **flags)


def found(run, state, verb, given, kind, options):
  arrays = verb.encode(run, given, options)
  asked = kind(run, arrays, options)
  asked.check()
  return [*asked.findings(state)]


def prompts(run, state, given, **chosen):
  chosen = texts.PromptOptions(**{'curves': False, 'method': 'occlusion'} | chosen)
  return found(run, state, language_model.verbs['explain'], given, texts.Prompts, chosen)


SMALL = {
  'gpt': dict(layers=1, heads=2, width=8, std=0.3),
  'mlp': dict(window=3, embedding=4, hidden=8),
  'lstm': dict(units=(8,)),
}


@pytest.mark.parametrize('model', SMALL)
def test_what_a_language_model_says_of_vectors_in_their_places_is_what_it_says_of_tokens(model):
  run, state = language(model, **SMALL[model])
  for given, each in zip(('abc', 'e'), prompts(run, state, ['abc', 'e'])):  # padded behind
    batch = {'tokens': LETTERS.encode(given)[None]}
    exact = jax.nn.softmax(run.program.predict(state, batch, KEY)[0, -1])
    assert each['chance'] == pytest.approx(float(exact.max()), abs=1e-6)
    assert each['named']['token'] == LETTERS.name(int(exact.argmax()))
    assert each['values'][: len(given)].all() and not each['values'][len(given) :].any()
  if model == 'mlp':  # sees three tokens
    [each] = prompts(run, state, ['abcde'])
    assert abs(each['values'][2:]).min() > 1e-3 > 1e-6 > abs(each['values'][:2]).max()


def test_the_vectors_of_tokens_are_explained_and_not_the_logits_that_are_tied_to_them():
  run, state = language('gpt', **SMALL['gpt'])
  [each] = prompts(run, state, ['ab c'], method='integrated', target='d')
  assert each['named'] == {'token': 'd'} and each['score'] != each['baseline']
  assert abs(each['values'].sum() - (each['score'] - each['baseline'])) < 0.02 * abs(each['score'] - each['baseline'])
  [each] = prompts(run, state, ['abcdeabcde'], method='rollout')
  assert len(each['values']) == 6 and each['values'].sum() == pytest.approx(1)  # the last of so many positions
  assert each['values'][-1] >= 0.5  # by the residual alone it is a half


@pytest.mark.parametrize('model', ['counts', 'bigram'])
def test_models_without_vectors_are_refused(model):
  with pytest.raises(UsageError, match='the model has no vectors of tokens'):
    prompts(*language(model), ['abc'])


def test_targets_that_are_not_one_token_are_refused():
  run, state = language('mlp', **SMALL['mlp'])
  for target, why in (('ab', '2 tokens, of which one can be next'), ('z', 'in none of the training texts')):
    with pytest.raises(UsageError, match=why):
      prompts(run, state, ['abc'], target=target)


def answered(run, state, verb, given, folder, **chosen):
  """The answers of a verb, as they are shown, and the page."""
  run.own_path, options = (lambda path: path), verb.options(output=str(folder), **chosen)
  answers = verb.decode(run, verb.function(run, options)(state, verb.encode(run, given, options)), given, options)
  answers = json.loads(json.dumps(list(answers)))
  return answers, [verb.show(answer) for answer in answers], Path(answers[0]['file']).read_text('utf-8')


def test_spaces_and_new_lines_of_prompts_are_seen_and_an_empty_one_is_a_new_line(tmp_path):
  run, state = language('mlp', **SMALL['mlp'])
  answers, shown, page = answered(
    run, state, language_model.verbs['explain'], ['a b\n', ''], tmp_path, method='saliency'
  )
  assert [[piece for piece, _ in each['attributions']] for each in answers] == [['a', '␣', 'b', '↵'], ['↵']]
  assert '␣' in shown[0] and f'saliency: {answers[0]["token"]}, probability' in shown[0] and 'deletion' in shown[0]
  assert '>␣</span><span' in page and 'the bluer, the more it matters' in page and 'speaks' not in page


def test_token_0_of_lines_is_a_new_line():
  spec = TextSpec('made', 10, {'text': WORDS}, {'text': 6}, lines=True)
  run, state = opened(language_model, spec, model='mlp', context=6, **SMALL['mlp'])
  [each] = prompts(run, state, ['anna lives'], target='\n')
  assert each['named'] == {'token': '↵'}
  assert language_model.pieces(spec, 'anna lives', each['example']['tokens']) == ['↵', 'anna', '␣lives']


# ---- tags ----


def tagger(model, **flags):
  letters = Tokeniser('characters', (*SPECIALS[:2], *'AOabcdefghilnosvx'), 2)
  lengths = {'text': 8, 'characters': 5}
  spec = TextSpec('made', 10, {'text': WORDS, 'characters': letters}, lengths, ('O', 'B-LOC', 'I-LOC', 'B-PER'))
  sizes = dict(embedding=4, character_embedding=3, filters=4, units=(6,)) | flags
  return opened(token_classification, spec, lambda x: 2 * x, model=model, **sizes)


def words(run, state, given, **chosen):
  chosen = texts.WordOptions(**{'curves': False, 'method': 'occlusion'} | chosen)
  return found(run, state, token_classification.verbs['explain'], given, texts.Words, chosen)


@pytest.mark.slow
def test_the_tags_of_a_sentence_are_explained_by_words_and_their_spelling():
  run, state = tagger('bilstm_crf')
  given = ['Anna lives in Oslo', 'xo Oslo']
  one, two = words(run, state, given, method='integrated', steps=128)
  arrays = tagged.encode(run.spec, [each.split() for each in given])
  tags = np.asarray(run.program.predict(state, arrays, KEY))
  chances = jax.nn.softmax(run.program.logits(state, arrays, KEY))
  for tag, chance, each, n in zip(tags, chances, (one, two), (4, 2)):
    assert each['named'] == {'places': [*range(1, n + 1)], 'tags': [run.spec.classes[i] for i in tag[:n]]}
    assert each['chance'] == pytest.approx(float(chance[np.arange(n), tag[:n]].mean()), abs=1e-6)
    rise = each['score'] - each['baseline']
    assert (
      each['values'][:n].all() and not each['values'][n:].any() and abs(each['values'].sum() - rise) < 0.03 * abs(rise)
    )


def test_the_tag_of_a_word_is_explained_and_one_of_two_unknown_words_by_its_spelling():
  run, state = tagger('bilstm')
  one, two = words(run, state, ['Anna xo Oslo', 'Anna fgh Oslo'], word='Oslo', target='B-LOC')
  assert one['named'] == two['named'] == {'places': [3], 'tags': ['B-LOC']}
  assert one['values'][1] != two['values'][1]
  for chosen, why in (
    (dict(word='Rome'), 'word=Rome: text 1 has no such word, and 2 words'),
    (dict(word='3'), 'word=3'),
    (dict(target='B-LOC'), 'of which word'),
    (dict(word='1', target='LOC'), 'target=LOC: unknown'),
    (dict(method='rollout'), 'no attention'),
    (dict(method='gradcam'), 'no convolution over words'),
  ):
    with pytest.raises(UsageError, match=why):
      words(run, state, ['Anna Oslo'], **chosen)


def test_words_of_any_script_are_shown_with_the_tag_that_they_make(tmp_path):
  run, state = tagger('bilstm')
  given = ['שלום <b> Oslo', 'Anna']
  chosen = dict(word='1', method='occlusion', curves=False)
  answers, shown, page = answered(run, state, token_classification.verbs['explain'], given, tmp_path, **chosen)
  assert [word for word, _ in answers[0]['attributions']] == ['שלום', '<', 'b', '>', 'Oslo']
  assert f'{answers[0]["tags"][0]} (word 1), probability' in shown[0] and '1. שלום' in shown[0]
  assert '<pre dir="auto"><span' in page and '>&lt;</span>' in page and '<b>' not in page


def test_a_tagger_without_spelling_is_explained_by_its_words():
  run, state = tagger('bilstm', filters=0)
  one, two = words(run, state, ['Anna xo Oslo', 'Anna fgh Oslo'], word='3')
  np.testing.assert_array_equal(one['values'], two['values'])
