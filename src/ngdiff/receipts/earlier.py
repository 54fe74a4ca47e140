"""chain of receipts and files of earlier forget sets -> sets to measure again, and whether any came back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngdiff.data.examples import Example
from ngdiff.errors import Fault, RequestError
from ngdiff.receipts.data_key import matches
from ngdiff.receipts.hashes import sha256
from ngdiff.receipts.schema import Read
from ngdiff.receipts.set_figures import MEASURES
from ngdiff.system.output import RECORD
from ngdiff.system.untrusted import MOST_JSON, Unreadable, load_json, read_within

WATCHED = ("extraction_strength", "probability")
_ROUNDING = 1e-6


@dataclass(frozen=True)
class EarlierRequest:
    """An earlier request in the history of the starting model.

    Args:
        number: its place in the chain, from 1; 0 for a run that left a record and no receipt.
        time: when it ended, according to its receipt.
        data: its receipt's description of the forget set.
        ended_at: that set's figures at its end, each with value, low and high.
    """

    number: int
    time: str | None
    data: Mapping[str, Any]
    ended_at: Mapping[str, Mapping[str, float | None]]

    @property
    def name(self) -> str:
        """The name of its forget set's figures in record and receipt."""
        return f"earlier {self.number}"


def earlier_requests(chain: Sequence[Read], record: Mapping[str, Any] | None) -> list[EarlierRequest]:
    """List the earlier requests of a model, oldest first.

    Args:
        chain: the model's receipts; none of them may have faults.
        record: the model's record, for a model that has no receipt.
    """
    if not chain:
        return [] if record is None else [_of_record(record)]
    first = chain[0].content["earlier"]
    found = [EarlierRequest(e["request"], e["time"], e["data"], e["ended_at"]) for e in first]
    for number, receipt in enumerate(chain, start=1):
        content = receipt.content
        ended = content["figures"]["after"].get("forget", {})
        found.append(EarlierRequest(number, content["time"], content["data"]["forget"], ended))
    return found


def _of_record(record: Mapping[str, Any]) -> EarlierRequest:
    data, figures = record["data"]["forget"], record["after"]["forget"]
    ended = {name: {"value": float(figures[name]), "low": None, "high": None} for name in MEASURES}
    return EarlierRequest(0, None, data, ended)


def record_of(folder: Path) -> tuple[dict[str, Any], str] | None:
    """Read the record of an unlearning run and its SHA-256, where a model's folder has one."""
    try:
        text = read_within(folder / RECORD, MOST_JSON)
        record = load_json(text)
        if record["kind"] != "unlearn":
            return None
        _of_record(record)
    except (Unreadable, ValueError, LookupError, TypeError):
        return None
    return record, sha256(text)


def match_files(
    requests: Sequence[EarlierRequest],
    parts: Sequence[tuple[str, Sequence[Example]]],
    key: bytes | None,
    where: str = "--earlier",
) -> dict[int, list[Example]]:
    """Find out which earlier request each file was the forget set of.

    A set that was given as several files must be given as these files one after another, in the same order.

    Args:
        requests: earlier requests of the model.
        parts: name and examples of each file given.
        key: the data key, where receipts were made with one.

    Returns:
        The examples of a request's forget set, by the request's number.

    Raises:
        RequestError: a file belongs to no earlier request.
    """
    if parts and not requests:
        what = "the model has no receipt and no record, so what it forgot before is unknown"
        raise RequestError(Fault(where, what, "Omit it, or give the unlearned model's own folder"))
    faults, found, place = [], {}, 0
    while place < len(parts):
        end, request = _longest(requests, parts, place, key)
        if request is None:
            locked = key is None and any(r.data.get("keyed") for r in requests)
            what = f"{parts[place][0]} is not the forget set of any earlier request of this model"
            fix = "Give exactly the data that was forgotten" + (", and its data_key" if locked else "")
            faults.append(Fault(where, what, fix))
        else:
            found[request.number] = [example for _, examples in parts[place:end] for example in examples]
        place = end
    if faults:
        raise RequestError(faults)
    return found


def _longest(
    requests: Sequence[EarlierRequest],
    parts: Sequence[tuple[str, Sequence[Example]]],
    start: int,
    key: bytes | None,
) -> tuple[int, EarlierRequest | None]:
    for end in range(start + 1, len(parts) + 1):
        joined = [example for _, examples in parts[start:end] for example in examples]
        for request in requests:
            if matches(request.data, joined, key):
                return end, request
    return start + 1, None


def looked_at_again(
    requests: Sequence[EarlierRequest], after: Mapping[str, Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Report for each earlier request whether it was measured, and whether its forget set came back.

    It came back where its extraction strength or answer probability is now above the upper end of the
    interval that its own receipt ended at.

    Args:
        requests: earlier requests of the model.
        after: mean figures of every set that was measured, by name.

    Returns:
        The entry of each in record and receipt, and notes in words.
    """
    said, notes, missing = [], [], []
    for request in requests:
        now = after.get(request.name)
        risen = [n for n in WATCHED if now is not None and _rose(request.ended_at.get(n), now[n])]
        notes += [_came_back(request, name, now) for name in risen if now is not None]
        if now is None:
            missing.append(request.number)
        entry = {"request": request.number, "time": request.time, "data": dict(request.data)}
        known = now is not None and all(name in request.ended_at for name in WATCHED)
        entry |= {"ended_at": {name: dict(figure) for name, figure in request.ended_at.items()}}
        said.append(entry | {"looked_at": now is not None, "came_back": bool(risen) if known else None})
    if missing:
        numbers = ", ".join(map(str, missing))
        notes.append(
            f"earlier requests not measured again, since their files were not given (--earlier): {numbers}"
        )
    return said, notes


def _came_back(request: EarlierRequest, name: str, now: Mapping[str, float]) -> str:
    ended = request.ended_at[name]["value"]
    return (
        f"what request {request.number} forgot came back: {name.replace('_', ' ')} of its forget set is "
        f"{now[name]:.3f}, and was {ended:.3f} when it ended; forget it again"
    )


def _rose(ended: Mapping[str, float | None] | None, now: float) -> bool:
    if ended is None or ended["value"] is None:
        return False
    limit = ended["value"] if ended["high"] is None else ended["high"]
    return now > limit + _ROUNDING
