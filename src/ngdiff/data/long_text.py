"""`long texts -> pieces`: as many as the window requires, with each token in exactly one of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from ngdiff.data.encoding import EncodedExample, LongText, TextTokens, encode_all
from ngdiff.data.examples import Example, Message, Part, texts_of
from ngdiff.errors import Fault, RequestError, unknown_name

__all__ = ["LongText", "Pieces", "counted_texts", "encode_pieces", "in_pieces", "long_text_fault", "passages"]

LAST_SHARE = 0.1
"""Share of a window, at its end, in which a boundary is sought."""

_SENTENCE = re.compile(r"[.!?…。！？][\"'”’»)\]]*\s*$")
_CLOSED_WITHOUT_SPACE = re.compile(r"[。！？][”’」』）]*$")
_BEHIND = 16
"""Characters before a position that decide whether a sentence ends there."""


@dataclass
class Pieces:
    """The rows of one data set, with long texts split.

    Args:
        examples: rows that fit, and the pieces of those that do not, in order.
        split: texts that were split.
        blank: pieces, or whole texts of a benchmark, that were left out because they are only white space.
    """

    examples: list[Example] = field(default_factory=list)
    split: int = 0
    blank: int = 0

    def notes(self, where: str, max_length: int) -> list[str]:
        """Return notes for the record on what was split or left out."""
        found = []
        if self.split:
            count = sum(example.part is not None for example in self.examples)
            found.append(
                f"{where}: {_counted(self.split, 'text')} longer than {max_length} tokens "
                f"{_were(self.split)} split into {_counted(count, 'piece')}"
            )
        if self.blank:
            found.append(
                f"{where}: {_counted(self.blank, 'piece')} {_were(self.blank)} left out: only white space"
            )
        return found


def long_text_fault(asked: str) -> Fault | None:
    """Return a fault where there is no such way to treat long texts."""
    known = get_args(LongText)
    return None if asked in known else unknown_name("long_text", "way to treat long texts", asked, known)


def in_pieces(examples: Iterable[Example], tokenizer: Any, max_length: int | None, where: str) -> Pieces:
    """Split running text that is longer than the window; rows of other kinds stay as they are.

    A piece ends at the last paragraph boundary in the last tenth of the window; where there is none, at the
    last sentence boundary; else at the last boundary between words; else where the window ends. The last
    piece has at least a tenth of the window. The tokens of all pieces are those of the whole text, in order,
    each in one piece. Each piece begins with the tokenizer's beginning token, where it has one; the last one
    alone ends in the end token.

    Args:
        examples: rows of any kind.
        tokenizer: whose tokens are counted.
        max_length: most tokens of a piece; None to split nothing.
        where: the setting that named the data, for faults.

    Raises:
        RequestError: a text is too long, and the tokenizer does not return the positions of its tokens.
    """
    tokens, found = TextTokens(tokenizer), Pieces()
    for example in examples:
        if example.kind == "text" and not example.answer.strip():
            found.blank += 1
            continue
        splits = example.kind == "text" and example.part is None
        if max_length is None or not splits or not tokens.too_long(example, max_length):
            found.examples.append(example)
            continue
        starts = tokens.starts(example)
        if starts is None:
            what = f"has more than {max_length} tokens, and its tokenizer does not return token offsets"
            fix = "Use a fast tokenizer, or set long_text=cut"
            raise RequestError(Fault(f"{where} {example.place}", what, fix))
        bounds = _bounds(example.answer, starts, max_length - len(tokens.opening), tokens.ends)
        parts = [(start, stop) for start, stop in bounds if example.answer[start:stop].strip()]
        found.examples += _parts(example, parts)
        found.split += 1
        found.blank += len(bounds) - len(parts)
    return found


def encode_pieces(
    examples: Sequence[Example], tokenizer: Any, max_length: int, where: str, long_text: str = "split"
) -> tuple[list[EncodedExample], list[str]]:
    """Encode a data set, long texts in pieces.

    Args:
        examples: rows of any kind.
        tokenizer: fast or slow.
        max_length: longest sequence, in tokens.
        where: the setting that named the data, such as ``--forget``, for faults and notes.
        long_text: ``split``, or ``cut`` to drop what does not fit.

    Returns:
        The encoded rows, and notes to show before the run begins: what was split, cut or left out.

    Raises:
        RequestError: as :func:`in_pieces` and :func:`ngdiff.data.encoding.encode_all`.
    """
    found = in_pieces(examples, tokenizer, max_length if long_text == "split" else None, where)
    encoded = encode_all(found.examples, tokenizer, max_length, where)
    return encoded, found.notes(where, max_length) + _shortened(where, encoded, max_length)


def passages(examples: Sequence[Example], tokenizer: Any, length: int) -> list[Example]:
    """Return texts as completions: ``length`` tokens as prompt, and as many tokens that follow.

    A text with fewer than twice as many tokens is halved. A text of fewer than four tokens, or whose
    tokenizer does not return their positions, is not changed, nor are rows of other kinds.
    """
    tokens = TextTokens(tokenizer)
    return [_passage(example, tokens, length) if example.kind == "text" else example for example in examples]


def _passage(example: Example, tokens: TextTokens, length: int) -> Example:
    starts = tokens.starts(example)
    if starts is None or len(starts) < 4:
        return example
    half = min(length, len(starts) // 2)
    text, ends = example.answer, [*starts, len(example.answer)]
    turns = (Message("user", text[: ends[half]]), Message("assistant", text[ends[half] : ends[2 * half]]))
    if not all(turn.content.strip() for turn in turns):
        return example
    return replace(example, messages=turns, text=None, kind="completion", part=None, passage=True)


def _parts(whole: Example, bounds: Sequence[tuple[int, int]]) -> list[Example]:
    count, text = len(bounds), whole.answer
    return [
        replace(
            whole,
            text=text[start:stop],
            place=f"{whole.place}, piece {number} of {count}",
            part=Part(whole, start, stop),
        )
        for number, (start, stop) in enumerate(bounds, 1)
    ]


def _bounds(text: str, starts: Sequence[int], room: int, ends: int) -> list[tuple[int, int]]:
    """Return where the pieces of a text begin and end, in characters.

    Args:
        text: the whole.
        starts: the character that each token begins at.
        room: most tokens of a piece, not counting its beginning token.
        ends: tokens that follow the last one.
    """
    cuts, first = [0], 0
    near, rest = math.ceil((1 - LAST_SHARE) * room), max(2, math.ceil(LAST_SHARE * room))
    while len(starts) + ends - first > room:
        last = min(first + room, len(starts) - rest)  # a few words alone could hardly be scored
        first = _cut(text, starts, first, last, near)
        cuts.append(starts[first])
    return list(zip(cuts, [*cuts[1:], len(text)], strict=True))


def _cut(text: str, starts: Sequence[int], first: int, last: int, least: int) -> int:
    """Return the token that the next piece begins with, at the latest ``last``."""
    whole = [at for at in range(last, first, -1) if starts[at] > starts[at - 1]]  # not inside a character
    near = [at for at in whole if at - first >= least]
    for ends_here in _BOUNDARIES:
        for at in near:
            if ends_here(text, starts[at]):
                return at
    return whole[0] if whole else last


def _ends_paragraph(text: str, place: int) -> bool:
    before = text[max(0, place - _BEHIND) : place].rstrip(" \t\r")
    return before.endswith("\n") and not text[place : place + 1].isspace()


def _ends_sentence(text: str, place: int) -> bool:
    before = text[max(0, place - _BEHIND) : place]
    if _CLOSED_WITHOUT_SPACE.search(before):
        return True
    return _ends_word(text, place) and _SENTENCE.search(before) is not None


def _ends_word(text: str, place: int) -> bool:
    return text[place - 1].isspace() or text[place : place + 1].isspace()


_BOUNDARIES: tuple[Callable[[str, int], bool], ...] = (_ends_paragraph, _ends_sentence, _ends_word)
"""Whether a text may be cut before the character at a position; best boundaries first."""


def counted_texts(examples: Sequence[Example]) -> dict[str, int]:
    """Return the number of rows and, where some were split, of pieces."""
    rows = len(texts_of(examples))
    return {"examples": rows} | ({"pieces": len(examples)} if rows != len(examples) else {})


def _shortened(where: str, examples: Sequence[EncodedExample], max_length: int) -> list[str]:
    """Return notes on how many answers were cut, and how many conversations lost their first turns."""
    notes = []
    cut = sum(example.truncated for example in examples)
    turns = sum(example.turns_left_out > 0 for example in examples)
    if cut:
        notes.append(
            f"{where}: {_counted(cut, 'answer')} {_were(cut)} cut at {max_length} tokens; what was cut off "
            "is neither forgotten nor kept"
        )
    if turns:
        notes.append(
            f"{where}: {_counted(turns, 'conversation')} longer than {max_length} tokens {_were(turns)} "
            "shortened to the last turns"
        )
    return notes


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" + ("" if count == 1 else "s")


def _were(count: int) -> str:
    return "was" if count == 1 else "were"
