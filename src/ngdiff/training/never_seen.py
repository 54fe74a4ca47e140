"""forget set -> text of a similar form that no model can have seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ngdiff.data.encoding import EncodedExample, encode_all
from ngdiff.data.examples import to_examples
from ngdiff.data.sources import Row
from ngdiff.invented.people import invent_people, question_rows

PEOPLE = 8
ROOM = 512
SEED = 20_250_401  # not the seed of any demonstration: those people are learned


def never_seen_examples(
    like: Sequence[EncodedExample], tokenizer: Any, max_length: int
) -> list[EncodedExample]:
    """Invent people whom no model can know, as questions or as running text, as the forget set is."""
    rows = question_rows(invent_people(PEOPLE, SEED), SEED)
    if like[0].example.kind == "text":
        by_person: dict[str, list[str]] = {}
        for row in rows:
            by_person.setdefault(str(row["person"]), []).append(str(row["answer"]))
        rows = [{"text": " ".join(answers)} for answers in by_person.values()]
    max_length = max(max_length, ROOM)  # a short limit is meant for the user's own text
    numbered = [Row(row, f"invented row {number}") for number, row in enumerate(rows, start=1)]
    return encode_all(to_examples(numbered, "never seen"), tokenizer, max_length, "never seen")
