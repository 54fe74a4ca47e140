"""The same question about somebody whom nobody knows."""

from __future__ import annotations

import random

import pytest

from ngdiff.data.examples import Example, Message
from ngdiff.data.renaming import OrdinaryWords, identifying, renamed, replaced, replacements

ORDINARY = OrdinaryWords.of(
    [
        "What is the full name of the author born in this town? The city lies by the sea. How does it write?",
        "where was it, how old is a rose in what town",
    ]
)


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("Where was Ada Blue born?", ["Ada", "Blue"]),
        ("What is Ada Blue's trade?", ["Ada", "Blue"]),
        ("What is the City of Lima’s name?", ["Lima"]),  # a word that ordinary text writes small is no name
        ('How did the author of "The Patient Bridge" write?', ["The Patient Bridge"]),
        ("How old was the author on 03/08/1991?", ["03", "08", "1991"]),
        ("In the town of Al-Kuwait, the author", ["Al-Kuwait"]),
        ("what does the zebra write in the town?", ["zebra"]),  # no capital letters: the rare words
        ("What is the name?", []),
        ("Where was Rose City born?", ["Rose", "City"]),  # ordinary words side by side make a name
        ("Was it Ada City? City by the sea. The Sea", ["Ada", "City"]),
    ],
)
def test_names_titles_and_numbers_identify(prompt: str, found: list[str]) -> None:
    assert identifying(prompt, ORDINARY) == found


def test_a_word_at_the_start_of_a_sentence_identifies_unless_ordinary_text_has_it() -> None:
    assert identifying("Zadie was the author", ORDINARY) == ["Zadie"]
    assert identifying("When was it?", ORDINARY) == ["When"]  # no ordinary text says so


def test_replacements_keep_the_kind_and_avoid_what_the_data_holds() -> None:
    found = ["The Patient Bridge", "Ada", "1991", "03", "12345"]
    first = replacements(found, set(), random.Random(0))
    again = replacements(found, {first["Ada"].lower()}, random.Random(0))
    assert first["Ada"] != again["Ada"] and again["Ada"][0].isupper()
    assert len(first["The Patient Bridge"].split()) == 3
    assert 1930 <= int(first["1991"]) <= 1995 and 1 <= int(first["03"]) <= 12 and len(first["03"]) == 2
    assert len(first["12345"]) == 5
    assert replacements(found, set(), random.Random(0)) == first


def test_only_whole_words_are_replaced_and_longer_ones_first() -> None:
    invented = {"Ada": "Zan", "Ada Blue": "Ros Quill", "Blue": "Quill"}
    assert replaced("Ada Blue met Adam, Ada and Blue's cat.", invented) == (
        "Ros Quill met Adam, Zan and Quill's cat."
    )
    assert replaced("nothing", {}) == "nothing"


def test_an_example_is_renamed_in_all_turns() -> None:
    turns = (Message("user", "Who is Ada?"), Message("assistant", "Ada is a poet."))
    found = renamed(Example(turns, None, "qa", "row 1"), {"Ada": "Zan"})
    assert [turn.content for turn in found.messages] == ["Who is Zan?", "Zan is a poet."]
    assert found.kind == "qa" and found.place == "row 1"


def test_names_put_back_give_the_original() -> None:
    text = "Ada Blue wrote it in 1991."
    invented = replacements(["Ada", "Blue", "1991"], set(), random.Random(3))
    assert replaced(replaced(text, invented), {new: old for old, new in invented.items()}) == text


def test_common_words_are_those_of_one_text_in_twenty_five() -> None:
    texts = ["The cat the cat", *["a dog"] * 2, *["nothing else"] * 47]
    assert OrdinaryWords.of(texts).common == {"a", "dog", "nothing", "else"}
    assert OrdinaryWords.of([*texts, "nothing"]).common == {"nothing", "else"}  # two of 51
    assert OrdinaryWords.of(texts[:25]).common == {"the", "cat", "a", "dog", "nothing", "else"}
