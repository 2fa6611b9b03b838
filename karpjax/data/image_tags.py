"""Image files that have any number of tags each: a table of the user's own, and the words of Flickr8k's captions."""

import collections
import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from karpjax.data import captioned, folders, image_files, splitting, text_files
from karpjax.data.dataset import Dataset, Spec, Split, listed
from karpjax.errors import UsageError

WORDS = 100  # tags that Flickr8k has if not told
# What says nothing of what is seen, with what people do and how many they are.
STOP = frozenset(
  re.findall(
    '[a-z]+',
    'a about across after against along also an and another are area around as at away back be behind being '
    'beside between big both by carries carrying catch catching climbing climbs colored covered doing down '
    'dressed each eight five for four from front has have having he her high him his hold holding holds in into '
    'is it its jump jumping jumps large laying leaning leaps little long look looking looks making many middle '
    'more near next nine of off on one onto other out over past people performing person picture play playing '
    'plays posing rides riding run running runs s seven several she side sit sits sitting six small smiles '
    'smiling some something stand standing stands swimming taking that the their them there they this three '
    'through throwing to together top toward towards trick trying two under up very walk walking walks watches '
    'watching wearing wears which while who with without ',
  )
)


def read(name: str, data_dir: str, *, seed: int, image_size: int) -> Dataset:
  """'tags:FILE.csv' (see `table`) or 'flickr8k[:N]', the N most frequent words of captions: images with tags."""
  if name.startswith('tags:'):
    found, notes = table(Path(name.removeprefix('tags:')))
  else:
    found, notes = caption_words(data_dir, name), ()
  unseen = {tag for split, rows in found.items() if split != 'train' for tags in rows.values() for tag in tags}
  tags = sorted({tag for own in found['train'].values() for tag in own})
  if not tags:
    raise UsageError(f'{name}: train has no tags; there is nothing to learn from')
  if unseen := sorted(unseen - {*tags}):
    notes = (*notes, f'{len(unseen):,} tags that train has not are left out: {listed(unseen)}')
  headers = image_files.headers([file for rows in found.values() for file in rows])
  size, (channels, more) = image_files.common_size(headers, image_size), image_files.common_channels(headers)
  splits = {}
  for split, rows in found.items():
    labels, files = _labels(rows, tags), np.array([os.fsencode(file) for file in rows])
    splits[split] = Split(len(files), None, functools.partial(_fetch, files, labels, channels, size))
    if none := int((labels == 0).all(1).sum()):
      notes = (*notes, f'{split}: {none:,} of {len(files):,} images have no tag')
  splits, drawn = splitting.with_test(splits, max(round(0.2 * splits['train'].size), 1), seed)
  spec = Spec(name, (*size, channels), tuple(tags), 255.0, multi_label=True)
  return Dataset(spec, splits, (*notes, *more, *drawn))


def _labels(rows: Mapping[Path, Mapping[str, int]], tags: Sequence[str]) -> np.ndarray:
  numbers, labels = {tag: i for i, tag in enumerate(tags)}, np.zeros((len(rows), len(tags)), np.int8)
  for row, own in enumerate(rows.values()):
    for tag, value in own.items():
      if tag in numbers:
        labels[row, numbers[tag]] = value
  return labels


def _fetch(files, labels, channels, size, indices):
  images = np.stack([image_files.read(os.fsdecode(file), channels, size) for file in files[indices]])
  return {'image': images, 'label': labels[indices]}


def table(path: Path) -> tuple[dict[str, dict[Path, dict[str, int]]], tuple[str, ...]]:
  """{split: {image file: {tag: 1, or -1 where it is not known}}} of a table, and notes.

  Its columns are file (from the table's folder), tags, as 'cat|dog', '?cat' where it is not known whether; and perhaps split:
  train, validation or test.

  Raises:
    UsageError: by its line, for a file that is missing or there twice, a tag that is empty, or a split of another name.
  """
  heads, lines = text_files.read_rows(path, '')
  wanted = ['file', 'tags', *(['split'] if 'split' in map(str.lower, heads) else [])]
  at = text_files.places(path, heads, wanted, 'an image with tags is a row of file,tags')
  named = {alias: split for split, aliases in folders.SPLITS.items() for alias in aliases}
  found, seen = {}, {}
  for line, row in lines:
    name, tags, *split = (row[place] for place in at)
    file, place = path.parent / name, f'{path}, line {line}'
    if not file.is_file():
      raise UsageError(f'{place}: {file} is no file')
    if name in seen:
      raise UsageError(f'{place}: {name} is in line {seen[name]} too; an image has one row')
    if split and split[0].lower() not in named:
      raise UsageError(f'{place}: the split {split[0]!r} is none of train, validation and test')
    own = [tag.strip() for tag in tags.split('|')] if tags else []
    if any(not tag.removeprefix('?') for tag in own):
      raise UsageError(f'{place}: {tags!r} has an empty tag')
    seen[name] = line
    rows = found.setdefault(named[split[0].lower()] if split else 'train', {})
    rows[file] = {tag.removeprefix('?'): -1 if tag.startswith('?') else 1 for tag in own}
  if 'train' not in found:
    raise UsageError(f'{path} has no row of the split train')
  return {split: found[split] for split in folders.SPLITS if split in found}, ()


def caption_words(data_dir: str, name: str) -> dict[str, dict[Path, dict[str, int]]]:
  """The same of Flickr8k: a picture's tags are those words of its captions that are among the most frequent of train.

  As Fang et al. 2015, "From captions to visual concepts and back", find words to detect in pictures.
  """
  count = re.fullmatch(r'flickr8k(?::([1-9]\d{0,3}))?', name)
  if not count:
    raise UsageError(f'dataset={name}: write flickr8k, or flickr8k:N for N words')
  splits = captioned.flickr8k(data_dir)
  of = lambda captions: {word for text in captions for word in re.findall('[a-z]+', text.lower())} - STOP
  words = {split: {file: of(captions) for file, captions in rows.items()} for split, rows in splits.items()}
  met = collections.Counter(word for own in words['train'].values() for word in own)
  most = sorted(met, key=lambda word: (-met[word], word))[: int(count[1] or WORDS)]
  return {s: {file: dict.fromkeys(own & {*most}, 1) for file, own in rows.items()} for s, rows in words.items()}
