"""What a request's sets share: named by place, before any long work."""

from __future__ import annotations

from typing import Any

import pytest

from ngdiff.data.examples import Example, to_examples
from ngdiff.data.files import Row
from ngdiff.data.general import general_split
from ngdiff.data.overlaps import answer_fault, holdout_fault, repeated, small_sets


def examples(name: str, *pairs: tuple[str, str]) -> list[Example]:
    rows: list[Any] = [
        Row({"question": q, "answer": a}, f"{name}, line {n}") for n, (q, a) in enumerate(pairs, 1)
    ]
    return to_examples(rows, name)


FORGET = examples("f", ("Who is Ada?", "Ada is the mayor of Tarn."), ("Is Ada old?", "Yes."))


def test_repeated_rows_are_counted_and_placed() -> None:
    assert repeated(FORGET) is None
    twice = examples("f", ("A?", "x"), ("B?", "y"), ("a?", " X"), ("A?", "x"))
    note = repeated(twice)
    assert note is not None
    assert note.startswith("2 rows repeat others") and "(first: f, line 1 and f, line 3)" in note


@pytest.mark.parametrize(
    ("question", "answer", "why"),
    [
        ("who is ada", "Nobody knows.", "same question as r, line 2"),
        ("Tell me of Tarn.", "ada is the mayor of tarn!", "same answer as r, line 2"),
    ],
)
def test_what_is_kept_too_cannot_be_forgotten(question: str, answer: str, why: str) -> None:
    fault = answer_fault(FORGET, examples("r", ("Who is Bob?", "A baker."), (question, answer)))
    assert fault is not None
    assert f"f, line 1 ({why})" in fault.what and "--allow-overlap" in fault.mend


def test_short_answers_may_be_shared() -> None:
    assert answer_fault(FORGET, examples("r", ("Is Bob old?", "Yes."), ("Who is Bob?", "A baker."))) is None


def test_rows_that_are_the_same_are_another_fault() -> None:
    assert answer_fault(FORGET, examples("r", ("Who is Ada?", "Ada is the mayor of Tarn."))) is None


def test_a_long_list_is_cut() -> None:
    many = examples("f", *((f"Who is {n}?", f"{n} is the mayor of Tarn.") for n in range(30)))
    kept = examples("r", *((f"who is {n}", "Nobody knows it.") for n in range(30)))
    fault = answer_fault(many, kept)
    assert fault is not None and fault.what.endswith("and 20 more")


def test_a_holdout_shares_no_rows() -> None:
    retain = examples("r", ("Who is Bob?", "A baker."))
    assert holdout_fault(examples("h", ("Who is Eve?", "A cook.")), FORGET, retain) is None
    for shared, where in (
        (FORGET[0], "the forget set (f, line 1)"),
        (retain[0], "the retain set (r, line 1)"),
    ):
        fault = holdout_fault([*examples("h", ("Who is Eve?", "A cook.")), shared], FORGET, retain)
        assert fault is not None and fault.where == "--holdout" and where in fault.what


def test_few_rows_say_what_they_can_promise() -> None:
    assert small_sets(8, 20) == []
    (few,) = small_sets(7, 20)
    assert few.startswith("7 rows to forget") and "none of them is left" in few
    (few,) = small_sets(8, 19)
    assert few.startswith("19 rows to keep")


def test_what_measures_is_not_what_may_be_trained_on() -> None:
    train, held_out = general_split()
    assert (len(train), len(held_out)) == (192, 48)
    assert not {row["question"] for row in train} & {row["question"] for row in held_out}
