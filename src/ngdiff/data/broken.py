"""an answer -> what is broken about its language: nothing said, repetition, or stray characters."""

from __future__ import annotations

import unicodedata
from itertools import groupby, pairwise

from ngdiff.data.renaming import words_of

REPEATED = 0.5
"""Share of repeated word pairs from which an answer counts as repetitive."""
FEWEST_PAIRS = 8
"""Fewest word pairs for which that share is informative."""
IN_A_ROW = 4
"""Consecutive repetitions of one word that make an answer repetitive."""
SPACES = "\n\t\r"
_STRAY = {"Cc", "Cn", "Co", "Cs"}
"""Unicode categories that do not belong in text: control, unassigned, private and surrogate characters."""
_REPLACEMENT = "\ufffd"


def repetition(text: str) -> float:
    """Return the share of word pairs that occurred before in the text, in [0, 1]; 0 for fewer than two."""
    pairs = list(pairwise(words_of(text)))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def what_is_broken(answer: str, context: str) -> str | None:
    """Return in a few words what is broken about an answer; None where nothing is.

    Args:
        answer: as decoded, without special tokens; one that was cut may end in half a character.
        context: texts whose alphabets the answer may use: the question, the true answer.
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
