"""Sentences of the Python reference, which is inside the standard library, with the chapter that each is from."""

import re

CHAPTERS = {  # of the Python reference -> its pages among the standard library's help topics
  'statements': ('compound', 'assert', 'assignment', 'augassign', 'del', 'global', 'nonlocal', 'import', 'raise', 'return'),
  'expressions': (
    'calls', 'comparisons', 'binary', 'bitwise', 'shifting', 'unary', 'power', 'booleans', 'lambda', 'conversions', 'in',
    'attribute-references', 'subscriptions', 'slicings', 'exprlists', 'lists', 'dict', 'atom-identifiers', 'await',
  ),
  'special methods': ('specialnames',),
  'types': ('types', 'objects'),
  'containers': ('typesseq', 'typesmapping', 'typesseq-mutable'),
  'strings': ('string-methods', 'formatstrings', 'strings'),
  'debugger': ('debugger',),
}  # fmt: skip


def sentences() -> list[tuple[str, str]]:
  """(sentence, chapter) of at least five words, each once; a sentence that is in several chapters is in none."""
  from pydoc_data import topics

  found: dict[str, set[str]] = {}
  for chapter, pages in CHAPTERS.items():
    for page in pages:
      for sentence in prose(topics.topics.get(page, '')):
        found.setdefault(sentence, set()).add(chapter)
  return [(sentence, chapters.pop()) for sentence, chapters in found.items() if len(chapters) == 1]


def prose(page: str) -> list[str]:
  """The sentences of a page's prose: indented programs and tables, headings and grammar are left out."""
  sentences = []
  for paragraph in re.split(r'\n\s*\n', page):
    lines = paragraph.strip('\n').split('\n')
    words = ' '.join(line.strip() for line in lines)
    if any(mark in words for mark in ('::=', '>>>', '***', '===', '---', '+--', '| ')):
      continue
    for sentence in re.split(r'(?<=[.!?])\s+(?=[A-Z"*])', words):
      if len(re.findall(r'[A-Za-z]{2,}', sentence)) >= 5 and sentence[-1] in '.!?:':
        sentences.append(sentence)
  return sentences
