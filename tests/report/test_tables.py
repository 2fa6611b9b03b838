"""Tables of plain text, and of Markdown between two marks of a page."""

import pytest

from karpjax import errors
from karpjax.report import page, tables


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


def test_a_cell_of_several_lines_is_one_line():
  assert tables.markdown([('a\nb', 2)], ('x', 'y')) == ['| x | y |', '| --- | --- |', '| a b | 2 |']
  assert tables.table([('a\nb', 2)], ('x', 'y')) == ['x    y', '---  -', 'a b  2']


def test_small_and_large_numbers_keep_their_digits():
  numbers = 0.0, 0.5, -0.00012345, 3e-9, 123456.5, 3e38, float('nan')
  assert [*map(tables.decimal, numbers)] == [
    '0.0000', '0.5000', '-0.0001234', '3e-09', '123456.5000', '3e+38', 'nan',
  ]  # fmt: skip
  assert tables.decimal(0.25, '+') == '+0.2500' and page.figure('loss', 3e38) == '3e+38'
