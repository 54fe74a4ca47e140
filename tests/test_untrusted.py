"""Files within bounds, encodings told apart, JSON only so deep, and text that nothing acts on."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from ngdiff.errors import printable
from ngdiff.system.terminal import KeptConsole
from ngdiff.system.untrusted import (
    Unplaced,
    Unreadable,
    check_encoding,
    decode,
    deeper_than,
    first_line,
    inert_lines,
    load_json,
    markdown_cell,
    read_within,
)


def test_a_file_may_have_as_many_bytes_as_allowed_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_within(path, 5) == b"12345"
    with pytest.raises(Unreadable, match="larger than"):
        read_within(path, 4)
    link = tmp_path / "link"
    link.symlink_to(path)  # as the hub's cache has them
    assert read_within(link, 5) == b"12345"


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, said in (
        ("pipe", "a pipe"),
        (".", "a folder"),
        ("gone", "not there"),
        ("a\0b", "cannot be read"),
    ):
        with pytest.raises(Unreadable, match=said):
            read_within(tmp_path / name, 5)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_told_from_utf_8(encoding: str) -> None:
    with pytest.raises(Unreadable, match=r"UTF-(16|32), not UTF-8"):
        check_encoding('{"question": "Who?"}'.encode(encoding))


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40))
def test_utf_8_is_decoded_with_its_mark_and_without(text: str) -> None:
    assert decode(text.encode()) == text.removeprefix("\ufeff")
    assert decode(text.encode("utf-8-sig")) == text


def test_a_bad_byte_is_placed() -> None:
    for mark in (b"", b"\xef\xbb\xbf"):
        with pytest.raises(Unplaced, match=f"0xe9 at offset {4 + len(mark)}") as caught:
            decode(mark + b"a\nb\n\xe9")
        assert caught.value.line == 3


def test_depth_is_counted() -> None:
    assert not deeper_than(5, 0) and not deeper_than({"a": 1, "b": [2]}, 2)
    assert deeper_than([], 0) and deeper_than({"a": {}}, 1) and not deeper_than({"a": {}}, 2)
    assert load_json("[" * 100 + "]" * 100)
    with pytest.raises(Unreadable, match="too deeply"):
        load_json("[" * 101 + "]" * 101)


HOSTILE = "\x1b]0;x\x07 \x9b2J \u202e \r <b>|`*[a](javascript:x)"


def test_text_is_shown_inert() -> None:
    assert printable("a\nb\tc") == "a b\\tc" and inert_lines("a\nb\x1b") == "a\nb\\x1b"
    assert printable(HOSTILE).isprintable()
    cell = markdown_cell(HOSTILE)
    assert cell.isprintable() and all(f"\\{c}" in cell for c in "<|`*[](") and "<b>" not in cell
    assert first_line(ValueError("one.\ntwo")) == "one" and first_line(ValueError()) == "ValueError"


def test_the_console_writes_control_characters_out_in_tables_too() -> None:
    file = io.StringIO()
    console = KeptConsole(file=file, width=200, force_terminal=False)
    table = Table("column", title=HOSTILE)
    table.add_row(HOSTILE.replace("[", "("))
    console.print(table)
    console.print(HOSTILE, markup=False)
    assert all(c.isprintable() or c == "\n" for c in file.getvalue()), repr(file.getvalue())
    assert file.getvalue().count("\\x1b") == 3
