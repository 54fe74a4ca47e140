from __future__ import annotations

import json
from pathlib import Path

import pytest

from muse_folder import muse_rows, write_muse
from ngdiff.data.encoding import encode_all
from ngdiff.data.examples import Example
from ngdiff.data.muse_corpus import COLUMNS, read_split
from ngdiff.errors import RequestError
from ngdiff.evaluation.suites.muse import passage_examples, question_examples, read_muse
from tiny import tiny_tokenizer


@pytest.mark.parametrize("form", ["jsonl", "texts", "hub"])
def test_every_split_in_every_layout(tmp_path: Path, form: str) -> None:
    wanted = muse_rows()
    write_muse(tmp_path, wanted, form)
    for place, rows in wanted.items():
        config, split = place.split("/")
        found = read_split(str(tmp_path), config, split)
        assert [dict(row.values) for row in found] == rows
        assert found[0].place.startswith(f"{config}/{split}")
    assert {place.split("/")[0] for place in wanted} == set(COLUMNS)


def test_all_faults_of_all_splits_at_once(tmp_path: Path) -> None:
    rows = muse_rows()
    del rows["privleak/holdout"]
    rows["verbmem/forget"][1]["gt"] = " "
    rows["knowmem/forget_qa"] = [{"query": "?", "answer": "x"}]
    write_muse(tmp_path, rows)
    (tmp_path / "knowmem/retain_qa.jsonl").write_text('{"question": "broken')
    with pytest.raises(RequestError) as error:
        read_muse(str(tmp_path), "--data")
    said = [str(fault) for fault in error.value.faults]
    assert len(said) == 4
    for expected in (
        "has no file privleak/holdout{.jsonl,.json,.csv,.parquet}",
        "--data verbmem/forget.jsonl, line 2: 'gt' is empty",
        "knowmem/forget_qa.jsonl, line 1: lacks the column 'question' (found: 'query', 'answer')",
        "knowmem/retain_qa.jsonl, line 1: is broken JSON",
    ):
        assert sum(expected in line for line in said) == 1, expected


def test_short_names_are_data_sets_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    monkeypatch.delenv("NGDIFF_MUSE_DIR", raising=False)

    def no_hub(source: str, *, where: str) -> list[object]:
        asked.append(source)
        return []

    monkeypatch.setattr("ngdiff.data.muse_corpus.read_rows", no_hub)
    read_split("news", "knowmem", "forget_qa")
    read_split("books", "verbmem", "forget")
    read_split("someone/else", "raw", "forget")
    assert asked == [
        "muse-bench/MUSE-News:knowmem@forget_qa",
        "muse-bench/MUSE-Books:verbmem@forget",
        "someone/else:raw@forget",
    ]


def test_the_papers_prompt_for_base_models(tmp_path: Path) -> None:
    rows = muse_rows()
    shots, questions = rows["knowmem/forget_qa_icl"], rows["knowmem/forget_qa"]
    write_muse(tmp_path, rows)
    data = read_muse(str(tmp_path))
    example = question_examples(data.questions["forget"], data.shots["forget"], chat=False)[1]
    expected = (
        f"Question: {shots[0]['question']}\nAnswer: {shots[0]['answer']}\n\n"
        f"Question: {shots[1]['question']}\nAnswer: {shots[1]['answer']}\n\n"
        f"Question: {questions[1]['question']}\nAnswer: "
    )
    assert (example.prompt, example.answer) == (expected, questions[1]["answer"])


def test_chat_models_see_solved_examples_as_turns(tmp_path: Path) -> None:
    data = read_muse(str(write_muse(tmp_path, muse_rows())))
    example = question_examples(data.questions["retain"], data.shots["retain"], chat=True)[0]
    assert [m.role for m in example.messages] == ["user", "assistant"] * 3
    assert example.messages[4].content == data.questions["retain"][0].values["question"]


def test_a_space_parts_passage_and_continuation_unless_there_is_one(tmp_path: Path) -> None:
    rows = muse_rows()
    rows["verbmem/forget"] = [
        {"prompt": "the cat", "gt": "sat"},
        {"prompt": "the cat ", "gt": "sat"},
        {"prompt": "the cat", "gt": "\nsat"},
    ]
    data = read_muse(str(write_muse(tmp_path, rows)))
    whole = [e.messages[0].content + e.answer for e in passage_examples(data.passages)]
    assert whole == ["the cat sat", "the cat sat", "the cat\nsat"]


def test_excerpts_have_no_end_token() -> None:
    tokenizer = tiny_tokenizer(None)
    example = Example((), "the cat sat", "text", "row 1")
    (ended,) = encode_all([example], tokenizer, 99, "here")
    (open_ended,) = encode_all([example], tokenizer, 99, "here", end_token=False)
    assert ended.input_ids == (*open_ended.input_ids, tokenizer.eos_token_id)
    assert open_ended.labels == ended.labels[:-1]


def test_a_json_file_that_is_no_array_of_texts_gets_the_ordinary_fault(tmp_path: Path) -> None:
    write_muse(tmp_path, muse_rows())
    (tmp_path / "raw/forget.jsonl").unlink()
    (tmp_path / "raw/forget.json").write_text(json.dumps(["a text", 3]))
    with pytest.raises(RequestError, match=r"raw/forget.json, item 1: is a string, not a JSON object"):
        read_split(str(tmp_path), "raw", "forget")
