"""figures, their items and where they come from -> eval.json, and back.

What was asked and answered lies in a file beside it, for its owner alone: ``eval.json`` is meant to be
shared, and quotes nothing that was to be forgotten.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ngdiff.errors import Fault, RequestError, inert
from ngdiff.evaluation.metrics import higher_is_better, metric_named, possible
from ngdiff.evaluation.statistics import interval
from ngdiff.system.disk import sha256_file
from ngdiff.system.output import write_json
from ngdiff.system.untrusted import MOST_JSON, Unreadable, load_json, read_within

KIND, TEXTS_KIND = "evaluation", "texts of an evaluation"
FORMAT = 1


@dataclass(frozen=True)
class Figure:
    """One aggregate with what it was computed from.

    Args:
        metric: name of its row in :data:`ngdiff.evaluation.metrics.METRICS`.
        value: ``None`` where it could not be computed; ``note`` then says why.
        interval: 95% bootstrap interval over items, or ``None``.
        items: the value of each item, in the order of the data.
        note: what a reader should know of it.
        sets: names of the data sets whose items these are, one after another.
        outdated: the version of the metric's definition, where it was measured under another than today's.
    """

    metric: str
    value: float | None
    interval: tuple[float, float] | None = None
    items: tuple[float | None, ...] = ()
    note: str | None = None
    sets: tuple[str, ...] = ()
    outdated: int | None = None


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn.

    Args:
        resamples: number of resamples.
        seed: of the random generator.
    """

    resamples: int = 2000
    seed: int = 0


def figure(
    metric: str,
    values: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = 2000,
    sets: tuple[str, ...] = (),
    note: str | None = None,
) -> Figure:
    """Return the mean of items with its percentile bootstrap interval.

    Raises:
        ValueError: no items, or one that is not finite: it must not vanish in a mean.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"{metric} needs finite values of at least one item")
    low, high = interval(values, resamples=resamples, seed=seed)
    return Figure(metric, math.fsum(values) / len(values), (low, high), tuple(values), note, sets)


@dataclass
class EvaluationResult:
    """One evaluation of one model.

    Args:
        suite: ``tofu``, ``muse``, ``own`` or ``lm-eval``.
        figures: key, such as ``forget.probability``, to figure.
        provenance: model, data, settings, versions, machine, seconds.
        places: name of a data set to the position of each of its rows, in order.
        split: ``forget01``, ``forget05`` or ``forget10`` of TOFU, else ``None``.
        notes: every fallback taken.
        texts: name of a data set to what was asked, what is true and what the model said, a dictionary a row.
    """

    suite: str
    figures: dict[str, Figure]
    provenance: dict[str, Any]
    places: dict[str, list[str]] = field(default_factory=dict)
    split: str | None = None
    notes: list[str] = field(default_factory=list)
    texts: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "kind": KIND,
            "format": FORMAT,
            "suite": self.suite,
            "split": self.split,
            "figures": {key: _figure_json(key, found) for key, found in self.figures.items()},
            "notes": self.notes,
            "places": self.places,
            "provenance": self.provenance,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> EvaluationResult:
        """Read what ``as_json`` wrote.

        Raises:
            KeyError, TypeError, ValueError: where it is not that; :func:`read_result` says it politely.
        """
        figures = {str(key): _figure_from(value) for key, value in content["figures"].items()}
        texts = _as_texts(content.get("texts", {}))  # those of earlier versions quote them
        places = {str(name): [str(place) for place in found] for name, found in content["places"].items()}
        return cls(
            suite=str(content["suite"]),
            figures=figures,
            provenance=dict(content["provenance"]),
            places=places,
            split=None if content["split"] is None else str(content["split"]),
            notes=[str(note) for note in content["notes"]],
            texts=texts,
        )


def _figure_json(key: str, found: Figure) -> dict[str, Any]:
    return {
        "metric": found.metric,
        "metric_version": metric_named(found.metric).version if found.outdated is None else found.outdated,
        "higher_is_better": higher_is_better(key, found.metric),
        "value": found.value,
        "interval": None if found.interval is None else list(found.interval),
        "note": found.note,
        "sets": list(found.sets),
        "items": list(found.items),
    }


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]!r} is not a finite number")
    return float(value)


def _figure_from(value: dict[str, Any]) -> Figure:
    bounds, version = value["interval"], int(value["metric_version"])
    if bounds is not None and len(bounds) != 2:
        raise ValueError("an interval has two ends")
    metric = str(value["metric"])
    for stated in (value["value"], *(bounds or ())):
        if stated is not None and not possible(metric, _number(stated)):
            raise ValueError(f"{str(stated)[:40]} is not a possible value of {inert(metric)}")
    return Figure(
        metric=metric,
        value=None if value["value"] is None else _number(value["value"]),
        interval=None if bounds is None else (_number(bounds[0]), _number(bounds[1])),
        items=tuple(None if item is None else _number(item) for item in value["items"]),
        note=None if value["note"] is None else str(value["note"]),
        sets=tuple(str(name) for name in value["sets"]),
        outdated=None if version == metric_named(metric).version else version,
    )


def seconds_by_figure(figures: Mapping[str, Figure], passes: Mapping[str, float]) -> dict[str, float]:
    """Return what each figure would have cost alone: the seconds of the passes that feed it.

    Since one pass feeds many figures, these add up to more than the evaluation took.

    Args:
        figures: key to figure.
        passes: ``SET KIND`` (such as ``forget answers``) to seconds.
    """
    costs = {}
    for key, found in figures.items():
        kinds = metric_named(found.metric).passes
        if found.metric == "auc":
            kinds = ("gradients",) if key.endswith("gradient_norm") else ("answers",)
        split = ((label.rsplit(" ", 1), seconds) for label, seconds in passes.items())
        costs[key] = math.fsum(
            seconds
            for (name, kind), seconds in split
            if kind in kinds and (not found.sets or name in found.sets)
        )
    return costs


def write_result(result: EvaluationResult, path: Path) -> None:
    """Write ``eval.json``, and the texts beside it (:func:`texts_file`), each whole or not at all."""
    write_json(result.as_json(), path)
    if result.texts:
        content = {"kind": TEXTS_KIND, "of": sha256_file(path), "texts": result.texts}
        write_json(content, texts_file(path), mode=0o600)


def texts_file(path: Path) -> Path:
    """Return where the texts of an ``eval.json`` lie."""
    return path.with_suffix(f".texts{path.suffix}")


def is_texts(path: Path) -> bool:
    """Return whether a file gives itself out as the texts of an ``eval.json``."""
    return _begins_with(path, f'"kind": "{TEXTS_KIND}"')


def _read_texts(path: Path) -> dict[str, list[dict[str, str]]]:
    """Return the texts beside an ``eval.json``; none where they are missing, damaged or of another one."""
    try:
        content = load_json(read_within(texts_file(path), MOST_JSON))
        if content["kind"] != TEXTS_KIND or content["of"] != sha256_file(path):
            return {}
        return _as_texts(content["texts"])
    except (Unreadable, OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _as_texts(found: Any) -> dict[str, list[dict[str, str]]]:
    return {
        str(name): [{str(key): str(text) for key, text in row.items()} for row in rows]
        for name, rows in found.items()
    }


def is_result(path: Path) -> bool:
    """Return whether a file gives itself out as an ``eval.json``, whole or cut short."""
    return _begins_with(path, f'"kind": "{KIND}"')


def _begins_with(path: Path, words: str) -> bool:
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open(encoding="utf-8") as file:
            return words in file.read(200)
    except (OSError, ValueError):
        return False


def read_result(path: Path, where: str = "--reference") -> EvaluationResult:
    """Read an ``eval.json``.

    Args:
        path: the file.
        where: the setting that named it, for faults.

    Raises:
        RequestError: the file is missing, truncated, foreign, or of a version that this one does not know.
    """
    again = "Evaluate that model again with ngdiff evaluate"
    try:
        content = load_json(read_within(path, MOST_JSON), parse_constant=_refuse)
    except Unreadable as error:
        raise RequestError(Fault(where, f"{path} {error.what}", again)) from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        kind = content.get("kind") if isinstance(content, dict) else None
        what = f"{path.name} is not an eval.json" + (f", but the record of a run ({kind!r})" if kind else "")
        raise RequestError(Fault(where, what, "Give a file that ngdiff evaluate wrote"))
    if content.get("format") != FORMAT:
        what = f"{path.name} has format {str(content.get('format'))[:20]!r}; this version reads {FORMAT}"
        raise RequestError(Fault(where, what, again))
    try:
        result = EvaluationResult.from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{path.name} is damaged or incomplete ({type(error).__name__}: {error})"
        raise RequestError(Fault(where, what, again)) from None
    result.texts = result.texts or _read_texts(path)
    return result


def _refuse(text: str) -> float:
    raise Unreadable(f"contains {text}", "Evaluate that model again")


def check_output_file(
    path: Path,
    overwrite: bool,
    where: str = "--output",
    ours: Callable[[Path], bool] = is_result,
    example: str = "eval.json",
) -> list[Fault]:
    """Say what keeps ``path`` from being written; nothing but an earlier result is ever replaced."""
    try:
        path.exists()
    except (OSError, ValueError) as error:  # a name too long, or with a NUL
        reason = getattr(error, "strerror", None) or error
        return [
            Fault(
                where, f"cannot create a file named {path.name[:40]!r}... ({reason})", "Choose another name"
            )
        ]
    if path.is_dir():
        return [Fault(where, f"{path} is a folder", f"Give the name of a file, such as {example}")]
    if path.exists() and not ours(path):
        return [Fault(where, f"{path} exists and is not an {example}", "Choose another name")]
    if path.exists() and not overwrite:
        fix = "Choose another name, or --overwrite to replace the earlier result"
        return [Fault(where, f"{path} already exists", fix)]
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        return [Fault(where, f"{parent} is not writable", "Choose a writable folder")]
    return []


def check_results(path: Path, overwrite: bool) -> list[Fault]:
    """Say what keeps an ``eval.json``, or its texts, from being written."""
    beside = texts_file(path)
    faults = check_output_file(path, overwrite)
    return faults or check_output_file(beside, overwrite=True, ours=is_texts, example=beside.name)
