"""Columns of other names: Alpaca's and ShareGPT's are recognised, others are mapped, bad mappings refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from commandline import write_jsonl
from ngdiff.cli.settings import gather
from ngdiff.data.examples import data_hash, to_examples
from ngdiff.data.files import Row
from ngdiff.data.layouts import parse_columns
from ngdiff.data.sources import is_local, path_fault, read_rows, source_path, with_columns
from ngdiff.errors import RequestError


def one(values: dict[str, Any]) -> Any:
    return to_examples([Row(values, "row 1")], "--forget")[0]


def faults(values: dict[str, Any]) -> str:
    with pytest.raises(RequestError) as raised:
        one(values)
    return str(raised.value)


def test_alpaca_is_the_question_with_its_input() -> None:
    whole = one({"instruction": "Translate.", "input": "Katze", "output": "cat", "text": "all", "id": 3})
    plain = one({"question": "Translate.\n\nKatze", "answer": "cat"})
    assert (whole.kind, whole.messages) == ("qa", plain.messages)
    assert data_hash([whole]) == data_hash([plain]) and whole.extra["id"] == 3
    without = one({"instruction": "Who?", "input": "", "output": "Ann"})
    assert without.messages == one({"question": "Who?", "answer": "Ann"}).messages


def test_sharegpt_is_a_conversation() -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Who?"},
        {"from": "gpt", "value": "Ann."},
    ]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Ann."},
    ]
    assert one({"conversations": turns}).messages == one({"messages": messages}).messages
    assert one({"conversations": messages}).messages == one({"messages": messages}).messages


def test_faults_name_the_columns_of_the_data() -> None:
    assert "'output' is null" in faults({"instruction": "Who?", "output": None})
    assert "'conversations' is null" in faults({"conversations": None})
    assert "the role 'tool'" in faults({"conversations": [{"from": "tool", "value": "x"}]})
    assert "--columns question=instruction,answer=output" in faults({"q": "Who?", "a": "Ann"})


def test_known_columns_come_first() -> None:
    both = one({"instruction": "no", "output": "no", "question": "Who?", "answer": "Ann"})
    assert both.answer == "Ann"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("question=q,answer=a", "qa"),
        ("prompt=q, answer=a", "qa"),
        ("prompt=q,completion=a", "completion"),
        ("text=a", "text"),
    ],
)
def test_columns_are_mapped(text: str, kind: str, tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "f.jsonl", [{"q": "Who?", "a": f"Ann {n}", "text": "no", "n": n} for n in range(4)]
    )
    source = f"{tmp_path / 'f.jsonl'}{{{text}}}[1:]"
    examples = to_examples(read_rows(source, where="--forget"), "--forget")
    assert [example.kind for example in examples] == [kind] * 3
    assert [example.answer for example in examples] == ["Ann 1", "Ann 2", "Ann 3"]
    assert examples[0].extra["n"] == 1
    assert source_path(source) == str(tmp_path / "f.jsonl")
    assert is_local(source) and path_fault(source, "--forget") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("question", "does not map"),
        ("question=,answer=a", "does not map"),
        ("questoin=q,answer=a", "Did you mean question"),
        ("question=q,question=a", "mapped twice"),
        ("question=q", "not the columns of one kind"),
        ("text=a,answer=b", "not the columns of one kind"),
        ("prompt=a,question=b", "not the columns of one kind"),
    ],
)
def test_bad_mappings_are_refused(text: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        parse_columns(text)


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", [{"q": "Who?", "a": "Ann"}])
    with pytest.raises(RequestError) as raised:
        read_rows(f"{path}{{question=query,answer=a}}", where="--forget")
    shown = str(raised.value)
    assert "--forget f.jsonl, line 1" in shown and "no column 'query'" in shown and "'q', 'a'" in shown


def test_the_flag_goes_to_every_source_of_own_data(tmp_path: Path) -> None:
    written = {"question": "q", "answer": "a"}
    assert with_columns("f.jsonl", written) == "f.jsonl{question=q,answer=a}"
    assert with_columns("f.jsonl[-9:]", written) == "f.jsonl{question=q,answer=a}[-9:]"
    for other in ("tofu:forget01", "ngdiff:general", "f.jsonl{text=a}", "f.jsonl{text=a}[:2]"):
        assert with_columns(other, written) == other
    flags = {"model": "m", "output": "o", "forget": ["f.csv"], "retain": "r.csv", "keep": ["tofu:forget01"]}
    given, wrong = gather(None, [], flags | {"columns": "question=q,answer=a"})
    assert not wrong and "columns" not in given
    assert given["forget"] == ["f.csv{question=q,answer=a}"] and given["keep"] == ["tofu:forget01"]
    _, wrong = gather(None, [], flags | {"columns": "question"})
    assert [fault.where for fault in wrong] == ["--columns"]
    request = tmp_path / "request.yaml"
    request.write_text("columns: {question: q, answer: a}", encoding="utf-8")
    assert gather(request, [], flags)[0]["retain"] == ["r.csv{question=q,answer=a}"]
