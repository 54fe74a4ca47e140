"""examples and a secret key -> a description of the data for record and receipt, without figures of rows.

Without a key: the plain SHA-256 of the whole set. Anyone who can guess every row of a set, in order, can
confirm the guess with it, which may be easy for a single short text.

With a key (``--data-key``): HMAC-SHA256 of that hash, and one commitment per row,

    salt_i = HMAC-SHA256(key, nonce + " row " + i)        commitment_i = HMAC-SHA256(salt_i, row_i)

with i counted from 0 in decimal digits, nonce the hex text that stands beside the commitments, and row_i
the plain data hash (hex) of that example alone. Without the key nothing can be confirmed. The keeper of
the key can show a person that their row is number i by giving them salt_i, which reveals nothing about other
rows.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngdiff.data.examples import Example, data_hash, texts_of
from ngdiff.data.long_text import counted_texts
from ngdiff.errors import Fault, RequestError
from ngdiff.outcome import verdict
from ngdiff.system.output import write_new
from ngdiff.system.untrusted import Unreadable, read_within

if TYPE_CHECKING:
    from ngdiff.record import RunRecord

KEY_BYTES = 32


def read_data_key(path: Path, where: str = "--data-key") -> bytes:
    """Read a key of 64 hex digits.

    Raises:
        RequestError: the file cannot be read or holds something else.
    """
    fix = "Create one with: ngdiff keygen --data FILE"
    try:
        key = bytes.fromhex(read_within(path, 4 * KEY_BYTES).decode("ascii").strip())
        if len(key) != KEY_BYTES:
            raise ValueError(f"it has {len(key)} bytes")
    except Unreadable as error:
        too_big = path.is_file() and path.stat().st_size > 4 * KEY_BYTES
        what = f"contains no key of {2 * KEY_BYTES} hex digits" if too_big else error.what
        raise RequestError(Fault(where, f"{path} {what}", fix)) from error
    except ValueError as error:  # UnicodeDecodeError and what fromhex raises are ValueErrors too
        what = f"{path} contains no key of {2 * KEY_BYTES} hex digits"
        raise RequestError(Fault(where, what, fix)) from error
    return key


def write_data_key(path: Path) -> None:
    """Create a key, readable by its owner only.

    Raises:
        RequestError: the file exists, or cannot be written.
    """
    try:
        write_new({path: (f"{secrets.token_hex(KEY_BYTES)}\n".encode(), 0o600)})
    except FileExistsError as error:
        raise RequestError(
            Fault("KEY", f"{path} exists", "Choose another name: keys are never overwritten")
        ) from error
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror}"
        raise RequestError(Fault("KEY", what, "Choose an existing, writable folder")) from error


def _keyed(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def row_salt(key: bytes, nonce: str, row: int) -> bytes:
    """Return the salt of one row's commitment, which may be given to the owner of that row."""
    return hmac.new(key, f"{nonce} row {row}".encode(), "sha256").digest()


def set_hash(examples: Sequence[Example], key: bytes | None) -> str:
    """Return the hash that names a data set; without the key, a keyed one cannot be made or guessed."""
    plain = data_hash(examples)
    return plain if key is None else _keyed(key, plain)


def describe(examples: Sequence[Example], key: bytes | None, nonce: str | None = None) -> dict[str, Any]:
    """Return number of examples (and of pieces, where texts were split) and hash of a data set.

    With a key, also a commitment per row.
    """
    said: dict[str, Any] = {**counted_texts(examples), "sha256": set_hash(examples, key)}
    if key is None:
        return said
    nonce = nonce or secrets.token_hex(16)
    rows = [
        _keyed(row_salt(key, nonce, number), data_hash([row]))
        for number, row in enumerate(texts_of(examples))
    ]
    return said | {"keyed": True, "nonce": nonce, "rows": rows}


def matches(said: Mapping[str, Any], examples: Sequence[Example], key: bytes | None) -> bool | None:
    """Return whether examples are those of a description; None where its key is missing."""
    if said.get("keyed") and key is None:
        return None
    return bool(
        hmac.compare_digest(set_hash(examples, key if said.get("keyed") else None), str(said["sha256"]))
    )


def rows_found(said: Mapping[str, Any], examples: Sequence[Example], key: bytes) -> list[int | None]:
    """Return, for each example, the row of the described set that it is, or None."""
    nonce, rows = str(said["nonce"]), [str(row) for row in said["rows"]]
    salts = [row_salt(key, nonce, number) for number in range(len(rows))]

    def place(example: Example) -> int | None:
        plain = data_hash([example])
        found = (n for n, salt in enumerate(salts) if hmac.compare_digest(_keyed(salt, plain), rows[n]))
        return next(found, None)

    return [place(example) for example in examples]


# ---- a run's record under a data key -> the record that is written, without figures of single rows ----


FEWEST = 20
"""Fewest rows whose mean is written."""
_REASONS = {
    "target": "the forget target was reached",
    "floor": "the retain set's answer probability met its floor",
}


def hidden(record: RunRecord) -> RunRecord:
    """Return a copy of a complete record without figures of fewer than :data:`FEWEST` rows."""
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
        record.note(f"figures of sets with fewer than {FEWEST} rows were also left out: {names}")
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
    """Keep only the places of the items left: figures and thresholds are of single rows."""
    left = [{key: item[key] for key in ("row", "place") if key in item} for item in stop.get("left") or ()]
    found = dict(stop) | ({"left": left} if "left" in stop else {})
    if "floors" in stop:
        found["floors"] = _many(stop["floors"], few)
    of_few = {"shares_left", "forecast"} if "forget" in few else set()
    return {name: value for name, value in found.items() if name not in of_few}


def _many(figures: Mapping[str, Any], few: set[str]) -> dict[str, Any]:
    """Leave out figures of sets of few rows; the forget answers' language is the forget set's."""
    return {
        name: value
        for name, value in figures.items()
        if name not in few and not (name == "language" and "forget" in few)
    }
