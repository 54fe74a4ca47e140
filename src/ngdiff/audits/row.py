"""What one audit is: its name, its paper, and how it puts a model to the test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ngdiff.audits.subject import Context, Subject
    from ngdiff.evaluation.result import Figure

Role = Literal["audited", "target", "reference"]
"""The model under audit; the one that knows everything; the one that never saw the forget set."""


@dataclass(frozen=True)
class Outcome:
    """What a model showed under one form of an audit.

    Args:
        figures: key, such as ``forget.extraction_strength``, to figure, as in ``eval.json``.
        rows: places in the forget set of the items measured, where it was not all of them.
        note: what a reader should know of it.
    """

    figures: dict[str, Figure]
    rows: tuple[int, ...] | None = None
    note: str | None = None


@dataclass(frozen=True)
class Audit:
    """One row of the table of audits.

    Args:
        name: as in ``--audits``.
        summary: one line.
        paper: where it comes from.
        run: model and data -> form of the audit, such as ``8 bits``, to what came out.
        settings: names of the fields of :class:`~ngdiff.audits.request.AuditRequest` that shape it.
        missing: says why the data does not allow it; it is then left out with a note.
        teaches: forms that train on what they test, so that any model shows more after them.
        changes: whether model or questions are changed; else it looks closer at the model as it is.
    """

    name: str
    summary: str
    paper: str
    run: Callable[[Subject, Context], dict[str, Outcome]]
    settings: Sequence[str] = ()
    missing: Callable[[Any], str | None] = field(default=lambda data: None)
    teaches: frozenset[str] = frozenset()
    changes: bool = True
