"""data sets in any accepted form -> encoded examples, split as a run needs them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

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
    """Encode a data set, and return notes on what was split, cut or left out.

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
    """Hold out a fifth of the retain set, at most about ``most`` examples, to measure utility on.

    Texts are held out whole, so that no text has pieces in both parts. So there may be fewer than ``most``,
    by less than one text, or, where the first text drawn is longer than that, the pieces of this text alone.

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


# ---- never-seen rows -> those that may set the stopping target, and those that are left for audits ----


LEAST_HALF = 8
"""Fewest rows of either half; a smaller holdout is not split."""

SPLIT = "holdout: split by content"
"""Beginning of the note in a record that says that a holdout was split."""


class _Encoded(Protocol):
    @property
    def example(self) -> Example: ...


Item = TypeVar("Item", bound=_Encoded)


def stops(example: Example) -> bool:
    """Return whether a row belongs to the half that may set a stopping target."""
    return hashlib.sha256(example.key.encode("utf-8", "surrogatepass")).digest()[0] % 2 == 0


def for_stopping(rows: Sequence[Item]) -> tuple[list[Item], str | None]:
    """Return the rows that may set a stopping target (all where there are few), and a note for the record."""
    kept = [row for row in rows if stops(row.example)]
    left = len(rows) - len(kept)
    if min(len(kept), left) < LEAST_HALF:
        return list(rows), None
    return kept, f"{SPLIT}: {len(kept)} rows set the target, {left} are left for audits"


def for_auditing(rows: Sequence[Example], split: bool, same: bool) -> tuple[list[Example], str | None]:
    """Return the rows that did not set the target of an audited model, and a note.

    Args:
        rows: the audit's holdout.
        split: whether the model's record says that its holdout was split.
        same: whether the record's holdout was exactly these rows.
    """
    if split:
        kept = [row for row in rows if not stops(row)]
        what = (
            f"{len(rows) - len(kept)} rows of the holdout may have set the stopping target and are left out"
        )
        return kept, what if len(kept) < len(rows) else None
    if same:
        what = f"all {len(rows)} rows of the holdout set the stopping target: nothing is compared with them"
        return [], f"{what}. Give rows that the run did not use"
    return list(rows), (
        "the run used another holdout without splitting it: rows in both holdouts set the stopping target"
    )
