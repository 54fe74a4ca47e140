"""rows of a benchmark -> the parts of their distance to the retrained model, and the ablation of a method."""

from __future__ import annotations

from collections.abc import Sequence

from ngdiff.bench.distance import HALF, LEAST, PARTS
from ngdiff.bench.numbers import markdown_table, number, title_of
from ngdiff.bench.summary import NO_STOP, Cell, Row
from ngdiff.bench.variants import ABLATED, find_variant
from ngdiff.methods import find_method

DISTANCE = (
    "*Distance* is that to the retrained model, the largest of its parts: |x − retrained| / |target − "
    "retrained| for the figures of the forget set, and the loss relative to the target for those that "
    "should not change (0 where nothing is lost). The target is at 1, a model like the retrained one near "
    f"0. Denominators are at least {LEAST}. ∞: destroyed, which is a model that lost {HALF:.0%} or more of "
    "retain P, retain ROUGE or exp(−general NLL). Its parts are means over seeds, in bold the one that "
    "decides in most; nearest first."
)
_FIGURES = (  # that an ablation shows, beside the distance
    "forget.probability",
    "forget.extraction_strength",
    "forget.truth_ratio",
    "retain.probability",
    "model_utility",
    "general_nll",
)


def distance_cell(row: Row) -> str:
    """Return a row's distance with its interval and the part that decides; empty where there is none."""
    if "distance" not in row.cells:
        return ""
    return f"{interval_cell(row.cells['distance'])}, {title_of(next(iter(row.decides)))}"


def interval_cell(cell: Cell | None) -> str:
    """Return a figure with its interval."""
    if cell is None:
        return ""
    if cell.low is None or cell.high is None:
        return number(cell.value)
    return f"{number(cell.value)} ({number(cell.low)}–{number(cell.high)})"


def distance_table(rows: Sequence[Row]) -> str:
    """Return every part of the distance of each row of one split, nearest first; empty without a distance."""
    measured = sorted((row for row in rows if "distance" in row.cells), key=_distance)
    if not measured:
        return ""
    keys = [key for key in PARTS if any(key in row.parts for row in measured)]
    lines = []
    for row in measured:
        cells = {key: number(row.parts[key]) if key in row.parts else "" for key in keys}
        decides = next(iter(row.decides))
        cells[decides] = f"**{cells[decides]}**"
        lines.append([row.name, interval_cell(row.cells["distance"]), *cells.values()])
    table = markdown_table(["method", "distance ↓", *map(title_of, keys)], lines)
    notes = [
        f"{', '.join(names)}: {', '.join(map(title_of, missing))} missing, since the target or the retrained "
        "model has no such figure."
        for missing, names in _missing(measured).items()
    ]
    return "\n\n".join([table, *notes])


def _distance(row: Row) -> float:
    return row.cells["distance"].value


def _missing(rows: Sequence[Row]) -> dict[tuple[str, ...], list[str]]:
    found: dict[tuple[str, ...], list[str]] = {}
    for row in (row for row in rows if row.missing):
        found.setdefault(row.missing, []).append(row.name)
    return found


def ablation_table(rows: Sequence[Row]) -> str:
    """Return the rows with one part of a method changed, below the method's own; empty without any."""
    ablated = {_variant(row).partition("+")[0] for row in rows if "=" in row.name}
    shown = [row for row in rows if _variant(row) in ablated or "=" in row.name]
    if not shown:
        return ""
    keys = [key for key in _FIGURES if any(key in row.cells for row in shown)]
    lines = []
    for row in shown:
        cells = [interval_cell(row.cells.get(key)) for key in keys]
        lines.append([row.name, *_parts(_variant(row)), *cells, distance_cell(row)])
    head = ["method", *(part.replace("_", " ") for part in ABLATED)]
    return markdown_table([*head, *map(title_of, keys), "distance ↓"], lines)


def _variant(row: Row) -> str:
    return row.name.removesuffix(NO_STOP)


def _parts(name: str) -> list[str]:
    """Return the parts of a variant, in bold where they differ from those of its method."""
    variant = find_variant(name)
    usual = find_method(variant.row)
    parts = [(getattr(variant.method, part), getattr(usual, part)) for part in ABLATED]
    return [part if part == other else f"**{part}**" for part, other in parts]
