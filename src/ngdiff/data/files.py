"""`data file -> rows`: JSONL, JSON, CSV and Parquet, with every fault found."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ngdiff.errors import Fault

COLUMN_FORMS: tuple[tuple[str, ...], ...] = (
    ("messages",),
    ("question", "answer"),
    ("prompt", "completion"),
    ("text",),
)
"""The sets of columns a row can have, in the order in which they are looked for."""

Found = tuple[list["Row"], list[Fault]]


@dataclass(frozen=True)
class Row:
    """One row of a data source.

    Args:
        values: column name to value, as the file has it.
        place: where the row stands, such as ``forget.jsonl, line 3``.
    """

    values: Mapping[str, object]
    place: str


def accepted_columns() -> str:
    """Return the accepted sets of columns as words, for faults."""
    return ", ".join("/".join(form) for form in COLUMN_FORMS)


def read_data_file(path: Path) -> Found:
    """Read one data file by its extension.

    Args:
        path: a file ending in one of ``READERS``.

    Returns:
        The rows that could be read, and the faults; ``Fault.where`` is the file's name with the line or row.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        kind = f"the extension {path.suffix!r}" if path.suffix else "no extension"
        return [], [Fault(path.name, f"has {kind}, which is not read", f"Use one of {', '.join(READERS)}")]
    try:
        raw = path.read_bytes()
    except OSError as error:
        return [], [
            Fault(path.name, f"cannot be read: {error.strerror}", "Check the file and its permissions")
        ]
    if not raw.strip():
        return [], [_no_rows(path.name)]
    rows, faults = reader(raw, path.name)
    if not rows and not faults:
        faults = [_no_rows(path.name)]
    return rows, faults


def _no_rows(name: str) -> Fault:
    return Fault(name, "is empty", f"Give at least one row with the columns {accepted_columns()}")


def _text(raw: bytes, name: str) -> str | Fault:
    """Decode UTF-8, with or without a byte order mark."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts from behind a byte order mark; its own copy of the bytes is what it counts in.
        line = error.object.count(b"\n", 0, error.start) + 1
        offset = error.start + len(raw) - len(error.object)
        what = f"is not UTF-8 (byte 0x{error.object[error.start]:02x} at offset {offset})"
        return Fault(f"{name}, line {line}", what, "Save the file as UTF-8")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        return Fault(
            f"{name}, line {line}", "holds a NUL byte", "Save the file as UTF-8 text without NUL bytes"
        )
    return text


class _Repeated:
    """Stands for a JSON object in which a key occurs twice."""

    def __init__(self, key: str) -> None:
        self.key = key


def _object(pairs: list[tuple[str, object]]) -> object:
    values: dict[str, object] = {}
    for key, value in pairs:
        if key in values:
            return _Repeated(key)
        values[key] = value
    # A repeated key deep inside spoils the whole row.
    return next((found for value in values.values() if (found := _repeated(value))), values)


def _repeated(value: object) -> _Repeated | None:
    if isinstance(value, _Repeated):
        return value
    if isinstance(value, list):
        return next((found for item in value if (found := _repeated(item))), None)
    return None


def _parse(text: str, place: str) -> object:
    """Parse JSON; a ``Fault`` says where it is broken."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        what = f"is broken JSON ({error.msg} at {at})"
    except RecursionError:
        what = "is JSON nested too deeply"
    except ValueError as error:  # a number of thousands of digits
        what = f"is JSON that cannot be read ({str(error).split(';')[0]})"
    return Fault(place, what, "Write one JSON object on each line, or (.json only) one array of objects")


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


def _sorted_out(found: Iterator[Row | Fault]) -> Found:
    rows: list[Row] = []
    faults: list[Fault] = []
    for item in found:
        if isinstance(item, Row):
            rows.append(item)
        else:
            faults.append(item)
    return rows, faults


def _read_jsonl(raw: bytes, name: str) -> Found:
    text = _text(raw, name)
    if isinstance(text, Fault):
        return [], [text]
    # Lines end in \n alone: str.splitlines() would also cut at U+2028, which JSON strings may hold.
    lines = ((f"{name}, line {n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip(" \t\r"))
    return _sorted_out(_row(_parse(line, place), place) for place, line in lines)


def _read_json(raw: bytes, name: str) -> Found:
    text = _text(raw, name)
    if isinstance(text, Fault):
        return [], [text]
    if not text.lstrip().startswith("["):
        return _read_jsonl(raw, name)
    array = _parse(text, name)
    if isinstance(array, Fault):
        return [], [array]
    assert isinstance(array, list)
    return _sorted_out(_row(item, f"{name}, item {n}") for n, item in enumerate(array, 1))


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lift the 128 KiB limit that the csv module sets on a field, which a book's chapter exceeds."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _read_csv(raw: bytes, name: str) -> Found:
    text = _text(raw, name)
    if isinstance(text, Fault):
        return [], [text]
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    faults: list[Fault] = []
    try:
        with _long_fields():
            header = next((fields for fields in reader if fields), [])
            if fault := _header_fault(header, name):
                return [], [fault]
            for number, fields in enumerate((fields for fields in reader if fields), 1):
                place = f"{name}, row {number}"
                if len(fields) == len(header):
                    rows.append(Row(dict(zip(header, fields, strict=True)), place))
                else:
                    what = f"has {len(fields)} fields where the header has {len(header)}"
                    faults.append(Fault(place, what, "Quote fields that hold commas, quotes or line breaks"))
    except csv.Error as error:
        what = f"is broken CSV ({error})"
        faults.append(
            Fault(f"{name}, line {reader.line_num}", what, "Close the quotes; write a quote inside as two")
        )
    return rows, faults


def _header_fault(header: list[str], name: str) -> Fault | None:
    place, listed = f"{name}, line 1", ", ".join(header)[:200]
    mend = f"Begin with a header that has {accepted_columns()}, separated by commas"
    if not {column for form in COLUMN_FORMS for column in form} & set(header):
        return Fault(place, f"is no header with columns known here (found: {listed})", mend)
    if twice := sorted({column for column in header if header.count(column) > 1}):
        return Fault(place, f"has the column {twice[0]!r} twice", "Give each column a name of its own")
    return None


def _read_parquet(raw: bytes, name: str) -> Found:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(raw)).read()
        columns = list(table.column_names)
        if len(set(columns)) < len(columns):
            return [], [Fault(name, f"has columns of the same name ({', '.join(columns)})", "Rename them")]
        values = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        return [], [Fault(name, f"is broken Parquet ({first})", "Write the file anew")]
    return [Row(row, f"{name}, row {number}") for number, row in enumerate(values, 1)], []


READERS: dict[str, Callable[[bytes, str], Found]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""Extension to reader; nothing that can carry code (pickles) and no archives."""
