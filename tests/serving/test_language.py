"""A language model in OpenAI's form: by its client, many texts at once, and what is refused."""

import asyncio
import http.client
import json
import time
import types
from concurrent.futures import ThreadPoolExecutor

import httpx2
import jax
import numpy as np
import openai
import pytest
from starlette.testclient import TestClient

from experiments import language_model
from karpjax import generate
from karpjax.data import language
from karpjax.serving import app, completions, slots
from karpjax.serving.batching import Full
from karpjax.serving.completions import Typed

SMALL = dict(context=24, layers=1, heads=2, width=8, std=0.5)
STORY = 'The sly fox went to the red hill – and back. Où? '


@pytest.fixture(scope='module')
def run(untrained, tmp_path_factory):
  place = tmp_path_factory.mktemp('text') / 'story.txt'
  place.write_text(STORY * 30)
  return untrained(language_model, dataset=f'text:{place}', tokeniser='bytes', **SMALL)


@pytest.fixture(scope='module')
def made(run, application):
  return application(run, slots=3, queue=20, max_tokens=400)


@pytest.fixture(scope='module')
def address(made, answering):
  with answering(made) as address:
    yield address


@pytest.fixture(scope='module')
def client(address):
  return openai.OpenAI(base_url=f'{address}/v1', api_key='none', max_retries=0)


def sampled(run, prompt, tokens, seed, **rules):
  """What `launch.py sample` gives: the tokens of one text, drawn alone."""
  first, keys = np.array([language.prompt(run.spec, prompt)], np.int32), jax.random.split(jax.random.key(seed), 1)
  model = run.verbs['sample'].model(run)
  [row] = generate.texts(
    model, run.state.variables(), first, keys, steps=tokens, end=0 if run.spec.lines else None, **rules
  )
  return run.spec.tokenisers['text'].decode(row).rstrip('\N{REPLACEMENT CHARACTER}')


# ---- what is answered ----


def test_many_texts_at_once_are_those_that_sample_draws_alone(run, client, compilations):
  asked = [('The', 60, 1, 1.0, 1.0), ('', 9, 2, 0.7, 0.8), ('a red fox and a sly hill', 40, 3, 0.7, 0.8), ('fox', 50, 4, 0, 1.0),
           ('hill', 1, 5, 1.0, 1.0), ('Où', 33, 2**32 - 1, 1.0, 1.0)]  # fmt: skip

  def ask(prompt, tokens, seed, temperature, top_p):
    rules = dict(max_tokens=tokens, seed=seed, temperature=temperature, top_p=top_p)
    return client.completions.create(model='mine', prompt=prompt, **rules)

  ask(*asked[0])
  compilations.clear()
  with ThreadPoolExecutor(6) as pool:  # twice as many as there are slots
    answers = list(pool.map(lambda each: ask(*each), asked))
  assert compilations == []
  for (prompt, tokens, seed, temperature, top_p), answer in zip(asked, answers):
    [choice], usage = answer.choices, answer.usage
    assert choice.text == sampled(run, prompt, tokens, seed, temperature=temperature, top_p=top_p)
    assert choice.finish_reason == 'length' and answer.object == 'text_completion'
    assert (usage.prompt_tokens, usage.completion_tokens) == (max(1, len(prompt.encode())), tokens)


def test_a_stream_is_the_same_text_in_pieces(client):
  given = dict(model='mine', prompt='The', max_tokens=40, seed=7)
  whole = client.completions.create(**given).choices[0]
  chunks = list(client.completions.create(**given, stream=True, stream_options={'include_usage': True}))
  assert ''.join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.text and len(chunks) > 5
  assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ['length']
  assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == 43


def test_a_chat_is_its_messages_joined(client):
  messages = [{'role': 'system', 'content': 'The'}, {'role': 'user', 'content': [{'type': 'text', 'text': 'fox'}]}]
  given = dict(max_tokens=30, seed=3)
  plain = client.completions.create(model='mine', prompt='The\nfox', **given)
  answer = client.chat.completions.create(model='mine', messages=messages, **given)
  [choice] = answer.choices
  assert choice.message.content == plain.choices[0].text and choice.message.role == 'assistant'
  chunks = list(client.chat.completions.create(model='mine', messages=messages, stream=True, **given))
  assert chunks[0].choices[0].delta.role == 'assistant' and chunks[-1].choices[0].finish_reason == 'length'
  assert ''.join(chunk.choices[0].delta.content or '' for chunk in chunks) == choice.message.content


def test_a_stop_ends_a_text_before_it(client):
  given = dict(model='mine', prompt='The', max_tokens=200, seed=11)
  text = client.completions.create(**given).choices[0].text
  for stop in (text[20:24], [text[90:93], text[50:55]]):
    first = min(text.index(each) for each in ([stop] if isinstance(stop, str) else stop))
    answer = client.completions.create(**given, stop=stop)
    assert answer.choices[0].text == text[:first] and answer.choices[0].finish_reason == 'stop'
    assert answer.usage.completion_tokens < 200
    pieces = client.completions.create(**given, stop=stop, stream=True)
    assert ''.join(each.choices[0].text for each in pieces) == text[:first]


def test_a_line_ends_where_it_ends_by_a_model_without_a_cache(untrained, application, tmp_path):
  (tmp_path / 'names.txt').write_text('anna\nbob\ncara\n' * 40)
  run = untrained(
    language_model, dataset=f'lines:{tmp_path / "names.txt"}', model='bigram', tokeniser='characters', context=0
  )
  with TestClient(application(run, slots=2).asgi) as client:
    answers = [
      client.post('/v1/completions', json={'prompt': 'a', 'max_tokens': 90, 'seed': seed}).json() for seed in (1, 2)
    ]
    for seed, answer in enumerate(answers, 1):
      assert answer['choices'][0]['text'] == sampled(run, 'a', 90, seed)
      assert answer['choices'][0]['finish_reason'] == 'stop' and answer['usage']['prompt_tokens'] == 2
    refused = client.post('/v1/completions', json={'prompt': 'xyz'})
    assert refused.status_code == 400 and 'in none of the training texts' in refused.json()['error']['message']
    assert (
      client.post('/v1/completions', json={'prompt': 'annaanna'}).json()['error']['code'] == 'context_length_exceeded'
    )


def test_models_are_listed(client):
  assert [model.id for model in client.models.list()] == ['mine'] and client.models.retrieve('mine').id == 'mine'
  with pytest.raises(openai.NotFoundError, match='there is no model'):
    client.models.retrieve('gpt-9')


def test_pieces_hold_whole_characters_and_no_beginning_of_a_stop():
  tokens = list('a – b'.encode())
  typed = Typed(lambda tokens: bytes(tokens).decode(errors='replace'), [255], [])
  assert [typed.add([token]) for token in tokens] == ['a', ' ', '', '', '–', ' ', 'b']
  typed = Typed(''.join, ['<'], ['END', 'EE'])
  assert [typed.add([x]) for x in 'xEN'] == ['x', '', ''] and typed.add('E') == 'EN' and typed.add('N') == ''
  assert typed.add('D') == '' and typed.stopped
  typed = Typed(''.join, [], ['END'])
  assert typed.add('aEN') == 'a' and typed.add('', last=True) == 'EN' and not typed.stopped
  typed = Typed(lambda tokens: bytes(tokens).decode(errors='replace'), [], [])
  assert typed.add('–'.encode()[:2], last=True) == ''


def test_a_stop_of_megabytes_costs_no_more_than_the_text_it_is_looked_for_in():
  class Counted(str):
    asked = 0

    def __getitem__(self, part):
      Counted.asked += 1
      return super().__getitem__(part)

  typed = Typed(''.join, [], [Counted('ab' * 10_000)])
  assert typed.add('xab') == 'x' and Counted.asked <= 3


# ---- who leaves ----


@pytest.mark.parametrize('stream', [False, True])
def test_a_client_that_leaves_frees_its_slot(made, address, client, stream, monkeypatch):
  slots, step = made.service._slots, made.service._programs.step
  monkeypatch.setattr(made.service._programs, 'step', lambda: time.sleep(0.2) or step())  # 100 calls are 20 seconds
  connection = http.client.HTTPConnection(address.removeprefix('http://'))
  body = json.dumps({'prompt': 'The', 'max_tokens': 400, 'stream': stream})
  connection.request('POST', '/v1/completions', body)
  wait_for(slots.busy)
  if stream:
    assert connection.getresponse().read(10) == b'data: {"id'
  connection.close()
  connection.sock = None
  begin = time.monotonic()
  wait_for(lambda: not slots.busy())
  assert time.monotonic() - begin < 10


def test_a_stream_whose_client_left_before_it_began_stops_its_text(made):
  async def left():
    text = slots.Text([1], 400, slots.Rules())
    answer = completions._Answer(text, Typed(''.join, [], []), 1, made)
    stream = completions._Stream(answer, completions._events(answer, {}, None, False))
    await stream({'type': 'http', 'asgi': {'spec_version': '2.3'}}, receive, send)
    return text.gone

  async def receive():
    return {'type': 'http.disconnect'}

  async def send(message):
    await asyncio.sleep(1)

  assert asyncio.run(left())


def test_who_has_left_waits_no_more():
  programs = types.SimpleNamespace(
    slots=1, context=8, limited=False, chunk=1, begin=lambda *_: None, step=lambda: time.sleep(0.01) or np.zeros((1, 1), int)
  )  # fmt: skip

  async def ask():
    some = slots.Slots(programs, None, 1)
    going, waiting, next_ = (slots.Text([1], 10**6, slots.Rules()) for _ in range(3))
    some.ask(going)
    await asyncio.to_thread(wait_for, some.busy)
    some.ask(waiting)
    with pytest.raises(Full):
      some.ask(next_)
    waiting.gone = True
    await asyncio.to_thread(wait_for, lambda: not some.waiting())
    some.ask(next_)
    going.gone = True
    await asyncio.to_thread(wait_for, lambda: next_.made)
    some.stop()

  asyncio.run(ask())


def wait_for(true):
  end = time.monotonic() + 20
  while not true():
    assert time.monotonic() < end
    time.sleep(0.01)


def test_a_late_text_and_a_full_queue_are_said(made, address, monkeypatch):
  step = made.service._programs.step
  monkeypatch.setattr(made.service._programs, 'step', lambda: time.sleep(0.1) or step())
  monkeypatch.setattr(made, 'limits', app.Limits(timeout=0.5))
  monkeypatch.setattr(made.service._slots, '_most', 1)
  body = {'prompt': 'The', 'max_tokens': 400}
  ask = lambda stream: httpx2.post(f'{address}/v1/completions', json={**body, 'stream': stream})
  assert ask(False).status_code == 504
  events = ask(True).text.split('\n\n')
  assert json.loads(events[-3][6:])['error']['code'] == 'timeout' and events[-2] == 'data: [DONE]'
  with ThreadPoolExecutor(12) as pool:  # where three go on, and one may wait
    answers = list(pool.map(ask, [False] * 12))
  assert {429, 504} == {each.status_code for each in answers}
  assert {each.headers.get('retry-after') for each in answers if each.status_code == 429} == {'1'}


def test_what_fails_in_the_thread_is_said_and_the_next_text_is_right(run, made, client, monkeypatch, capfd):
  def fail():
    raise RuntimeError('secret')

  monkeypatch.setattr(made.service._programs, 'step', fail)
  with pytest.raises(openai.InternalServerError, match='its log says how'):
    client.completions.create(model='mine', prompt='The')
  monkeypatch.undo()
  assert client.completions.create(model='mine', prompt='The', seed=5).choices[0].text == sampled(run, 'The', 16, 5)


# ---- what is refused ----


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'prompt': 'x' * 25}, '25 tokens; the context of this model is 24'), ({'prompt': None}, 'prompt: one text'),
    ({'prompt': ['a', 'b']}, 'prompt: one text'), ({'prompt': [1, 2]}, 'prompt: one text'), ({'prompt': '\ud800'}, 'no text'),
    ({'max_tokens': -1}, 'max_tokens=-1: at least 1'), ({'max_tokens': 401}, 'at most 400'), ({'max_tokens': 2.5}, 'a whole number'),
    ({'max_tokens': True}, 'a whole number'), ({'temperature': 'hot'}, 'temperature: a number'), ({'temperature': -1}, 'temperature=-1'),
    ({'temperature': 1e999}, 'Infinity is no number'), ({'temperature': float('nan')}, 'NaN is no number'), ({'top_p': 0}, 'top_p=0'), ({'top_p': 1.1}, 'top_p=1.1'),
    ({'seed': 1.5}, 'seed: a whole number'), ({'seed': 10**400}, 'seed='), ({'stop': 3}, 'stop: a text'), ({'stop': ['']}, 'stop: a text'),
    ({'stop': list('abcde')}, 'up to four'), ({'stream': 'yes'}, 'stream: true or false'), ({'n': 2}, 'n=2 is not supported'),
    ({'logprobs': 5}, 'logprobs=5 is not'), ({'tools': [1]}, 'is not supported'), ({'tools': ['x' * 5000]}, 'tools='), ({'modell': 'a'}, "unknown argument 'modell'"),
    ({'stream_options': [1]}, 'stream_options: an object'), ({'model': 3}, 'model: a text'), ({'logprobs': 0}, 'logprobs=0 is not'),
    ({'messages': []}, "unknown argument 'messages'"), ({'\ud800é': 1}, "unknown argument '\\ud800é'"),
  ],
)  # fmt: skip
def test_bad_requests_are_refused_by_name(address, changes, said):
  connection = http.client.HTTPConnection(address.removeprefix('http://'))
  connection.request('POST', '/v1/completions', json.dumps({'prompt': 'The', **changes}))
  response = connection.getresponse()
  error = json.loads(response.read())['error']
  assert response.status == 400 and error['type'] == 'invalid_request_error'
  assert said in error['message'] and len(error['message']) <= app.LONGEST


def test_openais_client_raises_its_own_errors(client):
  with pytest.raises(openai.NotFoundError) as caught:
    client.completions.create(model='gpt-9', prompt='The')
  assert caught.value.code == 'model_not_found' and caught.value.param == 'model'
  with pytest.raises(openai.BadRequestError, match='max_tokens=-3'):
    client.completions.create(model='mine', prompt='The', max_tokens=-3)
  for messages in ([], 'hi', [{'role': 'user'}], [{'role': 'user', 'content': [{'type': 'image_url'}]}], [7]):
    with pytest.raises(openai.BadRequestError, match='messages: a list'):
      client.chat.completions.create(model='mine', messages=messages)
  assert client.completions.create(model='mine', prompt='The').choices[0].text


def test_tokens_are_counted_and_the_page_asks_for_a_text(made, address, client):
  before = made.metrics.tokens.copy()
  client.completions.create(model='mine', prompt='The', max_tokens=8)
  wait_for(lambda: made.metrics.tokens['completion'] - before['completion'] == 8)
  assert made.metrics.tokens['prompt'] - before['prompt'] == 3
  assert 'karpjax_tokens_total{kind="completion"}' in made.metrics.text()
