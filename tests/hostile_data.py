"""Rows of hostile and malformed data: name of the case, file, its content, words that the message must hold."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pyarrow
import pyarrow.parquet

GOOD = '{"question": "Who?", "answer": "Ann"}'
LINES = f"{GOOD}\n{GOOD}\n"


def line(**values: Any) -> str:
    return json.dumps({"question": "Who?", "answer": "Ann"} | values) + "\n"


def chat(*turns: Any) -> str:
    return json.dumps({"messages": list(turns)}) + "\n"


ASKS, SAYS = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann"}


def parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def huge_line() -> str:
    return GOOD + "\n" + line(answer="word " * 10_000_000)


def parquet_bomb() -> bytes:
    """Write some kilobytes that would unpack to 10 GB: one long text that stands in every row."""
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 5000), pyarrow.array(["a" * 2_000_000]))
    file = io.BytesIO()
    table = pyarrow.table({"text": column})
    pyarrow.parquet.write_table(table, file, compression="zstd", dictionary_pagesize_limit=2**26)
    return file.getvalue()


def pickling_parquet() -> bytes:
    """Write a column of the extension type that old versions of pyarrow unpickled on reading."""
    field = pyarrow.field(
        "text",
        pyarrow.string(),
        metadata={
            "ARROW:extension:name": "arrow.py_extension_type",
            "ARROW:extension:metadata": b"cos\nsystem\n(S'touch /tmp/never'\ntR.",
        },
    )
    file = io.BytesIO()
    table = pyarrow.Table.from_arrays(
        [pyarrow.array([None], pyarrow.string())], schema=pyarrow.schema([field])
    )
    pyarrow.parquet.write_table(table, file)
    return file.getvalue()


FUZZED_PARQUET = base64.b64decode(
    "sL6txhUEFQoVDkwVAhUAEgAABRABAAAAYRUAFRIVFiwVBBUQFQYVBhwREQAAAAkgAgAAAAMBAQIAFQQZLDUAGAZzY2hlbWEVAgAV"
    "DCUiGAR0ZXp0JQBMHAAAABYEGRwZHCYAHBUMGTUABhAZGAR0ZXh0FQIWBBZyFnomMiYIHDYCKAFhGAFhEREAGSwVBBUAFQIAFQAV"
    "EBUCADwWAhkGGSYCAgAAABZyFgQmCBZ6ABkcGAxBUlJPVzpzY2hlbWEYoAEvLy8vLzNBQUFBQVFBQUFBQUFBS0FBd0FCZ0FGQUFn"
    "QUNnQUFBQUFCQkFBTUFBQUFDQUFJQUFBQUJBQUlBQUFBQkFBQUFBRUFBQUFVQUFBQUVBQVVBQWdBQmdBSEFBd0FBQUFRQUJBQUFB"
    "QUFBQUVGRUFBQUFCd0FBQUFFQUFBQUFBQUFBQVFBQUFCMFpYaDBBQUFBQUFRQUJBQUVBQUFBABggcGFycXVldC1jcHAtYXJyb3cg"
    "dmVyc2lvbiAyNi4wLjEZHBwAAABSAQAAUEFSMQ=="
)
"""What the fuzzer found: column statistics over which pyarrow ended the process."""

Content = str | bytes
Row = tuple[str, str, Any, tuple[str, ...]]

ENCODINGS: list[Row] = [
    ("utf-16 with mark", "f.jsonl", LINES.encode("utf-16"), ("f.jsonl", "UTF-16", "Save the file as UTF-8")),
    ("utf-16 le, no mark", "f.jsonl", LINES.encode("utf-16-le"), ("f.jsonl", "UTF-16", "as UTF-8")),
    ("utf-16 be, no mark", "f.jsonl", LINES.encode("utf-16-be"), ("f.jsonl", "UTF-16", "as UTF-8")),
    ("utf-32 with mark", "f.json", LINES.encode("utf-32"), ("f.json", "UTF-32", "as UTF-8")),
    ("utf-16 csv", "f.csv", "question,answer\na,b\n".encode("utf-16"), ("f.csv", "UTF-16", "as UTF-8")),
    ("latin-1", "f.jsonl", (LINES + line(answer="caf@")).replace("@", "é").encode("latin-1"),
     ("f.jsonl, line 3", "0xe9", "as UTF-8")),
    ("latin-1 csv", "f.csv", "question,answer\na,b\na,é\n".encode("latin-1"), ("f.csv, line 3", "0xe9")),
    ("a cut sequence", "f.jsonl", LINES.encode() + b'{"question": "\xe2\x82"}', ("f.jsonl, line 3", "0xe2")),
    ("an overlong NUL", "f.jsonl", b'{"question": "\xc0\x80", "answer": "a"}', ("f.jsonl, line 1", "0xc0")),
    ("surrogate in utf-8", "f.jsonl", b'{"question": "\xed\xa0\x80", "answer": "a"}', ("line 1", "0xed")),
    ("escaped surrogate", "f.jsonl", '{"question": "\\ud800", "answer": "a"}', ("line 1", "surrogate")),
    ("NUL byte", "f.jsonl", LINES + '{"question": "a\0b", "answer": "a"}', ("f.jsonl, line 3", "NUL")),
    ("NUL in csv", "f.csv", "question,answer\na,b\0\n", ("f.csv, line 2", "NUL")),
    ("only NUL bytes", "f.jsonl", b"\0" * 4000, ("f.jsonl, line 1", "NUL")),
    ("only a byte order mark", "f.jsonl", b"\xef\xbb\xbf", ("f.jsonl", "is empty")),
    ("two byte order marks", "f.jsonl", b"\xef\xbb\xbf\xef\xbb\xbf" + LINES.encode(), ("line 1", "not valid JSON")),
]  # fmt: skip

SIZES: list[Row] = [
    ("a line of 50 MB", "f.jsonl", huge_line, ("f.jsonl, line 2", "'answer' has 50000000 characters", "text")),
    ("lists 100,000 deep", "f.jsonl", '{"text": ' + "[" * 100_000, ("line 1", "nested too deeply")),
    ("lists 600 deep", "f.jsonl", "[" * 600 + "]" * 600, ("f.jsonl, line 1", "nested too deeply")),
    ("an extra column 300 deep", "f.jsonl", GOOD[:-1] + ', "x": ' + "[" * 300 + "]" * 300 + "}", ("too deeply",)),
    ("objects 90,000 deep", "f.json", '{"a": ' * 90_000, ("f.json, line 1", "nested too deeply")),
    ("an array 500 deep", "f.json", "[" * 500 + "]" * 500, ("f.json", "nested too deeply")),
    ("a number of 9,000 digits", "f.jsonl", '{"text": ' + "9" * 9000 + "}", ("line 1", "cannot be parsed")),
    ("5,000 broken lines", "f.jsonl", "{\n" * 5000, ("f.jsonl, line 20", "more errors")),
    ("Parquet that unpacks to 10 GB", "f.parquet", parquet_bomb, ("f.parquet", "unpacks to", "Split it")),
]  # fmt: skip

JSON: list[Row] = [
    ("a number", "f.jsonl", "5\n", ("f.jsonl, line 1", "a bare value", "Write rows like")),
    ("null", "f.json", "null", ("f.json, line 1", "is null", "Write rows like")),
    ("a string", "f.json", '"text"', ("f.json, line 1", "is a string")),
    ("an array of numbers", "f.json", "[1, 2]", ("f.json, item 1", "f.json, item 2", "a bare value")),
    ("an array in an array", "f.json", f"[[{GOOD}]]", ("f.json, item 1", "is an array")),
    ("an object of columns", "f.json", '{"question": ["a"], "answer": ["b"]}', ("line 1", "type list")),
    ("rows under a key", "f.json", f'{{"data": [{GOOD}]}}', ("f.json, line 1", "'data'", "question/answer")),
    ("cut in the middle", "f.json", f"[{GOOD}, {GOOD[:-5]}", ("f.json", "not valid JSON")),
    ("a comma at the end", "f.jsonl", f"{GOOD},\n", ("line 1", "Extra data", "one JSON object on each line")),
    ("two objects on a line", "f.jsonl", GOOD + GOOD, ("line 1", "Extra data")),
    ("single quotes", "f.jsonl", "{'question': 'a'}", ("line 1", "property name")),
    ("printed over lines", "f.jsonl", json.dumps({"question": "a", "answer": "b"}, indent=1), ("line 1",)),
    ("a key twice", "f.jsonl", '{"answer": "a", "question": "b", "answer": "c"}', ("line 1", "'answer' twice")),
    ("a key twice inside", "f.jsonl", '{"text": "a", "x": [{"k": 1, "k": 2}]}', ("line 1", "'k' twice")),
    ("NaN for a text", "f.jsonl", '{"question": "a", "answer": NaN}', ("line 1", "'answer'", "float")),
    ("a number for a text", "f.jsonl", line(answer=5), ("line 1", "'answer'", "int, not a string")),
    ("true for a text", "f.jsonl", line(question=True), ("line 1", "'question'", "bool, not a string")),
    ("a list for a text", "f.jsonl", line(answer=["Ann"]), ("line 1", "'answer'", "list, not a string")),
    ("an object for a text", "f.jsonl", LINES + line(answer={}), ("line 3", "'answer'", "dict, not")),
    ("a null answer", "f.jsonl", line(answer=None), ("line 1", "'answer' is null", "remove the row")),
    ("both null", "f.jsonl", line(answer=None, question=None), ("'answer' is null", "'question' is null")),
    ("empty", "f.jsonl", line(answer=""), ("line 1", "'answer' is empty")),
    ("white space", "f.jsonl", line(answer=" \t\u2003\n"), ("line 1", "'answer' is empty")),
    ("a page of HTML", "f.jsonl", "<!DOCTYPE html>\n<html>\n", ("line 1", "line 2", "not valid JSON")),
]  # fmt: skip

MESSAGES: list[Row] = [
    ("no list", "f.jsonl", '{"messages": "Who?"}', ("line 1", "'messages' is of type str", "assistant")),
    ("an empty list", "f.jsonl", chat(), ("line 1", "'messages' is empty")),
    ("null", "f.jsonl", '{"messages": null}', ("line 1", "'messages' is null")),
    ("no objects", "f.jsonl", chat("Who?", "Ann"), ("line 1", "message 1", "not an object")),
    ("no role", "f.jsonl", chat({"content": "Who?"}, SAYS), ("message 1", "role None", "user")),
    ("a role of nobody", "f.jsonl", chat({"role": "tool", "content": "x"}, SAYS), ("'tool'", "system, user")),
    ("a role that is a list", "f.jsonl", chat({"role": ["user"], "content": "x"}, SAYS), ("message 1",)),
    ("no content", "f.jsonl", chat(ASKS, {"role": "assistant"}), ("message 2", "is null")),
    ("content in parts", "f.jsonl", chat({"role": "user", "content": [{"type": "text"}]}, SAYS), ("list",)),
    ("nobody answers", "f.jsonl", chat(ASKS), ("line 1", "from 'user'", "End with the answer")),
    ("nobody asks", "f.jsonl", chat(SAYS), ("line 1", "no message comes before")),
    ("an empty answer", "f.jsonl", chat(ASKS, {"role": "assistant", "content": " "}), ("message 2", "empty")),
]  # fmt: skip

CSV: list[Row] = [
    ("semicolons", "f.csv", "question;answer\na;b\n", ("f.csv, line 1", "question;answer", "commas")),
    ("tabs", "f.csv", "question\tanswer\na\tb\n", ("f.csv, line 1", "not a header", "commas")),
    ("ragged, short", "f.csv", "question,answer\na,b\nc\n", ("f.csv, row 2", "1 fields", "has 2")),
    ("ragged, long", "f.csv", "question,answer\na,b,c\n", ("f.csv, row 1", "3 fields", "Quote")),
    ("a quote left open", "f.csv", 'question,answer\na,b\nc,"d\ne,f\n', ("f.csv, line 3", "Close the quotes")),
    ("a quote left open in the header", "f.csv", '"question,answer\na,b\n', ("f.csv, line 1", "Close")),
    ("text behind a quote", "f.csv", 'question,answer\na,"b"c\n', ("f.csv, line 2", "not valid CSV")),
    ("not a header", "f.csv", "Who?,Ann\n", ("f.csv, line 1", "not a header", "question/answer")),
    ("a column twice", "f.csv", "question,answer,answer\na,b,c\n", ("f.csv, line 1", "'answer' twice")),
    ("only a header", "f.csv", "question,answer\n", ("f.csv", "is empty")),
    ("an empty field", "f.csv", 'question,answer\na,b\n"",b\n', ("f.csv, row 2", "'question' is empty")),
    ("capital letters", "f.csv", "Question,Answer\na,b\n", ("f.csv, line 1", "Question, Answer")),
    ("spaces in the header", "f.csv", "question, answer\na,b\n", ("f.csv, row 1", "' answer'", "'answer'")),
]  # fmt: skip

PARQUET: list[Row] = [
    ("a text file renamed", "f.parquet", LINES, ("f.parquet", "not valid Parquet", "Write the file again")),
    ("truncated", "f.parquet", parquet(text=["a"] * 9)[:-20], ("f.parquet", "not valid Parquet")),
    ("cut in front", "f.parquet", parquet(text=["a"] * 9)[30:], ("f.parquet", "not valid Parquet")),
    ("only its mark", "f.parquet", b"PAR1PAR1", ("f.parquet", "not valid Parquet")),
    ("numbers", "f.parquet", parquet(question=["a"], answer=[5]), ("row 1", "'answer'", "int, not a string")),
    ("bytes", "f.parquet", parquet(text=[b"abc"]), ("f.parquet, row 1", "'text'", "bytes, not a string")),
    ("lists", "f.parquet", parquet(text=[["a", "b"]]), ("f.parquet, row 1", "list, not a string")),
    ("objects", "f.parquet", parquet(text=[{"a": "b"}]), ("f.parquet, row 1", "dict, not a string")),
    ("nulls", "f.parquet", parquet(text=["a", None]), ("f.parquet, row 2", "'text' is null")),
    ("other columns", "f.parquet", parquet(q=["a"], a=["b"]), ("f.parquet, row 1", "'q', 'a'", "question")),
    ("no columns", "f.parquet", parquet(), ("f.parquet", "is empty")),
    ("statistics that are malformed", "f.parquet", FUZZED_PARQUET, ("f.parquet", "not valid Parquet", "histogram")),
    ("a pickle in its schema", "f.parquet", pickling_parquet, ("f.parquet, row 1", "'text' is null")),
]  # fmt: skip

NAMES: list[Row] = [
    (name, file, LINES, ("--forget", *says))
    for name, file, says in [
        ("gz", "f.jsonl.gz", ("f.jsonl.gz", "archive", "not unpacked", "Unpack it")),
        ("zip", "f.zip", ("f.zip", "archive", "Unpack it")),
        ("tar", "f.tar", ("f.tar", "archive", "Unpack it")),
        ("zst", "f.csv.zst", ("f.csv.zst", "archive")),
        ("pickle", "f.pkl", ("f.pkl", ".jsonl, .json, .csv, .parquet")),
        ("excel", "f.xlsx", ("f.xlsx", ".csv")),
        ("tsv", "f.tsv", ("f.tsv", ".csv")),
        ("arrow", "f.arrow", ("f.arrow", ".parquet")),
        ("no extension", "f", ("f:", "no extension")),
    ]
]

DATA = {
    "encoding": ENCODINGS, "size": SIZES, "JSON": JSON, "messages": MESSAGES, "CSV": CSV,
    "Parquet": PARQUET, "file name": NAMES,
}  # fmt: skip
