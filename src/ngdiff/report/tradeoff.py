"""runs -> points of forgetting against utility, and which of them no other beats on both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ngdiff.evaluation.result import EvaluationResult
from ngdiff.report.cards import Interval, foreign, items_interval
from ngdiff.report.sources import Run, dig, number, rows_of

FORGETTING, UTILITY = "extraction_strength", "probability"
FORGET_KEY, RETAIN_KEY = f"forget.{FORGETTING}", f"retain.{UTILITY}"


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Say of each (forgetting, utility) whether it is on the front: less of the first, more of the second.

    A point is off it where another is at least as good on both and better on one; equal points share it.
    """
    return [
        not any(other[0] <= point[0] and other[1] >= point[1] and other != point for other in points)
        for point in points
    ]


def tradeoff(runs: Sequence[Run], way: bool = True) -> dict[str, Any]:
    """Return the runs' ends and, where ``way`` asks for it, the first one's checks on the way.

    Points of runs are those of their own checks where all have a record, else those of their evaluations,
    so that one chart never mixes figures of different items.
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
    """Return the same of one run and the models it is held against, from their evaluations."""
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
    """Return the target and the retrained model; they have evaluations only, which checks do not mix with."""
    pairs = (("target model", run.before), ("retrained model", run.reference))
    return [point for name, evaluation in pairs if (point := _evaluated(name, evaluation))]
