"""bytes of a Parquet file -> rows, within bounds: a file of kilobytes can unpack to terabytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ngdiff.system.untrusted import MOST_DATA, Unplaced, Unreadable, first_line

MOST_ROWS = 20_000_000
_AT_ONCE = 1024
_ANEW = "Write the file again"
_SMALLER = "Split it into smaller files, or check that it is the right file"


def read_parquet(raw: bytes) -> list[dict[str, Any]]:
    """Read all rows as Python values.

    Batches are small enough for the largest row group, and reading stops at a size that no ordinary data file
    of text has.

    Args:
        raw: the whole file.

    Raises:
        Unreadable: it is broken, has duplicate columns, or unpacks to too much.
        Unplaced: one row holds a value that Python cannot represent; ``line`` is the row's number.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(raw))
        columns = list(file.schema_arrow.names)
        if len(set(columns)) < len(columns):
            raise Unreadable(f"has duplicate columns ({', '.join(columns)})", "Rename them")
        if any(_categories_inside(field.type) for field in file.schema_arrow):
            raise Unreadable("has categories inside lists or objects", "Write plain columns")
        return list(_rows(file))
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise Unreadable(f"is not valid Parquet ({first_line(error)})", _ANEW) from error


def _rows(file: Any) -> Iterator[dict[str, Any]]:
    metadata = file.metadata
    if metadata.num_rows > MOST_ROWS:
        raise Unreadable(f"has {metadata.num_rows} rows; the limit is {MOST_ROWS}", _SMALLER)
    # not row_group(n).column(m): pyarrow ends the process where a column's statistics are malformed
    chunks = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
    if sum(chunks) > MOST_DATA:
        raise Unreadable(_too_much(sum(chunks)), _SMALLER)
    # one dictionary value, as large as its row group, may occur in every row
    at_once = min(_AT_ONCE, max(1, MOST_DATA // max([1, *chunks])))
    unpacked = 0
    for batch in file.iter_batches(batch_size=at_once, use_threads=False):  # before any value is made
        unpacked += sum(_size(column) for column in batch.columns)
        if unpacked > MOST_DATA:
            raise Unreadable(_too_much(unpacked), _SMALLER)
    number = 0
    for batch in file.iter_batches(batch_size=at_once, use_threads=False):
        try:
            rows = batch.to_pylist()
        except _NO_VALUE:
            rows = [_row(batch, place, number + place + 1) for place in range(batch.num_rows)]
        yield from rows
        number += batch.num_rows


def _size(column: Any) -> int:
    """Return the bytes of a column once its dictionary is expanded."""
    import pyarrow
    import pyarrow.compute

    if not pyarrow.types.is_dictionary(column.type):
        return int(column.nbytes)
    values = column.dictionary
    if not (pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type)):
        raise Unreadable(f"has categories of type {values.type}, not of text", "Write plain columns")
    lengths = pyarrow.compute.binary_length(values).take(column.indices)
    return int(pyarrow.compute.sum(lengths).as_py() or 0)


def _categories_inside(kind: Any) -> bool:
    """Return whether a type has categories inside lists or objects, whose size is not known in advance."""
    import pyarrow

    inner = [kind.field(number).type for number in range(kind.num_fields)]
    return any(pyarrow.types.is_dictionary(one) or _categories_inside(one) for one in inner)


_NO_VALUE = (ValueError, TypeError, OverflowError, RecursionError, ImportError)


def _row(batch: Any, place: int, number: int) -> dict[str, Any]:
    try:
        found: dict[str, Any] = batch.slice(place, 1).to_pylist()[0]
    except _NO_VALUE as error:
        raise Unplaced(
            number, f"contains a value that cannot be read ({first_line(error)})", _ANEW
        ) from error
    return found


def _too_much(count: int) -> str:
    return f"unpacks to {count / 2**20:.0f} MiB or more; the limit is {MOST_DATA / 2**20:.0f} MiB"
