"""A made series of texts whose mood turns: the class of each line, the rolling share, and an alert at the turn alone."""

import csv
import datetime
import types

import numpy as np
import pytest

from experiments import text_classification as experiment
from karpjax import verbs
from karpjax.commands import monitor, use
from karpjax.errors import UsageError
from karpjax.metrics import change
from karpjax.train import loop

GOOD = ('profits rise', 'sales grow fast', 'orders up', 'record gains', 'strong growth')
BAD = ('profits fall', 'sales shrink', 'orders down', 'heavy losses', 'weak demand')
WORDS = ['today', 'again', 'this', 'quarter', 'in', 'the', 'north', 'as', 'planned', 'said', 'the', 'firm']


def texts(seed, moods):
  draw = np.random.default_rng(seed)
  return [
    f'{draw.choice(WORDS)} {draw.choice(BAD if bad else GOOD)} {draw.choice(WORDS)} {draw.choice(WORDS)}'
    for bad in moods
  ]


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('monitor')
  moods = np.arange(400) % 2
  lines = [f'{text},{("positive", "negative")[bad]}' for text, bad in zip(texts(0, moods), moods)]
  (folder / 'mine.csv').write_text('\n'.join(['text,label', *lines]))
  settings = experiment.Config(
    dataset=str(folder / 'mine.csv'), workdir=str(folder / 'run'), embedding=8, channels=4, windows=(1, 2), buckets=1, dropout=0.0,
    steps='60', steps_per_call='60', learning_rate=0.02, baseline=False, plots=False, tensorboard=False, eval_splits=(),
    final_splits=(),
  )  # fmt: skip
  loop.run(experiment, settings, say=lambda _: None)
  return folder / 'run'


def stream(path, moods, seed=1, shuffled=False):
  """Writes a line each hour; returns the times."""
  times = [datetime.datetime(2026, 1, 1) + datetime.timedelta(hours=i) for i in range(len(moods))]
  rows = [(t.isoformat(), text, 'x') for t, text in zip(times, texts(seed, moods))]
  if shuffled:
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
  with open(path, 'w', newline='') as file:
    csv.writer(file).writerows([('Time', 'Text', 'source'), *rows])
  return times


def moods(jump, size=700, at=500, seed=2):
  return np.random.default_rng(seed).random(size) < np.where(np.arange(size) < at, 0.15, jump)


def told(folder, path, bad, **options):
  """The answer for a series whose classes are known."""
  spec = types.SimpleNamespace(classes=('negative', 'positive'))
  run = types.SimpleNamespace(folder=folder, spec=spec, own_path=lambda path: path)
  [answer] = monitor.decode(
    run, np.where(bad[:, None], [0.9, 0.1], [0.2, 0.8]), [str(path)], monitor.Options(**options)
  )
  return answer


def test_a_jump_raises_one_alert_and_every_line_is_told(workdir, tmp_path, capsys):
  bad = moods(0.6)
  times = stream(tmp_path / 'news.csv', bad, shuffled=True)
  flags = ['--window=50', f'--output={tmp_path}/out']
  assert use.main('monitor', [str(workdir), str(tmp_path / 'news.csv'), *flags]) == 0
  alerts = [line for line in capsys.readouterr().out.splitlines() if line.startswith('ALERT')]
  assert len(alerts) == 1 and 'negative' in alerts[0]
  raised = datetime.datetime.fromisoformat(alerts[0].split()[1].rstrip(':'))
  assert times[500] < raised < times[560]

  rows = list(csv.DictReader(open(tmp_path / 'out' / 'news.csv')))
  assert [row['time'] for row in rows] == [t.isoformat() for t in times]  # in order again
  assert [row['class'] == 'negative' for row in rows] == bad.tolist()
  for i in (0, 30, 49, 50, 300, 699):
    assert float(rows[i]['rolling_share']) == pytest.approx(bad[max(0, i - 49) : i + 1].mean(), abs=1e-4)
  assert [row['time'] for row in rows if row['alert']] == [raised.isoformat()]
  assert all(row['reference'] == '' for row in rows[:249]) and rows[249]['reference'] != ''
  assert (tmp_path / 'out' / 'plots' / 'news.png').read_bytes().startswith(b'\x89PNG')


def test_each_test_raises_an_alert_at_a_jump_and_none_without(tmp_path):
  for test in change.TESTS:
    for jump in (0.15, 0.6):
      times = stream(tmp_path / 'news.csv', moods(jump))
      answer = told(tmp_path, tmp_path / 'news.csv', moods(jump), test=test, window=50)
      assert [times[500].isoformat() < alert['time'] < times[560].isoformat() for alert in answer['alerts']] == (
        [True] if jump == 0.6 else []
      )
      assert ('no alert' in monitor.show(answer)) == (jump != 0.6)
  assert (tmp_path / 'monitor' / 'news.csv').exists() and (tmp_path / 'monitor' / 'plots' / 'news.png').exists()


def test_another_class_and_a_known_share(tmp_path):
  bad = np.array([True] * 10 + [False] * 20)
  stream(tmp_path / 'few.csv', bad)
  options = {'label': 'positive', 'reference': 0.3, 'threshold': 5.0, 'output': str(tmp_path)}
  said = monitor.show(told(tmp_path, tmp_path / 'few.csv', bad, **options))
  assert 'ALERT' in said and 'positive 100.0% of the' in said


def rows(*lines):
  return lambda path: path.write_text('\n'.join(lines) + '\n')


@pytest.mark.parametrize(
  'spoil, flags, says',
  [
    (rows('time,text', 'yesterday,up'), (), "'yesterday' is no time"),
    (rows('time,text', '2026-01-01,up', '7,up'), (), 'some times are dates and some numbers'),
    (rows('when,text', '2026-01-01,up'), (), "no column 'time'"),
    (rows('time,text', '2026-01-01,'), (), 'line 2: the text is empty'),
    (rows('time,text', '2026-01-01,up'), (), 'has 1 rows; the first 300'),
    (lambda path: path.write_bytes(b'time,text\n1,\xe9\n'), (), 'is not utf-8: byte 12 is 0xe9'),
    (None, ('--label=angry',), '--label=angry: the classes of this run are negative, positive'),
    (None, ('--window=0',), '--window=0'),
    (None, ('--columns=text',), '--columns=text'),
  ],
)
def test_bad_input_is_one_line(workdir, tmp_path, capsys, spoil, flags, says):
  stream(tmp_path / 'news.csv', moods(0.15))
  if spoil:
    spoil(tmp_path / 'news.csv')
  assert use.main('monitor', [str(workdir), str(tmp_path / 'news.csv'), *flags]) == 2
  *before, last = capsys.readouterr().err.splitlines()
  assert says in last and all(line.startswith('weights of step') for line in before)


def test_predict_tells_the_class_of_texts_given_as_arguments(workdir, tmp_path, capsys):
  assert use.main('predict', [str(workdir), 'heavy losses again', 'record gains, said the firm']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith('heavy losses again  negative') and lines[1].startswith(
    'record gains, said the firm  positive'
  )
  assert use.main('predict', [str(workdir), 'up', ' ']) == 2
  assert 'text 2 is empty' in capsys.readouterr().err
  assert use.main('monitor', [str(tmp_path), str(tmp_path / 'x.csv')]) == 2


def test_no_file_that_is_read_is_written_over(workdir, tmp_path, capsys):
  feed = tmp_path / 'feed'
  feed.mkdir()
  stream(feed / 'today.csv', moods(0.15))
  (tmp_path / 'other').symlink_to(feed)
  before, flags = (feed / 'today.csv').read_bytes(), ['--window=50']
  for output in (feed, tmp_path / 'other', feed / '..' / 'feed'):
    assert use.main('monitor', [str(workdir), str(feed / 'today.csv'), *flags, f'--output={output}']) == 2
    assert f'{feed / "today.csv"} would be written over, which is given as well' in capsys.readouterr().err
    with pytest.raises(UsageError, match='would be written over'):
      verbs.Run(workdir).monitor(feed / 'today.csv', window=50, output=str(output))
  trained = workdir.parent / 'mine.csv'  # what the run was trained on
  (feed / 'today.csv').rename(feed / 'mine.csv')
  content = trained.read_bytes()
  assert use.main('monitor', [str(workdir), str(feed / 'mine.csv'), *flags, f'--output={trained.parent}']) == 2
  assert f'{trained} would be written over, which the run was made with' in capsys.readouterr().err
  assert trained.read_bytes() == content and (feed / 'mine.csv').read_bytes() == before
  assert use.main('monitor', [str(workdir), str(feed / 'mine.csv'), *flags, f'--output={tmp_path / "out"}']) == 0
  assert use.main('monitor', [str(workdir), str(feed / 'mine.csv'), *flags, f'--output={tmp_path / "out"}']) == 0
