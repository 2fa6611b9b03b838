"""Made sentences with the names of people, places and organisations, and dates: entity recognition without a download.

A third of all names occurs in the validation and test splits alone, so that none of theirs was seen in training: what a
name is has to be told from the words around it and from its shape. A surname may be a person or part of a firm, a place
a place, part of a university or a team, and a number a year or an amount.
"""

import re

import numpy as np

Sentence = tuple[list[str], list[str]]  # words, tags

SYMBOL = re.compile(r'\{([^}]*)\}')
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
# A symbol and its forms, of which one is drawn; in it {symbol} is replaced in its turn, and {1+28} by one of 28 numbers from 1.
FORMS = """month: January | February | March | April | May | June | July | August | September | October | November | December
day: Monday | Tuesday | Wednesday | Thursday | Friday | Saturday | Sunday
letter: A | B | C | D | E | F | G | H | I | J | K | L | M | N | O | P | R | S | T | U | V | W | Z
title: Dr. | Mr. | Mrs. | Professor | President | Judge | Captain | Senator
firm: Group | Bank | Ltd | Inc | Motors | Airlines | Partners | Press | Foods | Energy | Holdings | Insurance
body: University | Hospital | City Council | Opera | Chamber of Commerce | Port Authority
landscape: Valley | Bay | Island | County | Heights
prefix: New | Port | North | East
institution: University | Bank | Museum
person: {given} {surname} | {given} {surname} | {given} {surname} | {letter}. {surname} | {given} {letter}. {surname}
location: {place} | {place} | {place} | {place} | {place} | {prefix} {place} | {place} {landscape} | {surname} {landscape}
organisation: {surname} {firm} | {surname} {firm} {firm} | {surname} & {surname} | {place} {body} | {institution} of {place} | \
{given} {surname} Foundation | {letter}{letter}{letter}
team: {place} | {place} | {place} | {place} United
date: {1+28} {month} {1900+130} | {month} {1900+130} | {month} {1+28} | {day} , {1+28} {month}
number: {1900+130} | {2+98} | {1+900},{0+10}00"""
FORMS = {symbol: forms.split(' | ') for symbol, forms in (line.split(': ') for line in FORMS.splitlines())}
SLOTS = {  # slot of a template -> (type of its entity, or O for none; the form put there)
  'PER': ('PER', '{person}'), 'SURNAME': ('PER', '{surname}'), 'LOC': ('LOC', '{location}'), 'ORG': ('ORG', '{organisation}'),
  'TEAM': ('ORG', '{team}'), 'DATE': ('DATE', '{date}'), 'YEAR': ('DATE', '{1900+130}'), 'MONTH': ('DATE', '{month}'),
  'DAY': ('DATE', '{day}'), 'TITLE': ('O', '{title}'), 'NUMBER': ('O', '{number}'), 'SMALL': ('O', '{2+88}'),
  'SCORE': ('O', '{0+6}-{0+6}'),
}  # fmt: skip
TEMPLATES = """{PER} was born in {LOC} in {YEAR} . | {PER} , who joined {ORG} in {YEAR} , will move to {LOC} .
| On {DATE} , {ORG} opened an office in {LOC} . | {ORG} said on {DAY} that {PER} would leave the board .
| {PER} said on {DAY} that prices in {LOC} may rise . | {TITLE} {SURNAME} may visit {LOC} in {MONTH} .
| {TITLE} {SURNAME} told reporters that {NUMBER} people lived near {LOC} .
| The agreement between {ORG} and {ORG} was signed on {DATE} . | Shares of {ORG} fell by {NUMBER} percent on {DAY} .
| {ORG} sold {NUMBER} units in {MONTH} , said {SURNAME} . | Heavy rain closed the road from {LOC} to {LOC} on {DAY} .
| Police in {LOC} arrested {NUMBER} people after the match . | {TEAM} beat {TEAM} {SCORE} on {DAY} .
| {TEAM} lost {SCORE} to {TEAM} , and {SURNAME} scored twice . | {SURNAME} scored for {TEAM} after {SMALL} minutes .
| {TEAM} signed {PER} from {TEAM} in {MONTH} . | Flights to {LOC} were cancelled until {DATE} .
| {PER} of {ORG} and {PER} of {ORG} shared the prize . | The museum in {LOC} shows {NUMBER} paintings by {SURNAME} .
| According to {ORG} , exports rose to {NUMBER} tonnes in {YEAR} . | According to {PER} , the bridge in {LOC} dates from {YEAR} .
| They met in {LOC} on {DATE} and married in {YEAR} . | {SURNAME} , {SMALL} , studied law in {LOC} .
| {ORG} named {PER} as its new director . | {ORG} , based in {LOC} , has {NUMBER} employees .
| The trial of {PER} begins in {LOC} on {DATE} . | In {MONTH} the river near {LOC} reached {SMALL} metres .
| " We may sell the plant in {LOC} , " said {PER} , head of {ORG} . | " It was a good {DAY} for us , " {SURNAME} said in {LOC} .
| Neither {PER} nor {ORG} wanted to comment . | The novel , written by {PER} in {YEAR} , is set in {LOC} . | {LOC} , {DATE}
| {NUMBER} visitors came to {LOC} in {YEAR} , {NUMBER} more than in {YEAR} .
| The train left {LOC} at {SMALL} past nine and reached {LOC} in time . | {TITLE} {PER} taught at {ORG} until {DATE} .
| No date was set for the talks . | The results were better than expected . | The mayor of {LOC} thanked {TITLE} {SURNAME} ."""


def sentences(split: str, size: int) -> list[Sentence]:
  """The first `size` sentences of a split, the same on every machine: words, and their tags in BIO2.

  Args:
    split: a key of SIZES.
    size: how many.
  """
  part = list(SIZES).index(split)
  bits = iter(np.random.Philox(key=np.array([part, 0], np.uint64)).random_raw(100 * size).tolist())
  kept = {0: (0, 1, 2, 3), 1: (4,), 2: (5,)}[part]  # of every six names
  names = {'given': GIVEN, 'surname': SURNAMES, 'place': PLACES}
  forms = FORMS | {kind: [x for i, x in enumerate(each.split()) if i % 6 in kept] for kind, each in names.items()}
  draw = lambda choices: choices[next(bits) % len(choices)]

  def expand(match) -> str:
    first, plus, count = match[1].partition('+')
    return str(int(first) + draw(range(int(count)))) if plus else SYMBOL.sub(expand, draw(forms[match[1]]))

  def sentence() -> Sentence:
    words, tags = [], []
    for piece in draw(TEMPLATES.split('|')).split():
      kind, form = SLOTS[piece.strip('{}')] if piece.startswith('{') else ('O', piece)
      filling = SYMBOL.sub(expand, form).split()
      words += filling
      tags += ['O'] * len(filling) if kind == 'O' else [f'B-{kind}', *[f'I-{kind}'] * (len(filling) - 1)]
    return words, tags

  return [sentence() for _ in range(size)]
