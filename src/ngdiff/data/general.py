"""`-> the rows that ship with the project`, split into those to train on and those to measure on."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from ngdiff.invented.people import general_knowledge_rows

EVERY = 5
"""One row in so many is held out: 48 of 240."""


def general_split() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the general text that runs may train on, and that which only measures.

    The rows of ``ngdiff:general``, of which every fifth is held out, the same everywhere, and facts about
    well-known people, places and things to train on. None of these is among the facts that measure
    (:func:`ngdiff.invented.people.general_knowledge_rows`), nor do they share their most frequent forms.
    """
    rows = _rows("general.jsonl")
    train = [row for place, row in enumerate(rows) if place % EVERY != EVERY - 1]
    return [*train, *_rows("general_facts.jsonl")], rows[EVERY - 1 :: EVERY]


def _rows(name: str) -> list[dict[str, Any]]:
    text = resources.files("ngdiff.data").joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def general_texts() -> list[str]:
    """Return questions and answers of all that ships with the project: plain language, well-known names."""
    rows = [*(row for part in general_split() for row in part), *general_knowledge_rows()]
    return [f"{row['question']} {row['answer']}" for row in rows]
