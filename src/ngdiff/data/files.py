"""`data file -> rows`: JSONL, JSON, CSV and Parquet, with every fault found."""

from __future__ import annotations

import codecs
import csv
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ngdiff.errors import Fault
from ngdiff.system.untrusted import (
    MOST_DATA,
    Unplaced,
    Unreadable,
    check_encoding,
    decode,
    load_json,
    read_within,
)

COLUMN_FORMS: tuple[tuple[str, ...], ...] = (
    ("messages",),
    ("question", "answer"),
    ("prompt", "completion"),
    ("text",),
)
"""The sets of columns that a row can have, in the order in which they are checked."""

Found = tuple[list["Row"], list[Fault]]


@dataclass(frozen=True)
class Row:
    """One row of a data source.

    Args:
        values: column name to value, as in the file.
        place: position of the row, such as ``forget.jsonl, line 3``.
        published: whether it belongs to a benchmark. Users cannot correct that, so an empty text is left out
            and counted, which in one's own data would be a fault.
        names: NGDiff's names of columns to those of the data, where they differ.
    """

    values: Mapping[str, object]
    place: str
    published: bool = False
    names: Mapping[str, str] = field(default_factory=dict)


def accepted_columns() -> str:
    """Return the accepted sets of columns in words, for faults."""
    return ", ".join("/".join(form) for form in COLUMN_FORMS)


def read_data_file(path: Path) -> Found:
    """Read one data file by its extension.

    Args:
        path: a file ending in one of ``READERS``.

    Returns:
        The rows that could be read, and the faults; ``Fault.where`` is the file's name with the line or row.
    """
    reader = READERS.get(path.suffix.lower())
    if path.suffix.lower() in ARCHIVES:
        what = f"is an archive ({path.suffix}), which is not unpacked"
        return [], [Fault(path.name, what, f"Unpack it and give the {', '.join(READERS)} file inside")]
    if reader is None:
        kind = f"the extension {path.suffix!r}" if path.suffix else "no extension"
        return [], [
            Fault(path.name, f"has {kind}, which is not supported", f"Use one of {', '.join(READERS)}")
        ]
    try:
        raw = read_within(path, MOST_DATA)
    except Unreadable as error:
        return [], [error.fault(path.name)]
    if not raw.strip():
        return [], [_no_rows(path.name)]
    rows, faults = reader(raw, path.name)
    if not rows and not faults:
        faults = [_no_rows(path.name)]
    return rows, faults


def _no_rows(name: str) -> Fault:
    return Fault(name, "is empty", f"Give at least one row with the columns {accepted_columns()}")


def _text_fault(raw: bytes, name: str) -> Fault | None:
    """Return why bytes are not text, if they are not."""
    try:
        decode(raw)
    except Unplaced as error:
        return error.fault(f"{name}, line {error.line}")
    except Unreadable as error:
        return error.fault(name)
    return None


class _Repeated:
    """A JSON object in which a key occurs twice."""

    def __init__(self, key: str) -> None:
        self.key = key


def _object(pairs: list[tuple[str, object]]) -> object:
    values: dict[str, object] = {}
    for key, value in pairs:
        if key in values:
            return _Repeated(key)
        values[key] = value
    return values


def _repeated(value: object) -> _Repeated | None:
    """Find a repeated key at any depth; it makes the whole row invalid."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, _Repeated):
            return item
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return None


def _parse(text: str, place: str) -> object:
    """Parse JSON, or return a ``Fault`` that says where it is broken."""
    try:
        return load_json(text, object_pairs_hook=_object)
    except Unreadable as error:
        fix = "Write one JSON object on each line, or (.json only) one array of objects"
        return Fault(place, error.what, fix)


def _row(value: object, place: str) -> Row | Fault:
    if isinstance(value, Fault):
        return value
    if found := _repeated(value):
        return Fault(place, f"has the key {found.key!r} twice in one object", "Keep one of them")
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a string", type(None): "null"}.get(type(value), "a bare value")
        return Fault(
            place, f"is {kind}, not a JSON object", 'Write rows like {"question": "...", "answer": "..."}'
        )
    return Row(value, place)


def _sorted_out(found: Iterator[Row | Fault], name: str) -> Found:
    rows: list[Row] = []
    faults: list[Fault] = []
    for item in found:
        if isinstance(item, Row):
            rows.append(item)
        elif len(faults) < MOST_FAULTS:
            faults.append(item)
        else:
            what = f"has more than {MOST_FAULTS} invalid rows; reading stopped"
            faults.append(Fault(name, what, "Check that it is the right file"))
            break
    return rows, faults


def _read_jsonl(raw: bytes, name: str) -> Found:
    try:
        check_encoding(raw)
    except Unreadable as error:
        return [], [error.fault(name)]
    return _sorted_out(_json_lines(raw, name), name)


def _json_lines(raw: bytes, name: str) -> Iterator[Row | Fault]:
    """Yield a row or a fault for each line that is not blank.

    Lines end in \\n alone: str.splitlines() would also cut at U+2028, which JSON strings may hold. They are
    decoded one by one, so that the file is in memory once.
    """
    start = 0
    for number, line in enumerate(io.BytesIO(raw), 1):
        place = f"{name}, line {number}"
        if line.strip(b" \t\r\n\xef\xbb\xbf" if number == 1 else b" \t\r\n"):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                bad = error.object[error.start]
                at = start + error.start + len(line) - len(error.object)
                yield Fault(
                    place, f"is not UTF-8 (byte 0x{bad:02x} at offset {at})", "Save the file as UTF-8"
                )
            else:
                if "\0" in text:
                    fix = "Save the file as UTF-8 text without NUL bytes"
                    yield Fault(place, "contains a NUL byte", fix)
                else:
                    yield _row(_parse(text, place), place)
        start += len(line)


def _read_json(raw: bytes, name: str) -> Found:
    if fault := _text_fault(raw, name):
        return [], [fault]
    if not raw.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        return _read_jsonl(raw, name)
    array = _parse(raw.decode("utf-8-sig"), name)
    if isinstance(array, Fault):
        return [], [array]
    assert isinstance(array, list)
    return _sorted_out((_row(item, f"{name}, item {n}") for n, item in enumerate(array, 1)), name)


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lift the 128 KiB limit that the csv module sets on a field, which a book's chapter exceeds."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _read_csv(raw: bytes, name: str) -> Found:
    if fault := _text_fault(raw, name):
        return [], [fault]
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(raw), "utf-8-sig", newline=""), strict=True)
    with _long_fields():
        try:
            header = next((fields for fields in reader if fields), [])
        except csv.Error as error:
            return [], [_broken_csv(error, 1, name)]
        if fault := _header_fault(header, name):
            return [], [fault]
        return _sorted_out(_csv_rows(reader, header, name), name)


def _csv_rows(reader: Any, header: list[str], name: str) -> Iterator[Row | Fault]:
    """Yield a row or a fault for each record that is not blank; csv does not export the reader's type."""
    number = 0
    while True:
        started = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield _broken_csv(error, started, name)
            return
        if fields is None:
            return
        if not fields:
            continue
        number += 1
        place = f"{name}, row {number}"
        if len(fields) == len(header):
            yield Row(dict(zip(header, fields, strict=True)), place)
        else:
            what = f"has {len(fields)} fields where the header has {len(header)}"
            yield Fault(place, what, "Quote fields that contain commas, quotes or line breaks")


def _broken_csv(error: csv.Error, line: int, name: str) -> Fault:
    what = f"is not valid CSV in the record that begins here ({error})"
    return Fault(f"{name}, line {line}", what, "Close the quotes, and double a quote inside a field")


def _header_fault(header: list[str], name: str) -> Fault | None:
    place, listed = f"{name}, line 1", ", ".join(header)[:200]
    fix = f"Start with a header that has {accepted_columns()}, separated by commas"
    if not {column for form in COLUMN_FORMS for column in form} & set(header):
        return Fault(place, f"is not a header with known columns (found: {listed})", fix)
    if twice := sorted({column for column in header if header.count(column) > 1}):
        return Fault(place, f"has the column {twice[0]!r} twice", "Give each column a unique name")
    return None


def _read_parquet(raw: bytes, name: str) -> Found:
    from ngdiff.data.parquet import read_parquet

    try:
        return [Row(row, f"{name}, row {number}") for number, row in enumerate(read_parquet(raw), 1)], []
    except Unplaced as error:
        return [], [error.fault(f"{name}, row {error.line}")]
    except Unreadable as error:
        return [], [error.fault(name)]


READERS: dict[str, Callable[[bytes, str], Found]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""Reader by extension; no formats that can carry code (pickles) and no archives."""

ARCHIVES = frozenset({".gz", ".zip", ".bz2", ".xz", ".zst", ".lz4", ".7z", ".rar", ".tar", ".tgz"})
"""Extensions of packed files, which are reported but never opened."""

MOST_FAULTS = 1000
"""Number of invalid rows after which reading stops."""
