"""Examples: which columns are recognised, which contents are refused, what counts as the same row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngdiff.data.examples import Example, Message, data_hash, overlap_fault, to_examples
from ngdiff.data.sources import Row
from ngdiff.errors import RequestError

CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}]


def example(**values: object) -> Example:
    return to_examples([Row(values, "a.jsonl, line 1")], "--forget")[0]


def faults(*rows: dict[str, object]) -> str:
    with pytest.raises(RequestError) as caught:
        to_examples([Row(values, f"a.jsonl, line {n}") for n, values in enumerate(rows, 1)], "--forget")
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "kind", "prompt", "answer"),
    [
        ({"question": "Who?", "answer": "Ann."}, "qa", "Who?", "Ann."),
        ({"prompt": "Who?", "completion": "Ann."}, "completion", "Who?", "Ann."),
        ({"messages": CHAT}, "chat", "Who?", "Ann."),
        ({"messages": [{"role": "system", "content": ""}, *CHAT]}, "chat", "\nWho?", "Ann."),
        ({"text": "Ann."}, "text", "", "Ann."),
    ],
)
def test_columns(values: dict[str, object], kind: str, prompt: str, answer: str) -> None:
    found = example(**values)
    assert (found.kind, found.prompt, found.answer) == (kind, prompt, answer)
    assert found.place == "a.jsonl, line 1" and found.extra == {}
    assert (found.text is None) == bool(found.messages)


def test_order_and_extra_columns() -> None:
    found = example(text="t", answer="a", question="q", perturbed_answer=["x", "y"], id=3)
    assert found.kind == "qa" and found.messages == (Message("user", "q"), Message("assistant", "a"))
    assert found.extra == {"text": "t", "perturbed_answer": ["x", "y"], "id": 3}
    assert example(messages=CHAT, question="q", answer="a").kind == "chat"
    hash(found)


def test_null_columns_give_way() -> None:
    """Parquet files put together from several forms have nulls where a row has another form."""
    assert example(messages=None, question="q", answer="a").kind == "qa"
    assert "'question' is null" in faults({"question": None, "answer": None})


def test_wrong_columns_are_counted_once() -> None:
    text = faults(*[{"input": "a", "output": "b"}] * 3, {"question": "q"})
    assert "--forget a.jsonl, line 1: the columns ('input', 'output') are not" in text and "in 3 rows" in text
    assert "messages, question/answer, prompt/completion, text" in text
    assert "a.jsonl, line 4" in text and "Add the column 'answer' that goes with 'question'" in text
    assert len(text.splitlines()) == 2
    assert "(none)" in faults({})
    assert "--forget: has no rows" in faults()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "is null"),
        ("", "is empty"),
        (" \n\t", "is empty"),
        (3, "is of type int"),
        (["a"], "is of type list"),
        ("\ud800", "holds half of a surrogate"),
    ],
)
@pytest.mark.parametrize("pair", [("question", "answer"), ("prompt", "completion"), ("text", "title")])
def test_bad_texts(pair: tuple[str, str], value: object, said: str) -> None:
    text = faults({"text": "fine", "title": "x"}, {pair[0]: value, pair[1]: "fine"})
    assert f"--forget a.jsonl, line 2: {pair[0]!r} {said}" in text and "leave the row out" in text
    if pair[1] != "title":
        assert f"{pair[1]!r} {said}" in faults({pair[0]: "fine", pair[1]: value})


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (None, "'messages' is null, not a list"),
        ([], "'messages' is empty, not a list"),
        ("[]", "'messages' is of type str"),
        (["hello"], "message 1 is of type str, not an object"),
        ([{"role": "tool", "content": "x"}], "message 1 has the role 'tool'. Use one of system, user"),
        ([{"content": "x"}], "message 1 has the role None"),
        ([CHAT[0], {"role": "assistant", "content": " "}], "the content of message 2 is empty"),
        ([CHAT[0], {"role": "assistant"}], "the content of message 2 is null"),
        ([{"role": "user", "content": [{"type": "text"}]}], "the content of message 1 is of type list"),
        ([*CHAT, CHAT[0]], "the last message is from 'user', not from 'assistant'"),
        (CHAT[1:], "no message comes before the answer"),
    ],
)
def test_bad_messages(messages: object, said: str) -> None:
    text = faults({"messages": messages})
    assert text.startswith("--forget a.jsonl, line 1: ") and said in text


def test_all_faults_are_reported_and_capped() -> None:
    text = faults({"question": "", "answer": None}, {"text": "fine"}, {"text": 1})
    assert len(text.splitlines()) == 3
    assert "has 30 faults more" in faults(*[{"text": ""}] * 50)


def test_key_ignores_space_case_and_kind() -> None:
    assert (
        example(question=" Who\n is it?", answer="ANN").key
        == example(prompt="who is  it?", completion="ann ").key
    )
    assert example(question="Who?", answer="Ann.").key == example(messages=CHAT).key
    assert example(text="a b").key != example(text="ab").key


def test_overlap() -> None:
    forget = to_examples([Row({"text": t}, f"f.jsonl, line {n}") for n, t in enumerate("abc", 1)], "--forget")
    retain = to_examples([Row({"text": t}, f"r.csv, row {n}") for n, t in enumerate("xCyA", 1)], "--retain")
    fault = overlap_fault(forget, retain)
    assert fault is not None
    assert fault.what.startswith("2 rows of the retain set are in the forget set too")
    assert "r.csv, row 2 and f.jsonl, line 3" in fault.what and "--allow-overlap" in fault.fix
    assert overlap_fault(forget, retain[::2]) is None
    one = overlap_fault(forget, retain[:2])
    assert one is not None and one.what.startswith("1 row of the retain set is in")


def test_data_hash_is_of_content_in_order() -> None:
    rows = [Row({"question": "q", "answer": "a"}, "x, line 1"), Row({"text": "t"}, "x, line 2")]
    here = to_examples(rows, "--forget")
    others = [Row({"id": n, **row.values}, f"y, row {n}") for n, row in enumerate(rows)]
    there = to_examples(others, "--forget")
    assert data_hash(here) == data_hash(there) and len(data_hash(here)) == 64
    assert data_hash(here) != data_hash(here[::-1])
    # Fixed, so that a record written today can be checked by a later version.
    assert data_hash(here) == "e617ccbf1b8d3177e50f3d08be5be452e7532b4c15a3689af12e4218cc791988"


def test_data_hash_sees_perturbed_answers_and_form() -> None:
    plain = example(question="q", answer="a")
    assert data_hash([plain]) != data_hash([example(question="q", answer="a", perturbed_answer=["b"])])
    assert data_hash([plain]) == data_hash([example(question="q", answer="a", perturbed_answer=None)])
    assert data_hash([plain]) != data_hash([example(prompt="q", completion="a")])


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(words, words)
def test_content_is_kept_as_it_is(question: str, answer: str) -> None:
    found = example(question=question, answer=answer)
    assert (found.prompt, found.answer) == (question, answer)
    assert found.key == example(question=f" {question}\n", answer=answer).key
