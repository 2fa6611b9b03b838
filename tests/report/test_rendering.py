"""Figures that another process draws are those that this one would draw, and none is lost."""

import pickle
import subprocess
import sys

import pytest
from matplotlib.ticker import FuncFormatter

from karpjax.report import plots, rendering


def draw(folder, formatted=False):
  for name in ('first', 'second', 'third'):
    with plots.drawing(folder, name, 3, 2) as (_, axis):
      axis.plot([0, 1], [1, 0], label='a line')
      axis.legend()
      if formatted:
        axis.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:.1f} m'))


def pictures(folder):
  return {path.name: path.read_bytes() for path in sorted((folder / 'plots').glob('*'))}


@pytest.mark.parametrize('formatted', [False, True])
def test_a_process_beside_draws_the_same_pictures(tmp_path, formatted):
  draw(tmp_path / 'here', formatted)
  with rendering.aside(True):
    assert len(rendering.beside) == 1
    draw(tmp_path / 'aside', formatted)
  assert not rendering.beside
  assert len(pictures(tmp_path / 'here')) == 3 and pictures(tmp_path / 'aside') == pictures(tmp_path / 'here')


def test_what_a_killed_process_leaves_is_drawn_here(tmp_path):
  draw(tmp_path / 'here')
  with rendering.aside(True):
    rendering.beside[0].process.kill()
    draw(tmp_path / 'aside')
  assert pictures(tmp_path / 'aside') == pictures(tmp_path / 'here')


def test_a_picture_that_cannot_be_written_is_an_error_of_who_waits(tmp_path):
  (tmp_path / 'plots').write_text('a file')
  with pytest.raises(OSError), rendering.aside(True):
    draw(tmp_path)


def test_nothing_is_begun_where_nothing_is_to_be_drawn():
  with rendering.aside(False):
    assert not rendering.beside


def test_where_the_run_is_gone_within_a_figure_the_process_ends_without_a_word():
  command = [sys.executable, '-P', rendering.__file__]
  ended = subprocess.run(command, input=pickle.dumps('a figure' * 1000)[:100], capture_output=True)
  assert (ended.returncode, ended.stderr, ended.stdout) == (0, b'', b'')
