"""Made sentences with the names of people, places and organisations, and dates: entity recognition without a download.

A third of all names occurs in the validation and test splits alone, so that none of theirs was seen in training: what a name is
has to be told from the words around it and from its shape. A surname may be a person or part of a firm, a place a place,
part of a university or a team, and a number a year or an amount.
"""

from collections.abc import Callable

import numpy as np

Sentence = tuple[list[str], list[str]]  # words, tags

SIZES = {'train': 3000, 'validation': 500, 'test': 1000}
GIVEN = """Anna Bruno Carla David Elena Felix Greta Henrik Irene Jonas Karin Lukas Marta Nils Olga Pavel Rosa Stefan Tanja
Ulrich Vera Walter Yasmin Zoltan Aisha Bashir Chiara Dmitri Esther Farid Gloria Hassan Ingrid Javier Keiko Leila Mateo Nadia
Omar Priya Quentin Rahul Sofia Tomas Usha Viktor Wanda Xavier Yusuf Zara Alice Bernard Claire Duncan Edith Fergus Grace
Howard Isobel Julian Kirsty Laurence Moira Norman Olive Percy Rachel Stuart Teresa Vincent"""
SURNAMES = """Abbott Becker Castillo Dalgaard Eriksson Fontaine Gallagher Hartmann Ibrahim Jankowski Kowalski Lindqvist Moreau
Nakamura Okafor Petrov Quiroga Romano Schneider Takahashi Ueda Vasquez Whitfield Yamada Zielinski Andersen Barlow Chandra
Delgado Eastwood Ferreira Goldberg Holloway Iversen Jimenez Kessler Langford Mbeki Novak Osborne Pemberton Rahman Sandoval
Thornton Urbina Voss Wallace Yilmaz Zimmer Ashworth Bergman Crawford Drummond Ellison Fraser Grimaldi Hawthorne Ivanov Johansson
Kaplan Lombardi McAllister Nordstrom Ogilvie Prescott Rosenthal Sinclair Tolbert Underhill Vandenberg Winslow"""
PLACES = """Aberdeen Bergen Cordoba Dresden Esbjerg Florence Grenoble Haifa Izmir Jakarta Kampala Lisbon Malmo Nairobi Oslo
Porto Quito Riga Seville Tallinn Utrecht Valencia Warsaw Yerevan Zagreb Ankara Bristol Calgary Durban Edinburgh Freiburg Geneva
Hobart Innsbruck Jena Krakow Leipzig Mombasa Nantes Odessa Perth Recife Salzburg Turin Uppsala Verona Windhoek York Zurich
Antwerp Bologna Cardiff Dakar Essen Fresno Ghent Halifax Ipswich Kobe Lagos Manila Naples Ottawa Palermo Rotterdam Santiago
Toulouse Vilnius Wroclaw"""
MONTHS = 'January February March April May June July August September October November December'
DAYS = 'Monday Tuesday Wednesday Thursday Friday Saturday Sunday'
FIRMS = 'Group Bank Ltd Inc Motors Airlines Partners Press Foods Energy Holdings Insurance'
BODIES = ('University', 'Hospital', 'City Council', 'Opera', 'Chamber of Commerce', 'Port Authority')
LANDSCAPES = 'Valley Bay Island County Heights'
TITLES = 'Dr. Mr. Mrs. Professor President Judge Captain Senator'
LETTERS = 'A B C D E F G H I J K L M N O P R S T U V W Z'

TEMPLATES = """{PER} was born in {LOC} in {YEAR} .
{PER} , who joined {ORG} in {YEAR} , will move to {LOC} .
On {DATE} , {ORG} opened an office in {LOC} .
{ORG} said on {DAY} that {PER} would leave the board .
{PER} said on {DAY} that prices in {LOC} may rise .
{TITLE} {SURNAME} may visit {LOC} in {MONTH} .
{TITLE} {SURNAME} told reporters that {NUMBER} people lived near {LOC} .
The agreement between {ORG} and {ORG} was signed on {DATE} .
Shares of {ORG} fell by {NUMBER} percent on {DAY} .
{ORG} sold {NUMBER} units in {MONTH} , said {SURNAME} .
Heavy rain closed the road from {LOC} to {LOC} on {DAY} .
Police in {LOC} arrested {NUMBER} people after the match .
{TEAM} beat {TEAM} {SCORE} on {DAY} .
{TEAM} lost {SCORE} to {TEAM} , and {SURNAME} scored twice .
{SURNAME} scored for {TEAM} after {SMALL} minutes .
{TEAM} signed {PER} from {TEAM} in {MONTH} .
Flights to {LOC} were cancelled until {DATE} .
{PER} of {ORG} and {PER} of {ORG} shared the prize .
The museum in {LOC} shows {NUMBER} paintings by {SURNAME} .
According to {ORG} , exports rose to {NUMBER} tonnes in {YEAR} .
According to {PER} , the bridge in {LOC} dates from {YEAR} .
They met in {LOC} on {DATE} and married in {YEAR} .
{SURNAME} , {SMALL} , studied law in {LOC} .
{ORG} named {PER} as its new director .
{ORG} , based in {LOC} , has {NUMBER} employees .
The trial of {PER} begins in {LOC} on {DATE} .
In {MONTH} the river near {LOC} reached {SMALL} metres .
" We may sell the plant in {LOC} , " said {PER} , head of {ORG} .
" It was a good {DAY} for us , " {SURNAME} said in {LOC} .
Neither {PER} nor {ORG} wanted to comment .
The novel , written by {PER} in {YEAR} , is set in {LOC} .
{LOC} , {DATE}
{NUMBER} visitors came to {LOC} in {YEAR} , {NUMBER} more than in {YEAR} .
The train left {LOC} at {SMALL} past nine and reached {LOC} in time .
{TITLE} {PER} taught at {ORG} until {DATE} .
No date was set for the talks .
The results were better than expected .
The mayor of {LOC} thanked {TITLE} {SURNAME} ."""


def sentences(split: str, size: int) -> list[Sentence]:
  """The first `size` sentences of a split, the same on every machine: words, and their tags in BIO2.

  Args:
    split: a key of SIZES.
    size: how many.
  """
  part = list(SIZES).index(split)
  bits = iter(np.random.Philox(key=np.array([part, 0], np.uint64)).random_raw(100 * size).tolist())
  kept = {0: (0, 1, 2, 3), 1: (4,), 2: (5,)}[part]  # of every six names
  names = {
    kind: [name for i, name in enumerate(each.split()) if i % 6 in kept]
    for kind, each in (('given', GIVEN), ('surname', SURNAMES), ('place', PLACES))
  }

  def draw(what):  # a kind of names, words in a text, or any sequence
    choices = names.get(what) or what.split() if isinstance(what, str) else what
    return choices[next(bits) % len(choices)]

  return [_fill(draw(TEMPLATES.splitlines()), draw) for _ in range(size)]


def _fill(template: str, draw: Callable) -> Sentence:
  words, tags = [], []
  for piece in template.split():
    if not piece.startswith('{'):
      words, tags = [*words, piece], [*tags, 'O']
      continue
    kind, make = SLOTS[piece.strip('{}')]
    filling = make(draw).split()
    words += filling
    tags += ['O'] * len(filling) if kind == 'O' else [f'B-{kind}', *[f'I-{kind}'] * (len(filling) - 1)]
  return words, tags


def _one(draw, *forms: Callable) -> str:
  return draw(forms)()


def _person(draw):
  return _one(
    draw,
    *[lambda: f'{draw("given")} {draw("surname")}'] * 3,
    lambda: f'{draw(LETTERS)}. {draw("surname")}',
    lambda: f'{draw("given")} {draw(LETTERS)}. {draw("surname")}',
  )


def _place(draw):
  return _one(
    draw,
    *[lambda: draw('place')] * 5,
    lambda: f'{draw(("New", "Port", "North", "East"))} {draw("place")}',
    lambda: f'{draw("place")} {draw(LANDSCAPES)}',
    lambda: f'{draw("surname")} {draw(LANDSCAPES)}',
  )


def _organisation(draw):
  return _one(
    draw,
    lambda: f'{draw("surname")} {draw(FIRMS)}',
    lambda: f'{draw("surname")} {draw(FIRMS)} {draw(FIRMS)}',
    lambda: f'{draw("surname")} & {draw("surname")}',
    lambda: f'{draw("place")} {draw(BODIES)}',
    lambda: f'{draw(("University", "Bank", "Museum"))} of {draw("place")}',
    lambda: f'{draw("given")} {draw("surname")} Foundation',
    lambda: ''.join(draw(LETTERS) for _ in range(3)),
  )


def _year(draw):
  return str(1900 + draw(range(130)))


def _date(draw):
  return _one(
    draw,
    lambda: f'{1 + draw(range(28))} {draw(MONTHS)} {_year(draw)}',
    lambda: f'{draw(MONTHS)} {_year(draw)}',
    lambda: f'{draw(MONTHS)} {1 + draw(range(28))}',
    lambda: f'{draw(DAYS)} , {1 + draw(range(28))} {draw(MONTHS)}',
  )


def _number(draw):
  return _one(
    draw, lambda: _year(draw), lambda: str(2 + draw(range(98))), lambda: f'{1 + draw(range(900))},{draw(range(10))}00'
  )


SLOTS = {  # name -> (type, or O for none; what is put there)
  'PER': ('PER', _person),
  'SURNAME': ('PER', lambda draw: draw('surname')),
  'LOC': ('LOC', _place),
  'ORG': ('ORG', _organisation),
  'TEAM': ('ORG', lambda draw: _one(draw, *[lambda: draw('place')] * 3, lambda: f'{draw("place")} United')),
  'DATE': ('DATE', _date),
  'YEAR': ('DATE', _year),
  'MONTH': ('DATE', lambda draw: draw(MONTHS)),
  'DAY': ('DATE', lambda draw: draw(DAYS)),
  'TITLE': ('O', lambda draw: draw(TITLES)),
  'NUMBER': ('O', _number),
  'SMALL': ('O', lambda draw: str(2 + draw(range(88)))),
  'SCORE': ('O', lambda draw: f'{draw(range(6))}-{draw(range(6))}'),
}
