"""outcomes of requests in a row -> a table of what was left, and kept, after each of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ngdiff.bench.numbers import markdown_table, number
from ngdiff.bench.run import BenchResult
from ngdiff.bench.worker import EVALUATION

SHOWN = {
    "forget.verbatim": "forget verbatim memorisation",
    "forget.knowledge": "forget knowledge memorisation",
    "retain.knowledge": "retain knowledge memorisation",
    "privleak": "PrivLeak",
}
"""Figures of the table, by key."""


def after_each(result: BenchResult, split: str) -> str:
    """Return MUSE's sustainability: the figures after each request of every run; empty where there is one."""
    lines: list[list[str]] = []
    for outcome in result.reported:
        found = sorted(outcome.folder.glob(f"after-*/{EVALUATION}"), key=_number)
        if outcome.split != split or outcome.error or not found:
            continue
        files = [*found, outcome.folder / EVALUATION]
        for place, file in enumerate(files, 1):
            figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["figures"]
            values = [(figures.get(key) or {}).get("value") for key in SHOWN]
            cells = ["" if value is None else number(value) for value in values]
            lines.append([outcome.name, outcome.folder.name, str(place), *cells])
    return markdown_table(["method", "run", "request", *SHOWN.values()], lines) if lines else ""


def _number(path: Path) -> int:
    return int(path.parent.name.rpartition("-")[2])
