"""rows of a benchmark -> results.md, results.csv, results.json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ngdiff.bench.plan import selection_score
from ngdiff.bench.run import BenchResult, searched
from ngdiff.bench.summary import COLUMNS, FORGOT_ENOUGH, Cell, Row
from ngdiff.bench.worker import RECORD
from ngdiff.system.output import finite
from ngdiff.system.outside import markdown_cell

SELECTION = (
    "Settings were chosen by the harmonic mean of three shares: how far the forget set's extraction strength "
    "fell towards that of never-seen text, and how much of the answer probability of held-out retain "
    "examples and of never-seen text was left. The rule was fixed before any trial ran, sees no retrained "
    "model, and its trials have a seed that no reported run has; they ran under the stopping rule, also "
    "where runs without it (no-stop) are reported. Methods with an automatic rate have nothing to choose."
)
FRONT = (
    f"**Bold**: of the methods that forgot at least {FORGOT_ENOUGH:.0%}, no other is better in one of "
    "*forgotten*, *kept* and *collateral kept* and worse in none. Intervals are 95%: Student's over seeds, "
    "over items where there is one seed; means of p-values are geometric. *s of tuning* are those of all "
    "trials from which the settings were chosen."
)


def markdown(result: BenchResult, rows: Sequence[Row]) -> str:
    """Return the whole page: how settings were chosen, a table a split, and what failed."""
    parts = ["# TOFU: methods compared", _asked(result), SELECTION, FRONT]
    for split in result.request.splits:
        parts += [f"## {split}", table([row for row in rows if row.split == split])]
    if result.tuned:
        parts += ["## Tuning", tuning_table(tuning_rows(result))]
    if result.failed:
        parts.append("## Failed")
        parts += [
            f"- {outcome.split}, {outcome.folder.parent.name}, {outcome.folder.name}: "
            f"{markdown_cell(_one_line(outcome.error or ''))}"
            for outcome in result.failed
        ]
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Row]) -> str:
    """Return one split's table, in Markdown."""
    shown = [column for column in COLUMNS if any(column.key in row.cells for row in rows)]
    arrows = {"up": " ↑", "down": " ↓", None: ""}
    head = ["method", *(column.title + arrows[column.better] for column in shown), "settings", "ended"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        name = f"**{row.name}**" if row.on_front else row.name
        cells = [_cell(row.cells.get(column.key)) for column in shown]
        lines.append(f"| {' | '.join([name, *cells, _settings(row), markdown_cell(_ended(row))])} |")
    return "\n".join(lines)


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


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.low is None or cell.high is None:
        return number(cell.value)
    return f"{number(cell.value)} ({number(cell.low)}–{number(cell.high)})"


def number(value: float) -> str:
    """Write a number with three digits that say something."""
    if value == 0 or 0.001 <= abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.1e}"


def _settings(row: Row) -> str:
    if row.tried == 0:
        return "the usual ones: no trial ran to its end"
    found = _written(row.settings)
    return found + (f" (of {row.tried})" if found and row.tried > 1 else "")


def _written(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.rpartition('.')[2]}={value:g}" for name, value in settings.items())


def _ended(row: Row) -> str:
    found = [f"{code} ×{count}" if count > 1 else code for code, count in row.ended.items()]
    return ", ".join(found + ([f"{row.failed} failed"] if row.failed else []))


def _one_line(text: str) -> str:
    return " ".join(text.split())[-300:]


def tuning_rows(result: BenchResult) -> list[dict[str, Any]]:
    """Return a row for every setting tried, its score and how its run went."""
    rows = []
    for outcome in result.tuned:
        record = None if outcome.error else outcome.read(RECORD)
        settings = {} if outcome.trial is None else searched(outcome.trial)
        row: dict[str, Any] = {
            "split": outcome.split,
            "method": outcome.name,
            "settings": settings,
            "score": None,
        }
        if record is not None:
            row |= {
                "score": selection_score(record),
                "forget_extraction_strength": record["after"]["forget"]["extraction_strength"],
                "retain_probability": record["after"]["retain"]["probability"],
                "never_seen_probability": record["after"]["never_seen"]["probability"],
                "steps": record["cost"]["steps"],
                "seconds": record["cost"]["seconds"],
                "ended": record["stop"]["code"],
            }
        row["chosen"] = (
            row["score"] is not None and result.chosen.get((outcome.split, outcome.name)) == settings
        )
        rows.append(row)
    return rows


def tuning_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what was tried, in Markdown; the chosen settings in bold."""
    figures = {
        "score": "score ↑",
        "forget_extraction_strength": "forget ES",
        "retain_probability": "retain P ↑",
        "never_seen_probability": "never seen P",
        "steps": "steps",
        "seconds": "s ↓",
    }
    head = ["split", "method", "settings", *figures.values(), "ended"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        settings = _written(row["settings"])
        cells = ["" if row.get(key) is None else number(float(row[key])) for key in figures]
        tried = f"**{settings}**" if row["chosen"] else settings
        ended = markdown_cell(str(row.get("ended", "failed")))
        lines.append(f"| {' | '.join([row['split'], row['method'], tried, *cells, ended])} |")
    return "\n".join(lines)


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
            *(f"{k}{end}" for k in keys for end in ("", "_low", "_high")),
        ]
    )
    for row in rows:
        cells: list[Any] = []
        for key in keys:
            cell = row.cells.get(key)
            cells += ["", "", ""] if cell is None else [cell.value, cell.low, cell.high]
        ended = _no_formula(_ended(row))
        facts = [row.on_front, row.runs, row.failed, ended, _written(row.settings), row.tried]
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
            "failed": [str(outcome.folder) for outcome in result.failed],
        }
    )
    return found
