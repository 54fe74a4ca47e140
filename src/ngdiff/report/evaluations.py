"""a run's evaluations -> one table of every figure; scores and ROC curves of membership attacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ngdiff.evaluation.metrics import higher_is_better
from ngdiff.evaluation.result import EvaluationResult, Figure
from ngdiff.report.cards import foreign, in_words
from ngdiff.report.run_files import Run
from ngdiff.report.text import visible
from ngdiff.report.trust import attack_name, attacks, tells

MOST_POINTS = 400
"""Most points of a curve on the page; longer ones are thinned evenly."""


def membership(run: Run) -> list[dict[str, Any]]:
    """Return each attack's scores on both sets, and its ROC curves on the models there are."""
    if foreign(run):
        return []
    theirs, before = attacks(run.reference), attacks(run.before)
    found = []
    for name, figure in attacks(run.evaluation).items():
        sides = _sides(figure, run.evaluation)
        if sides is None:
            continue
        others = (
            ("target model", before.get(name), run.before),
            ("retrained model", theirs.get(name), run.reference),
        )
        rocs = [_roc("this model", figure, sides)]
        for label, other, evaluation in others:
            pair = None if other is None else _sides(other, evaluation)
            if other is not None and pair is not None:
                rocs.append(_roc(label, other, pair))
        found.append(
            {
                "name": attack_name(name),
                "forget": list(sides[0]),
                "holdout": list(sides[1]),
                "rocs": rocs,
                "tells": tells(figure, theirs.get(name)),
            }
        )
    return found


def roc_curve(members: Sequence[float], others: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return false and true positive rates over all thresholds, from (0, 0) to (1, 1); ties are one step."""
    left, right = np.asarray(members, dtype=np.float64), np.asarray(others, dtype=np.float64)
    thresholds = np.unique(np.concatenate([left, right]))[::-1]
    true = np.searchsorted(np.sort(-left), -thresholds, side="right") / len(left)
    false = np.searchsorted(np.sort(-right), -thresholds, side="right") / len(right)
    return [0.0, *false.tolist()], [0.0, *true.tolist()]


def _roc(label: str, figure: Figure, sides: tuple[Sequence[float], Sequence[float]]) -> dict[str, Any]:
    false, true = roc_curve(*sides)
    keep = _thinned(len(false))
    interval = None if figure.interval is None else list(figure.interval)
    return {
        "label": label,
        "x": [false[place] for place in keep],
        "y": [true[place] for place in keep],
        "auc": figure.value,
        "interval": interval,
    }


def _sides(
    figure: Figure, evaluation: EvaluationResult | None
) -> tuple[Sequence[float], Sequence[float]] | None:
    """Return an attack's scores on the forget set and on the holdout, which follow each other."""
    if evaluation is None or len(figure.sets) != 2:
        return None
    counts = [len(evaluation.places.get(name, ())) for name in figure.sets]
    items = [item for item in figure.items if item is not None]
    if not all(counts) or sum(counts) != len(items):
        return None
    return items[: counts[0]], items[counts[0] :]


# ---- truth ratios ----

RATIO = "forget.log_truth_ratio"


def truth_ratios(run: Run) -> dict[str, Any] | None:
    """Return the empirical distributions of log truth ratios, and where two of them are furthest apart."""
    if foreign(run):
        return None
    named = (
        ("this model", run.evaluation),
        ("retrained model", run.reference),
        ("target model", run.before),
    )
    values = {label: found for label, evaluation in named if (found := _ratios(evaluation))}
    if "this model" not in values:
        return None
    distance = None
    if "retrained model" in values:
        distance = ks_place(values["this model"], values["retrained model"])
    quality = run.evaluation.figures.get("forget_quality") if run.evaluation else None
    return {
        "samples": [{"label": label, "values": sorted(found)} for label, found in values.items()],
        "ks": distance,
        "forget_quality": None if quality is None else quality.value,
    }


def ks_place(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Return where two empirical distribution functions are furthest apart: place, both heights, distance."""
    left, right = np.sort(np.asarray(ours)), np.sort(np.asarray(theirs))
    places = np.concatenate([left, right])
    heights = [np.searchsorted(side, places, side="right") / len(side) for side in (left, right)]
    widest = int(np.argmax(np.abs(heights[0] - heights[1])))
    low, high = float(heights[0][widest]), float(heights[1][widest])
    return {"x": float(places[widest]), "ours": low, "theirs": high, "distance": abs(low - high)}


def _ratios(evaluation: EvaluationResult | None) -> list[float]:
    figure = None if evaluation is None else evaluation.figures.get(RATIO)
    return [] if figure is None else [item for item in figure.items if item is not None]


def _thinned(count: int) -> list[int]:
    if count <= MOST_POINTS:
        return list(range(count))
    return sorted({round(place * (count - 1) / (MOST_POINTS - 1)) for place in range(MOST_POINTS)})


# ---- a run's evaluations -> one table of every figure: this model, the target model, the retrained one ----


ARROWS = {True: "↑", False: "↓", None: ""}
OLDER = "(older definition)"
"""Mark of a figure whose definition has changed since, and which must not be compared with current ones."""
WORDS = {True: "higher is better", False: "lower is better", None: ""}


def figure_table(run: Run) -> dict[str, Any] | None:
    """Return titles and rows, or ``None`` where nothing was evaluated."""
    if run.evaluation is None:
        return None
    this = "another model" if foreign(run) else "this model"
    models = ((this, run.evaluation), ("target model", run.before), ("retrained model", run.reference))
    there = [(title, evaluation) for title, evaluation in models if evaluation is not None]
    return {
        "titles": [title for title, _ in there],
        "rows": [_row(key, found, there) for key, found in run.evaluation.figures.items()],
    }


def _row(key: str, figure: Figure, models: list[tuple[str, EvaluationResult]]) -> dict[str, Any]:
    better = higher_is_better(key, figure.metric)
    return {
        "key": visible(key),
        "arrow": ARROWS[better],
        "better": WORDS[better],
        "cells": [_cell(evaluation.figures.get(key)) for _, evaluation in models],
    }


def _cell(figure: Figure | None) -> dict[str, str]:
    if figure is None or figure.value is None:
        return {"value": "", "interval": visible(figure.note or "") if figure is not None else ""}
    bounds = figure.interval
    between = f"{in_words(bounds[0])} – {in_words(bounds[1])}" if bounds is not None else ""
    value = in_words(figure.value)
    return {"value": value if figure.outdated is None else f"{value} {OLDER}", "interval": between}
