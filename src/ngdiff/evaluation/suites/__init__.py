"""The table of suites: benchmarks of unlearning, one file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ngdiff.data.examples import Example
    from ngdiff.evaluation.reference import Reference
    from ngdiff.evaluation.request import EvaluateRequest
    from ngdiff.evaluation.result import Bootstrap, Figure
    from ngdiff.inference.evaluator import Evaluator


@dataclass(frozen=True)
class SuiteData:
    """What a suite measures on.

    Args:
        sets: name, such as ``forget``, to rows; empty where the suite's data has another form.
        split: ``forget01``, ``forget05`` or ``forget10`` of TOFU, else ``None``.
        content: what the suite itself reads, where that is more than the sets.
        notes: what a reader of the result should know of the data.
        settings: of the suite, for the result.
    """

    sets: Mapping[str, Sequence[Example]]
    split: str | None = None
    content: Any = None
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] | None = None


Run = Callable[["Evaluator", SuiteData, "Reference | None", "Bootstrap"], "dict[str, Figure]"]


@dataclass(frozen=True)
class Suite:
    """One benchmark.

    Args:
        name: as in ``--suite``.
        summary: one line.
        paper: where it comes from.
        needs: names of the request's fields that must be given.
        takes: names of those that may be given too.
        read: checks and reads the data, before any model is loaded.
        run: measures a model on it.
        refer: measures, on a retrained model, what ``run`` compares with; ``None`` where it compares nothing.
        max_length: longest sequence in tokens, where the request says nothing.
        splits: whether running text that is longer may be split into pieces, each an item.
    """

    name: str
    summary: str
    paper: str
    needs: tuple[str, ...]
    takes: tuple[str, ...]
    read: Callable[[EvaluateRequest], SuiteData]
    run: Run
    refer: Callable[[Evaluator, SuiteData, str], Reference] | None = None
    max_length: int = 512
    splits: bool = False


def suites() -> dict[str, Suite]:
    """Return the table, by name."""
    from ngdiff.evaluation.suites import harness, muse, own, tofu

    table = (tofu.SUITE, muse.SUITE, own.SUITE, harness.SUITE)
    return {suite.name: suite for suite in table}


__all__ = ["Suite", "SuiteData", "suites"]
