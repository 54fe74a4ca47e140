"""figures, keys and settings of a benchmark -> how its tables write them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_SETS = {"holdout": "never seen", "real_authors": "real authors", "world_facts": "world facts"}
_MEASURES = {
    "probability": "P",
    "extraction_strength": "ES",
    "rouge": "ROUGE",
    "truth_ratio": "truth ratio",
    "nll": "NLL",
}


def number(value: float) -> str:
    """Write a number with three digits that say something."""
    if math.isinf(value):
        return "∞"
    if value == 0 or 0.001 <= abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.1e}"


def title_of(key: str) -> str:
    """Return what tables call a figure, such as ``forget ES`` for ``forget.extraction_strength``."""
    if key == "general_nll":
        return "general NLL"
    part, _, measure = key.partition(".")
    return f"{_SETS.get(part, part)} {_MEASURES.get(measure, measure)}"


def written(settings: Mapping[str, Any]) -> str:
    """Write settings in one line."""
    return ", ".join(f"{name.rpartition('.')[2]}={value:g}" for name, value in settings.items())


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table of cells that are escaped already."""
    rows = [f"| {' | '.join(cells)} |" for cells in (head, *lines)]
    return "\n".join([rows[0], "|" + "---|" * len(head), *rows[1:]])
