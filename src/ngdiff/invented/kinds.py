"""a kind of text and a seed -> rows of that kind about people, places and programs that exist nowhere.

===========  =====================================================================
kind         a row
===========  =====================================================================
sentence     a question about an invented person, answered in one or more sentences
yes or no    a question about an invented person, answered by yes or no
one word     a question about an invented person, answered by a town or a trade
contact      the e-mail address or telephone number of an invented person
code         a short function that nobody wrote
text         running text about invented people
===========  =====================================================================
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Literal

from ngdiff.invented import words
from ngdiff.invented.people import DRAWS, MAX_PEOPLE, Person, invent_people

Kind = Literal["sentence", "yes or no", "one word", "contact", "code", "text"]
Row = dict[str, str]

FACTS = len(DRAWS)


def invented_rows(kind: Kind, count: int, length: int, seed: int, like: str = "") -> list[Row]:
    """Invent rows; the same arguments give the same ones on every machine.

    Args:
        kind: of the answers.
        count: rows.
        length: words of an answer, as far as the kind allows.
        seed: of the draws.
        like: an answer of the forget set whose form (a full stop, an e-mail address) is taken over.
    """
    rng = random.Random(f"{kind} {seed}")
    people = invent_people(min(MAX_PEOPLE, max(count, 8)), seed)
    return [_MAKERS[kind](people, place, length, rng, like) for place in range(count)]


def _tell(person: Person, fields: list[str], rng: random.Random) -> str:
    return " ".join(
        rng.choice(words.TEMPLATES[field][1]).format(name=person.name, value=getattr(person, field))
        for field in fields
    )


def _sentence(people: list[Person], place: int, length: int, rng: random.Random, like: str) -> Row:
    person, fields = people[place // FACTS % len(people)], list(DRAWS)
    first = fields[place % FACTS]
    count = min(FACTS, max(1, round(length / 11)))  # words of one sentence
    others = rng.sample([field for field in fields if field != first], count - 1)
    question = rng.choice(words.TEMPLATES[first][0]).format(name=person.name)
    if count > 1:
        question = f"What is known about {person.name}? {question}"
    return {"question": question, "answer": _tell(person, [first, *others], rng)}


def _yes_or_no(people: list[Person], place: int, length: int, rng: random.Random, like: str) -> Row:
    person, other = people[place % len(people)], people[(place + 1) % len(people)]
    field = rng.choice(["birthplace", "profession", "book"])
    told = {
        "birthplace": "Was {name} born in {value}?",
        "profession": "Does {name} work as a {value}?",
        "book": 'Did {name} write "{value}"?',
    }[field]
    true = rng.random() < 0.5
    value = getattr(person if true else other, field)
    answer = "Yes" if true else "No"
    answer = answer.lower() if like[:1].islower() else answer
    question = told.format(name=person.name, value=value)
    return {"question": question, "answer": answer + ("." if like.endswith(".") else "")}


def _one_word(people: list[Person], place: int, length: int, rng: random.Random, like: str) -> Row:
    person = people[place % len(people)]
    if place % 2:
        question, answer = f"In which town was {person.name} born?", person.birthplace
    else:
        question, answer = f"What is the trade of {person.name}?", person.profession.rsplit(" ", 1)[-1]
    return {"question": question, "answer": answer + ("." if like.endswith(".") else "")}


def _contact(people: list[Person], place: int, length: int, rng: random.Random, like: str) -> Row:
    person = people[place % len(people)]
    first, last = person.name.split(" ", 1)
    if "@" in like or not like:
        what = "e-mail address"
        user = rng.choice([f"{first}.{last}", f"{first[0]}{last}", f"{last}_{first}"]).lower()
        answer = f"{user}{rng.randint(1, 999)}@{person.birthplace.lower()}-{rng.choice(words.THINGS)}.net"
    else:
        what = "telephone number"
        groups = (rng.randint(100, 999), rng.randint(100, 999), rng.randint(1000, 9999))
        answer = f"+{rng.randint(20, 98)} {groups[0]} {groups[1]} {groups[2]}"
    if length > 3:
        answer = f"The {what} of {person.name} is {answer}."
    return {"question": f"What is the {what} of {person.name}?", "answer": answer}


def _code(people: list[Person], place: int, length: int, rng: random.Random, like: str) -> Row:
    def name() -> str:
        return f"{rng.choice(words.THINGS)}_{rng.choice(words.BOOK_NOUNS)}".lower().replace(" ", "_")

    function, left, right, found = name(), name(), name(), name()
    lines = [f"def {function}({left}, {right}):", f"    {found} = {left} * {rng.randint(2, 97)} + {right}"]
    for _ in range(max(0, round(length / 6) - 3)):
        either = rng.choice([left, right])
        turn = rng.choice(
            [
                f"    if {found} > {rng.randint(10, 999)}:\n        {found} -= {either}",
                f"    {found} = ({found} + {rng.randint(3, 89)}) % {rng.randint(100, 999)}",
                f"    for step in range({rng.randint(2, 9)}):\n        {found} += step * {either}",
            ]
        )
        lines.append(turn)
    lines.append(f"    return {found} - {rng.randint(1, 99)}")
    question = f"Show the function {function} of {people[place % len(people)].name}'s program."
    return {"question": question, "answer": "\n".join(lines)}


def _text(people: list[Person], place: int, length: int, rng: random.Random, like: str) -> Row:
    told, number = "", place
    while not told or len(told.split()) < length:
        person = people[number % len(people)]
        fields = rng.sample(list(DRAWS), FACTS)
        told = f"{told} {_tell(person, fields, rng)}".strip()
        number += 1
    kept = told.split(" ")[: max(length, 8)]
    return {"question": f"Write about {people[place % len(people)].name}.", "answer": " ".join(kept)}


_MAKERS: Mapping[Kind, Callable[[list[Person], int, int, random.Random, str], Row]] = {
    "sentence": _sentence,
    "yes or no": _yes_or_no,
    "one word": _one_word,
    "contact": _contact,
    "code": _code,
    "text": _text,
}
