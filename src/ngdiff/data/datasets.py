"""data sets in any of the accepted forms -> encoded examples, split as a run needs them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ngdiff.data.batching import permutation
from ngdiff.data.encoding import EncodedExample
from ngdiff.data.examples import Example, to_examples
from ngdiff.data.long_text import encode_pieces
from ngdiff.data.sources import Row, read_rows

HELD_OUT_SHARE = 0.2
SMALLEST_SPLIT = 10


def as_encoded(
    dataset: Any, tokenizer: Any, max_length: int, where: str, long_text: str = "split"
) -> list[EncodedExample]:
    """Encode a data set; see :func:`encoded`."""
    return encoded(dataset, tokenizer, max_length, where, long_text)[0]


def encoded(
    dataset: Any, tokenizer: Any, max_length: int, where: str, long_text: str = "split"
) -> tuple[list[EncodedExample], list[str]]:
    """Encode a data set, and say what was split, cut or left out.

    Args:
        dataset: a source string (see :mod:`ngdiff.data.sources`), a ``datasets.Dataset``, or a sequence of
            rows (mappings), of :class:`Example` or of :class:`EncodedExample`.
        tokenizer: with its chat template, where it has one.
        max_length: longest sequence, in tokens.
        where: the setting to name in errors.
        long_text: ``split`` or ``cut``; see :mod:`ngdiff.data.long_text`.

    Raises:
        RequestError: rows lack columns or answers; all such faults together.
    """
    if isinstance(dataset, str):
        dataset = read_rows(dataset, where=where)
    items = list(dataset)
    if items and all(isinstance(item, EncodedExample) for item in items):
        return items, []
    examples = items if items and all(isinstance(item, Example) for item in items) else _rows(items, where)
    return encode_pieces(examples, tokenizer, max_length, where, long_text)


def _rows(items: Iterable[Any], where: str) -> list[Example]:
    rows = [
        item if isinstance(item, Row) else Row(dict(item), f"row {number}")
        for number, item in enumerate(items, start=1)
        if isinstance(item, (Row, Mapping))
    ]
    return to_examples(rows, where)


def split_retain(
    retain: list[EncodedExample], most: int, seed: int
) -> tuple[list[EncodedExample], list[EncodedExample], str | None]:
    """Hold out a fifth of the retain set, about ``most`` examples at the most, to measure utility on.

    Texts are held out whole: no text has pieces on both sides. So there may be fewer than ``most``, by less
    than one text, or, where the first text drawn is longer than that, the pieces of this text alone.

    Returns:
        What to train on, what to measure on, and a note where the set is too small to be split: then the two
        are the same.
    """
    texts: dict[int, list[int]] = {}
    for row, example in enumerate(retain):
        whole = example.example if example.example.part is None else example.example.part.whole
        texts.setdefault(id(whole), []).append(row)
    if len(texts) < SMALLEST_SPLIT:
        what = f"the {len(retain)} retain examples"
        if len(texts) != len(retain):
            what += f" (of {len(texts)} texts)"
        return retain, retain, f"utility is measured on {what} that are trained on: too few to split"
    count = max(1, min(most, round(HELD_OUT_SHARE * len(retain))))
    rows = list(texts.values())
    held_out: set[int] = set()
    for place in permutation(len(rows), seed + 3, 0):
        if held_out and len(held_out) + len(rows[place]) > count:
            break
        held_out.update(rows[place])
    train = [example for row, example in enumerate(retain) if row not in held_out]
    return train, [retain[row] for row in sorted(held_out)], None
