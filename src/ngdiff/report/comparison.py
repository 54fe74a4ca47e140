"""several runs, or a benchmark's results -> a table, curves and points to compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ngdiff.evaluation.result import EvaluationResult
from ngdiff.report.cards import Interval, foreign, in_words, items_interval
from ngdiff.report.curves import curves
from ngdiff.report.evaluations import OLDER
from ngdiff.report.run_files import Run, dig, number, rows_of
from ngdiff.report.text import visible
from ngdiff.report.trust import attack_name, attacks
from ngdiff.report.verdict import judge

FORGETTING, UTILITY = "extraction_strength", "probability"
FORGET_KEY, RETAIN_KEY = f"forget.{FORGETTING}", f"retain.{UTILITY}"


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return for each (forgetting, utility) whether it is on the front: less of the first, more of the
    second.

    A point is not on it where another is at least as good on both and better on one; equal points share it.
    """
    return [
        not any(other[0] <= point[0] and other[1] >= point[1] and other != point for other in points)
        for point in points
    ]


def tradeoff(runs: Sequence[Run], way: bool = True) -> dict[str, Any]:
    """Return the runs' final points and, with ``way``, the checks of the first one.

    Points of runs are those of their own checks where all have a record, else those of their evaluations,
    so that a chart never mixes figures of different items.
    """
    recorded = all(run.record is not None for run in runs)
    ends = [
        found for run in runs if (found := (_end(run) if recorded else _evaluated(run.name, run.evaluation)))
    ]
    front = pareto([(end["x"], end["y"]) for end in ends])
    for end, on in zip(ends, front, strict=True):
        end["front"] = on
    first = runs[0].record if recorded and way else None
    return {
        "source": "checks" if recorded else "evaluations",
        "ends": ends,
        "path": [] if first is None else _path(first),
        "models": [] if recorded else _models(runs[0]),
        "floor": number(dig(first, "stop", "utility_floor")),
        "target": _target(first),
    }


def evaluated_tradeoff(run: Run) -> dict[str, Any] | None:
    """Return the same for one run and the models it is compared with, from their evaluations."""
    point = None if foreign(run) else _evaluated(run.name, run.evaluation)
    models = _models(run)
    if point is None or not models:
        return None
    return {
        "source": "evaluations",
        "ends": [{**point, "front": False}],
        "path": [],
        "models": models,
        "floor": None,
        "target": None,
    }


def _target(record: Mapping[str, Any] | None) -> float | None:
    measured = dig(record, "stop", "target", "measure") == FORGETTING
    return number(dig(record, "stop", "target", "value")) if measured else None


def _end(run: Run) -> dict[str, Any] | None:
    x = number(dig(run.record, "after", "forget", FORGETTING))
    y = number(dig(run.record, "after", "retain", UTILITY))
    if x is None or y is None:
        return None
    bounds = items_interval(run, "forget", FORGETTING, x), items_interval(run, "retain", UTILITY, y)
    return _point(run.name, x, y, *bounds)


def _point(name: str, x: float, y: float, across: Interval = None, up: Interval = None) -> dict[str, Any]:
    ends = [None if bounds is None else list(bounds) for bounds in (across, up)]
    return {"name": name, "x": x, "y": y, "x_interval": ends[0], "y_interval": ends[1]}


def _path(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for check in rows_of(record.get("checks")):
        x, y = number(dig(check, "forget", FORGETTING)), number(dig(check, "utility", UTILITY))
        if x is not None and y is not None:
            found.append({"step": number(check.get("step")), "x": x, "y": y})
    return found


def _evaluated(name: str, evaluation: EvaluationResult | None) -> dict[str, Any] | None:
    figures = {} if evaluation is None else evaluation.figures
    forget, retain = figures.get(FORGET_KEY), figures.get(RETAIN_KEY)
    if forget is None or retain is None or forget.value is None or retain.value is None:
        return None
    return _point(name, forget.value, retain.value, forget.interval, retain.interval)


def _models(run: Run) -> list[dict[str, Any]]:
    """Return the target and the retrained model; they have only evaluations, which do not mix with checks."""
    pairs = (("target model", run.before), ("retrained model", run.reference))
    return [point for name, evaluation in pairs if (point := _evaluated(name, evaluation))]


MOST_POINTS = 400
"""Most steps of a curve on the page; longer runs are thinned evenly."""

EVALUATED = (("forget_quality", "forget quality"), ("model_utility", "model utility"), ("utility", "utility"))
SERIES = (
    "forget_extraction_strength_checked",
    "retain_probability_checked",
    "forget_nll_checked",
    "learning_rate",
)


def comparison(runs: Sequence[Run]) -> dict[str, Any]:
    """Return a row for each run, the settings that differ, and their curves."""
    ends = tradeoff(runs, way=False)["ends"]
    front = {end["name"] for end in ends if end["front"]}
    return {
        "rows": [_row(run, run.name in front) for run in runs],
        "evaluated": [title for key, title in EVALUATED if any(_figure(run, key) for run in runs)],
        "attacked": any(attacks(run.evaluation) for run in runs),
        "differ": differing(runs),
        "series": [_series(run) for run in runs if run.record is not None],
        "bench": None,
    }


def _row(run: Run, on_front: bool) -> dict[str, Any]:
    record, verdict = run.record or {}, judge(run)
    cells = []
    for part, measure in (("forget", "extraction_strength"), ("retain", "probability")):
        sides = [in_words(number(dig(record, side, part, measure))) for side in ("before", "after")]
        cells.append(
            f"{sides[0]} → {sides[1]}" if run.record is not None else _figure(run, f"{part}.{measure}") or ""
        )
    found = attacks(run.evaluation)
    strongest = max(found, key=lambda name: abs((found[name].value or 0.5) - 0.5)) if found else None
    cost = record.get("cost")
    return {
        "name": visible(run.name),
        "front": on_front,
        "method": visible(dig(record, "settings", "method") or ""),
        "status": verdict.cards[0].status,
        "answer": verdict.cards[0].answer,
        "forget": cells[0],
        "retain": cells[1],
        "ended": str(dig(record, "stop", "code") or ""),
        "steps": dig(cost, "steps"),
        "seconds": number(dig(cost, "seconds")),
        "figures": {title: _figure(run, key) or "" for key, title in EVALUATED},
        "attack": f"{in_words(found[strongest].value)} ({attack_name(strongest)})" if strongest else "",
    }


def _figure(run: Run, key: str) -> str | None:
    figure = None if run.evaluation is None else run.evaluation.figures.get(key)
    if figure is None or figure.value is None:
        return None
    return in_words(figure.value) if figure.outdated is None else f"{in_words(figure.value)} {OLDER}"


def differing(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the settings whose values differ between runs, each with one text per run."""
    settings = [dig(run.record, "settings") or {} for run in runs]
    names = list(dict.fromkeys(str(name) for found in settings for name in found))
    rows = []
    for name in names:
        values = [visible(found.get(name, "")) for found in settings]
        if len(set(values)) > 1:
            rows.append({"name": visible(name), "values": values})
    return rows


def _series(run: Run) -> dict[str, Any]:
    found = curves(run.record or {})
    steps, checks = found["steps"], found["checks"]
    lines: dict[str, list[list[float | None]]] = {}
    for name in SERIES:
        if name.endswith("_checked"):
            pairs = [[check["step"], check[name]] for check in checks]
        else:
            pairs = [list(pair) for pair in zip(steps["step"], steps[name], strict=True)]
        stride = -(-len(pairs) // MOST_POINTS) or 1
        lines[name] = [pair for pair in pairs[::stride] if None not in pair]
    return {"name": run.name, "lines": lines, "kept": found["kept"]}


# ---- a benchmark ----

CELLS = (
    ("distance", "distance to the retrained model"),
    ("forget.extraction_strength", "extraction strength, forget"),
    ("retain.probability", "probability, retain"),
    ("forgotten", "forgotten"),
    ("kept", "kept"),
    ("collateral", "neighbourhood"),
    ("model_utility", "model utility"),
    ("forget_quality", "forget quality"),
    ("seconds", "seconds"),
)


def bench_rows(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the benchmark's own table, without empty columns."""
    rows = rows_of(results.get("rows"))
    columns = [
        (k, title)
        for k, title in CELLS
        if any(number(dig(row, "cells", k, "value")) is not None for row in rows)
    ]
    return {
        "titles": [title for _, title in columns],
        "rows": [
            {
                "name": visible(_name(row, rows)),
                "front": bool(row.get("on_front")),
                "ended": ", ".join(f"{code} ×{count}" for code, count in (row.get("ended") or {}).items()),
                "failed": row.get("failed") or 0,
                "cells": [_cell(dig(row, "cells", key)) for key, _ in columns],
            }
            for row in rows
        ],
    }


def _name(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    several = len({str(other.get("split")) for other in rows}) > 1
    return f"{row.get('split')} / {row.get('name')}" if several else str(row.get("name"))


def _cell(cell: Any) -> dict[str, str]:
    value, low, high = (number(dig(cell, key)) for key in ("value", "low", "high"))
    between = f"{in_words(low)} – {in_words(high)}" if low is not None and high is not None else ""
    infinite = isinstance(cell, Mapping) and "value" in cell and cell["value"] is None  # JSON has no infinity
    return {"value": "∞" if infinite else "" if value is None else in_words(value), "interval": between}


def bench_tradeoff(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return for each split the methods' points with the retrained and the target model."""
    rows = rows_of(results.get("rows"))
    found: list[dict[str, Any]] = []
    for split in dict.fromkeys(str(row.get("split")) for row in rows):
        ends: list[dict[str, Any]] = []
        models: list[dict[str, Any]] = []
        for row in (row for row in rows if str(row.get("split")) == split):
            point = _bench_point(row)
            if point is not None:
                (models if row.get("name") in ("retrained", "target") else ends).append(point)
        front = pareto([(end["x"], end["y"]) for end in ends])
        ends = [end | {"front": on} for end, on in zip(ends, front, strict=True)]
        chart = {"source": "evaluations", "title": split, "ends": ends, "models": models}
        found.append(chart | {"path": [], "floor": None, "target": None})
    return found


def _bench_point(row: Mapping[str, Any]) -> dict[str, Any] | None:
    cells = [dig(row, "cells", key) for key in ("forget.extraction_strength", "retain.probability")]
    x, y = (number(dig(cell, "value")) for cell in cells)
    if x is None or y is None:
        return None
    ends = [[number(dig(cell, "low")), number(dig(cell, "high"))] for cell in cells]
    bounds = [None if None in pair else pair for pair in ends]
    return {"name": str(row.get("name")), "x": x, "y": y, "x_interval": bounds[0], "y_interval": bounds[1]}
