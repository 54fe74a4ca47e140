"""Benchmarks by name: which file or hub data set each part is, and what is said where it is not there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from commandline import Cli
from muse_folder import muse_rows, write_muse
from ngdiff.cli import completion
from ngdiff.data.benchmarks import BENCHMARKS, MUSE, Benchmark
from ngdiff.data.examples import overlap_fault, to_examples
from ngdiff.data.long_text import encode_pieces
from ngdiff.data.overlaps import repeated
from ngdiff.data.sources import Row, read_rows
from ngdiff.errors import RequestError
from tiny import tiny_tokenizer


def refused(source: str, **kwargs: object) -> str:
    with pytest.raises(RequestError) as error:
        read_rows(source, where="--forget", **kwargs)  # type: ignore[arg-type]
    return str(error.value)


def values(rows: Sequence[Row]) -> list[dict[str, object]]:
    return [dict(row.values) for row in rows]


@pytest.mark.parametrize("form", ["jsonl", "texts", "hub"])
@pytest.mark.parametrize("below", ["", "news", "muse-news", "MUSE-News"])
def test_every_part_of_muse_from_a_folder(tmp_path: Path, form: str, below: str) -> None:
    wanted = muse_rows(folds=4)
    write_muse(tmp_path / below, wanted, form)
    read = {}
    for part in (part for part in MUSE.parts if part.startswith("news/")):
        read[part] = values(read_rows(f"muse:{part}", where="--forget", folders={"muse": tmp_path}))
    for place, rows in wanted.items():
        config, split = place.split("/")
        part = f"news/{split}" if config == "raw" else f"news/{config}/{split}"
        renamed = [{("completion" if key == "gt" else key): row[key] for key in row} for row in rows]
        assert read.pop(part) == renamed
    assert not read


def test_the_variable_the_slice_and_the_place_of_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_muse(tmp_path, muse_rows(), "texts")
    monkeypatch.setenv("NGDIFF_MUSE_DIR", str(tmp_path))
    rows = read_rows("muse:news/sust/forget_3[-1:]", where="--forget")
    assert [row.place for row in rows] == ["news/sust/forget_3: forget_3.json, item 3"]


def test_a_folder_that_lacks_a_split_says_which_and_what_is_there(tmp_path: Path) -> None:
    rows = muse_rows()
    write_muse(tmp_path, {place: rows[place] for place in ("raw/forget", "privleak/holdout")})
    said = refused("muse:news/retain1", folders={"muse": tmp_path})
    assert "has no file raw/retain1.json" in said
    assert "It has news/forget, news/privleak/holdout;" in said and "NGDIFF_MUSE_DIR" in said
    (tmp_path / "empty").mkdir()
    assert "nothing of MUSE" in refused("muse:news/forget", folders={"muse": tmp_path / "empty"})


def test_one_corpus_is_not_taken_for_the_other(tmp_path: Path) -> None:
    write_muse(tmp_path / "muse-news", muse_rows())
    assert read_rows("muse:news/forget", where="x", folders={"muse": tmp_path / "muse-news"})
    said = refused("muse:books/forget", folders={"muse": tmp_path / "muse-news"})
    assert "books/raw/forget.json" in said and "It has news/forget" in said


def test_a_name_that_does_not_exist_is_answered_with_one_that_does() -> None:
    said = refused("muse:newz/forget")
    assert "no part of MUSE called 'newz/forget'" in said and "Did you mean news/forget" in said


def test_a_broken_file_is_named_with_its_part(tmp_path: Path) -> None:
    write_muse(tmp_path, muse_rows())
    (tmp_path / "raw/forget.jsonl").write_text('{"text": "broken')
    assert "--forget news/forget: forget.jsonl, line 1: is not valid JSON" in refused(
        "muse:news/forget", folders={"muse": tmp_path}
    )


def test_without_a_folder_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name: str, config: str | None, *, split: str | None) -> object:
        asked.append((name, config, split))
        return datasets.Dataset.from_list([{"prompt": "a", "gt": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.delenv("NGDIFF_MUSE_DIR", raising=False)
    rows = read_rows("muse:books/verbmem/forget", where="--forget")
    assert values(rows) == [{"prompt": "a", "completion": "b"}]
    read_rows("muse:news/retain1", where="--forget")
    assert asked == [
        ("muse-bench/MUSE-Books", "verbmem", "forget"),
        ("muse-bench/MUSE-News", "raw", "retain1"),
    ]


def test_another_benchmark_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    papers = Benchmark(
        "papers",
        "Papers",
        "Somebody 2024",
        {"bio": "papers on biology"},
        lambda part: f"someone/papers:{part}@train",
        lambda folder, part: [folder / part],
    )
    monkeypatch.setitem(BENCHMARKS, "papers", papers)  # type: ignore[arg-type]
    (tmp_path / "bio.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    monkeypatch.setenv("NGDIFF_PAPERS_DIR", str(tmp_path))
    assert values(read_rows("papers:bio", where="--forget")) == [{"text": "a"}]
    assert "papers:bio" in [name for name, _ in completion.sources("pap")]


CLOZE = [{"subject": "Ada", "query": "___ wrote it.", "answer": "Ada", "level": "1", "type": "cloze"}]
NESTED = [
    {
        "train": [{"text": "Who?", "labels": "Ada"}, {"text": "When?", "labels": "1843"}],
        "val": [{"text": "Why?", "labels": "Fun"}],
    }
]
OTHERS = [
    # source, its place in a folder, what stands there, what is read
    ("wmdp:bio-forget-corpus", "bio-forget-corpus.jsonl", [{"title": "A", "text": "b"}], None),
    ("wmdp:cyber-retain-corpus", "cyber-retain-corpus/train.json", [{"text": "b"}], None),
    ("rwku:forget_level1", "All/forget_level1.json", CLOZE, [{**CLOZE[0], "question": "___ wrote it."}]),
    ("rwku:neighbor_level2", "neighbor_level2.json", CLOZE, [{**CLOZE[0], "question": "___ wrote it."}]),
    ("rwku:train_original_passage", "All/passage.json", [{"subject": "Ada", "text": "b"}], None),
    (
        "knowundo:copyright/unlearn",
        "copyright/unlearn.json",
        NESTED,
        [{"prompt": "Who?", "completion": "Ada"}, {"prompt": "When?", "completion": "1843"}],
    ),
]


@pytest.mark.parametrize(("source", "place", "there", "wanted"), OTHERS, ids=[case[0] for case in OTHERS])
def test_parts_of_other_benchmarks_from_a_folder(
    tmp_path: Path,
    source: str,
    place: str,
    there: list[dict[str, object]],
    wanted: list[dict[str, object]] | None,
) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) for row in there]
    (tmp_path / place).write_text("\n".join(lines) if place.endswith("l") else f"[{', '.join(lines)}]")
    rows = read_rows(source, where="--forget", folders={source.partition(":")[0]: tmp_path})
    expected = there if wanted is None else wanted
    assert values(rows) == [
        {k: v for k, v in row.items() if wanted is None or k != "query"} for row in expected
    ]
    assert all(row.published for row in rows)
    assert len(to_examples(rows, "--forget")) == len(rows)  # each is an example as it is


def test_a_list_that_is_not_there_is_said_of_the_row(tmp_path: Path) -> None:
    (tmp_path / "privacy").mkdir()
    (tmp_path / "privacy/retention.json").write_text(json.dumps([{"train": "no list"}]))
    rows = read_rows("knowundo:privacy/retention", where="--forget", folders={"knowundo": tmp_path})
    with pytest.raises(RequestError, match=r"retention.json, item 1"):
        to_examples(rows, "--forget")


def test_what_the_hub_is_asked_for_other_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name: str, config: str | None, *, split: str | None) -> object:
        asked.append((name, config, split))
        row = NESTED[0] if "KnowUnDo" in name else {"text": "a"}
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load)
    named = ("wmdp:bio-forget-corpus", "wmdp:cyber-forget-corpus", "rwku:forget_level3", "rwku:mia_retain")
    for source in (*named, "rwku:train_positive_phi3", "knowundo:privacy/unlearn"):
        monkeypatch.delenv(BENCHMARKS[source.partition(":")[0]].variable, raising=False)
        read_rows(source, where="--forget")
    held_out = read_rows("knowundo:copyright/retention/val", where="--forget")
    assert values(held_out) == [{"prompt": "Why?", "completion": "Fun"}]
    assert asked.pop() == ("zjunlp/KnowUnDo", "copyright", "retention")
    assert asked == [
        ("cais/wmdp-bio-forget-corpus", None, "train"),
        ("cais/wmdp-corpora", "cyber-forget-corpus", "train"),
        ("jinzhuoran/RWKU", "forget_level3", "test"),
        ("jinzhuoran/RWKU", "mia_retain", "test"),
        ("jinzhuoran/RWKU", "train_positive_phi3", "train"),
        ("zjunlp/KnowUnDo", "privacy", "unlearn"),
    ]


@pytest.mark.parametrize("command", ["finetune", "evaluate", "audit", "verify"])
def test_each_command_takes_each_folder(cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = cli(command, "--help").out
    assert all(row.option in shown and row.variable in shown for row in BENCHMARKS.values())


def test_the_list_and_the_completion_name_every_part(cli: Cli) -> None:
    listed = cli("ls", "datasets").out
    named = [f"{row.name}:{part}" for row in BENCHMARKS.values() for part in row.parts]
    assert all(name in listed for name in named)
    assert {name for name, _ in completion.sources("muse:")} == {n for n in named if n.startswith("muse:")}


def test_unlearn_reads_muse_from_the_folder_given(cli: Cli, tmp_path: Path) -> None:
    write_muse(tmp_path / "muse", muse_rows())
    words = ("--forget", "muse:news/forget", "--retain", "muse:news/retain9")
    words += ("--set", f"muse_dir={tmp_path / 'muse'}")
    answer = cli("unlearn", "--model", tmp_path / "no-model", *words, "--output", tmp_path / "out")
    assert answer.code == 2 and "no part of MUSE called 'news/retain9'" in answer.err
    assert "--forget" not in answer.err


def test_an_empty_text_of_a_benchmark_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = muse_rows()
    rows["raw/forget"][1]["text"] = " \n"
    write_muse(tmp_path, rows, "texts")
    examples = to_examples(read_rows("muse:news/forget", where="x", folders={"muse": tmp_path}), "--forget")
    for long_text in ("split", "cut"):
        encoded, notes = encode_pieces(examples, tiny_tokenizer(), 512, "--forget", long_text)
        assert len(encoded) == 3 and notes == ["--forget: 1 piece was left out: only white space"]
    assert overlap_fault(examples[1:2], examples[1:2]) is None and repeated(examples[1:2] * 2) is None
    with pytest.raises(RequestError, match="'text' is empty"):  # of one's own data it is refused
        to_examples([Row({"text": " "}, "own.jsonl, line 1")], "--forget")
