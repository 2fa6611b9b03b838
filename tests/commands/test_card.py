"""The model card of a run: its head, its numbers, and that no answer of the author's is lost."""

import json
import types

import pytest
import yaml

import karpjax
import launch
from karpjax.commands import card
from karpjax.report import writers

SUMMARY = {
  'steps': 30, 'parameters': 1210, 'validation/accuracy': 0.5, 'test/accuracy': {'mean': 0.75, 'std': 0.1, 'values': [0.65, 0.85]},
  'test/loss': {'mean': 0.5, 'std': 0.2, 'values': [0.3, 0.7]}, 'test/nll': float('nan'), 'train/loss': 0.1, 'seconds': 12.0,
}  # fmt: skip
RATES = {rate: [0.25, 0.1, 0.5] for rate in ('accuracy', 'FPR', 'FNR', 'PPV', 'selection rate')}


def made(folder, summary=None, **flags):
  """A run as its folder tells of it, without weights."""
  stored = {
    'experiment': 'regression', 'command': 'python launch.py regression --seeds=2', 'git': 'abc', 'changed': {'validation': 0.2},
    'flags': {'dataset': '/home/me/pets.csv', 'model': 'mlp', 'dp_delta': 1e-5, **flags}, 'compiled': {'flops': 2e6},
    'versions': {'jax': '0.12'}, 'device_kind': 'cpu',
  }  # fmt: skip
  writers.write_json(folder / 'data.json', {'splits': {'train': {'examples': 1500}, 'train as read': {}}, 'files': {}})
  about = types.SimpleNamespace(__doc__='Lines through points.\n\nMore.')
  own = lambda path: path
  return types.SimpleNamespace(
    folder=folder, stored=stored, summary=summary or SUMMARY, experiment=about, own_path=own, checkpoint='best', trial='',
    member=None, verbs={'audit': None},
  )  # fmt: skip


def head(text):
  _, yaml_head, rest = text.split('---\n', 2)
  return yaml.safe_load(yaml_head), rest


def test_the_head_is_yaml_with_the_numbers_of_the_summary(tmp_path):
  about, _ = head(card.text(made(tmp_path), 'mine: "two"'))
  assert about['license'] == 'unknown' and about['datasets'] == ['pets.csv'] and 'regression' in about['tags']
  [model] = about['model-index']
  assert model['name'] == 'mine: "two"' and about['metrics'] == ['accuracy', 'loss']
  found = {(r['dataset']['split'], m['type']): m['value'] for r in model['results'] for m in r['metrics']}
  assert found == {('validation', 'accuracy'): 0.5, ('test', 'accuracy'): 0.75, ('test', 'loss'): 0.5}


def test_the_numbers_are_those_of_the_weights_that_verbs_use(tmp_path):
  numbers = {**SUMMARY, 'best/step': 20, 'best/test/accuracy': 0.875, 'best/validation/accuracy': 0.625}
  about, rest = head(card.text(made(tmp_path, numbers), 'mine'))
  results = about['model-index'][0]['results']
  assert {r['dataset']['split']: r['metrics'][0]['value'] for r in results} == {'test': 0.875, 'validation': 0.625}
  assert '| test/accuracy | 75.00 % ± 10.00 % | 87.50 % |' in rest
  assert head(card.text(made(tmp_path, {**numbers, 'best/step': 30}), 'mine'))[0]['metrics'] == ['accuracy', 'loss']


def test_the_sections_are_those_of_mitchell_and_say_what_the_run_has_left(tmp_path):
  _, rest = head(card.text(made(tmp_path), 'mine'))
  assert [line[3:] for line in rest.splitlines() if line.startswith('## ')] == [
    'Model details', 'Intended use', 'Factors', 'Metrics', 'Evaluation data', 'Training data', 'Quantitative analyses',
    'Ethical considerations', 'Caveats and recommendations',
  ]  # fmt: skip
  for said in (
    'Lines through points.', '1,210 parameters, 0.00484 MB', '30 steps, 12 s on cpu', '2,000,000 (estimated)', 'jax 0.12',
    'python launch.py regression --seeds=2', '| train | 1,500 |', 'validation=0.2', '2 seeds: mean ±', 'was not audited',
    'no medical device',
  ):  # fmt: skip
    assert said in rest, said
  assert 'Privacy' not in rest and 'nergy' not in rest and 'as read' not in rest and '/home' not in rest


def test_audits_privacy_and_energy_are_told_where_there_are_any(tmp_path):
  answer = {
    'group': 'sex', 'label': 'y is 1', 'decision': 'probability ≥ 0.5', 'differences': {'equalised odds': None},
    'groups': {'f': {'n': 1000, 'small': False, **RATES}, 'm': {'n': 5, 'small': True, **RATES, 'PPV': [None] * 3}},
  }  # fmt: skip
  writers.write_json(tmp_path / 'audit' / 'people.json', [answer])
  numbers = {**SUMMARY, 'train/epsilon': 1.19, 'energy_joules': 20.0}
  text = card.text(made(tmp_path, numbers), 'mine')
  assert 'By sex, of people; positive: y is 1' in text and '| f | 1,000 | 25.00 (10.0 to 50.0) |' in text
  assert 'm (too small to judge)' in text and 'equalised odds –' in text and 'was not audited' not in text
  assert 'epsilon 1.19 at δ = 1e-05' in text and 'Energy joules: 20' in text and 'Privacy: epsilon' in text


def test_a_member_of_a_sweep_is_named_with_its_setting_and_its_own_audits(tmp_path):
  writers.write_json(
    tmp_path / 'sweep.json', {'command': 'python launch.py sweep regression --grid learning_rate=0.1,0.2'}
  )
  answer = {'label': 'y is 1', 'decision': 'p ≥ 0.5', 'differences': {}, 'groups': {}}
  for member in (0, 1):
    own = {**answer, 'group': f'sex{member}', 'member': member, 'weights': f'step 30 (last) of trial {member + 1}'}
    writers.write_json(tmp_path / 'part-000' / 'audit' / f'people_trial_{member + 1}.json', [own])
  run = made(tmp_path / 'part-000')
  run.stored['population'] = {'seeds': [0, 0], 'hyper': {'learning_rate': [0.1, 0.2]}}
  run.member, run.trial = 1, 'trial 2: learning_rate=0.2'
  text = card.text(run, card.named(run))
  assert f'# {tmp_path.name}, trial 2: learning_rate=0.2' in text and '- Setting: trial 2: learning_rate=0.2' in text
  assert 'python launch.py sweep regression --grid' in text and '--seeds=2' not in text
  assert '2,000,000 (estimated), of 2 members together' in text and '12 s on cpu, of 2 members together' in text
  assert 'By sex1' in text and 'weights of step 30 (last) of trial 2' in text and 'sex0' not in text


def test_what_was_not_evaluated_audited_or_read_is_not_claimed(tmp_path):
  run = made(
    tmp_path, {'steps': 60, 'parameters': 9, 'test/episode_return': 1.0}, dataset=None, environment='pole', model=None
  )
  writers.write_json(tmp_path / 'data.json', {'splits': {'train': {'examples': 1}, 'test': {'examples': 4}}})
  run.verbs, run.stored['flags'] = {}, {**run.stored['flags'], 'algorithm': 'td3'}
  text = card.text(run, 'mine')
  assert 'The episodes test of pole, below' in text and 'What was played in pole' in text and '- Model: td3' in text
  assert '| test | 4 |' in text and '| split | episodes |' in text and '| train |' not in text
  assert 'It was not audited for groups.' in text and 'launch.py audit' not in text
  text = card.text(made(tmp_path, {'steps': 60, 'parameters': 9, 'test/loss': 1.0}), 'mine')
  assert 'The split test of pets.csv, below' in text
  text = card.text(made(tmp_path, {'steps': 60, 'parameters': 9}), 'mine')
  assert 'None was measured on validation or test.' in text and '## Evaluation data\n\nNone.' in text


def test_what_a_private_runs_epsilon_leaves_out_is_told_as_the_run_told_it(tmp_path):
  (tmp_path / 'texts').mkdir()
  (tmp_path / 'texts' / 'privacy.txt').write_text('ε is 1.19\nthat is of one seed; of all 2, ε is 1.8\n', 'utf-8')
  text = card.text(made(tmp_path, {**SUMMARY, 'train/nominal_epsilon': 1.19}), 'mine')
  assert (
    'Privacy: nominal epsilon 1.19 at δ = 1e-05, of this one training; that is of one seed; of all 2, ε is 1.8' in text
  )


def test_sources_are_named_without_their_folders():
  for given, name in {
    '/home/me/pets': 'pets', 'folder:/home/me/pets': 'folder:pets', 'files:/home/a.txt,/home/b.txt': 'files:a.txt,b.txt',
    'glue/sst2': 'glue/sst2', 'digits': 'digits',
  }.items():  # fmt: skip
    assert card.source({'dataset': given}) == name


def test_a_card_that_its_author_has_edited_is_kept(tmp_path):
  run, chosen = made(tmp_path), card.Options()
  card.encode(run, [], chosen)
  [answer] = card.decode(run, {}, [], chosen)
  first = (tmp_path / 'card.md').read_text()
  run.summary = {**SUMMARY, 'steps': 60}
  card.encode(run, [], chosen)  # as it was made: no answer is lost
  card.decode(run, {}, [], chosen)
  (tmp_path / 'card.md').write_text((again := (tmp_path / 'card.md').read_text()).replace('which?', 'MIT'))
  assert again != first and answer == {'file': str(tmp_path / 'card.md')}
  with pytest.raises(karpjax.errors.UsageError, match=r'card.md has been edited.*choose another output='):
    card.encode(run, [], chosen)
  card.encode(run, [], card.Options(output=str(tmp_path / 'other.md')))
  with pytest.raises(karpjax.errors.UsageError, match='is a folder'):
    card.encode(run, [], card.Options(output=str(tmp_path / 'audit' if (tmp_path / 'audit').exists() else tmp_path)))


def test_the_card_of_a_real_run_from_the_command_line(classifier, tmp_path, capsys):
  path = str(tmp_path / 'card.md')
  assert launch.main(['card', classifier, f'--output={path}', '--json']) == 0
  assert json.loads(capsys.readouterr().out) == {'file': path}
  about, rest = head((tmp_path / 'card.md').read_text())
  assert about['datasets'] == ['digits'] and karpjax.open(classifier).stored['command'] in rest
  step = karpjax.open(classifier).step
  assert launch.main(['card', classifier, f'--output={path}', f'--checkpoint={step}']) == 2
  assert f'checkpoint={step}' in capsys.readouterr().err
  (tmp_path / 'card.md').write_text('mine')
  assert launch.main(['card', classifier, f'--output={path}']) == 2
  assert capsys.readouterr().err.count('\n') == 1
