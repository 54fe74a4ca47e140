"""figures of a study <-> the CSV files in docs/study, which the pages' tables and pictures are made from.

Each study's own command writes its files; evaluations item by item and records stay in the study's folder.
A cell that holds a list or a mapping is JSON.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ngdiff.evaluation.result import EvaluationResult, Figure

STUDY = Path("docs/study")
FACTS = (
    *("on_front", "destroyed", "runs", "failed", "ended", "settings", "tried"),
    *("edges", "parts", "decides", "missing"),
)
BOUNDS = ("low", "high")
WORDS = ("split", "method", "setting", "ended", "edge")
"""Columns of tuning trials and grids whose cells are words, not JSON."""


def write_csv(path: Path, head: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Write a table; ``None`` becomes an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(lines)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the lines of a table, each by the titles of its columns."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def keep_bench(results: Mapping[str, Any], folder: Path) -> None:
    """Write what the ``results.json`` of a benchmark says: request, rows, tuning trials and grids."""
    request = ((name, _cell(value)) for name, value in results["request"].items())
    write_csv(folder / "request.csv", ("setting", "value"), request)
    keys = list(dict.fromkeys(key for row in results["rows"] for key in row["cells"]))
    several = any(row.get("runs", 1) > 1 for row in results["rows"])
    ends = ("", *(f"_{bound}" for bound in BOUNDS), *(("_values",) if several else ()))
    head = ["split", "name", *FACTS, *(f"{key}{end}" for key in keys for end in ends)]
    lines = ([*_facts(row), *_figures(row["cells"], keys, several)] for row in results["rows"])
    write_csv(folder / "results.csv", head, lines)
    for name in ("tuning", "grids"):
        if rows := results.get(name):
            titles = list(dict.fromkeys(title for row in rows for title in row))
            lines = ([_cell(row.get(title)) for title in titles] for row in rows)
            write_csv(folder / f"{name}.csv", titles, lines)


def _facts(row: Mapping[str, Any]) -> list[object]:
    return [row["split"], row["name"], *(_cell(row.get(name)) for name in FACTS)]


def _figures(cells: Mapping[str, Any], keys: Sequence[str], several: bool) -> Iterator[object]:
    for key in keys:
        cell = cells.get(key)
        if cell is None:
            yield from [None] * (4 if several else 3)
            continue
        yield "inf" if cell["value"] is None else cell["value"]
        yield from (cell[bound] for bound in BOUNDS)
        if several:
            yield _cell(cell["values"])


def _cell(value: object) -> str | None:
    """Write a value without the user's folders."""
    text = value if isinstance(value, str) or value is None else json.dumps(value, ensure_ascii=False)
    return text if text is None else text.replace(str(Path.home()), "~")


def read_bench(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return ``rows``, ``tuning`` and ``grids`` in the form of ``results.json``."""
    tuning, grids = (_lines(folder / f"{name}.csv") for name in ("tuning", "grids"))
    # a trial that failed has no figures
    tuning = [{title: v for title, v in row.items() if v is not None} for row in tuning]
    rows = [_row(line) for line in read_csv(folder / "results.csv")]
    return {"rows": rows, "tuning": tuning, "grids": grids}


def _row(line: Mapping[str, str]) -> dict[str, Any]:
    keys = [name.removesuffix("_low") for name in line if name.endswith("_low")]
    cells = {key: _figure(line, key) for key in keys if line[key]}
    facts = {name: json.loads(line[name]) for name in FACTS if line[name]}
    return {"split": line["split"], "name": line["name"], **facts, "cells": cells}


def _figure(line: Mapping[str, str], key: str) -> dict[str, Any]:
    value = None if line[key] == "inf" else float(line[key])
    bounds = {bound: _number(line[f"{key}_{bound}"]) for bound in BOUNDS}
    values = line.get(f"{key}_values")
    return {"value": value, **bounds, "values": json.loads(values) if values else [value]}


def _lines(path: Path) -> list[dict[str, Any]]:
    """Read back tuning trials or the settings of a grid; an empty cell is ``None``."""
    return [
        {
            title: None if not text else text if title in WORDS else json.loads(text)
            for title, text in line.items()
        }
        for line in (read_csv(path) if path.exists() else [])
    ]


def _number(text: str) -> float | None:
    return float(text) if text else None


def keep_figures(results: Mapping[str, EvaluationResult], folder: Path) -> None:
    """Write the figures of evaluations with their intervals, and where they come from."""
    figures = (
        (model, key, found.metric, found.value, *(found.interval or (None, None)))
        for model, result in results.items()
        for key, found in result.figures.items()
    )
    write_csv(folder / "figures.csv", ("model", "figure", "metric", "value", *BOUNDS), figures)
    parts = ("model", "reference", "data", "settings", "seed", "versions", "machine")
    where = (
        (model, part, _cell(_public(result.provenance[part])))
        for model, result in results.items()
        for part in parts
        if part in result.provenance
    )
    write_csv(folder / "provenance.csv", ("model", "part", "value"), where)


def _public(value: Any) -> Any:
    """Leave out whose machine it was."""
    return {name: v for name, v in value.items() if name != "system"} if isinstance(value, dict) else value


def read_figures(folder: Path) -> dict[str, dict[str, Figure]]:
    """Return the figures of each model."""
    models: dict[str, dict[str, Figure]] = {}
    for line in read_csv(folder / "figures.csv"):
        low, high = (_number(line[bound]) for bound in BOUNDS)
        interval = None if low is None or high is None else (low, high)
        found = Figure(line["metric"], _number(line["value"]), interval)
        models.setdefault(line["model"], {})[line["figure"]] = found
    return models
