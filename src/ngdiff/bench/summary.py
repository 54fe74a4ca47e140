"""outcomes of a benchmark -> one row a method, with intervals, and which rows no other row beats."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student

from ngdiff.bench.run import BenchResult, Outcome
from ngdiff.bench.worker import EVALUATION, GENERAL, RECORD
from ngdiff.evaluation.openunlearning import read_reference
from ngdiff.evaluation.result import is_result, read_result

COMPARED = ("target", "retrained")


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
    Column("forget_quality", "forget quality (KS p)", "up", "forgotten", logarithmic=True),
    Column("privleak", "PrivLeak", None, "forgotten", -inf, inf),
    Column("model_utility", "model utility", "up", "kept"),
    Column("retain.probability", "retain P", "up", "kept"),
    Column("retain.extraction_strength", "retain ES", "up", "kept"),
    Column("holdout.probability", "never seen P", None, "neighbourhood"),
    Column("real_authors.probability", "real authors P", "up", "neighbourhood"),
    Column("world_facts.probability", "world facts P", "up", "neighbourhood"),
    Column("general_nll", "general NLL", "down", "neighbourhood", high=inf),
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
    """A mean with its 95% interval and what it was worked out from.

    The interval is Student's over the runs where there are two or more, else the bootstrap's over items.
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
        name: of the method, with ``-no-stop`` where it ran to the end.
        cells: figure by column key.
        settings: what was chosen for it by tuning.
        tried: settings that were tried to the end; 0 where none could be, and its usual ones were taken.
        runs: that the figures are means of.
        ended: why its runs ended, with counts.
        failed: runs that failed.
        on_front: whether it forgot enough to count, and no other such row is better in one of the three
            shares and worse in none.
    """

    split: str
    name: str
    cells: dict[str, Cell] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    tried: int = 1
    runs: int = 1
    ended: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    on_front: bool = False


def summarise(result: BenchResult) -> list[Row]:
    """Return the rows of the table: each split's compared models first, then the methods as asked for."""
    rows = []
    for split in result.request.splits:
        base = {outcome.name: _figures(outcome, {}) for outcome in result.compared if outcome.split == split}
        for outcome in result.compared:
            if outcome.split == split:
                figures = _figures(outcome, base)
                cells = {key: Cell(value, *interval) for key, (value, interval) in figures.items()}
                rows.append(Row(split, outcome.name, cells, failed=int(outcome.error is not None)))
        mine = [outcome for outcome in result.reported if outcome.split == split]
        groups = dict.fromkeys(_name(outcome) for outcome in mine)
        found = [
            _row(split, name, [outcome for outcome in mine if _name(outcome) == name], base, result)
            for name in groups
        ]
        mark_front(found)
        rows += found
    return rows


def _name(outcome: Outcome) -> str:
    stopped = outcome.trial is None or outcome.trial.stopping == "rule"
    return outcome.name if stopped else f"{outcome.name}-no-stop"


Interval = tuple[float | None, float | None]
Figures = dict[str, tuple[float, Interval]]


def _row(
    split: str, name: str, outcomes: Sequence[Outcome], base: Mapping[str, Figures], result: BenchResult
) -> Row:
    done = [outcome for outcome in outcomes if outcome.error is None]
    runs = [_figures(outcome, base) for outcome in done]
    cells = {
        column.key: over_runs([run[column.key] for run in runs], column)
        for column in COLUMNS
        if runs and all(column.key in run for run in runs)
    }
    ended: dict[str, int] = {}
    for outcome in done:
        code = (outcome.read(RECORD) or {})["stop"]["code"]
        ended[code] = ended.get(code, 0) + 1
    method = outcomes[0].name
    tuned_on = result.request.tuned_on(split)
    asked = [outcome for outcome in result.tuned if outcome.name == method and outcome.split == tuned_on]
    tried = [record for outcome in asked if not outcome.error and (record := outcome.read(RECORD))]
    if tried:
        cells["tuning_seconds"] = Cell(sum(record["cost"]["seconds"] for record in tried))
    chosen = result.chosen.get((tuned_on, method), {})
    count = len(tried) if asked else 1
    return Row(split, name, cells, chosen, count, len(done), ended, len(outcomes) - len(done))


def _figures(outcome: Outcome, base: Mapping[str, Figures]) -> Figures:
    """Return the figures of one model, with those shares that compare it with the target and others."""
    found = _evaluated(outcome) if outcome.given is None else _given_figures(outcome.given)
    target = base.get("target")
    if target and "forget.extraction_strength" in found:  # none where an evaluation failed
        shares = shares_of(_values(found), _values(target), _values(base.get("retrained", {})))
        found |= {name: (value, (None, None)) for name, value in shares.items()}
    return found


def _evaluated(outcome: Outcome) -> Figures:
    evaluation = outcome.read(EVALUATION)
    if evaluation is None or outcome.error is not None:
        return {}
    found: Figures = {}
    for key, figure in evaluation["figures"].items():
        if figure["value"] is not None:
            low, high = figure.get("interval") or (None, None)
            found[key] = figure["value"], (low, high)
    general, record = outcome.read(GENERAL), outcome.read(RECORD)
    if general is not None:
        found["general_nll"] = general["nll"], (None, None)
    if record is not None:
        found["steps"] = float(record["cost"]["steps"]), (None, None)
        found["seconds"] = record["cost"]["seconds"], (None, None)
        peaks = record["cost"]["peak_memory_gib"]  # the accelerator's, where one did the work
        found["peak_gib"] = peaks.get("accelerator", peaks["process"]), (None, None)
    return found


def _given_figures(path: Path) -> Figures:
    """Return what a retrained model's evaluation found, without figures whose definition has changed since.

    What an earlier benchmark found on general text lies beside the evaluation that it made.
    """
    if not is_result(path):  # a log of OpenUnlearning or TOFU, which has no intervals
        return {key: (value, (None, None)) for key, value in read_reference(path).figures.items()}
    figures = read_result(path, "--reference").figures.items()
    found: Figures = {
        key: (figure.value, figure.interval or (None, None))
        for key, figure in figures
        if figure.outdated is None and figure.value is not None
    }
    general = path.with_name(GENERAL)
    if path.name == EVALUATION and general.is_file():
        found["general_nll"] = json.loads(general.read_text(encoding="utf-8"))["nll"], (None, None)
    return found


def _values(figures: Figures) -> dict[str, float]:
    return {key: value for key, (value, _) in figures.items()}


def shares_of(
    model: Mapping[str, float], target: Mapping[str, float], retrained: Mapping[str, float]
) -> dict[str, float]:
    """Return three shares in [0, 1] that say how a model compares with the target.

    - forgotten: how far the forget set's extraction strength came down from the target's to the retrained
      model's (or, without one, to that of the holdout), no more than all of it counting.
    - kept: model utility over the target's.
    - collateral: the least of what is left of what was not to be touched: the answer probability of
      never-seen text of the same kind, of real authors and of world facts over the target's, and the
      probability a token of general text, likewise. A method that ruins one of them has ruined its
      neighbourhood, whatever the others say.
    """
    key = "forget.extraction_strength"
    level = retrained.get(key, target.get("holdout.extraction_strength", 0.0))
    span = target[key] - level
    found = {"forgotten": _share(target[key] - model[key], span)}
    if model.get("model_utility") is not None and target.get("model_utility"):
        found["kept"] = _share(model["model_utility"], target["model_utility"])
    parts = [
        _share(model[name], target[name])
        for name in ("holdout.probability", "real_authors.probability", "world_facts.probability")
        if name in model and name in target
    ]
    if "general_nll" in model and "general_nll" in target:
        parts.append(min(1.0, math.exp(target["general_nll"] - model["general_nll"])))
    return found | ({"collateral": min(parts)} if parts else {})


def _share(value: float, whole: float) -> float:
    return 1.0 if whole <= 0 else min(1.0, max(0.0, value / whole))


def over_runs(found: Sequence[tuple[float, Interval]], column: Column | None = None) -> Cell:
    """Return the mean over runs, with Student's 95% interval; of one run, its own interval over items.

    The interval ends where the figure's range does. Of p-values, which differ by orders of magnitude, mean
    and interval are those of the logarithms.
    """
    values = tuple(value for value, _ in found)
    if len(values) == 1:
        return Cell(values[0], *found[0][1], values)
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
"""Least share forgotten of a row that may stand on the front: who forgets nothing keeps everything."""


def mark_front(rows: Sequence[Row]) -> None:
    """Mark the rows of one split that no other row beats: the Pareto front of the three shares."""
    points = {
        id(row): tuple(row.cells[name].value for name in OBJECTIVES)
        for row in rows
        if all(name in row.cells for name in OBJECTIVES) and row.cells["forgotten"].value >= FORGOT_ENOUGH
    }
    for row in rows:
        mine = points.get(id(row))
        row.on_front = mine is not None and not any(
            all(a >= b for a, b in zip(other, mine, strict=True)) and other != mine
            for other in points.values()
        )


def row_from_json(value: Mapping[str, Any]) -> Row:
    """Read back a row of ``results.json``."""
    cells = {
        key: Cell(c["value"], c["low"], c["high"], tuple(c["values"])) for key, c in value["cells"].items()
    }
    return Row(**{**value, "cells": cells})
