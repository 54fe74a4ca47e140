"""an answer -> what is broken about its language: nothing said, repetition, or stray characters."""

from __future__ import annotations

import unicodedata
from itertools import groupby, pairwise

from ngdiff.data.renaming import words_of

REPEATED = 0.5
"""Share of an answer's word pairs that it has had before, from which on it repeats itself."""
FEWEST_PAIRS = 8
"""Word pairs from which on that share says something."""
IN_A_ROW = 4
"""Times that one word stands in a row in an answer that repeats itself."""
SPACES = "\n\t\r"
_STRAY = {"Cc", "Cn", "Co", "Cs"}
"""Unicode categories without a place in text: control, unassigned, private and surrogate characters."""
_REPLACEMENT = "\ufffd"


def repetition(text: str) -> float:
    """Return the share of word pairs that the text has had before, in [0, 1]; 0 for less than two pairs."""
    pairs = list(pairwise(words_of(text)))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def what_is_broken(answer: str, context: str) -> str | None:
    """Say in a few words what is broken about an answer; None where nothing is.

    Args:
        answer: as decoded, without special tokens. One that was cut may end in half a character.
        context: texts that the answer may take its alphabet from: the question, the true answer.
    """
    if not answer.strip():
        return "empty"
    if _has_stray(answer.rstrip(_REPLACEMENT), context):
        return "stray characters"
    words = words_of(answer)
    in_a_row = max((sum(1 for _ in run) for _, run in groupby(words)), default=0)
    many = len(words) > FEWEST_PAIRS and repetition(answer) >= REPEATED
    return "repetition" if many or in_a_row >= IN_A_ROW else None


def _has_stray(answer: str, context: str) -> bool:
    if any(_is_stray(character) for character in answer if character not in context):
        return True
    return bool(_alphabets(answer) - _alphabets(context) - {"LATIN"})


def _is_stray(character: str) -> bool:
    return character == _REPLACEMENT or (
        unicodedata.category(character) in _STRAY and character not in SPACES
    )


def _alphabets(text: str) -> set[str]:
    """Return the first word of each letter's Unicode name, which is its script: LATIN, GREEK, CJK."""
    return {unicodedata.name(letter, "UNKNOWN").split()[0] for letter in set(text) if letter.isalpha()}
