"""a run's figures -> marks on a scale, and the content of the three cards on the first screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ngdiff.evaluation.result import EvaluationResult
from ngdiff.evaluation.statistics import interval
from ngdiff.report.run_files import Run, dig, number, rows_of

Status = Literal["good", "bad", "mixed", "unknown"]


Interval = tuple[float, float] | None


SAME = 0.02
"""Tolerance between two figures of the same items: rounding depends on the batch, and there are near ties."""


@dataclass(frozen=True)
class Mark:
    """One value on a card's scale.

    Args:
        kind: ``now``, ``before``, ``target``, ``retrained``, ``unseen``, ``floor`` or ``chance``.
        label: what it is, in words.
        value: its position.
        bounds: its 95% interval, where known.
    """

    kind: str
    label: str
    value: float
    bounds: Interval = None


@dataclass(frozen=True)
class Card:
    """One of the three questions with its answer.

    Args:
        question: as a reader would ask it.
        answer: yes, no or another answer, in a few words.
        status: how good that is.
        figure: name of the figure that answers; ``None`` where there is none.
        marks: the figure's values, the current one first.
        limit: the right end of the scale, whose left end is 0.
        lines: further notes for the reader.
    """

    question: str
    answer: str
    status: Status
    figure: str | None = None
    marks: Sequence[Mark] = ()
    limit: float = 1.0
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Verdict:
    """The first screen: one sentence, three cards."""

    status: Status
    sentence: str
    cards: Sequence[Card] = field(default_factory=tuple)


def in_words(value: float | None) -> str:
    """Return a figure with three significant digits."""
    if value is None:
        return "unknown"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e4):
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def named(measure: str) -> str:
    """Return a measure's name in words."""
    return measure.replace("_", " ") if measure != "nll" else "negative log-likelihood"


def foreign(run: Run) -> bool:
    """Return whether the evaluation names other weights than the run saved."""
    if run.record is None or run.evaluation is None:
        return False
    ours = dig(run.record, "model", "sha256_after")
    theirs = dig(run.evaluation.provenance, "model", "sha256")
    return bool(ours and theirs and ours != theirs)


def value_of(evaluation: EvaluationResult | None, key: str) -> float | None:
    """Return a figure's value, where there is one."""
    found = None if evaluation is None else evaluation.figures.get(key)
    return None if found is None else found.value


def items_interval(run: Run, name: str, measure: str, value: float | None) -> Interval:
    """Return the 95% bootstrap interval of a set's figure after the run, from the recorded items.

    Without them, the interval of an evaluation with the same value. ``None`` where there is neither, or
    where the items' mean is not the figure (a loss is averaged over tokens).
    """
    items = [
        number(dig(item, "after", measure))
        for item in rows_of(dig(run.answers, "items"))
        if item.get("set") == name
    ]
    values = [item for item in items if item is not None]
    if value is None or not values or len(values) != len(items):
        return _evaluated_interval(run, f"{name}.{measure}", value)
    mean = sum(values) / len(values)
    if abs(mean - value) > SAME * max(1.0, abs(value)):
        return None
    return interval(values)


def _evaluated_interval(run: Run, key: str, value: float | None) -> Interval:
    figure = None if run.evaluation is None or foreign(run) else run.evaluation.figures.get(key)
    if figure is None or figure.value is None or value is None or abs(figure.value - value) > 1e-6:
        return None
    return figure.interval


def marks_of(*found: tuple[str, str, float | None, Interval]) -> list[Mark]:
    """Return a mark for each (kind, label, value, interval) that has a value."""
    return [Mark(kind, label, value, bounds) for kind, label, value, bounds in found if value is not None]


def evaluation_marks(run: Run, key: str) -> list[Mark]:
    """Return an evaluation's figure, and that of the models it is compared with."""
    figure = None if run.evaluation is None else run.evaluation.figures.get(key)
    if figure is None or figure.value is None:
        return []
    return marks_of(
        ("now", "this model", figure.value, figure.interval),
        ("before", "target model", value_of(run.before, key), None),
        ("retrained", "retrained model", value_of(run.reference, key), None),
    )


def evaluated(run: Run, key: str) -> list[str]:
    """Return a line with the evaluation's figure, the target model's and the retrained one's."""
    marks = evaluation_marks(run, key)
    if not marks or foreign(run):
        return []
    now = marks[0]
    bounds = "" if now.bounds is None else f" [{in_words(now.bounds[0])}, {in_words(now.bounds[1])}]"
    others = "".join(f", {mark.label} {in_words(mark.value)}" for mark in marks[1:])
    name = named(key.rpartition(".")[2])
    where = f" on {key.partition('.')[0]}" if "." in key else ""
    return [f"Evaluated: {name}{where} {in_words(now.value)}{bounds}{others}."]


def limit_of(measure: str, marks: Sequence[Mark]) -> float:
    """Return the right end of a scale that holds the marks."""
    if measure != "nll":
        return 1.0
    return 1.1 * max([1.0, *(mark.value for mark in marks)])
