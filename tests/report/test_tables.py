"""Tables of plain text, and of Markdown between two marks of a page."""

import pytest

from karpjax import errors
from karpjax.report import tables


def test_lines_between_two_marks_are_written_anew_and_all_else_stays(tmp_path):
  page, marks = tmp_path / 'page.md', ('<!-- a -->', '<!-- z -->')
  page.write_text('# Höhe\n<!-- a -->\nold\n<!-- z -->\nafter\n', 'utf-8')
  tables.write_between(page, marks, ['one', 'two'])
  assert page.read_text('utf-8') == '# Höhe\n<!-- a -->\none\ntwo\n<!-- z -->\nafter\n'
  for text, lacking in (('<!-- z -->', '<!-- a -->'), ('<!-- z --> <!-- a -->', '<!-- z -->')):
    page.write_text(text)
    with pytest.raises(errors.UsageError, match=f'lacks the mark {lacking}'):
      tables.write_between(page, marks, [])
    assert page.read_text() == text


def test_a_bar_in_a_cell_does_not_end_it():
  assert tables.markdown([('a|b', 2)], ('x', 'y')) == ['| x | y |', '| --- | --- |', '| a\\|b | 2 |']
