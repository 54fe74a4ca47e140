"""Never-seen text is of the forget set's kinds, in their proportions, and says where it comes from."""

from __future__ import annotations

import ast
from collections import Counter
from typing import Any

import pytest

from ngdiff.data.datasets import as_encoded
from ngdiff.invented.kinds import invented_rows
from ngdiff.stopping.never_seen import ITEMS, LEAST_ITEMS, STRICTER, given, invented, kind_of
from tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SENTENCE = "The author's full name is Hsiao Yun-Hwa, and she was born in Taipei."
CODE = "def total(items):\n    found = 0\n    for item in items:\n        found += item\n    return found"
TEXT = " ".join(["Hsiao Yun-Hwa lives in Taipei and has written eleven books about the sea."] * 8)
KINDS: dict[str, list[str]] = {
    "sentence": [SENTENCE],
    "yes or no": ["Yes.", "No."],
    "one word": ["Taipei", "Painter"],
    "contact": ["hsiao.yun@example.org", "yun-hwa@writers.example"],
    "code": [CODE],
    "text": [TEXT],
}


def encoded(answers: list[str], count: int = 12, form: str = "qa") -> Any:
    found: list[dict[str, str]] = []
    for n in range(count):
        answer = answers[n % len(answers)]
        found.append({"text": answer} if form == "text" else {"question": f"Question {n}?", "answer": answer})
    return as_encoded(found, TOKENIZER, 512, "rows")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_met_by_its_own(kind: str) -> None:
    like = encoded(KINDS[kind])
    assert {kind_of(one.example) for one in like} == {kind}
    unseen = invented(like, TOKENIZER, 128)
    assert {kind_of(one.example) for one in unseen.examples} == {kind}
    assert LEAST_ITEMS <= len(unseen.examples) <= ITEMS
    assert unseen.notes == [STRICTER]
    assert unseen.source.startswith("invented by NGDiff: ")
    texts = [one.example.answer for one in unseen.examples]
    assert kind == "yes or no" or len(set(texts)) > len(texts) // 3
    again = invented(like, TOKENIZER, 128)
    assert [one.input_ids for one in again.examples] == [one.input_ids for one in unseen.examples]


def test_yes_and_no_come_in_the_form_that_the_forget_set_has() -> None:
    forms = {"Yes.": {"Yes.", "No."}, "no": {"yes", "no"}, "No": {"Yes", "No"}}
    for form, expected in forms.items():
        unseen = invented(encoded([form]), TOKENIZER, 128)
        assert {one.example.answer for one in unseen.examples} == expected


def test_kinds_are_mixed_in_proportion() -> None:
    unseen = invented(encoded(["Yes.", "No.", "Yes.", SENTENCE], 40), TOKENIZER, 128)
    counts = Counter(kind_of(one.example) for one in unseen.examples)
    assert counts == {"yes or no": 36, "sentence": 12}
    assert "36 yes/no questions about invented people and 12 questions about invented people" in unseen.source


def test_answers_are_about_as_long() -> None:
    for text in (SENTENCE, f"{SENTENCE} {SENTENCE} {SENTENCE}", TEXT, TEXT * 3):
        unseen = invented(encoded([text]), TOKENIZER, 512)
        words = sorted(len(one.example.answer.split()) for one in unseen.examples)
        assert 0.5 <= words[len(words) // 2] / len(text.split()) <= 2
        assert unseen.notes == [STRICTER]


def test_running_text_stands_alone_where_the_forget_set_does() -> None:
    unseen = invented(encoded([TEXT], form="text"), TOKENIZER, 512)
    assert all(one.example.kind == "text" for one in unseen.examples)
    assert STRICTER not in unseen.notes  # real text is less predictable than invented text


def test_telephone_numbers_for_telephone_numbers() -> None:
    unseen = invented(encoded(["+44 7700 900123", "+44 7700 900456"]), TOKENIZER, 128)
    assert all("@" not in one.example.answer for one in unseen.examples)


def test_invented_code_can_be_read() -> None:
    for row in invented_rows("code", 20, 40, 5):
        ast.parse(row["answer"])


def test_a_holdout_of_another_kind_or_length_is_noted() -> None:
    like = encoded([SENTENCE])
    assert given(encoded([SENTENCE], 9), like).notes == []
    other = given(encoded(["Yes."]), like)
    assert any("another kind" in note for note in other.notes)
    assert any("1 words (median)" in note for note in other.notes)
    assert "12 items" in other.source


def test_another_script_is_noted() -> None:
    unseen = invented(encoded(["Автор родился в городе Тайбэй и пишет книги о море."]), TOKENIZER, 128)
    assert any("another script" in note for note in unseen.notes)
