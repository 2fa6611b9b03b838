"""Bad input to the experiments on texts ends with one line, before anything is compiled, and leaves nothing behind."""

import csv

import pytest

import launch

TABLE, TEXT, NAMES = '--dataset={folder}/mine.csv', '--dataset=text:{folder}/mine.txt', '--dataset=conll:{folder}'
BAD = {
  'language_model': [
    (['--dataset=names'], 'names.txt is needed: name the folder'),
    (['--dataset=text:nowhere.txt'], 'cannot be read'),
    (['--dataset=tiny_shakespear'], 'Did you mean tiny_shakespeare'),
    (['--model=gtp'], 'gpt'),
    ([TEXT, '--context=500000'], 'longer than the text'),
    ([TEXT, '--model=lstm', '--layers=3'], 'model lstm has no --layers'),
    ([TEXT, '--tokeniser=bpe'], 'at least 260'),
  ],
  'masked_language_model': [
    ([TEXT, '--tokeniser=bytes'], 'characters, words, bpe will do'),
    (['--mask=0'], '--mask=0.0: at most 1 and more than 0'),
    ([TEXT, '--tokeniser=words', '--batch_size=8', '--heads=3'], 'does not divide'),
    (['--context=1'], '--context=1 has room for <s> alone'),
    ([TEXT, '--vocabulary=100'], '--vocabulary=100: bpe needs at least 261'),
    (['--dataset=text:/nowhere.txt'], '/nowhere.txt cannot be read'),
    (['--dataset=python_doks'], 'unknown data set'),
    (['--dataset=text:{folder}/latin.txt'], 'byte 3 is 0xe9; name its encoding, as --encoding=latin-1'),
  ],
  'text_classification': [
    (['--dataset=nowhere.csv'], 'nowhere.csv cannot be read'),
    ([TABLE, '--batch_size=8', '--units=5'], 'model textcnn has no --units=5'),
    ([TABLE, '--max_norm=-1'], '--max_norm=-1.0: at least 0'),
    ([TABLE, '--tokeniser=bpe', '--vocabulary=10'], '--vocabulary=10'),
    ([TABLE, '--tokeniser=letters'], '--tokeniser'),
    ([TABLE, '--order=streams'], '--order=streams is for running texts'),
    ([TABLE, '--columns=words'], '--columns=words: two names'),
  ],
  'token_classification': [
    (['--dataset=conll:/nowhere'], '/nowhere is not a folder that holds train.txt'),
    (['--dataset=entitis'], "unknown data set 'entitis'. Did you mean entities?"),
    (['--model=bilstm_cfr'], 'bilstm_crf'),
    (['--word_dropout=1'], '--word_dropout=1.0: at least 0 and less than 1'),
    ([NAMES, '--encoding=klingon'], '--encoding=klingon: there is no such encoding'),
  ],
  'translation': [
    (['--beam=0'], '--beam=0: at least 1'),
    (['--examples=50', '--batch_size=8', '--heads=2'], 'model gru has no --heads=2'),
    (['--examples=50', '--tokeniser=bytes'], '--tokeniser=bytes'),
    (['--dataset=multi30k', '--data_dir=/nowhere'], 'train.de'),
    (['--dataset=file:a,b'], 'unknown data set'),
    (['--order=streams'], '--order=streams'),
  ],
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('texts')
  (folder / 'mine.txt').write_text('The old fox went to the sea. ' * 40)
  (folder / 'latin.txt').write_bytes(b'caf\xe9 ' * 100)
  (folder / 'train.txt').write_text('Ada B-PER\nsings O\n\n' * 9)
  with open(folder / 'mine.csv', 'w', newline='') as file:
    csv.writer(file).writerows([('text', 'label'), *[('sun', 'hot'), ('ice', 'cold')] * 30])
  return folder


@pytest.mark.parametrize('name, flags, said', [(name, *case) for name, cases in BAD.items() for case in cases])
def test_bad_input_is_one_line_and_leaves_nothing(name, flags, said, folder, tmp_path, capsys):
  flags = [flag.format(folder=folder) for flag in flags]
  assert launch.main([name, *flags, f'--workdir={tmp_path / "run"}']) == 2
  error = capsys.readouterr().err
  assert said in error and error.count('\n') == 1 and error.startswith(f'{name}: '), error
  assert not (tmp_path / 'run').exists()
