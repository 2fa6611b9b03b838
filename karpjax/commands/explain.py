"""The verb `explain`: what of an image, a text or a row of a table makes the model say what it says.

Leaves pictures, or a page of texts, in WORKDIR/explain. The methods are those of `karpjax.explaining.attribution`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from karpjax import image_verbs, paths, table_verbs
from karpjax.explaining import attribution, inputs, texts
from karpjax.report import explanations
from karpjax.verbs import Verb

# ---- what all answers say ----


def _answer(chosen, given: dict[str, Any], found) -> dict[str, Any]:
  """What JSON is to hold of one finding, but for its attributions and its files."""
  answer = {**given, 'method': chosen.method, **found['named']}
  answer |= {'probability': found['chance']} if found['named'] else {}
  answer |= {'score': found['score'], 'baseline': found['baseline']}
  if chosen.method in attribution.COMPLETE:
    answer['sum'] = float(found['values'].sum())
    answer['gap'] = abs(answer['sum'] - (found['score'] - found['baseline']))
  if 'curves' in found:
    areas = attribution.area(found['curves'])
    answer |= {name: dict(zip(('by_method', 'at_random'), map(float, own))) for name, own in zip(CURVES, areas)}
  return answer | ({'randomised': found['randomised']} if 'randomised' in found else {})


CURVES = 'deletion', 'insertion'


def about(answer) -> list[str]:
  """Sentences on an answer."""
  what = f'{_named(answer)}, probability {answer["probability"]:.4f}; score' if 'probability' in answer else 'number'
  lines = [f'{answer["method"]}: {what} {answer["score"]:.4g}, of the baseline {answer["baseline"]:.4g}']
  if 'gap' in answer:
    rise = answer['score'] - answer['baseline']
    part = f' ({100 * answer["gap"] / abs(rise):.2g} %)' if rise else ''
    lines.append(
      f'completeness: attributions sum to {answer["sum"]:.4g}, of {rise:.4g}: a gap of {answer["gap"]:.2g}{part}'
    )
  if 'deletion' in answer:
    better = {'deletion': 'lower', 'insertion': 'higher'}
    areas = (
      f'{n} {answer[n]["by_method"]:.4g} (random {answer[n]["at_random"]:.4g}; {better[n]} is better)' for n in CURVES
    )
    lines.append('areas: ' + ', '.join(areas))
  if 'randomised' in answer:
    each = ', '.join(f'{layer} {"–" if x != x else f"{x:.2f}"}' for layer, x in answer['randomised'].items())
    lines.append(f'rank correlation as layers are drawn anew, from the top: {each}')
  return lines


def _named(answer) -> str:
  """What is explained: a class, a token, or tags."""
  word = f' (word {answer["places"][0]})' if len(answer.get('places', ())) == 1 else ''
  return answer.get('class') or answer.get('token') or ' '.join(answer['tags']) + word


def _heading(number: int, answer) -> str:
  return f'{number}. {_named(answer)}, {100 * answer["probability"]:.0f} %'


def show(head: Callable, body: Callable) -> Callable:
  """A verb's `show`: the head of an answer and what is said about it, its body's lines, and the file."""

  def text(answer):
    file = [f'-> {answer["file"]}'] if 'file' in answer else []
    return '\n'.join([head(answer), *(f'  {line}' for line in about(answer)), *body(answer), *file, '']) + '\n'

  return text


def _colours(chosen) -> str:
  """What colours say."""
  return (
    'the bluer, the more it matters' if chosen.method in attribution.MAGNITUDES else 'blue: for it, orange: against'
  )


def _folder(run, chosen) -> Path:
  return Path(chosen.output or run.folder / 'explain')


def _verb(
  kind: type[inputs.Asked], help: str, encode, decode, inputs: str, options: type, show, expand, writes
) -> Verb:
  """Of `Verb`'s arguments, where `checked` is what `encode` gives."""

  def checked(run, given, chosen):
    arrays = encode(run, given, chosen)
    kind(run, arrays, chosen).check()
    return arrays

  function = lambda run, chosen: lambda state, arrays: kind(run, arrays, chosen).findings(state)
  return Verb(help, checked, function, decode, inputs, options, show, expand, writes)


def _mean_curves(found):
  return np.mean([each['curves'] for each in found], 0) if 'curves' in found[0] else None


# ---- the verbs ----


def _pictures(run, files, chosen) -> list[Path]:
  return [run.own_path(_folder(run, chosen) / 'plots' / f'{Path(file).stem}_{chosen.method}.png') for file in files]


def _decode_images(run, outputs, files, chosen):
  for file, place, found in zip(files, _pictures(run, files, chosen), outputs):
    answer, values = _answer(chosen, {'input': file}, found), found['values']
    heading = f'{chosen.method} · {answer["class"]}, {100 * answer["probability"]:.0f} %'
    picture = found['example']['image'].astype(np.float32) / run.spec.maximum
    explanations.image(picture, values, found.get('curves'), heading, _colours(chosen), place.parents[1], place.stem)
    yield {**answer, 'attributions': values.tolist(), 'file': str(place)}


IMAGE_VERB = _verb(
  inputs.Images, 'What of an image makes the model say what it says.', image_verbs.load, _decode_images, 'IMAGE …',
  inputs.ImageOptions, show(lambda answer: answer['input'], lambda answer: []), image_verbs.files, _pictures,
)  # fmt: skip


def _text_place(run, chosen) -> Path:
  return run.own_path(_folder(run, chosen) / f'texts_{chosen.method}.html')


def _text_places(run, given, chosen):
  page = _text_place(run, chosen)
  return [page, *([page.parent / 'plots' / f'{page.stem}.png'] if chosen.curves else [])]


def _pieces(spec, text: str, tokens) -> list[str]:
  """The words of a text, one for each of its tokens."""
  tokeniser = spec.tokenisers['text']
  names = [tokeniser.name(token) for token in tokens]
  if tokeniser.kind not in ('words', 'characters'):
    return names
  words = [word.replace(' ', '␣').replace('\n', '↵') for word in tokeniser.split(text)]
  return [*names[: bool(spec.pretrained)], *words][: len(names)]  # <s> before them


def text_verb(
  help: str, encode: Callable, kind: type[texts.Texts] = texts.Texts, options: type = inputs.Options,
  pieces: Callable = _pieces, gap: str = ' ',
) -> Verb:  # fmt: skip
  """The verb of a model of texts.

  Args:
    help, options: as for `Verb`.
    encode: (run, texts, options) -> the arrays of `kind`.
    kind: how a text becomes an input.
    pieces: (spec, text, its tokens) -> what stands for each of them.
    gap: what stands between them.
  """

  def cut(run, given, chosen):
    arrays = encode(run, given, chosen)
    longest = max(1, (arrays['tokens'] != kind.padding).sum(1).max())
    return {name: array[:, :longest] for name, array in arrays.items()}

  def decode(run, outputs, given, chosen):
    found, place, sections, answers = list(outputs), _text_place(run, chosen), {}, []
    for number, (text, each) in enumerate(zip(given, found), 1):
      tokens = each['example']['tokens']
      tokens = tokens[tokens != kind.padding]
      named, values = pieces(run.spec, text, tokens), each['values'][: len(tokens)].tolist()
      answer = _answer(chosen, {'input': text}, each)
      sections[_heading(number, answer)] = named, values, about(answer)
      answers.append({**answer, 'attributions': [*map(list, zip(named, values))], 'file': str(place)})
    explanations.texts(
      sections, _mean_curves(found), f'{chosen.method} · {_colours(chosen)}', place.parent, place.stem, gap
    )
    return answers

  body = lambda answer: ['  ' + line.lstrip() for line in explanations.words(*zip(*answer['attributions']), gap)]
  shown = show(lambda answer: answer['input'], body)
  return _verb(kind, help, cut, decode, 'TEXT …', options, shown, list, _text_places)


def _decode_table(run, outputs, files, chosen):
  [place], found, answers = _pictures(run, files, chosen), list(outputs), []
  for (line, _), each in zip(table_verbs.read(run, files).rows, found):
    values = np.bincount(inputs.columns(run.spec), each['values'])  # of a column's words the sum
    own = dict(zip(run.spec.columns, values.tolist()))
    answers.append({**_answer(chosen, {'line': line}, each), 'attributions': own})
  rows = {f'line {x["line"]}' + (f', {x["class"]}' if 'class' in x else ''): x['attributions'] for x in answers}
  explanations.table(rows, _mean_curves(found), f'{chosen.method} · {run.spec.target}', place.parents[1], place.stem)
  answers[-1]['file'] = str(place)
  return answers


TABLE_VERB = _verb(
  inputs.Tables, 'What columns of a row make the model say what it says.', table_verbs.encode, _decode_table,
  'FILE.csv', inputs.Options,
  show(lambda answer: f'line {answer["line"]}', lambda answer: explanations.bars(answer['attributions'])),
  paths.one_file, _pictures,
)  # fmt: skip
