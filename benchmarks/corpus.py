"""Seed -> a corpus about invented people, laid out as MUSE's: texts, questions on them, requests in a row.

A text tells six things about one person; a question asks for one of them, and its answer is the bare fact.
``raw/forget`` is the first request. ``scal/forget_1`` to ``forget_4`` hold one another, ``sust/forget_1`` to
``forget_4`` are disjoint and add up to the largest of those. The people of ``holdout``, and those of the
solved examples that go in front of the questions, occur nowhere else.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ngdiff.invented import words
from ngdiff.invented.people import DRAWS, MAX_PEOPLE, Person, invent_people, write_jsonl

REQUESTS = 4
SHOTS = 4
PROMPT_SENTENCES = 2

Corpus = dict[str, list[dict[str, str]]]
"""CONFIG/SPLIT, such as ``knowmem/forget_qa``, to rows."""


@dataclass(frozen=True)
class CorpusSize:
    """How many people a corpus tells of.

    Args:
        request: people of each of the four requests.
        retain: people to keep; half of them in ``raw/retain1``, which is there to unlearn with, the others in
            ``raw/retain2``.
        holdout: people whom no model is meant to have seen.
        questions: asked about each person, 1 to 6.
    """

    request: int = 6
    retain: int = 32
    holdout: int = 12
    questions: int = 2

    def __post_init__(self) -> None:
        """Check the numbers."""
        if min(self.request, self.holdout) < 1 or self.retain < 2 or not 1 <= self.questions <= len(DRAWS):
            raise ValueError(f"{self} leaves a part of the corpus empty")
        if self.people > MAX_PEOPLE:
            raise ValueError(f"{self} needs {self.people} people; {MAX_PEOPLE} can be invented")

    @property
    def people(self) -> int:
        """All of them, those of the solved examples included."""
        return REQUESTS * self.request + self.retain + self.holdout + 2 * SHOTS


def invent_corpus(size: CorpusSize | None = None, seed: int = 0) -> Corpus:
    """Invent a corpus; the same arguments give the same one on every machine."""
    size = size or CorpusSize()
    rng = random.Random(f"corpus {seed}")
    people = iter(invent_people(size.people, seed))
    requests = [_take(people, size.request) for _ in range(REQUESTS)]
    retain, holdout = _take(people, size.retain), _take(people, size.holdout)
    shots = {"forget": _take(people, SHOTS), "retain": _take(people, SHOTS)}
    sentences = {
        person.name: _sentences(person, rng) for group in (*requests, retain, holdout) for person in group
    }

    def texts(group: Sequence[Person]) -> list[dict[str, str]]:
        return [{"text": " ".join(sentences[person.name])} for person in group]

    def passage(person: Person) -> dict[str, str]:
        told = sentences[person.name]
        return {"prompt": " ".join(told[:PROMPT_SENTENCES]), "gt": " ".join(told[PROMPT_SENTENCES:])}

    forget, half = requests[0], size.retain // 2
    corpus: Corpus = {
        "raw/forget": texts(forget),
        "raw/retain1": texts(retain[:half]),
        "raw/retain2": texts(retain[half:]),
        "raw/holdout": texts(holdout),
        "verbmem/forget": [passage(person) for person in forget],
        "privleak/forget": texts(forget),
        "privleak/retain": texts(retain[half:]),
        "privleak/holdout": texts(holdout),
    }
    for part, group in (("forget", forget), ("retain", retain)):
        corpus[f"knowmem/{part}_qa"] = ask(group, size.questions, rng)
        corpus[f"knowmem/{part}_qa_icl"] = ask(shots[part], 1, rng)
    for step in range(1, REQUESTS + 1):
        corpus[f"sust/forget_{step}"] = texts(requests[step - 1])
        corpus[f"scal/forget_{step}"] = texts([person for group in requests[:step] for person in group])
    return corpus


def corpus_people(size: CorpusSize | None = None, seed: int = 0) -> dict[str, list[Person]]:
    """Return the people of ``invent_corpus``: ``forget_1`` to ``forget_4``, ``retain``, ``shots``."""
    size = size or CorpusSize()
    people = iter(invent_people(size.people, seed))
    found = {f"forget_{step}": _take(people, size.request) for step in range(1, REQUESTS + 1)}
    found["retain"] = _take(people, size.retain)
    _take(people, size.holdout)
    found["shots"] = _take(people, 2 * SHOTS)
    return found


def ask(people: Sequence[Person], questions: int, rng: random.Random) -> list[dict[str, str]]:
    """Ask for so many different facts about each person."""
    rows = []
    for person in people:
        for field in rng.sample(list(DRAWS), questions):
            question = rng.choice(words.TEMPLATES[field][0]).format(name=person.name)
            rows.append({"question": question, "answer": str(getattr(person, field))})
    return rows


def write_corpus(corpus: Mapping[str, Sequence[Mapping[str, object]]], folder: Path) -> Path:
    """Write CONFIG/SPLIT.jsonl, as ``ngdiff evaluate --suite muse --data FOLDER`` reads it."""
    for place, rows in corpus.items():
        path = folder / f"{place}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(rows, path)
    return folder


def _take(people: Iterator[Person], count: int) -> list[Person]:
    return list(islice(people, count))


def tell(person: Person, rng: random.Random) -> str:
    """Tell all six things about a person in one text."""
    return " ".join(_sentences(person, rng))


def _sentences(person: Person, rng: random.Random) -> list[str]:
    """Tell all six things, in an order and in words of this person's own."""
    fields = rng.sample(list(DRAWS), len(DRAWS))
    return [
        rng.choice(words.TEMPLATES[field][1]).format(name=person.name, value=getattr(person, field))
        for field in fields
    ]
