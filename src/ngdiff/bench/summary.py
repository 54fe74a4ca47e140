"""outcomes of a benchmark -> one row a method, with intervals, and which rows no other row beats."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student

from ngdiff.bench.distance import Distance, destroyed, distance
from ngdiff.bench.grid import Edge, edges
from ngdiff.bench.run import BenchResult, Outcome, tried
from ngdiff.bench.trial_figures import Figures, Interval, figures_of, values_of
from ngdiff.bench.trials import ending
from ngdiff.bench.variants import find_variant
from ngdiff.bench.worker import RECORD

COMPARED = ("target", "retrained")
NO_STOP = "-no-stop"
"""Ending of a row's name where its runs went to the end of the epochs."""


@dataclass(frozen=True)
class Column:
    """One figure of the table.

    Args:
        key: of the evaluation's figure, or the column's own name.
        title: what the table calls it.
        better: ``up``, ``down``, or None where neither is.
        group: what it is about.
        low: least value that it can have.
        high: greatest.
        logarithmic: whether means over runs are taken of logarithms, as of p-values that differ by orders.
    """

    key: str
    title: str
    better: str | None
    group: str
    low: float = 0.0
    high: float = 1.0
    logarithmic: bool = False


COLUMNS: tuple[Column, ...] = (
    Column("forget.extraction_strength", "forget ES", None, "forgotten"),
    Column("forget.probability", "forget P", None, "forgotten"),
    Column("forget.rouge", "forget ROUGE", None, "forgotten"),
    Column("forget.truth_ratio", "forget truth ratio", None, "forgotten"),
    Column("forget.verbatim", "forget verbatim memorisation", None, "forgotten"),
    Column("forget.knowledge", "forget knowledge memorisation", None, "forgotten"),
    Column("items_left", "items left", "down", "forgotten", high=inf),
    Column("forget_quality", "forget quality (KS p)", "up", "forgotten", logarithmic=True),
    Column(
        "forget_quality_openunlearning",
        "forget quality, OpenUnlearning's convention",
        "up",
        "forgotten",
        logarithmic=True,
    ),
    Column("privleak", "PrivLeak", None, "forgotten", -inf, inf),
    Column("model_utility", "model utility", "up", "kept"),
    Column("retain.knowledge", "retain knowledge memorisation", "up", "kept"),
    Column("utility", "utility", "up", "kept"),
    Column("retain.probability", "retain P", "up", "kept"),
    Column("retain.extraction_strength", "retain ES", "up", "kept"),
    Column("holdout.probability", "never seen P", None, "neighbourhood"),
    Column("real_authors.probability", "real authors P", "up", "neighbourhood"),
    Column("real_authors.rouge", "real authors ROUGE", "up", "neighbourhood"),
    Column("world_facts.probability", "world facts P", "up", "neighbourhood"),
    Column("world_facts.rouge", "world facts ROUGE", "up", "neighbourhood"),
    Column("general_nll", "general NLL", "down", "neighbourhood", high=inf),
    Column("distance", "distance", "down", "distance", high=inf),
    Column("forgotten", "forgotten", "up", "shares"),
    Column("kept", "kept", "up", "shares"),
    Column("collateral", "collateral kept", "up", "shares"),
    Column("steps", "steps", None, "cost", high=inf),
    Column("seconds", "s", "down", "cost", high=inf),
    Column("peak_gib", "GiB", "down", "cost", high=inf),
    Column("tuning_seconds", "s of tuning", "down", "cost", high=inf),
)


@dataclass(frozen=True)
class Cell:
    """A mean with its 95% interval and what it was computed from.

    The interval is Student's over the runs where there are two or more, else the bootstrap's over items. An
    infinite value, the distance of a model that is destroyed, has none.
    """

    value: float
    low: float | None = None
    high: float | None = None
    values: tuple[float, ...] = ()


@dataclass
class Row:
    """One method on one split, or one of the two models that all is compared with.

    Args:
        split: of TOFU.
        name: of the method's variant, with ``-no-stop`` where it ran to the end.
        cells: figure by column key.
        settings: what was chosen for it by tuning.
        edges: those of them whose best value is the least or the greatest that was tried.
        parts: of the distance to the retrained model, means over runs.
        decides: the part that is the largest, with the number of runs in which it is.
        missing: parts of the distance that target or retrained model have no figure for.
        tried: settings that were tried to the end; 0 where none could be, and its usual ones were taken.
        runs: that the figures are means of.
        ended: why its runs ended, with counts.
        failed: runs that failed.
        on_front: whether it forgot enough to count, and no other such row is better in one of the three
            shares and worse in none.
        destroyed: whether one of its runs lost half of a vital figure; it then ranks below all others.
    """

    split: str
    name: str
    cells: dict[str, Cell] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    edges: Mapping[str, Edge] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)
    decides: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    tried: int = 1
    runs: int = 1
    ended: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    on_front: bool = False
    destroyed: bool = False


def summarise(result: BenchResult) -> list[Row]:
    """Return the rows of the table: each split's compared models, then the methods in order."""
    rows = []
    for split in result.request.splits:
        compared = [outcome for outcome in result.compared if outcome.split == split]
        base = {outcome.name: figures_of(outcome, {}) for outcome in compared}
        rows += [_compared_row(split, outcome, base) for outcome in compared]
        mine = [outcome for outcome in result.reported if outcome.split == split]
        groups = dict.fromkeys(_name(outcome) for outcome in mine)
        found = [
            _row(split, name, [outcome for outcome in mine if _name(outcome) == name], base, result)
            for name in groups
        ]
        mark_front(found)
        rows += sorted(found, key=lambda row: row.destroyed)
    return rows


def _name(outcome: Outcome) -> str:
    stopped = outcome.trial is None or outcome.trial.stopping == "rule"
    return outcome.name if stopped else outcome.name + NO_STOP


def _compared_row(split: str, outcome: Outcome, base: Mapping[str, Figures]) -> Row:
    figures = figures_of(outcome, base)
    cells = {key: Cell(value, *interval) for key, (value, interval) in figures.items()}
    row = Row(split, outcome.name, cells, failed=int(outcome.error is not None))
    _measure_distance(row, [figures], base, partial=outcome.name == "retrained")
    return row


def _row(
    split: str, name: str, outcomes: Sequence[Outcome], base: Mapping[str, Figures], result: BenchResult
) -> Row:
    done = [outcome for outcome in outcomes if outcome.error is None]
    runs = [figures_of(outcome, base) for outcome in done]
    cells = {
        column.key: over_runs([run[column.key] for run in runs], column)
        for column in COLUMNS
        if runs and all(column.key in run for run in runs)
    }
    ended = Counter(ending(outcome.read(RECORD) or {}).code for outcome in done)
    row = Row(split, name, cells, runs=len(done), ended=dict(ended), failed=len(outcomes) - len(done))
    target = values_of(base.get("target", {}))
    row.destroyed = any(destroyed(values_of(run), target) for run in runs)
    _measure_distance(row, runs, base)
    _tell_tuning(row, outcomes[0].name, result)
    return row


def _measure_distance(
    row: Row, runs: Sequence[Figures], base: Mapping[str, Figures], partial: bool = False
) -> None:
    """Fill in the distance to the retrained model.

    Args:
        row: of the runs.
        runs: the figures of each.
        base: those of the target and the retrained model.
        partial: whether a figure that is not there was just not measured, as in another program's log.
    """
    target, retrained = values_of(base.get("target", {})), values_of(base.get("retrained", {}))
    found: list[Distance] = []
    for run in runs:
        mine = values_of(run)
        known = {key: value for key, value in target.items() if key in mine or not partial}
        measured = distance(mine, known, retrained) if mine else None
        found += [measured] if measured is not None else []
    if not found:
        return
    columns = {column.key: column for column in COLUMNS}
    row.cells["distance"] = over_runs([(one.value, (None, None)) for one in found], columns["distance"])
    row.parts = {key: mean(one.parts[key] for one in found) for key in found[0].parts}
    row.decides = dict(Counter(one.part for one in found).most_common())
    row.missing = found[0].missing


def _tell_tuning(row: Row, method: str, result: BenchResult) -> None:
    """Fill in how the settings of a row were found."""
    tuned_on = result.request.tuned_on(row.split)
    asked = [outcome for outcome in result.tuned if (outcome.split, outcome.name) == (tuned_on, method)]
    if not asked:
        return
    records = [record for outcome in asked if not outcome.error and (record := outcome.read(RECORD))]
    if records:
        row.cells["tuning_seconds"] = Cell(sum(record["cost"]["seconds"] for record in records))
    row.tried, row.settings = len(records), result.chosen.get((tuned_on, method), {})
    if (tuned_on, method) in result.chosen:
        settings = [tried(outcome.trial) for outcome in asked if outcome.trial]
        row.edges = edges(find_variant(method).method, settings, row.settings)


def over_runs(found: Sequence[tuple[float, Interval]], column: Column | None = None) -> Cell:
    """Return the mean over runs, with Student's 95% interval; of one run, its own interval over items.

    The interval ends where the figure's range does. Of p-values, which differ by orders of magnitude, mean
    and interval are those of the logarithms.
    """
    values = tuple(value for value, _ in found)
    if len(values) == 1:
        return Cell(values[0], *found[0][1], values)
    if not all(map(math.isfinite, values)):
        return Cell(mean(values), None, None, values)
    if column is not None and column.logarithmic:
        low, middle, high = map(math.exp, _student([math.log(max(value, _LEAST)) for value in values]))
    else:
        low, middle, high = _student(values)
    if column is not None:
        low, high = max(low, column.low), min(high, column.high)
    return Cell(middle, low, high, values)


_LEAST = 1e-300
"""For the logarithm of a p-value that came out as 0."""


def _student(values: Sequence[float]) -> tuple[float, float, float]:
    """Return lower bound, mean and upper bound of Student's 95% interval."""
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values), mean(values) + half


OBJECTIVES = ("forgotten", "kept", "collateral")
FORGOT_ENOUGH = 0.5
"""Least share forgotten by a row on the front, since a method that forgets nothing keeps everything."""


def mark_front(rows: Sequence[Row]) -> None:
    """Mark the rows of one split that no other row beats: the Pareto front of the three shares.

    A destroyed model is on no front: it forgot everything, and what it was to keep with it.
    """
    points = {
        id(row): tuple(row.cells[name].value for name in OBJECTIVES)
        for row in rows
        if all(name in row.cells for name in OBJECTIVES)
        and row.cells["forgotten"].value >= FORGOT_ENOUGH
        and not row.destroyed
    }
    for row in rows:
        mine = points.get(id(row))
        row.on_front = mine is not None and not any(
            all(a >= b for a, b in zip(other, mine, strict=True)) and other != mine
            for other in points.values()
        )


def row_from_json(value: Mapping[str, Any]) -> Row:
    """Read back a row of ``results.json``, where null means an infinite value."""
    cells = {
        key: Cell(_read(c["value"]), c["low"], c["high"], tuple(map(_read, c["values"])))
        for key, c in value["cells"].items()
    }
    parts = {key: _read(part) for key, part in value.get("parts", {}).items()}
    missing = tuple(value.get("missing", ()))
    return Row(**{**value, "cells": cells, "parts": parts, "missing": missing})


def _read(value: float | None) -> float:
    return inf if value is None else value
