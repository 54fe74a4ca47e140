"""never-seen rows -> those that may set the stopping target, and those that are left for audits.

A model that stops when its forget set is no better known than some rows passes every comparison with the same
rows by construction. So each row belongs to one of two halves by its own content: two commands that never
meet agree on it, whatever else their files hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, TypeVar

from ngdiff.data.examples import Example

LEAST_HALF = 8
"""Rows that either half must have; a smaller holdout is not split."""

SPLIT = "holdout: split by content"
"""How the note in a record begins that says a holdout was split."""


class _Encoded(Protocol):
    @property
    def example(self) -> Example: ...


Item = TypeVar("Item", bound=_Encoded)


def stops(example: Example) -> bool:
    """Say whether a row belongs to the half that may set a stopping target."""
    return hashlib.sha256(example.key.encode("utf-8", "surrogatepass")).digest()[0] % 2 == 0


def for_stopping(rows: Sequence[Item]) -> tuple[list[Item], str | None]:
    """Return the rows that may set a stopping target, and a note for the record; all where they are few."""
    kept = [row for row in rows if stops(row.example)]
    left = len(rows) - len(kept)
    if min(len(kept), left) < LEAST_HALF:
        return list(rows), None
    return kept, f"{SPLIT}: {len(kept)} rows set the target, {left} are left for audits"


def for_auditing(rows: Sequence[Example], split: bool, same: bool) -> tuple[list[Example], str | None]:
    """Return the rows that did not set the target of a model under audit, and what to note.

    Args:
        rows: the audit's holdout.
        split: whether the model's record says that its holdout was split.
        same: whether the record's holdout was these very rows.
    """
    if split:
        kept = [row for row in rows if not stops(row)]
        what = (
            f"{len(rows) - len(kept)} rows of the holdout may have set the stopping target and are left out"
        )
        return kept, what if len(kept) < len(rows) else None
    if same:
        what = f"all {len(rows)} rows of the holdout set the stopping target: nothing is compared with them"
        return [], f"{what}. Give rows that the run did not have"
    return list(rows), (
        "the run had another holdout that was not split: rows that both share set the stopping target"
    )
