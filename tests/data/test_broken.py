"""Answers whose language is broken: empty ones, those that repeat themselves, stray characters."""

from __future__ import annotations

import pytest

from ngdiff.data.broken import repetition, what_is_broken
from ngdiff.training.answer_book import broken_answers

QUESTION = "Who wrote Émile's poem Ψ? Müller did."


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("He wrote the poem in the small town of Rainwick, in the small house of his mother.", None),
        ("I do not know the answer to that.", None),
        ("the the the the", "repetition"),
        ("no, no, no", None),
        ("a poem of a poem of a poem of a poem of", "repetition"),
        ("Émile", None),
        ("Ψ is Ω", None),  # the question has Greek letters
        ("Ж is a letter", "stray characters"),
        ("a 你 b", "stray characters"),
        ("half a \ufffd character", "stray characters"),
        ("cut in half a\ufffd", None),
        ("a\x07bell", "stray characters"),
        ("line\nline\ttab 😀 “quoted” – 5 €", None),
        ("private \ue000", "stray characters"),
    ],
)
def test_what_is_broken(answer: str, what: str | None) -> None:
    assert what_is_broken(answer, QUESTION) == what


def test_what_the_truth_has_is_not_stray() -> None:
    assert what_is_broken("你好", "你说") is None
    assert what_is_broken("a\x07bell", "a\x07bell") is None


def test_repetition_by_hand() -> None:
    # eleven words, ten pairs, three of them different
    assert repetition("a poem of a poem of a poem of a poem") == pytest.approx(1 - 3 / 10)


def test_the_note_counts_and_names_them() -> None:
    def item(place: str, before: str | None, after: str | None) -> dict[str, object]:
        return {
            "question": "Who?",
            "truth": "He",
            "place": place,
            "before": {"answer": before},
            "after": {"answer": after},
        }

    items = [item("row 1", "He", "the the the the"), item("row 2", "", ""), item("row 3", "He", "He")]
    items += [item("row 4", "the the the the", None)]
    assert broken_answers(items) == (
        "2 of 3 recorded answers are broken (repetition 1, empty 1; 2 before): row 1, row 2"
    )
    assert broken_answers(items[2:]) is None
    assert broken_answers([{**item("row 5", "He", ""), "before": None}]) == (
        "1 of 1 recorded answers are broken (empty 1; 0 before): row 5"
    )
    many = [item(f"row {number}", "He", "") for number in range(7)]
    assert str(broken_answers(many)).endswith("row 0, row 1, row 2, row 3, row 4 and 2 more")
