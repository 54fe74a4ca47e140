"""`-> the rows that ship with the project`, split into those to train on and those to measure on."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from ngdiff.invented.people import general_knowledge_rows

EVERY = 5
"""One row in so many is held out: 48 of 240."""


def general_split() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of ``ngdiff:general`` that may be trained on, and those that only measure.

    Every fifth row is held out, which is the same everywhere.
    """
    text = resources.files("ngdiff.data").joinpath("general.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    held_out = rows[EVERY - 1 :: EVERY]
    return [row for place, row in enumerate(rows) if place % EVERY != EVERY - 1], held_out


def general_texts() -> list[str]:
    """Return questions and answers of all that ships with the project: plain language, well-known names."""
    rows = [*(row for part in general_split() for row in part), *general_knowledge_rows()]
    return [f"{row['question']} {row['answer']}" for row in rows]
