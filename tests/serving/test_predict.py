"""`POST /predict`: the same answers as the verb's, whatever comes with them, and what is refused."""

import asyncio
import io
import json
import time
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from experiments import image_classification, regression, text_classification, translation
from karpjax import errors
from karpjax.serving import app, batching, inputs


def png(seed=0, size=(8, 8)):
  pixels = np.random.default_rng(seed).integers(0, 255, size, np.uint8)
  Image.fromarray(pixels).save(file := io.BytesIO(), 'PNG')
  return file.getvalue()


@pytest.fixture(scope='module')
def digits(untrained):
  return untrained(image_classification, model='mlp', widths=(4,))


@pytest.fixture(scope='module')
def client(digits, application):
  with TestClient(application(digits, app.Limits(body=20_000), queue=40, top=2).asgi) as client:
    yield client


@pytest.fixture(scope='module')
def houses(untrained, application, tmp_path_factory):
  table = tmp_path_factory.mktemp('table') / 'houses.csv'
  rows = (f'{i % 7},{"Oslo" if i % 3 else "Rome"},{"dear" if i % 7 > 3 else "cheap"}' for i in range(60))
  table.write_text('\n'.join(['rooms,town,price', *rows]))
  with TestClient(application(untrained(regression, dataset=str(table), target='price')).asgi) as client:
    yield client


def message(response, status):
  assert response.status_code == status, response.text
  error = response.json()['error']
  assert error.keys() == {'message', 'type', 'param', 'code'} and '\n' not in error['message']
  return error['message']


# ---- what is answered ----


def test_a_picture_is_answered_as_the_verb_answers(digits, client, tmp_path):
  (tmp_path / 'a.png').write_bytes(png(1))
  verb, chosen = digits.verbs['predict'], image_classification.classes('', '', None).options(top=2)
  arrays = verb.encode(digits, [str(tmp_path / 'a.png')], chosen)
  [expected] = verb.decode(digits, verb.function(digits, chosen)(digits.state, arrays), ['the body'], chosen)
  [got] = client.post('/predict', content=png(1)).json()['answers']
  assert got['input'] == 'the body' and list(got['classes']) == list(expected['classes'])
  assert got['classes'] == pytest.approx(expected['classes'], abs=1e-6)
  files = [('image', (f'{i}.png', png(i))) for i in range(3)]
  answers = client.post('/predict', files=files).json()['answers']
  assert [each['input'] for each in answers] == ['0.png', '1.png', '2.png']
  assert answers[1]['classes'] == pytest.approx(expected['classes'], abs=1e-6)


def test_no_request_compiles_whatever_comes_together(client, compilations):
  one = lambda seed: client.post('/predict', content=png(seed)).json()['answers'][0]['classes']
  alone = [one(seed) for seed in range(12)]
  with ThreadPoolExecutor(12) as pool:
    together = list(pool.map(one, range(12)))
  many = client.post('/predict', files=[('image', ('a.png', png(seed))) for seed in range(40)]).json()['answers']
  assert compilations == []
  for a, b, c in zip(alone, together, many):
    assert a == pytest.approx(b, abs=1e-6) and a == pytest.approx(c['classes'], abs=1e-6)


def test_rows_of_a_table_are_objects_of_columns(houses):
  ask = lambda *rows: houses.post('/predict', json={'inputs': list(rows)})
  answers = ask({'rooms': '4.5', 'town': 'Rome', 'note': 'x'}).json()['answers']
  assert sum(answers[0]['classes'].values()) == pytest.approx(1, abs=1e-5)
  both = ask({'rooms': 4.5, 'town': 'Rome'}, {'rooms': None, 'town': 'Oslo'}).json()['answers']
  assert both[0] == answers[0] and both[1] != both[0]
  lacks = message(ask({'rooms': 4}), 400)
  assert "no column 'town'; this run has learnt from rooms, town" in lacks and 'columns=' not in lacks
  assert 'other columns than input 1' in message(ask({'rooms': 1, 'town': 'Oslo'}, {'rooms': 1}), 400)
  assert "'big' is no number" in message(ask({'rooms': 'big', 'town': 'Oslo'}), 400)
  assert 'a number, a text or null is wanted' in message(ask({'rooms': [1], 'town': 'Oslo'}), 400)
  assert 'an object of columns and cells is wanted' in message(ask('/etc/passwd'), 400)


def test_a_text_is_never_a_file(untrained, application, tmp_path, capfd):
  (tmp_path / 'mine.csv').write_text('text,label\n' + 'sun and wind,hot\nice and wind,cold\n' * 20)
  settings = dict(embedding=2, channels=2, windows=(2,), buckets=1, batch_size=8, baseline=False)
  run = untrained(text_classification, dataset=str(tmp_path / 'mine.csv'), **settings)
  path = str(tmp_path / 'mine.csv')
  made = application(run)
  assert '<mask>' not in capfd.readouterr().err
  with TestClient(made.asgi) as client:
    ask = lambda *texts: client.post('/predict', json={'inputs': list(texts)})
    assert [each['input'] for each in ask(path, '-').json()['answers']] == [path, '-']
    long = ask('sun ' * 500, 'sun').json()['answers']
    assert [*map(len, (each['classes'] for each in long))] == [2, 2]
    assert capfd.readouterr().err == ''  # of words of strangers
    assert 'text 1 is empty' in message(ask(''), 400)
    assert 'a text is wanted' in message(ask(7), 400)
    assert 'no text' in message(client.post('/predict', content=b'{"inputs": ["\\ud800"]}'), 400)


def test_texts_longer_than_what_is_compiled_are_refused(untrained):
  run = untrained(translation, examples=100, model='gru', units=(4,), embedding=4, batch_size=8)
  verb, chosen = run.verbs['translate'], translation.Search(beam=1)
  known = batching.example(run, verb, chosen)
  assert known['source'].shape == (1, run.spec.lengths['source'])
  taken = object.__new__(batching.Predictor)
  taken.example = known
  assert taken.check(inputs.filled(run, verb.encode(run, ['1 May 2020', '2 May 2021'], chosen))) == 2
  with pytest.raises(errors.UsageError, match='this run takes'):
    taken.check(inputs.filled(run, verb.encode(run, ['1' * 999], chosen)))
  assert batching.served(run, lambda verb: chosen)[0] == 'translate'


# ---- what is refused ----


@pytest.mark.parametrize(
  ('content', 'kind', 'status', 'said'),
  [
    (b'', '', 400, "cannot identify image file 'the body'"),
    (b'/etc/passwd', '', 400, 'not a readable PNG or JPEG'),
    (png()[:60], 'image/png', 400, 'not a readable PNG or JPEG'),
    (png(size=(300, 300)), 'image/png', 413, 'larger than 20,000 bytes'),
    (b'{"inputs": ["a.png"]}', 'application/json', 415, 'send the bytes of a PNG'),
    (b'x', 'multipart/form-data', 400, 'the form cannot be read'),
    (b'x', 'multipart/form-data; boundary=a', 400, 'the form cannot be read'),
    (b'--a\r\nContent-Disposition: form-data; name="image"\r\n\r\na.png\r\n--a--\r\n', 'multipart/form-data; boundary=a', 400, '0 inputs'),
  ],
)  # fmt: skip
def test_what_is_no_picture_is_refused(client, content, kind, status, said):
  assert said in message(client.post('/predict', content=content, headers={'Content-Type': kind}), status)
  assert client.post('/predict', content=png()).status_code == 200


def test_a_body_that_does_not_say_its_length_is_bounded_too(client):
  response = client.post('/predict', content=(b'x' * 9_000 for _ in range(3)))
  assert 'larger than 20,000 bytes' in message(response, 413)


def test_a_body_of_many_pieces_is_read_in_time_that_its_length_takes():
  async def stream():
    for _ in range(200_000):
      yield b'x'

  request = types.SimpleNamespace(headers={'content-length': '²'}, stream=stream)
  begin = time.monotonic()
  content = asyncio.run(app.App.body(types.SimpleNamespace(limits=app.Limits()), request))
  assert len(content) == 200_000 and time.monotonic() - begin < 10


def test_a_picture_of_too_many_pixels_is_not_decoded(client, monkeypatch):
  monkeypatch.setattr(inputs, 'MOST_PIXELS', 100)
  assert 'at most 100 are taken' in message(client.post('/predict', content=png(size=(20, 20))), 400)
  files = [('image', (name, png(size=(8, 8)))) for name in ('a.png', 'b.png')]
  assert client.post('/predict', files=files[:1]).status_code == 200
  assert 'with b.png there are 128 pixels' in message(client.post('/predict', files=files), 400)


@pytest.mark.parametrize(
  ('body', 'said'),
  [
    (b'', 'no JSON'), (b'{', 'no JSON'), (b'\xff', 'no JSON'), (b'[1]', 'no object'), (b'{"inputs": NaN}', 'NaN is no number'),
    (b'[' * 50_000, 'no JSON'), (b'{}', 'send {"inputs"'), (b'{"inputs": "a"}', 'send {"inputs"'),
    (b'{"inputs": []}', '0 inputs; a request has 1 to 256'), (b'{"inputs": [{}], "top": 1}', 'send {"inputs"'),
    (b'{"inputs": [{}], "input": {}}', 'send {"inputs"'),
    (json.dumps({'inputs': [{}] * 257}).encode(), '257 inputs'),
  ],
)  # fmt: skip
def test_what_is_no_json_of_inputs_is_refused(houses, body, said):
  assert said in message(houses.post('/predict', content=body), 400)
  assert houses.get('/health').text == 'ok\n'


def test_unknown_paths_and_methods_are_said(client):
  assert message(client.get('/secret'), 404) == 'there is no /secret'
  assert message(client.get('/predict'), 405) == '/predict does not take GET'
  assert message(client.get('/v1/models'), 404)


def test_a_token_keeps_others_out(digits, application):
  with TestClient(application(digits, app.Limits(token='wörd')).asgi) as client:
    assert client.get('/health').status_code == client.get('/').status_code == 200
    for header in (
      {},
      {'Authorization': 'Bearer word'},
      {'Authorization': 'wörd'.encode()},
      {'Authorization': 'Bearer '},
    ):
      for path in ('/metrics', '/predict'):
        response = client.request('POST' if path == '/predict' else 'GET', path, headers=header)
        assert message(response, 401) and response.headers['www-authenticate'] == 'Bearer'
    assert client.post('/predict', content=png(), headers={'Authorization': 'Bearer wörd'.encode()}).status_code == 200


def test_metrics_count_requests_by_status(client):
  client.get('/never')
  text = client.get('/metrics').text
  assert 'karpjax_requests_total{path="other",status="404"}' in text and 'karpjax_queue_length 0' in text
  assert 'karpjax_request_seconds_bucket{path="/predict",le="+Inf"}' in text and '/never' not in text


def test_the_page_asks_nobody_else_and_tells_no_path(client, houses):
  for page, kind in ((client.get('/'), 'image'), (houses.get('/'), 'row')):
    assert f'"kind": "{kind}"' in page.text and 'http:' not in page.text and 'https:' not in page.text
    assert '"name": "mine"' in page.text and 'runs/' not in page.text
    assert ('"columns": {"rooms": [], "town": ["Oslo", "Rome"]}' in page.text) == (kind == 'row')
    assert "default-src 'none'" in page.headers['content-security-policy']


# ---- the queue ----


def test_what_comes_within_a_moment_is_one_batch_and_the_queue_is_bounded():
  calls = []

  async def ask():
    batcher = batching.Batcher(lambda arrays: calls.append(len(arrays['x'])) or arrays['x'] * 2, 30)
    work = asyncio.create_task(batcher.work())
    asked = [asyncio.create_task(batcher.ask({'x': np.full((n, 1), n)}, n)) for n in (1, 2, 20)]
    await asyncio.sleep(0)
    with pytest.raises(batching.Full):
      await batcher.ask({'x': np.zeros((8, 1))}, 8)
    asked[1].cancel()
    answers = await asyncio.gather(asked[0], asked[2])
    work.cancel()
    return answers, batcher.waiting

  (one, many), waiting = asyncio.run(ask())
  assert one.tolist() == [[2]] and many.tolist() == [[40]] * 20 and calls == [21] and waiting == 0


def test_what_cannot_be_answered_together_fails_and_the_next_is_answered():
  async def ask():
    batcher = batching.Batcher(lambda arrays: arrays['x'], 30)
    work = asyncio.create_task(batcher.work())
    odd = await asyncio.gather(*(batcher.ask({'x': np.zeros((1, n))}, 1) for n in (1, 2)), return_exceptions=True)
    answer = await asyncio.wait_for(batcher.ask({'x': np.ones((1, 1))}, 1), 5)
    work.cancel()
    return odd, answer

  odd, answer = asyncio.run(ask())
  assert [*map(type, odd)] == [ValueError] * 2 and answer.tolist() == [[1]]


def test_a_full_queue_and_a_late_answer_have_their_own_status(digits, application, monkeypatch):
  made = application(digits)

  async def full(*_):
    raise batching.Full

  async def late(*_):
    await asyncio.sleep(60)

  async def wrong(*_):
    raise OSError('secret.txt')

  with TestClient(made.asgi, raise_server_exceptions=False) as client:
    for ask, status in ((full, 429), (late, 504), (wrong, 500)):
      monkeypatch.setattr(made, 'limits', app.Limits(timeout=0.1 if status == 504 else 30))
      monkeypatch.setattr(batching.Batcher, 'ask', ask)
      response = client.post('/predict', content=png())
      assert 'secret' not in message(response, status)
      assert response.headers.get('retry-after') == ('1' if status == 429 else None)
    monkeypatch.undo()
    assert client.post('/predict', content=png()).status_code == 200
