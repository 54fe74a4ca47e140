"""a run's evaluations -> one table of every figure: this model, the target model, the retrained one."""

from __future__ import annotations

from typing import Any

from ngdiff.evaluation.metrics import higher_is_better
from ngdiff.evaluation.result import EvaluationResult, Figure
from ngdiff.report.cards import foreign, in_words
from ngdiff.report.sources import Run
from ngdiff.report.text import visible

ARROWS = {True: "↑", False: "↓", None: ""}
OLDER = "(older definition)"
"""Stands beside a figure whose definition has changed since: it is not to be compared with today's."""
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
