"""data sets in any of the accepted forms -> encoded examples, split as a run needs them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ngdiff.data.batching import permutation
from ngdiff.data.encoding import EncodedExample, encode_all
from ngdiff.data.examples import Example, to_examples
from ngdiff.data.sources import Row, read_rows

HELD_OUT_SHARE = 0.2
SMALLEST_SPLIT = 10


def as_encoded(dataset: Any, tokenizer: Any, max_length: int, where: str) -> list[EncodedExample]:
    """Encode a data set.

    Args:
        dataset: a source string (see :mod:`ngdiff.data.sources`), a ``datasets.Dataset``, or a sequence of
            rows (mappings), of :class:`Example` or of :class:`EncodedExample`.
        tokenizer: with its chat template, where it has one.
        max_length: longest sequence, in tokens.
        where: the setting to name in errors.

    Raises:
        RequestError: rows lack columns or answers; all such faults together.
    """
    if isinstance(dataset, str):
        dataset = read_rows(dataset, where=where)
    items = list(dataset)
    if items and all(isinstance(item, EncodedExample) for item in items):
        return items
    examples = items if items and all(isinstance(item, Example) for item in items) else _rows(items, where)
    return encode_all(examples, tokenizer, max_length, where)


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
    """Hold out a fifth of the retain set, at most ``most`` examples, to measure utility on.

    Returns:
        What to train on, what to measure on, and a note where the set is too small to be split: then the two
        are the same.
    """
    if len(retain) < SMALLEST_SPLIT:
        note = (
            f"utility is measured on the {len(retain)} retain examples that are trained on: too few to split"
        )
        return retain, retain, note
    count = max(1, min(most, round(HELD_OUT_SHARE * len(retain))))
    held_out = set(permutation(len(retain), seed + 3, 0)[:count])
    train = [example for row, example in enumerate(retain) if row not in held_out]
    return train, [retain[row] for row in sorted(held_out)], None
