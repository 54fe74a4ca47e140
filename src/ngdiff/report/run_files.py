"""paths -> the records, evaluations, answers and receipts in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ngdiff.errors import Fault, RequestError
from ngdiff.evaluation.result import EvaluationResult, is_result, read_result
from ngdiff.system.output import ANSWERS, RECORD
from ngdiff.system.untrusted import MOST_JSON, Unreadable, load_json, read_within

RECEIPT, DEMO, BENCH = "receipt.json", "demo.json", "results.json"
AUDIT = "audit.json"
OWN_NAMES = ("evaluation.json", "eval.json")
REFERENCE_NAMES = ("retrained.json", "reference.json", "reference-evaluation.json")
BEFORE_NAMES = ("target.json", "before.json", "before-evaluation.json")
CHECK = ".check"
"""Suffix of the folder of 'ngdiff check'."""
UNLEARNED = "unlearned"
"""The folder of the run inside a demonstration's."""


@dataclass(frozen=True)
class Run:
    """One run with the files found around it; any part may be missing.

    Args:
        name: its name on the page.
        record: ``record.json`` of an unlearning run.
        evaluation: of the unlearned model.
        reference: evaluation of the retrained model.
        before: evaluation of the target model.
        answers: ``answers.json``.
        receipt: ``receipt.json``.
        demo: ``demo.json``.
        audit: ``audit.json``.
    """

    name: str
    record: Mapping[str, Any] | None = None
    evaluation: EvaluationResult | None = None
    reference: EvaluationResult | None = None
    before: EvaluationResult | None = None
    answers: Mapping[str, Any] | None = None
    receipt: Mapping[str, Any] | None = None
    demo: Mapping[str, Any] | None = None
    audit: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Given:
    """Evaluations named by the caller, used instead of those in the folder."""

    evaluation: Path | None = None
    reference: Path | None = None
    before: Path | None = None
    audit: Path | None = None


@dataclass(frozen=True)
class Bench:
    """A benchmark's folder: its table, its reported runs, and the models they compare with."""

    name: str
    results: Mapping[str, Any]
    runs: Sequence[Run] = field(default_factory=tuple)


# ---- untrusted values ----


def dig(value: Any, *keys: str) -> Any:
    """Return ``value[key][key]...``, or ``None`` where there is no such thing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def number(value: Any) -> float | None:
    """Return a finite number, or ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def rows_of(value: Any) -> list[Mapping[str, Any]]:
    """Return the mappings in a list; none for anything else."""
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


# ---- files ----


def read_json(path: Path, where: str) -> Mapping[str, Any]:
    """Read a JSON object.

    Raises:
        RequestError: the file cannot be read, is not JSON, or is not an object.
    """
    try:
        content = load_json(read_within(path, MOST_JSON))
    except Unreadable as error:
        raise RequestError(Fault(where, f"{path} {error.what}", "Give a file that ngdiff wrote")) from None
    if not isinstance(content, dict):
        what = f"{path} does not contain a JSON object"
        raise RequestError(Fault(where, what, "Give a file that ngdiff wrote"))
    return content


def read_record(path: Path, where: str) -> Mapping[str, Any]:
    """Read the record of an unlearning run.

    Raises:
        RequestError: it is something else, or of a format that this version does not know.
    """
    record = read_json(path, where)
    if record.get("kind") != "unlearn":
        what = f"{path} is the record of {str(record.get('kind'))[:40]!r}, not of an unlearning run"
        raise RequestError(Fault(where, what, "Give a folder made by ngdiff unlearn, bench or demo"))
    if record.get("format") != 1:
        what = f"{path} has format {str(record.get('format'))[:20]!r}; this version reads 1"
        raise RequestError(Fault(where, what, "Use the version of ngdiff that wrote it"))
    return record


def read_run(
    place: Path,
    given: Given | None = None,
    where: str = "OUT",
    name: str | None = None,
    checked: bool = True,
) -> Run:
    """Read a run's folder, or the ``eval.json`` of a model.

    The files of ``ngdiff check`` in the folder beside it belong to it.

    Args:
        place: the folder (of ``unlearn`` or ``demo``) or the file.
        given: evaluations to use instead of those in the folder.
        where: the argument that named it, for faults.
        name: name of the run; default: the folder's name.
        checked: whether to read the files of ``ngdiff check``.

    Raises:
        RequestError: there is nothing to show, or a file is damaged.
    """
    given = given or Given()
    name = name or place.absolute().name
    evaluation, reference, before = (
        None if path is None else read_result(path, option)
        for path, option in (
            (given.evaluation, "--evaluation"),
            (given.reference, "--reference-evaluation"),
            (given.before, "--before-evaluation"),
        )
    )
    if place.is_file():
        evaluation = evaluation or read_result(place, where)
        reference = reference or _named_by(evaluation)
        return Run(name, None, evaluation, reference, before, audit=_audit(given.audit, "--audit"))
    demo = _optional(place / DEMO, where)
    beside = (Path(f"{place}{CHECK}"),) if checked else ()
    folder = place / UNLEARNED if demo is not None and not (place / RECORD).exists() else place
    record = read_record(folder / RECORD, where) if (folder / RECORD).exists() else None
    places = tuple(dict.fromkeys((place, folder, *beside)))
    evaluation = evaluation or _found(places, OWN_NAMES, where)
    audits = [_audit(path / AUDIT, where) for path in (folder, place, *beside)]
    run = Run(
        name,
        record,
        evaluation,
        reference or _found(places, REFERENCE_NAMES, where) or _named_by(evaluation),
        before or _found(places, BEFORE_NAMES, where),
        _optional(folder / ANSWERS, where),
        _optional(folder / RECEIPT, where),
        demo,
        _audit(given.audit, "--audit") or next((found for found in audits if found is not None), None),
    )
    if run.record is None and run.evaluation is None:
        what = (
            f"{place} contains no {RECORD} and no evaluation" if place.is_dir() else f"{place} does not exist"
        )
        raise RequestError(
            Fault(where, what, "Give a folder made by ngdiff unlearn, bench or demo, or an eval.json")
        )
    return run


def is_bench(place: Path) -> bool:
    """Return whether a folder is that of ``ngdiff bench``."""
    try:
        return bool(dig(load_json(read_within(place / BENCH, MOST_JSON)), "kind") == "bench")
    except Unreadable:
        return False


def read_bench(place: Path, where: str = "OUT") -> Bench:
    """Read a benchmark's folder with its reported runs (without those of the tuning)."""
    models = {
        role: {path.parent.parent.name: path for path in place.glob(f"models/*/{role}/evaluation.json")}
        for role in ("target", "retrained")
    }
    runs = []
    for path in sorted(place.glob(f"trials/*/**/{RECORD}")):
        parts = path.relative_to(place / "trials").parts[:-1]
        if parts[-1].startswith("tune-"):
            continue
        given = Given(None, models["retrained"].get(parts[0]), models["target"].get(parts[0]))
        runs.append(read_run(path.parent, given, where, " / ".join(parts)))
    return Bench(place.absolute().name, read_json(place / BENCH, where), runs)


def _optional(path: Path, where: str) -> Mapping[str, Any] | None:
    return read_json(path, where) if path.is_file() else None


def _audit(path: Path | None, where: str) -> Mapping[str, Any] | None:
    """Read an ``audit.json`` where there is one.

    Raises:
        RequestError: it was requested and is something else, or of a format that this version does not know.
    """
    if path is None or (where != "--audit" and not path.is_file()):
        return None
    content = read_json(path, where)
    if content.get("kind") == "audit" and content.get("format") == 2:
        return content
    if where != "--audit":
        return None
    what = f"{path} is not an audit.json of a format that this version reads"
    raise RequestError(Fault(where, what, "Give a file that ngdiff audit wrote"))


def is_audit(path: Path) -> bool:
    """Say whether a file gives itself out as an ``audit.json``, whole or cut short."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open(encoding="utf-8") as file:
            head = file.read(200)
    except (OSError, UnicodeDecodeError):
        return False
    return '"kind": "audit"' in head


def _named_by(evaluation: EvaluationResult | None) -> EvaluationResult | None:
    """Return the ``eval.json`` that an evaluation was compared with, if it still exists."""
    name = None if evaluation is None else dig(evaluation.provenance, "reference", "name")
    if not isinstance(name, str) or not name.endswith(".json") or "\0" in name:
        return None
    path = Path(name)
    return read_result(path) if path.is_file() and is_result(path) else None


def _found(places: Sequence[Path], names: Sequence[str], where: str) -> EvaluationResult | None:
    for path in (place / name for place in places for name in names):
        if path.is_file() and is_result(path):
            return read_result(path, where)
    return None
