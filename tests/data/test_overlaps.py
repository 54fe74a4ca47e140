"""What a request's sets share: named by place, before any long work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ngdiff.data.examples import Example, to_examples
from ngdiff.data.files import Row
from ngdiff.data.overlaps import answer_fault, holdout_fault, repeated, reworded, small_sets, swapped
from ngdiff.data.renaming import WORD, words_of
from ngdiff.data.sources import general_split, read_rows
from ngdiff.invented.people import general_knowledge_rows


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
    assert f"f, line 1 ({why})" in fault.what and "--set allow_overlap=true" in fault.fix


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
    assert few.startswith("7 rows to forget are few") and "none of them is left" in few
    (few,) = small_sets(8, 19)
    assert few.startswith("19 rows to keep are few")


def test_what_measures_is_not_what_may_be_trained_on() -> None:
    train, held_out = general_split()
    assert (len(train), len(held_out)) == (192 + 148, 48)
    asked = [row["question"] for row in train]
    assert len(set(asked)) == len(asked) and not set(asked) & {row["question"] for row in held_out}


def test_the_facts_that_are_trained_on_are_not_those_that_measure() -> None:
    facts = general_split()[0][192:]
    measured = general_knowledge_rows()
    assert not {row["question"] for row in facts} & {row["question"] for row in measured}
    # nor is a person that is asked for there
    people = [row for row in measured if str(row["question"]).startswith(("Who ", "Which scientist"))]
    assert len(people) == 6
    for row in people:
        words, asked = WORD.findall(str(row["answer"])), str(row["question"]).lower()
        named = {word.lower() for word in words if word[0].isupper() and word.lower() not in asked}
        again = [f["question"] for f in facts if named <= set(words_of(f["answer"]))]
        assert len(named) > 1 and not again, (row["question"], again)


@pytest.mark.parametrize("name", ["real_authors_perturbed", "world_facts_perturbed"])
def test_no_fact_that_is_trained_on_is_in_tofu(name: str) -> None:
    folder = os.environ.get("NGDIFF_TOFU_DIR")
    if not folder:
        pytest.skip("NGDIFF_TOFU_DIR names no folder with TOFU's files")
    rows = read_rows(str(Path(folder) / f"{name}.json"), where="--data")
    facts = general_split()[0][192:]
    assert not {row["question"] for row in facts} & {row.values["question"] for row in rows}
    if name == "real_authors_perturbed":  # none of its authors is the answer to a fact
        said = [set(words_of(fact["answer"])) for fact in facts]
        authors = [set(words_of(row.values["answer"])) for row in rows]
        assert not [author for author in authors if any(author <= words for words in said)]


PEOPLE = [f"Person{n}" for n in range(12)]
TOWNS = [f"Town{n}" for n in range(12)]


def born(
    names: list[str], towns: list[str], said: str = "{name} was born in the small town of {town}."
) -> Any:
    return [(f"Where was {n} born?", said.format(name=n, town=t)) for n, t in zip(names, towns, strict=True)]


def test_what_the_retain_set_says_in_other_words_is_named() -> None:
    forget = examples("f", *born(PEOPLE[:4], TOWNS[:4]))
    retain = examples(
        "r", *born(PEOPLE[4:], TOWNS[4:]), ("Tell me of Person2.", "A native of Town2, of course.")
    )
    note = reworded(forget, retain)
    assert note is not None
    assert note.startswith("1 row of the forget set seems") and note.endswith("f, line 3 (see r, line 9)")


def test_who_is_only_like_somebody_else_is_not_named() -> None:
    """The same form, even the same town, of somebody else; and the same person, asked something else."""
    forget = examples("f", *born(PEOPLE[:4], TOWNS[:4]))
    elsewhere = [*born(PEOPLE[4:], TOWNS[4:]), *born(["Somebody"], TOWNS[2:3])]
    assert (
        reworded(forget, examples("r", *elsewhere, ("What does Person2 do?", "Person2 bakes bread."))) is None
    )


def test_invented_people_are_told_apart_and_their_paraphrases_are_found() -> None:
    from ngdiff.invented.people import invent_people, question_rows

    rows = question_rows(invent_people(25, 0), 0)
    pairs = [(str(row["question"]), str(row["answer"])) for row in rows]
    forget, retain = examples("f", *pairs[-18:]), examples("r", *pairs[:-18])
    assert reworded(forget, retain) is None
    again = [(str(row["question"]), str(row["paraphrased_answer"])) for row in rows[-18:]]
    note = reworded(forget, [*retain, *examples("p", *again)])
    assert note is not None and int(note.split(" ")[0]) >= 12


def test_sizes_that_look_swapped() -> None:
    assert swapped(40, 400) is None and swapped(40, 20) is None and swapped(4, 0) is None
    note = swapped(41, 20)
    assert note is not None and note.startswith("41 rows to forget and 20 to keep")
