"""What a run remembers of its data, its classes and tokens in their order, is the same in every process."""

import json
import os
import subprocess
import sys

LEARN = """
import json, sys
from pathlib import Path
from karpjax.data import labelled_text, tagged, tokenisers

folder = Path(sys.argv[1])
class Config:
  dataset, encoding, columns, split_seed, test, validation = str(folder / 'mine.csv'), '', ('text', 'label'), 0, 0, 0
texts = ['b a', 'a b', 'c é', 'ab ba'] * 3
made = {kind: tokenisers.make(kind, texts, vocabulary=270).to_json() for kind in tokenisers.KINDS}
tags = ['NN', 'nn', 'N.', 'VB']
chunks = ['B-b', 'I-a', 'O', 'S-B', 'E-A']
classes = labelled_text.read(Config).spec.classes
print(json.dumps([classes, tagged.classes_of([(tags, tags)]), tagged.classes_of([(chunks, chunks)]), made]))
"""


def test_nothing_is_ordered_by_a_hash(tmp_path):
  labels = ['1', '001', '01', '-1', '10', '2', '000', '0', '-0']
  (tmp_path / 'mine.csv').write_text('\n'.join(['text,label', *(f'words {x},{x}' for x in labels)]) + '\n')
  own = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-c', LEARN, str(tmp_path)]
  runs = [
    subprocess.Popen(command, env={**own, 'PYTHONHASHSEED': str(seed)}, stdout=subprocess.PIPE) for seed in (1, 2)
  ]
  first, second = (run.communicate(timeout=100)[0] for run in runs)
  assert first == second
  classes, parts_of_speech, chunks, made = json.loads(first)
  assert classes == ['-1', '-0', '0', '000', '001', '01', '1', '2', '10']
  assert parts_of_speech == ['N.', 'NN', 'VB', 'nn']
  assert chunks == ['O', 'B-A', 'I-A', 'B-B', 'I-B', 'B-a', 'I-a', 'B-b', 'I-b']
  assert made['words']['symbols'][4:] == ['a', 'b', 'ab', 'ba', 'c', 'é'] and made['characters']['symbols'][0] == ' '
