"""text of a receipt -> its content, checked against the schema of receipts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ngdiff.receipts.hashes import canonical, seal_holds, sha256
from ngdiff.system.untrusted import Unreadable, read_within

FORMAT = 1
MOST_BYTES = 2**26
MOST_LEVELS = 64
MOST_DIGITS = 19
"""Most digits of a whole number; sizes, counts and seeds have fewer."""

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Figures = dict[str, dict[str, "Interval"]]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Interval(_Part):
    """A mean over items with its 95% bootstrap interval; null where it could not be computed."""

    value: float | None
    low: float | None
    high: float | None


class FileHash(_Part):
    """One file."""

    bytes: int
    sha256: Hash


class DataSet(_Part):
    """The description of one data set (see :mod:`ngdiff.receipts.data_key`)."""

    examples: int
    pieces: int | None = None
    sha256: Hash
    keyed: Literal[True] | None = None
    nonce: str | None = None
    rows: list[Hash] | None = None


class Request(_Part):
    """The request; receipts of early versions do not list which settings the hash leaves out."""

    sha256: Hash
    settings: dict[str, Any]
    not_counted: list[str] | None = None


class Model(_Part):
    """The weights before and after; ``sha256_before`` is null where they were held in 4 bits."""

    name: str
    sha256_before: Hash | None
    sha256_after: Hash
    sha256_before_quantised: Hash | None = None


class Code(_Part):
    """The software that ran."""

    version: str
    commit: str | None
    sha256: Hash


class AllFigures(_Part):
    """Figures of each set before and after the run, and how their intervals were drawn."""

    level: float
    resamples: int
    seed: int
    before: Figures
    after: Figures


class Earlier(_Part):
    """An earlier request of the same model, and whether what it forgot came back."""

    request: int
    time: str | None
    data: DataSet
    ended_at: dict[str, Interval]
    looked_at: bool
    came_back: bool | None


class Previous(_Part):
    """The receipt, or where there was none the record, of the run that made the starting model."""

    sha256: Hash | None
    record_sha256: Hash | None
    count: int


class Signer(_Part):
    """The signer of the signature beside the receipt."""

    algorithm: Literal["Ed25519"]
    public_key: Hash


class Receipt(_Part):
    """The whole of ``receipt.json``."""

    kind: Literal["receipt"]
    format: Literal[1]
    time: str
    request: Request
    data: dict[str, DataSet]
    model: Model
    starting_files: dict[str, FileHash] | None
    files: dict[str, FileHash]
    versions: dict[str, str]
    code: Code
    stop: dict[str, Any]
    figures: AllFigures
    earlier: list[Earlier]
    previous: Previous | None
    signer: Signer | None
    proves: list[str]
    does_not_prove: list[str]
    seal: Hash


@dataclass(frozen=True)
class Read:
    """A receipt as read.

    Args:
        name: its file's name, for messages.
        text: the file's bytes.
        content: its JSON; empty where it has none of the right form.
        faults: what is wrong with it, in words.
        signature: the bytes of the signature beside it, if there is one.
    """

    name: str
    text: bytes
    content: dict[str, Any]
    faults: tuple[str, ...]
    signature: bytes | None = None

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file, by which the next receipt names it."""
        return sha256(self.text)


def read_receipt(path: Path, name: str, signature: Path | None = None) -> Read:
    """Read and check one receipt; its content raises nothing, since it is not trusted.

    Raises:
        OSError: the file cannot be read.
    """
    if path.stat().st_size > MOST_BYTES:
        return Read(name, b"", {}, ("is far too large for a receipt",))
    try:
        text = read_within(path, MOST_BYTES)
    except Unreadable as error:
        return Read(name, b"", {}, (error.what,))
    signed = None
    if signature is not None and signature.is_file():
        with signature.open("rb") as file:
            signed = file.read(4096)
    content, faults = check_text(text)
    return Read(name, text, content, tuple(faults), signed)


def _deeper(value: Any, levels: int) -> bool:
    """Return whether a JSON value is nested deeper than a limit, without recursing."""
    here = [value]
    for _ in range(levels):
        here = [
            part
            for each in here
            if isinstance(each, (dict, list))
            for part in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(here)


def _whole_number(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError("a number has too many digits")
    return int(text)


def check_text(text: bytes) -> tuple[dict[str, Any], list[str]]:
    """Return a receipt's content and what is wrong with it."""
    try:
        content = json.loads(text, parse_int=_whole_number)
        if _deeper(content, MOST_LEVELS):
            return {}, ["is nested deeper than any receipt"]
        checked = Receipt.model_validate_json(text)
        same = canonical(content) == text
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        return {}, [f"is not a valid receipt ({place}: {first['msg']})"]
    except (ValueError, RecursionError) as error:
        return {}, [f"is not readable JSON ({type(error).__name__})"]
    faults = []
    if not same:
        faults.append("is not written in its canonical form: it was changed after it was written")
    if not seal_holds(text, checked.seal):
        faults.append("does not have the hash that its seal states: it was changed after it was written")
    return content, faults
