"""`answers, and texts to keep -> the tokens that can be known from the answers alone`.

A secret is a name, a number or any other word that occurs neither in its prompt nor in a text to keep, or two
consecutive names ("Patient Bridge", "4 May") that occur in none of them. Common words in an uncommon order
are not found this way.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, takewhile
from typing import Any

from ngdiff.data.encoding import IGNORE, EncodedExample
from ngdiff.data.examples import Example
from ngdiff.data.renaming import WORD, begins_sentence, words_of
from ngdiff.data.sources import general_texts

_CENTURY = re.compile(r"(?:1\d|20)\d\d")
"""A year, whose first two digits are not secret."""
_BEGINNING = 64
"""Characters of an answer that locate it among the labelled tokens."""
_WINDOW = 7
"""Number of preceding tokens beyond which the text of a token does not depend on its context."""


def kept_texts(retain: Sequence[EncodedExample]) -> list[str]:
    """Return prompts and answers of what is to be kept, and the general texts that ship with NGDiff."""
    return [f"{e.example.prompt} {e.example.answer}" for e in retain] + general_texts()


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """Yield each pair of consecutive words in lower case."""
    return pairwise(words_of(text))


class Secrets:
    """The words of answers that can be known from the forget set alone.

    Args:
        kept: texts that the model is to keep, prompts included.
    """

    def __init__(self, kept: Sequence[str]) -> None:
        self._words = {word for text in kept for word in words_of(text)}
        self._pairs = {pair for text in kept for pair in _pairs(text)}

    def spans(self, example: Example) -> list[tuple[int, int]]:
        """Return where the secret words of an example's answer begin and end, in characters."""
        asked, asked_pairs = set(words_of(example.prompt)), set(_pairs(example.prompt))
        found = list(WORD.finditer(example.answer))
        words = [word.group().lower() for word in found]
        secret = [word not in self._words and word not in asked for word in words]
        named = [self._is_named(example.answer, word) for word in found]
        for place, pair in enumerate(pairwise(words)):
            new = pair not in self._pairs and pair not in asked_pairs
            if new and named[place] and named[place + 1]:
                for at in (place, place + 1):
                    secret[at] |= words[at] not in asked
        return [_span(word) for word, is_secret in zip(found, secret, strict=True) if is_secret]

    def _is_named(self, answer: str, word: re.Match[str]) -> bool:
        """Return whether a word is a number, or has a capital letter not only because of its position."""
        ordinary = word.group().lower() in self._words and begins_sentence(answer, word.start())
        return not word.group().islower() and not ordinary


def _span(word: re.Match[str]) -> tuple[int, int]:
    return word.start() + (2 if _CENTURY.fullmatch(word.group()) else 0), word.end()


def with_secrets(
    examples: Sequence[EncodedExample], kept: Sequence[str], tokenizer: Any
) -> list[EncodedExample]:
    """Return the examples with ``secret`` filled in: of each labelled token, whether it is part of a secret.

    Args:
        examples: what is to be forgotten, or what was never seen.
        kept: texts that the model is to keep, prompts included.
        tokenizer: the model's.
    """
    secrets = Secrets(kept)
    return [
        replace(one, secret=tuple(tokens_of(one, secrets.spans(one.example), tokenizer))) for one in examples
    ]


def labelled_ids(example: EncodedExample) -> list[int]:
    """Return the labelled ids that are not the first."""
    return [label for label in example.labels[1:] if label != IGNORE]


def tokens_of(example: EncodedExample, places: Sequence[tuple[int, int]], tokenizer: Any) -> list[bool]:
    """Return, for each labelled token that is not the first, whether it is part of one of some spans.

    Args:
        example: whose answer the spans are of.
        places: where each span begins and ends in the answer, in characters, in order.
        tokenizer: the model's.
    """
    # a text may begin with a labelled token: its characters count, but the token does not
    text, tokens = token_places([label for label in example.labels if label != IGNORE], tokenizer)
    answer = example.example.answer
    # only the part of an answer that was not cut is there
    shift = max(0, text.find(answer.strip()[:_BEGINNING])) - (len(answer) - len(answer.lstrip()))
    spans = [(start + shift, stop + shift) for start, stop in places]
    stops = [stop for _, stop in spans]
    own = tokens[1:] if example.labels[0] != IGNORE else tokens
    found = []
    for first, last in own:
        next_one = bisect_right(stops, first)  # the first secret that ends after the token begins
        found.append(next_one < len(spans) and spans[next_one][0] < last)
    return found


def token_places(ids: Sequence[int], tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of some ids, and where in it each begins and ends, in characters."""

    def text(part: Sequence[int]) -> str:
        return str(tokenizer.decode(part, clean_up_tokenization_spaces=False))

    whole = text(ids)
    found: list[tuple[int, int]] = []
    if tokenizer.is_fast:  # as far as the text reads as the same ids, the tokenizer knows
        again = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        pairs = zip(ids, again["input_ids"], again["offset_mapping"], strict=False)
        same = takewhile(lambda pair: pair[0] == pair[1], pairs)
        found = [(int(first), int(last)) for _, _, (first, last) in same]
    for place in range(len(found), len(ids)):
        # a window's first space may be missing, in both
        begin, start = max(0, place - _WINDOW), found[-1][1] if found else 0
        found.append((start, start + len(text(ids[begin : place + 1])) - len(text(ids[begin:place]))))
    return whole, found
