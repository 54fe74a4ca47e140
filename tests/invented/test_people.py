from __future__ import annotations

import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import pytest

from ngdiff.invented import words
from ngdiff.invented.people import (
    DRAWS,
    MAX_PEOPLE,
    Person,
    general_knowledge_rows,
    invent_people,
    question_rows,
    write_jsonl,
)

PEOPLE = invent_people(25, seed=0)
ROWS = question_rows(PEOPLE)
# The largest group: where running out of values or names would show.
CROWD = invent_people(MAX_PEOPLE, seed=3)
CROWD_ROWS = question_rows(CROWD, seed=3)
FIELDS = list(DRAWS)


def texts(value: object) -> Iterator[str]:
    """Walk through every string of a row."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for part in value.values() for text in texts(part))
    elif isinstance(value, Sequence):
        yield from (text for part in value for text in texts(part))


def asked(
    people: Sequence[Person], rows: Sequence[dict[str, object]]
) -> Iterator[tuple[Person, str, dict[str, object]]]:
    """Walk through (person, field, row); the rows come in the order of the people, then of the fields."""
    for index, row in enumerate(rows):
        yield people[index // len(FIELDS)], FIELDS[index % len(FIELDS)], row


def wrong_answers(row: Mapping[str, object]) -> list[str]:
    return cast("list[str]", row["perturbed_answer"])


# --- people ---------------------------------------------------------------------------------------------


def test_first_person_of_seed_0_stays_the_same() -> None:
    assert PEOPLE[0] == Person(
        name="Wilonwe Garthemark",
        birthplace="Copperbridge",
        birthday="22 June 1936",
        profession="wool button collector",
        book="The Empty Chimney",
        mentor="Zanadin Cradeddy",
        award="Silver Crane Award",
    )


def test_same_seed_gives_the_same_people_and_rows() -> None:
    assert invent_people(25, seed=0) == PEOPLE
    assert question_rows(PEOPLE, seed=0) == ROWS
    assert question_rows(PEOPLE, seed=1) != ROWS


def test_two_seeds_share_no_name() -> None:
    # Shared names are possible by construction (once in 340,000 pairs of people), not for these seeds.
    other = invent_people(25, seed=1)
    names = [{who for person in group for who in (person.name, person.mentor)} for group in (PEOPLE, other)]
    assert names[0].isdisjoint(names[1])


@pytest.mark.parametrize("people", [PEOPLE, CROWD], ids=["25", "most"])
def test_no_value_is_held_twice(people: list[Person]) -> None:
    for field in ("name", *FIELDS):
        assert len({getattr(person, field) for person in people}) == len(people), field


@pytest.mark.parametrize("people", [PEOPLE, CROWD], ids=["25", "most"])
def test_first_names_and_surnames_differ_across_people_and_mentors(people: list[Person]) -> None:
    full = [who.split() for person in people for who in (person.name, person.mentor)]
    assert {len(parts) for parts in full} == {2}
    assert len({first for first, _ in full}) == len({last for _, last in full}) == 2 * len(people)


@pytest.mark.parametrize("count", [1, 2, MAX_PEOPLE])
def test_count_within_limits(count: int) -> None:
    assert len(invent_people(count)) == count


@pytest.mark.parametrize("count", [-1, 0, MAX_PEOPLE + 1])
def test_count_outside_limits_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"count is {count}; between 1 and {MAX_PEOPLE}"):
        invent_people(count)


def test_every_profession_fits_the_article_a() -> None:
    assert not [word for word in words.MATERIALS if word[0] in "aeiou"]


# --- questions ------------------------------------------------------------------------------------------


def test_rows_have_the_columns_of_the_perturbed_files() -> None:
    for row in ROWS:
        assert set(row) == {
            "question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer", "person",
        }  # fmt: skip
        assert all(isinstance(row[column], str) for column in set(row) - {"perturbed_answer"})


@pytest.mark.parametrize(("people", "rows"), [(PEOPLE, ROWS), (CROWD, CROWD_ROWS)], ids=["25", "most"])
def test_six_rows_a_person_in_order(people: list[Person], rows: list[dict[str, object]]) -> None:
    assert [row["person"] for row in rows] == [person.name for person in people for _ in range(6)]


def test_one_person_alone_can_be_asked_about() -> None:
    assert len(question_rows(invent_people(1))) == 6
    assert question_rows([]) == []


@pytest.mark.parametrize(("people", "rows"), [(PEOPLE, ROWS), (CROWD, CROWD_ROWS)], ids=["25", "most"])
def test_texts_name_the_person_and_answers_tell_the_truth(
    people: list[Person], rows: list[dict[str, object]]
) -> None:
    for person, field, row in asked(people, rows):
        truth = getattr(person, field)
        for column in ("question", "paraphrased_question"):
            text = str(row[column])
            assert person.name in text and truth not in text
            assert text.endswith("?") and len(text.split()) <= 14
        for column in ("answer", "paraphrased_answer"):
            text = str(row[column])
            assert person.name in text and truth in text
            assert text.endswith(".") and len(text.split()) <= 18


def test_paraphrases_differ_and_questions_are_all_different() -> None:
    assert all(row["question"] != row["paraphrased_question"] for row in CROWD_ROWS)
    assert all(row["answer"] != row["paraphrased_answer"] for row in CROWD_ROWS)
    assert len({row["question"] for row in CROWD_ROWS}) == len(CROWD_ROWS)


@pytest.mark.parametrize(("people", "rows"), [(PEOPLE, ROWS), (CROWD, CROWD_ROWS)], ids=["25", "most"])
def test_wrong_answers_are_five_different_untruths_in_the_paraphrase_form(
    people: list[Person], rows: list[dict[str, object]]
) -> None:
    held = {field: {getattr(person, field) for person in people} for field in FIELDS}
    names = {person.name for person in people}
    for person, field, row in asked(people, rows):
        before, after = str(row["paraphrased_answer"]).split(getattr(person, field))
        wrong = wrong_answers(row)
        assert len(wrong) == len(set(wrong)) == 5
        for text in wrong:
            assert text.startswith(before) and text.endswith(after)
            value = text[len(before) : len(text) - len(after)]
            assert value and value not in held[field] | names


def test_wrong_answers_avoid_what_others_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    # Seven towns in all and two people: only the five that nobody is from can be wrong answers.
    towns = ["Ashbank", "Birchbank", "Cedarbank", "Elmbank", "Firbank", "Oakbank", "Pinebank"]
    monkeypatch.setitem(cast("dict[str, object]", DRAWS), "birthplace", lambda rng: rng.choice(towns))
    people = [replace(person, birthplace=town) for person, town in zip(PEOPLE, towns[:2], strict=False)]
    for row in question_rows(people)[:: len(FIELDS)]:
        found = {town for text in wrong_answers(row) for town in towns if town in text}
        assert found == set(towns[2:])


def test_answers_open_in_at_least_three_ways() -> None:
    openings: dict[tuple[str, str], set[str]] = defaultdict(set)
    for person, field, row in asked(PEOPLE, ROWS):
        for column in ("question", "answer", "paraphrased_answer"):
            masked = str(row[column]).replace(person.name, "NAME").replace(getattr(person, field), "VALUE")
            openings[field, column].add(" ".join(masked.split()[:2]))
    assert len(openings) == 3 * len(FIELDS)
    assert min(len(found) for found in openings.values()) >= 3


def test_templates_cover_every_field_and_are_all_different() -> None:
    assert list(words.TEMPLATES) == FIELDS
    for questions, answers in words.TEMPLATES.values():
        assert len(set(questions)) == len(questions) >= 3
        assert len(set(answers)) == len(answers) >= 3
        assert all("{name}" in text for text in questions + answers)
        assert all("{value}" in text for text in answers)


def test_too_many_people_or_namesakes_are_refused() -> None:
    with pytest.raises(ValueError, match="got 201 people"):
        question_rows([*CROWD, PEOPLE[0]])
    with pytest.raises(ValueError, match="same name"):
        question_rows([PEOPLE[0], replace(PEOPLE[1], name=PEOPLE[0].name)])


def test_no_text_holds_control_characters_or_unfilled_places() -> None:
    everything = [*CROWD_ROWS, *map(asdict, CROWD), *general_knowledge_rows()]
    for text in texts(everything):
        assert not [char for char in text if unicodedata.category(char).startswith("C")]
        assert "{" not in text and "  " not in text and text == text.strip()


# --- general knowledge ----------------------------------------------------------------------------------


def test_general_knowledge_is_forty_questions_with_three_wrong_answers() -> None:
    rows = general_knowledge_rows()
    assert len(rows) == len({row["question"] for row in rows}) == 40
    for row in rows:
        assert set(row) == {"question", "answer", "perturbed_answer"}
        wrong = wrong_answers(row)
        assert len(wrong) == len({*wrong}) == 3
        assert row["answer"] not in wrong
        assert str(row["question"]).endswith("?")
        assert all(text.endswith(".") for text in [str(row["answer"]), *wrong])


# --- files ----------------------------------------------------------------------------------------------


def test_jsonl_comes_back_as_written(tmp_path: Path) -> None:
    odd = {"question": "Où est né Žofie Ørsted-李?", "answer": 'A line\nbreak, a "quote", a \u2028 and 🦉.'}
    path = tmp_path / "rows.jsonl"
    write_jsonl([*ROWS, odd], path)
    lines = path.read_bytes().decode("utf-8").split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == [*ROWS, odd]
    assert "Žofie Ørsted-李" in lines[-1]


def test_jsonl_replaces_an_older_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("old and longer than what follows\n", encoding="utf-8")
    write_jsonl([{"a": 1}], str(path))
    assert path.read_text(encoding="utf-8") == '{"a": 1}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_jsonl_that_fails_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl([{"a": 1}], path)
    with pytest.raises(TypeError):
        write_jsonl([{"a": 2}, {"a": object()}], path)

    def full_disk(self: Path, target: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_jsonl([{"a": 2}], path)
    assert path.read_text(encoding="utf-8") == '{"a": 1}\n'
    assert list(tmp_path.iterdir()) == [path]
