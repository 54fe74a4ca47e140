"""Sources: what is read from each format, and what each fault says."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngdiff.data.benchmarks import TOFU
from ngdiff.data.sources import Row, read_rows
from ngdiff.errors import RequestError
from ngdiff.invented.people import general_knowledge_rows

QA = [{"question": "Who?", "answer": "Ann, née Ö."}, {"question": 'A "b",\nc?', "answer": "line\u2028sep"}]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        path.write_bytes("".join(lines).encode())
    return path


def values(rows: list[Row]) -> list[dict[str, object]]:
    return [dict(row.values) for row in rows]


def faults(source: Path | str, **kwargs: object) -> str:
    with pytest.raises(RequestError) as caught:
        read_rows(str(source), where="--forget", **kwargs)
    assert all(fault.where.startswith("--forget") and fault.fix for fault in caught.value.faults)
    return str(caught.value)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "JSONL"])
def test_formats_read_alike(tmp_path: Path, ending: str) -> None:
    rows = read_rows(str(write(tmp_path / f"forget.{ending}", QA)), where="--forget")
    assert values(rows) == QA
    unit = {"json": "item", "csv": "row", "parquet": "row"}.get(ending, "line")
    assert rows[1].place == f"forget.{ending}, {unit} 2"


# Everything but surrogates (no UTF-8) and NUL (refused in text files).
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
extras = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.lists(texts, max_size=2))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.fixed_dictionaries({"question": texts, "answer": texts}), min_size=1, max_size=4))
def test_round_trip(rows: list[dict[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("jsonl", "json", "csv", "parquet"):
            assert values(read_rows(str(write(Path(folder, f"x.{ending}"), rows)), where="--x")) == rows


@settings(max_examples=30, deadline=None)
@given(st.lists(st.dictionaries(texts, extras, min_size=1, max_size=3), min_size=1, max_size=3))
def test_json_round_trip_of_any_columns(rows: list[dict[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("jsonl", "json"):
            assert values(read_rows(str(write(Path(folder, f"x.{ending}"), rows)), where="--x")) == rows


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=60), st.sampled_from(["jsonl", "json", "csv", "parquet"]))
def test_any_bytes_give_rows_or_faults(raw: bytes, ending: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x.{ending}")
        path.write_bytes(raw)
        try:
            assert read_rows(str(path), where="--forget")
        except RequestError as error:
            assert all(f.where.startswith("--forget x.") for f in error.faults)


def test_json_lines_in_a_json_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", QA).rename(tmp_path / "a.json")
    assert values(read_rows(str(path), where="--forget")) == QA
    assert read_rows(str(path), where="--forget")[1].place == "a.json, line 2"


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_byte_order_mark_and_windows_line_ends(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a.{ending}", QA[:1])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert values(read_rows(str(path), where="--forget")) == QA[:1]


def test_folder_is_read_by_name(tmp_path: Path) -> None:
    write(tmp_path / "b.csv", QA[1:])
    write(tmp_path / "a.jsonl", QA[:1])
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".hidden.jsonl").write_text("broken")
    rows = read_rows(str(tmp_path), where="--forget")
    assert values(rows) == QA
    assert [row.place for row in rows] == ["a.jsonl, line 1", "b.csv, row 1"]


@pytest.mark.parametrize(
    ("suffix", "span"),
    [
        ("[1:]", slice(1, None)),
        ("[:2]", slice(2)),
        ("[-2:]", slice(-2, None)),
        ("[1:-1]", slice(1, -1)),
        ("[:]", slice(None)),
    ],
)
def test_slices(tmp_path: Path, suffix: str, span: slice) -> None:
    data = [{"text": str(n)} for n in range(5)]
    path = write(tmp_path / "a.jsonl", data)
    assert values(read_rows(f"{path}{suffix}", where="--forget")) == data[span]


def test_slices_that_are_wrong(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", QA)
    assert "leaves none of 2 rows" in faults(f"{path}[5:]")
    assert "[3] is no slice" in faults(f"{path}[3]")
    assert f"{path}[start:stop]" in faults(f"{path}[1:2:3]")


def test_a_file_name_may_end_in_brackets(tmp_path: Path) -> None:
    (tmp_path / "odd[1:]").mkdir()
    write(tmp_path / "odd[1:]" / "a.jsonl", QA)
    assert len(read_rows(str(tmp_path / "odd[1:]"), where="--forget")) == 2


def test_missing_file_suggests_names(tmp_path: Path) -> None:
    write(tmp_path / "forget.jsonl", QA)
    text = faults(tmp_path / "forgot.jsonl")
    assert "there is no file" in text and "Did you mean" in text and "forget.jsonl" in text
    assert "nor a folder" in faults(tmp_path / "nowhere" / "a.jsonl")
    assert "forget.jsonl" in faults(tmp_path / "zzz.csv")
    assert "--forget: is empty" in faults(" ")
    assert "there is no file" in faults("x" * 5000)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("raw", [b"", b" \n\n"])
def test_empty_file(tmp_path: Path, ending: str, raw: bytes) -> None:
    (tmp_path / f"a.{ending}").write_bytes(raw)
    assert f"--forget a.{ending}: is empty" in faults(tmp_path / f"a.{ending}")


def test_files_without_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "a.csv").write_text("question,answer\n")
    nothing = pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(nothing, tmp_path / "a.parquet")
    text = faults(tmp_path)
    assert all(f"--forget a.{ending}: is empty" in text for ending in ("json", "csv", "parquet"))


def test_folder_without_data(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert "has no data files" in faults(tmp_path) and ".parquet" in faults(tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a.pkl", "a"])
def test_unknown_extension(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"text": "x"}')
    text = faults(tmp_path / name)
    assert f"--forget {name}:" in text and "Use one of .jsonl, .json, .csv, .parquet" in text


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.ZIP", "data/a.csv.zst"])
def test_archives_are_never_opened(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"anything")
    source = path.parent if path.parent.name == "data" else path  # in a folder it must not be passed over
    text = faults(source)
    assert f"--forget {path.name}: is packed ({path.suffix})" in text and "Unpack it" in text


def test_every_broken_line_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "ok"}\n{"text": \n[1]\n"word"\n\n{"text": "a", "text": "b"}\n'
        '{"m": [{"k": 1, "k": 2}]}\nnull\n3\n'
    )
    text = faults(path)
    assert "--forget a.jsonl, line 2: is broken JSON" in text and "one JSON object on each line" in text
    assert "line 3: is an array, not a JSON object" in text
    assert "line 4: is a string" in text
    assert "line 6: has the key 'text' twice" in text
    assert "line 7: has the key 'k' twice" in text
    assert "line 8: is null" in text and "line 9: is a bare value" in text


def test_faults_in_a_json_array(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "ok"}, 3, {"a": {"b": 1, "b": 1}}]')
    text = faults(path)
    assert "a.json, item 2: is a bare value" in text and "a.json, item 3: has the key 'b' twice" in text
    path.write_text('[{"text": "ok"},\n {"text": }]')
    assert "a.json: is broken JSON" in faults(path) and "line 2 column 11" in faults(path)


def test_json_that_breaks_parsers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("[" * 200_000 + "\n" + '{"n": ' + "9" * 5000 + "}\n")
    text = faults(path)
    assert "line 1: is JSON nested too deeply" in text or "line 1: is broken JSON" in text
    assert "line 2: is JSON that cannot be read" in text


def test_many_faults_are_capped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("x\n" * 50)
    with pytest.raises(RequestError) as caught:
        read_rows(str(path), where="--forget")
    assert len(caught.value.faults) == 21
    assert "has 30 faults more" in str(caught.value)


def test_faults_of_several_files_come_together(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("x\n")
    (tmp_path / "b.csv").write_text("question,answer\nonly one\n")
    text = faults(tmp_path)
    assert "a.jsonl, line 1" in text and "b.csv, row 1: has 1 fields where the header has 2" in text


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_not_utf8(tmp_path: Path, ending: str, mark: bytes) -> None:
    path = tmp_path / f"a.{ending}"
    raw = mark + b'text\n"' + "caf\xe9".encode("latin-1") + b'"\n'
    path.write_bytes(raw)
    text = faults(path)
    assert f"a.{ending}, line 2: is not UTF-8 (byte 0xe9 at offset {raw.index(0xE9)})" in text
    assert "Save the file as UTF-8" in text


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_nul_bytes(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a.{ending}").write_bytes(b"text\nab\0c\n")
    assert f"a.{ending}, line 2: holds a NUL byte" in faults(tmp_path / f"a.{ending}")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (
            "Who is it?,A cat\nWho?,Ann\n",
            "line 1: is no header with columns known here (found: Who is it?, A",
        ),
        ("question;answer\na;b\n", "line 1: is no header"),
        ("question,answer,answer\na,b,c\n", "line 1: has the column 'answer' twice"),
        ("question,answer\na,b,c\n", "row 1: has 3 fields where the header has 2"),
        ('question,answer\na,"b\n', "is broken CSV"),
        ('question,answer\na,"b" c\n', "is broken CSV"),
    ],
)
def test_csv_faults(tmp_path: Path, raw: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(raw)
    assert said in faults(tmp_path / "a.csv")


def test_csv_field_longer_than_the_modules_limit(tmp_path: Path) -> None:
    limit, long = csv.field_size_limit(), "word " * 40_000
    assert len(long) > limit
    path = write(tmp_path / "a.csv", [{"text": long}])
    assert values(read_rows(str(path), where="--forget")) == [{"text": long}]
    assert csv.field_size_limit() == limit


def test_broken_parquet(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", QA)
    path.write_bytes(path.read_bytes()[:-9])
    assert "--forget a.parquet: is broken Parquet" in faults(path)
    twins = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(twins, path)
    assert "columns of the same name (text, text)" in faults(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser reads any file")
def test_unreadable_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", QA)
    path.chmod(0)
    assert "--forget a.jsonl: cannot be read: Permission denied" in faults(path)


def test_file_that_fails_to_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", QA)

    def refuse(self: Path, mode: str) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "--forget a.jsonl: cannot be read: Permission denied" in faults(path)


def test_tofu_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.jsonl", QA).rename(tmp_path / "forget10.json")
    assert values(read_rows("tofu:forget10", where="--forget", folders={"tofu": tmp_path})) == QA
    monkeypatch.setenv("NGDIFF_TOFU_DIR", str(tmp_path))
    assert values(read_rows("tofu:forget10[-1:]", where="--forget")) == QA[1:]
    text = faults("tofu:full")
    assert "has no file full.json" in text and "It has forget10" in text and "NGDIFF_TOFU_DIR" in text


def test_unknown_tofu_name() -> None:
    text = faults("tofu:forgett10")
    assert "no part of TOFU called 'forgett10'" in text and "forget10" in text


def test_shipped_text_comes_with_the_package_and_takes_a_slice() -> None:
    rows = read_rows("ngdiff:general", where="--retain")
    assert len(rows) > 200 and {frozenset(row.values) for row in rows} == {frozenset({"question", "answer"})}
    questions = [str(row.values["question"]).casefold() for row in rows]
    assert len(set(questions)) == len(rows)
    assert values(read_rows("ngdiff:general[:2]", where="--retain")) == [row.values for row in rows[:2]]
    assert rows[1].place == "ngdiff:general, row 2"
    assert "no data set of NGDiff called 'generl'" in faults("ngdiff:generl")


def test_shipped_text_holds_nothing_that_is_measured() -> None:
    asked = {str(row.values["question"]).casefold() for row in read_rows("ngdiff:general", where="--retain")}
    measured = {str(row["question"]).casefold() for row in general_knowledge_rows()}
    assert not asked & measured


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[object, ...]] = []
    split = datasets.Dataset.from_list(QA)

    def load(name: str, config: str | None, *, split: str | None) -> object:
        asked.append((name, config, split))
        if name == "no/thing":
            raise FileNotFoundError("Dataset 'no/thing' doesn't exist.\nmore")
        if name == "many/splits":
            return {"test": None, "dev": None}
        return loaded if split else {"train": loaded, "test": None}

    loaded = split
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.delenv("NGDIFF_TOFU_DIR", raising=False)
    assert values(read_rows("some/set", where="--forget")) == QA
    rows = read_rows("some/set:part-1@test[1:]", where="--forget")
    assert values(rows) == QA[1:] and rows[0].place == "some/set:part-1@test, row 2"
    read_rows("tofu:forget01", where="--forget")
    assert asked == [
        ("some/set", None, None),
        ("some/set", "part-1", "test"),
        ("locuslab/TOFU", "forget01", "train"),
    ]
    assert "could not be loaded as a hub dataset (Dataset 'no/thing' doesn't exist)" in faults("no/thing")
    assert "has the splits test, dev" in faults("many/splits")
    loaded = split.select([])
    assert "is empty" in faults("some/set")


@pytest.mark.tofu
@pytest.mark.skipif(not os.environ.get("NGDIFF_TOFU_DIR"), reason="NGDIFF_TOFU_DIR is not set")
def test_real_tofu() -> None:
    def read(name: str) -> list[dict[str, object]]:
        return values(read_rows(f"tofu:{name}", where="--forget"))

    assert read("full") == read("retain90") + read("forget10") and len(read("full")) == 4000
    there = [name for name in TOFU.parts if Path(os.environ["NGDIFF_TOFU_DIR"], f"{name}.json").is_file()]
    assert all(set(read(name)[0]) >= {"question", "answer"} for name in there)
    assert len(read("forget10_perturbed")[0]["perturbed_answer"]) == 5  # type: ignore[arg-type]
    asked = {str(row.values["question"]).casefold() for row in read_rows("ngdiff:general", where="--retain")}
    assert not asked & {str(row["question"]).casefold() for name in there for row in read(name)}


@pytest.mark.parametrize("kind", [ConnectionError, RuntimeError, Exception])  # httpx raises bare ones
def test_a_hub_out_of_reach_is_said(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    datasets = pytest.importorskip("datasets")

    def load(*_: object, **__: object) -> object:
        raise kind("no route to the hub\nand much more")

    monkeypatch.setattr(datasets, "load_dataset", load)
    text = faults("some/set")
    assert "could not be loaded as a hub dataset (no route to the hub)" in text and "connection" in text
