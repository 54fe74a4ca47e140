"""a run's record under a data key -> the record as it is written, without what tells of single rows.

The negative log-likelihood of one row, with the model that is handed on, ranks guesses of that row: among ten
thousand PINs the true one came first. So nothing is written that is worked out from a few rows: not the
items, not the losses of a step's batch, and no mean over a set of fewer than :data:`FEWEST`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ngdiff.outcome import verdict

if TYPE_CHECKING:
    from ngdiff.record import RunRecord

FEWEST = 20
"""Fewest rows whose mean is written."""
_REASONS = {
    "target": "the forget target was reached",
    "floor": "the retain set's answer probability met its floor",
}


def hidden(record: RunRecord) -> RunRecord:
    """Return a copy of a complete record that holds no figure of fewer than :data:`FEWEST` rows."""
    few = {
        name
        for part in (record.before, record.after)
        for name, columns in part.get("items", {}).items()
        if _rows(record, name, columns) < FEWEST and name != "never_seen"
    }
    reason = _REASONS.get(record.stop["code"], record.stop["reason"])
    record = replace(
        record,
        before=_means(record.before, few),
        after=_means(record.after, few),
        steps=[
            replace(step, forget_loss=None, retain_loss=None, forget_extraction_strength=None)
            for step in record.steps
        ],
        checks=[_check(check, few) for check in record.checks],
        evaluations=[],  # of a few items each
        stop=_stop(record.stop, few) | ({"reason": reason} if few else {}),
        notes=list(record.notes),
    )
    if "verdict" in record.stop:
        said = verdict(record.stop, record.after["forget"])
        record.stop["verdict"] = {"line": said.line, "advice": said.advice}
    record.note("figures of single rows and of batches were left out, since the data are hidden under a key")
    if few:
        names = ", ".join(sorted(few))
        record.note(f"figures of sets with fewer than {FEWEST} rows were left out, too: {names}")
    return record


def _rows(record: RunRecord, name: str, columns: Mapping[str, Any]) -> int:
    """Return the rows behind a set's figures: pieces of one text are one."""
    items = len(columns["nll"])
    return min(items, int(record.data.get(name, {}).get("examples", items)))


def _means(part: Mapping[str, Any], few: set[str]) -> dict[str, Any]:
    return {name: {} if name in few else means for name, means in part.items() if name != "items"}


def _check(check: Mapping[str, Any], few: set[str]) -> dict[str, Any]:
    empty: dict[str, float] = {}
    found = dict(check)
    found |= {"forget": empty} if "forget" in few else {}
    if "kept" in check:
        found["kept"] = _many(check["kept"], few)
    return found | ({"utility": empty} if "retain" in few else {})


def _stop(stop: Mapping[str, Any], few: set[str]) -> dict[str, Any]:
    """Leave of the items that are left their places alone: figures and thresholds are of single rows."""
    left = [{key: item[key] for key in ("row", "place") if key in item} for item in stop.get("left") or ()]
    found = dict(stop) | ({"left": left} if "left" in stop else {})
    if "floors" in stop:
        found["floors"] = _many(stop["floors"], few)
    return {name: value for name, value in found.items() if name != "shares_left" or "forget" not in few}


def _many(figures: Mapping[str, Any], few: set[str]) -> dict[str, Any]:
    """Leave out figures of sets of few rows; the forget answers' language is the forget set's."""
    return {
        name: value
        for name, value in figures.items()
        if name not in few and not (name == "language" and "forget" in few)
    }
