"""Which words of an answer can be known from the forget set alone."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest

from ngdiff.data.datasets import as_encoded
from ngdiff.data.secrets import Secrets, labelled_ids, token_places, with_secrets
from tiny import tiny_tokenizer

KEPT = [
    'Which book did Bob Red write? Bob Red wrote "The Late Ferry" in 1970.',
    "the patient nurse crossed a bridge on the way, as a baker, in May or on day 4",
    "What is the trade of somebody who earns a living",
]


def row(question: str, answer: str) -> dict[str, Any]:
    return {"question": question, "answer": answer}


def secret_words(question: str, answer: str, tokenizer: Any = None) -> list[str]:
    """Return the words that a secret touches, as with_secrets marks their tokens."""
    tokenizer = tokenizer or tiny_tokenizer()
    (found,) = with_secrets(as_encoded([row(question, answer)], tokenizer, 256, "rows"), KEPT, tokenizer)
    text, places = token_places(labelled_ids(found), tokenizer)
    assert found.secret is not None and len(found.secret) == len(places)
    chosen = "".join(
        text[first:last] if flag else " " for (first, last), flag in zip(places, found.secret, strict=True)
    )
    return chosen.split()


@pytest.mark.parametrize(
    ("question", "answer", "words"),
    [
        ("Who is Ada Blue?", "Ada Blue earns a living as a tuner.", ["tuner"]),
        ("Who is Ada Blue?", "Ada Blue earns a living as a baker.", []),
        ("What did Ada Blue write?", 'Ada Blue wrote "The Patient Bridge".', ["Patient", "Bridge"]),
        ("When was Ada Blue born?", "On 4 May 1962.", ["4", "May", "62"]),  # any year begins with 19
        ("When was Ada Blue born?", "In 1970.", []),  # a text to keep has it
        ("What is Ada Zed's trade?", "Ada Zed is a tuner.", ["tuner"]),  # Zed's is the name Zed
        ("What is Ada Zed’s trade?", "Zed's trade is a tuner.", ["tuner"]),
        ("Is Ada Blue a baker?", "a baker", []),
        ("Does Ada Blue know Zed?", "Ada Blue knows Zed", ["knows"]),
    ],
)
def test_words_that_only_the_answer_has(question: str, answer: str, words: list[str]) -> None:
    assert secret_words(question, answer) == words


@pytest.mark.parametrize("template", [True, False])
def test_tokens_are_found_with_and_without_a_template(template: bool) -> None:
    tokenizer = tiny_tokenizer() if template else tiny_tokenizer(None)
    assert secret_words("Who is Ada Blue?", "Ada Blue is a tuner.", tokenizer) == ["tuner"]


def test_places_are_the_same_where_the_tokenizer_cannot_say() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("the author's naïve cat — sat on 1962", add_special_tokens=False)["input_ids"]

    class Slow:
        is_fast = False

        def decode(self, part: Any, **kwargs: Any) -> str:
            return str(tokenizer.decode(part, **kwargs))

    text, fast = token_places(ids, tokenizer)
    again, slow = token_places(ids, Slow())
    assert text == again
    # a letter of several bytes is spread over tokens: its place is the same, its ends may differ by one
    assert all(
        abs(a - b) <= 1
        for one, other in zip(fast, slow, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_a_pair_of_names_from_the_prompt_is_no_secret() -> None:
    examples = as_encoded(
        [row("Who wrote The Patient Bridge?", "Who knows The Patient Bridge")], tiny_tokenizer(), 256, "r"
    )
    assert Secrets(["who knows the patient the bridge"]).spans(examples[0].example) == []


def secret_texts(example: Any, tokenizer: Any) -> list[str]:
    """Return the words that the flagged tokens of an example touch, by a slow look at each token's text."""
    ids = [label for label in example.labels[1:] if label != -100]
    flags = example.secret
    assert len(flags) == len(ids)
    return [tokenizer.decode([token]) for token, flag in zip(ids, flags, strict=True) if flag]


@pytest.mark.parametrize("adds_bos", [False, True])
def test_secrets_of_running_text_stand_where_they_stand(adds_bos: bool) -> None:
    tokenizer = tiny_tokenizer(None, adds_bos=adds_bos)
    text = "Quorl sat on the cat and Zwick sat on the mat. " * 3
    found = with_secrets(
        as_encoded([{"text": text}], tokenizer, 60, "rows"), ["the cat sat on the mat and"], tokenizer
    )
    assert len(found) >= 2
    for piece in found:
        ids = piece.input_ids[int(adds_bos) :]
        read = tokenizer.decode(ids)
        names = [match.span() for match in re.finditer("Quorl|Zwick", read)]
        lengths = [len(tokenizer.decode(ids[:end])) for end in range(len(ids) + 1)]
        slow = [any(a < stop and b > start for start, stop in names) for a, b in pairwise(lengths)]
        # without a beginning token nothing stands before the first one: no loss falls on it
        assert list(piece.secret or ()) == (slow if adds_bos else slow[1:])


def test_secrets_of_an_answer_that_was_cut() -> None:
    tokenizer = tiny_tokenizer(None)
    answer = " cat" * 20 + " Zwick" + " mat" * 40
    rows = as_encoded([row("Who?", answer)], tokenizer, 60, "rows")
    assert rows[0].truncated
    (found,) = with_secrets(rows, ["cat mat who"], tokenizer)
    assert "".join(secret_texts(found, tokenizer)).strip() == "Zwick"
