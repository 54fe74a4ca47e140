"""rows of a benchmark -> results.md, results.csv, results.json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ngdiff.bench.comparison_tables import (
    DISTANCE,
    ablation_table,
    distance_cell,
    distance_table,
    interval_cell,
)
from ngdiff.bench.numbers import markdown_table, number, written
from ngdiff.bench.run import BenchResult
from ngdiff.bench.suites import SUITES
from ngdiff.bench.summary import COLUMNS, COMPARED, FORGOT_ENOUGH, Row
from ngdiff.bench.tuning_tables import SELECTION, grid_rows, grid_table, tuned_on, tuning_rows, tuning_table
from ngdiff.bench.variants import SAME
from ngdiff.bench.worker import EVALUATION
from ngdiff.settings import DEFAULT_METHOD
from ngdiff.system.output import finite
from ngdiff.system.untrusted import markdown_cell

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


FIGURES = (
    "Figures of a method are means over its seeds with Student's 95% t-interval in brackets; with one "
    "seed, and for target and retrained model, the brackets are the 95% bootstrap interval over items, "
    "where there is one. Means and intervals of p-values are those of their logarithms. *s of tuning* are "
    "those of all trials from which the settings were chosen."
)
FRONT = (
    f"**Bold**: of the methods that forgot at least {FORGOT_ENOUGH:.0%}, no other is better in one of "
    "*forgotten*, *kept* and *collateral kept* and worse in none. A destroyed model (see *distance*) is "
    "never in bold and ranks below all others: its forget quality can be as high as a good model's."
)
CONDITIONS = (
    f"*NAME{SAME}* is {DEFAULT_METHOD} with the forget loss and the rule of NAME (constant weights where "
    "NAME has no retain loss): the same retain loss, step size, stopping rule and floors as "
    f"{DEFAULT_METHOD}. NAME alone is the method as its paper has it, under this benchmark's stopping rule."
)
ABLATION = (
    "One part changed at a time, in bold; everything else is the method's own. A fixed step size begins "
    "with the method's usual rate, or the usual rate of fixed methods where it has none."
)


def markdown(result: BenchResult, rows: Sequence[Row]) -> str:
    """Return the whole page: how settings were chosen, the tables of each split, and what failed."""
    title = SUITES[result.request.suite].title
    parts = [f"# {title}: methods compared", _asked(result), SELECTION, FIGURES, FRONT, DISTANCE]
    parts += [CONDITIONS] if result.request.same_conditions else []
    for split in result.request.splits:
        mine = [row for row in rows if row.split == split]
        parts += [f"## {split}", table(mine)]
        found = after_each(result, split)
        if found:
            parts += [f"### After each request, {split}", found]
        if found := distance_table(mine):
            parts += [f"### Distance, {split}", found]
        if found := ablation_table(mine):
            parts += [f"### Ablation, {split}", ABLATION, found]
    if result.tuned:
        parts += [
            "## Tuning",
            tuned_on(result),
            grid_table(grid_rows(result)),
            tuning_table(tuning_rows(result)),
        ]
    if result.failed:
        parts.append("## Failed")
        parts += [
            f"- {outcome.split}, {outcome.folder.parent.name}, {outcome.folder.name}: "
            f"{markdown_cell(_one_line(outcome.error or ''))}"
            for outcome in result.failed
        ]
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Row]) -> str:
    """Return one split's table, in Markdown, with the columns that the methods' rows fill."""
    methods = [row for row in rows if row.cells and row.name not in COMPARED]
    shown = [column for column in COLUMNS if any(column.key in row.cells for row in methods or rows)]
    arrows = {"up": " ↑", "down": " ↓", None: ""}
    head = ["method", *(column.title + arrows[column.better] for column in shown), "settings", "ended"]
    lines = []
    for row in rows:
        name = f"**{row.name}**" if row.on_front else row.name
        name += " (destroyed)" if row.destroyed else ""
        cells = [
            distance_cell(row) if column.key == "distance" else interval_cell(row.cells.get(column.key))
            for column in shown
        ]
        lines.append([name, *cells, _settings(row), markdown_cell(_ended(row))])
    return markdown_table(head, lines)


def _asked(result: BenchResult) -> str:
    request = result.request
    learned = (
        "" if request.learned is None else f"; the target learned TOFU's last {request.learned} questions"
    )
    kept = ", ".join(map(markdown_cell, request.also_retain))
    kept = f"; beside the retain set every run was to keep {kept}" if kept else ""
    items = "" if request.items is None else f"; at most {request.items} items of each set evaluated"
    return (
        f"Target: {markdown_cell(Path(request.model).name)}{learned}{items}{kept}. "
        f"{request.seeds} reported run(s) a method, "
        f"{request.trials} setting(s) tried where a method has a range to search."
    )


def _settings(row: Row) -> str:
    if row.tried == 0:
        return "the usual ones: no trial ran to its end"
    found = written(row.settings)
    found += f" (of {row.tried})" if found and row.tried > 1 else ""
    at_edge = ", ".join(f"{name.rpartition('.')[2]} the {edge} tried" for name, edge in row.edges.items())
    return found + (f"; {at_edge}" if at_edge else "")


def _ended(row: Row) -> str:
    found = [f"{code} ×{count}" if count > 1 else code for code, count in row.ended.items()]
    return ", ".join(found + ([f"{row.failed} failed"] if row.failed else []))


def _one_line(text: str) -> str:
    return " ".join(text.split())[-300:]


def as_csv(rows: Sequence[Row]) -> str:
    """Return a line a row: every figure with the bounds of its interval."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    keys = [column.key for column in COLUMNS]
    writer.writerow(
        [
            "split",
            "method",
            "on_front",
            "runs",
            "failed",
            "ended",
            "settings",
            "tried",
            "at_edge",
            "distance_part",
            "distance_missing",
            *(f"{k}{end}" for k in keys for end in ("", "_low", "_high")),
        ]
    )
    for row in rows:
        cells: list[Any] = []
        for key in keys:
            cell = row.cells.get(key)
            cells += ["", "", ""] if cell is None else [cell.value, cell.low, cell.high]
        facts = [
            row.on_front,
            row.runs,
            row.failed,
            _no_formula(_ended(row)),
            written(row.settings),
            row.tried,
        ]
        facts += [" ".join(row.edges), next(iter(row.decides), ""), " ".join(row.missing)]
        writer.writerow([row.split, row.name, *facts, *cells])
    return file.getvalue()


def _no_formula(text: str) -> str:
    """Put a space before what a spreadsheet would take for a formula: the text comes from a record."""
    return f" {text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def as_json(result: BenchResult, rows: Sequence[Row]) -> dict[str, Any]:
    """Return plain JSON values: the request, the rows, the tuning scores and the failures."""
    request = json.loads(json.dumps(asdict(result.request), default=str))
    found: dict[str, Any] = finite(
        {
            "kind": "bench",
            "format": 1,
            "request": request,
            "rows": [asdict(row) for row in rows],
            "tuning": tuning_rows(result),
            "grids": grid_rows(result),
            "failed": [str(outcome.folder) for outcome in result.failed],
        }
    )
    return found
