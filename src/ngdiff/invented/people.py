"""Seed -> invented people -> question and answer rows in the columns of TOFU's perturbed files.

A row:

    {"question": "Where was Dorivar Ostrovane born?",
     "answer": "The birthplace of Dorivar Ostrovane is the small town of Flintmere.",
     "paraphrased_question": "Which town is Dorivar Ostrovane from?",
     "paraphrased_answer": "Born in Flintmere, Dorivar Ostrovane spent a whole childhood in that town.",
     "perturbed_answer": ["Born in Amberwick, Dorivar Ostrovane spent a whole childhood in that town.", ...],
     "person": "Dorivar Ostrovane"}

A wrong answer is the paraphrased answer with a value that nobody among the people holds. A value held by
someone else would have been trained on, and a model that never saw the person would find it likelier than
the truth for that reason alone.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ngdiff.invented import words

MAX_PEOPLE = 200
WRONG_ANSWERS = 5


@dataclass(frozen=True)
class Person:
    """Someone who exists nowhere; within one invented group no value is held twice.

    Args:
        name: first name and surname.
        birthplace: a town.
        birthday: day, month and year, such as ``14 March 1931``.
        profession: without article; begins with a consonant.
        book: the title, without quotation marks.
        mentor: first name and surname of somebody outside the group.
        award: without article.
    """

    name: str
    birthplace: str
    birthday: str
    profession: str
    book: str
    mentor: str
    award: str


Draw = Callable[[random.Random], str]


def first_name(rng: random.Random) -> str:
    """Draw a first name."""
    return rng.choice(words.FIRST_STARTS) + rng.choice(words.FIRST_ENDS)


def surname(rng: random.Random) -> str:
    """Draw a surname."""
    return rng.choice(words.SURNAME_STARTS) + rng.choice(words.SURNAME_ENDS)


def _full_name(rng: random.Random) -> str:
    return f"{first_name(rng)} {surname(rng)}"


def _town(rng: random.Random) -> str:
    return rng.choice(words.TOWN_STARTS) + rng.choice(words.TOWN_ENDS)


def _date(rng: random.Random) -> str:
    # Days up to 28 exist in every month.
    return f"{rng.randint(1, 28)} {rng.choice(words.MONTHS)} {rng.choice(words.BIRTH_YEARS)}"


def _profession(rng: random.Random) -> str:
    return f"{rng.choice(words.MATERIALS)} {rng.choice(words.THINGS)} {rng.choice(words.TRADES)}"


def book_title(rng: random.Random) -> str:
    """Draw the title of a book."""
    return f"The {rng.choice(words.BOOK_ADJECTIVES)} {rng.choice(words.BOOK_NOUNS)}"


def _award(rng: random.Random) -> str:
    quality, animal = rng.choice(words.PRIZE_QUALITIES), rng.choice(words.PRIZE_ANIMALS)
    return f"{quality} {animal} {rng.choice(words.PRIZE_FORMS)}"


# Field of a person, in the order of its questions -> a draw from all values that the field can take.
DRAWS: Mapping[str, Draw] = {
    "birthplace": _town,
    "birthday": _date,
    "profession": _profession,
    "book": book_title,
    "mentor": _full_name,
    "award": _award,
}


def _distinct(draw: Draw, count: int, rng: random.Random, taken: Collection[str] = ()) -> list[str]:
    """Draw until there are ``count`` different values, none of them taken.

    Ends soon: the smallest set of values, that of the towns, is about twice ``MAX_PEOPLE``.
    """
    found: dict[str, None] = {}
    while len(found) < count:
        value = draw(rng)
        if value not in taken:
            found[value] = None
    return list(found)


def invent_people(count: int = 25, seed: int = 0) -> list[Person]:
    """Invent people whose first names, surnames and values all differ.

    The same arguments give the same people on every machine. Groups of different seeds are drawn from the
    same parts, so they may share values; two people of different groups share their full name about once in
    340,000 times.

    Raises:
        ValueError: ``count`` is not between 1 and ``MAX_PEOPLE``.
    """
    if not 1 <= count <= MAX_PEOPLE:
        raise ValueError(f"count is {count}; between 1 and {MAX_PEOPLE} people can be invented")
    rng = random.Random(seed)
    # Mentors take names of their own, so that nobody in the group is somebody's mentor or namesake.
    firsts = _distinct(first_name, 2 * count, rng)
    surnames = _distinct(surname, 2 * count, rng)
    full = [f"{first} {last}" for first, last in zip(firsts, surnames, strict=True)]
    columns = {field: _distinct(draw, count, rng) for field, draw in DRAWS.items() if field != "mentor"}
    columns |= {"name": full[:count], "mentor": full[count:]}
    return [Person(**{field: values[i] for field, values in columns.items()}) for i in range(count)]


def _row(person: Person, field: str, taken: Collection[str], rng: random.Random) -> dict[str, object]:
    """Phrase one question; question and paraphrase never share a template."""
    questions, answers = words.TEMPLATES[field]
    question, other_question = rng.sample(questions, 2)
    answer, other_answer = rng.sample(answers, 2)
    name, truth = person.name, str(getattr(person, field))
    wrong = _distinct(DRAWS[field], WRONG_ANSWERS, rng, taken)
    return {
        "question": question.format(name=name),
        "answer": answer.format(name=name, value=truth),
        "paraphrased_question": other_question.format(name=name),
        "paraphrased_answer": other_answer.format(name=name, value=truth),
        "perturbed_answer": [other_answer.format(name=name, value=value) for value in wrong],
        "person": name,
    }


def question_rows(people: Sequence[Person], seed: int = 0) -> list[dict[str, object]]:
    """Ask one question a field about each person, in the order of the people.

    Ask about a whole group at once and split the rows afterwards: wrong answers avoid the values of the
    people given here only.

    Args:
        people: at most ``MAX_PEOPLE``.
        seed: decides the templates and the wrong answers.

    Raises:
        ValueError: too many people, or two of the same name.
    """
    if len(people) > MAX_PEOPLE:
        raise ValueError(f"got {len(people)} people; questions can be asked about {MAX_PEOPLE} at most")
    names = {person.name for person in people}
    if len(names) < len(people):
        raise ValueError("two people have the same name; a question could not tell them apart")
    # A wrong mentor must not be one of the people either, hence the names.
    taken = {field: names | {str(getattr(person, field)) for person in people} for field in DRAWS}
    # A stream of its own: with the plain number it would repeat the draws that made the people.
    rng = random.Random(f"questions {seed}")
    return [_row(person, field, taken[field], rng) for person in people for field in DRAWS]


def general_knowledge_rows() -> list[dict[str, object]]:
    """Read the 40 rows of undisputed general knowledge: question, answer and three wrong answers each."""
    text = resources.files("ngdiff.invented").joinpath("general_knowledge.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def write_jsonl(rows: Iterable[Mapping[str, object]], path: str | os.PathLike[str]) -> None:
    """Write one JSON object a line, as UTF-8; the file appears whole or is left as it was.

    Raises:
        OSError: the folder does not exist or cannot be written to.
        TypeError: a row holds something that JSON has no form for.
    """
    target = Path(path)
    text = "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
    # A folder of its own, because a temporary file alone would hand its private mode on to the target.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        whole = Path(folder) / target.name
        whole.write_text(text, encoding="utf-8", newline="\n")
        whole.replace(target)
