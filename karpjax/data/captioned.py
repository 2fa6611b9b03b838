"""Pictures and what people say of them: Flickr8k, as the university and Kaggle give it."""

from pathlib import Path

from karpjax.data import text_files
from karpjax.errors import UsageError

LISTS = {
  'train': 'Flickr_8k.trainImages.txt',
  'validation': 'Flickr_8k.devImages.txt',
  'test': 'Flickr_8k.testImages.txt',
}
PLACES = 'Images', 'Flicker8k_Dataset', 'Flickr8k_Dataset', ''


def flickr8k(data_dir: str) -> dict[str, dict[Path, list[str]]]:
  """{split: {picture: its five captions}} of Flickr8k (Hodosh et al. 2013), in its own splits of 6,000, 1,000 and 1,000.

  Args:
    data_dir: the folder, or one that holds it as flickr8k/: Flickr8k.token.txt, the three lists of pictures, and Images/ or
      Flicker8k_Dataset/.

  Raises:
    UsageError: for a file or picture that is missing, or a picture without captions.
  """
  find = lambda name: text_files.find(name, data_dir, 'flickr8k')
  tokens, said = find('Flickr8k.token.txt'), {}
  for line, text in enumerate(text_files.read_file(tokens).splitlines(), 1):
    name, _, caption = text.partition('\t')
    if not caption.strip():
      raise UsageError(f'{tokens}, line {line}: a picture#number, a tabulator and a caption are needed')
    said.setdefault(name.rpartition('#')[0], []).append(caption.strip())
  splits, seen = {}, {}
  for split, name in LISTS.items():
    pictures = {}
    for each in text_files.read_file(find(name)).split():
      path = next((p for place in PLACES if (p := tokens.parent / place / each).is_file()), None)
      if path is None or each not in said:
        raise UsageError(
          f'{find(name)} has {each}, ' + ('which is no file' if path is None else 'which has no caption')
        )
      if each in seen:
        raise UsageError(f'{each} is in {seen[each]} and in {split}')
      seen[each], pictures[path] = split, said[each]
    splits[split] = pictures
  return splits
