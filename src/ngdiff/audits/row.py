"""What one audit is: its name, its paper, and how it puts a model to the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ngdiff.audits.subject import Context, Subject
    from ngdiff.evaluation.result import Figure

Role = Literal["audited", "target", "reference"]
"""The model under audit; the one that knows everything; the one that never saw the forget set."""


ANSWERED = ("forget.extraction_strength", "forget.probability", "forget.rouge")
"""Figures that findings are made of where answers are scored, the one that is shown first."""


@dataclass(frozen=True)
class Outcome:
    """What a model showed under one form of an audit.

    Args:
        figures: key, such as ``forget.extraction_strength``, to figure, as in ``eval.json``; where there is a
            holdout, its figures after the same treatment, such as ``holdout.extraction_strength``, too.
        rows: name of a set to the places of the items measured, where it was not all of them.
        note: what a reader should know of it.
    """

    figures: dict[str, Figure]
    rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
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
        changes: whether model or questions are changed; else it looks closer at the model as it is.
        damage: whether it looks for damage, which may have spread to text never seen: it is then compared
            with another, whole model's figures alone, where there is one.
        says: what a reader is told where something was found, and where nothing was.
        headlines: keys of the figures that findings are made of, the one that is shown first.
    """

    name: str
    summary: str
    paper: str
    run: Callable[[Subject, Context], dict[str, Outcome]]
    settings: Sequence[str] = ()
    missing: Callable[[Any], str | None] = field(default=lambda data: None)
    changes: bool = True
    damage: bool = False
    says: tuple[str, str] = ("brought out", "nothing shown")
    headlines: Sequence[str] = ANSWERED
