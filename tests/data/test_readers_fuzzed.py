"""Any bytes are read or refused by every reader; good rows come back; a fault is named by its own row."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from benchmarks.fuzz_readers import seeds, targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostile_data import DATA
from ngdiff.data.examples import to_examples
from ngdiff.data.files import READERS
from ngdiff.data.sources import read_rows
from ngdiff.errors import RequestError

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[dict[str, Callable[[bytes], None]]]:
    with tempfile.TemporaryDirectory() as folder:
        yield targets(Path(folder))


@st.composite
def mutated(draw: Any, known: list[bytes]) -> bytes:
    """Take an input that means something, and spoil some of its bytes."""
    raw = bytearray(draw(st.sampled_from(known)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 6))] = draw(st.binary(max_size=6))
    return bytes(raw)


NAMES = [*READERS, ".yaml", "log", "result", "config", "adapter", "index", "generation", "weights"]


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_are_read_or_refused(fuzzed: dict[str, Callable[[bytes], None]], name: str) -> None:
    @QUICK
    @given(st.one_of(mutated(seeds(name)), st.binary(max_size=80)))
    def run(raw: bytes) -> None:
        fuzzed[name](raw)

    run()


def test_every_reader_is_fuzzed(fuzzed: dict[str, Callable[[bytes], None]]) -> None:
    assert list(fuzzed) == NAMES


def test_what_one_reader_refuses_no_other_falls_over(fuzzed: dict[str, Callable[[bytes], None]]) -> None:
    """Cross the table of hostile files with all readers: a name says nothing of what is inside."""
    for table in DATA.values():
        for _, _, content, _ in table:
            if callable(content):
                continue  # the large ones
            raw = content if isinstance(content, bytes) else content.encode()
            for ending in READERS:
                fuzzed[ending](raw)
            fuzzed[".yaml"](raw[:20_000])


# Everything but surrogates (no UTF-8) and NUL (refused in text files), with something in it.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
filled = texts.filter(lambda text: bool(text.strip()))
pairs = st.lists(st.fixed_dictionaries({"question": filled, "answer": filled}), min_size=1, max_size=6)


def written(rows: list[dict[str, Any]], ending: str) -> bytes:
    if ending == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if ending == ".json":
        return json.dumps(rows, ensure_ascii=False).encode()
    if ending == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["question", "answer"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


@pytest.mark.parametrize("ending", READERS)
@QUICK
@given(rows=pairs)
def test_good_rows_come_back(ending: str, rows: list[dict[str, Any]]) -> None:
    found, faults = READERS[ending](written(rows, ending), f"x{ending}")
    assert not faults
    examples = to_examples(found, "--forget")
    assert [(e.prompt, e.answer) for e in examples] == [(r["question"], r["answer"]) for r in rows]
    again, _ = READERS[ending](written([dict(row.values) for row in found], ending), f"x{ending}")
    assert again == found


@pytest.mark.parametrize("ending", READERS)
@QUICK
@given(rows=pairs, data=st.data())
def test_an_empty_answer_is_named_by_its_row(ending: str, rows: list[dict[str, Any]], data: Any) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    rows[at] = rows[at] | {"answer": data.draw(st.sampled_from(["", " ", "\t\u2003"]))}
    found, faults = READERS[ending](written(rows, ending), "x")
    assert not faults
    with pytest.raises(RequestError) as caught:
        to_examples(found, "--forget")
    unit = {".jsonl": "line", ".json": "item"}.get(ending, "row")
    assert [fault.where for fault in caught.value.faults] == [f"--forget x, {unit} {at + 1}"]


BROKEN = {
    ".jsonl": (b'{"question": \n', "line", "not valid JSON"),
    ".csv": (b'"only one field"\r\n', "row", "1 fields"),
}


@pytest.mark.parametrize("ending", BROKEN)
@QUICK
@given(rows=pairs, data=st.data())
def test_a_broken_row_is_named_by_its_number(ending: str, rows: list[dict[str, Any]], data: Any) -> None:
    raw, unit, said = BROKEN[ending]
    at = data.draw(st.integers(0, len(rows)))
    parts = [written(rows[:at], ending), raw, written(rows[at:], ending)]
    if ending == ".csv":  # the second part begins with a header of its own
        parts[2] = parts[2].partition(b"\r\n")[2]
    found, faults = READERS[ending](b"".join(parts), "x")
    assert [fault.where for fault in faults] == [f"x, {unit} {at + 1}"] and said in faults[0].what
    assert len(found) == len(rows)


@QUICK
@given(rows=pairs, data=st.data())
def test_a_byte_that_is_no_utf8_is_named_by_line_and_offset(rows: list[dict[str, Any]], data: Any) -> None:
    lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] = b"\xff" + lines[at]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.jsonl")
        path.write_bytes(b"".join(lines))
        with pytest.raises(RequestError) as caught:
            read_rows(str(path), where="--forget")
    (fault,) = caught.value.faults
    offset = sum(map(len, lines[:at]))
    assert fault.where == f"--forget x.jsonl, line {at + 1}"
    assert f"byte 0xff at offset {offset}" in fault.what
