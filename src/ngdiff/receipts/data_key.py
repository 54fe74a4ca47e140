"""examples and, where there is one, a secret key -> what record and receipt say of the data, never the text.

Without a key: the plain SHA-256 of the whole set. Whoever can guess every row of a set, in order, can
confirm the guess with it, which for a set of one short text may be easy.

With a key (``--data-key``): HMAC-SHA256 of that hash, and one commitment a row,

    salt_i = HMAC-SHA256(key, nonce + " row " + i)        commitment_i = HMAC-SHA256(salt_i, row_i)

with i counted from 0 in decimal digits, nonce the hex text that stands beside the commitments, and row_i
the plain data hash (hex) of that example alone. Nothing can be guessed without the key, and the keeper of
the key can show somebody that her row is number i by giving her salt_i, which tells nothing about other
rows.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ngdiff.data.examples import Example, data_hash, texts_of
from ngdiff.data.long_text import counted_texts
from ngdiff.errors import Fault, RequestError
from ngdiff.system.output import write_new
from ngdiff.system.untrusted import Unreadable, read_within

KEY_BYTES = 32


def read_data_key(path: Path, where: str = "--data-key") -> bytes:
    """Read a key of 64 hex digits.

    Raises:
        RequestError: the file cannot be read or holds something else.
    """
    mend = "Make one: ngdiff keygen --data FILE"
    try:
        key = bytes.fromhex(read_within(path, 4 * KEY_BYTES).decode("ascii").strip())
        if len(key) != KEY_BYTES:
            raise ValueError(f"it has {len(key)} bytes")
    except Unreadable as error:
        too_big = path.is_file() and path.stat().st_size > 4 * KEY_BYTES
        what = f"holds no key of {2 * KEY_BYTES} hex digits" if too_big else error.what
        raise RequestError(Fault(where, f"{path} {what}", mend)) from error
    except ValueError as error:  # UnicodeDecodeError and what fromhex raises are ValueErrors too
        what = f"{path} holds no key of {2 * KEY_BYTES} hex digits"
        raise RequestError(Fault(where, what, mend)) from error
    return key


def write_data_key(path: Path) -> None:
    """Make a new key, for its owner's eyes only.

    Raises:
        RequestError: the file exists, or cannot be written.
    """
    try:
        write_new({path: (f"{secrets.token_hex(KEY_BYTES)}\n".encode(), 0o600)})
    except FileExistsError as error:
        raise RequestError(
            Fault("KEY", f"{path} exists", "Give another name: keys are never replaced")
        ) from error
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror}"
        raise RequestError(Fault("KEY", what, "Choose a folder that exists and may be written to")) from error


def _keyed(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def row_salt(key: bytes, nonce: str, row: int) -> bytes:
    """Return the salt of one row's commitment, which may be shown to the owner of that row."""
    return hmac.new(key, f"{nonce} row {row}".encode(), "sha256").digest()


def set_hash(examples: Sequence[Example], key: bytes | None) -> str:
    """Return the hash that names a data set; without the key, a keyed one cannot be made or guessed."""
    plain = data_hash(examples)
    return plain if key is None else _keyed(key, plain)


def describe(examples: Sequence[Example], key: bytes | None, nonce: str | None = None) -> dict[str, Any]:
    """Return number of examples (and of pieces, where texts were split) and hash of a data set.

    With a key, a commitment a row besides.
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
    """Say whether examples are those of a description; None where its key is needed and not there."""
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
