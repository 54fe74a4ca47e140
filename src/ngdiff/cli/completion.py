"""the first letters of a name -> names of a table, for the shell's completion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Completed = Iterator[tuple[str, str]]
"""Names, each with a word of help."""


def _begin(incomplete: str, names: Iterable[tuple[str, str]]) -> Completed:
    """Yield names that begin with ``incomplete``; of names separated by commas, the last one counts."""
    before, comma, last = incomplete.rpartition(",")
    for name, help_ in names:
        if name.startswith(last):
            yield before + comma + name, help_


def _summaries(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    return ((row.name, row.summary) for row in table.values())


def methods(incomplete: str) -> Completed:
    """Complete the name of a method."""
    from ngdiff.methods import METHODS

    return _begin(incomplete, _summaries(METHODS))


def forget_losses(incomplete: str) -> Completed:
    """Complete the name of a forget loss."""
    return _losses(incomplete, "forget")


def retain_losses(incomplete: str) -> Completed:
    """Complete the name of a retain loss."""
    return _losses(incomplete, "retain")


def _losses(incomplete: str, task: str) -> Completed:
    from ngdiff.losses import LOSSES

    return _begin(incomplete, ((row.name, row.summary) for row in LOSSES.values() if row.task == task))


def rules(incomplete: str) -> Completed:
    """Complete the name of a weighting rule."""
    from ngdiff.steps.weighting import RULES

    return _begin(incomplete, _summaries(RULES))


def suites(incomplete: str) -> Completed:
    """Complete the name of an evaluation suite."""
    from ngdiff.evaluation.suites import suites as table

    return _begin(incomplete, _summaries(table()))


def forget_targets(incomplete: str) -> Completed:
    """Complete a forget target."""
    from typing import get_args

    from ngdiff.stopping.criterion import Measure

    fixed = ("auto", "never-seen-loss", "none")
    return _begin(incomplete, ((name, "") for name in (*fixed, *(f"{m}=" for m in get_args(Measure)))))


def sources(incomplete: str) -> Completed:
    """Complete a named data set, or a file."""
    from pathlib import Path

    from ngdiff.data.benchmarks import BENCHMARKS
    from ngdiff.data.sources import SHIPPED

    named = [f"{row.name}:{part}" for row in BENCHMARKS.values() for part in row.parts]
    named += [f"ngdiff:{name}" for name in SHIPPED]
    yield from _begin(incomplete, ((name, "") for name in named))
    typed = Path(incomplete or ".")
    folder = typed if incomplete.endswith("/") or not incomplete else typed.parent
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            name = f"{path}/" if path.is_dir() else str(path)
            if name.startswith(incomplete):
                yield name, ""


def set_pairs(incomplete: str) -> Completed:
    """Complete the name of a trainer setting, with its equals sign."""
    from ngdiff.cli.settings import ALIASES, DECIDED_BY
    from ngdiff.settings.fields import setting_names

    names = sorted({*setting_names(), *ALIASES} - set(DECIDED_BY))
    return _begin(incomplete, ((f"{name}=", "") for name in names))


def forget_sets(incomplete: str) -> Completed:
    """Complete a forget split of TOFU, or a source."""
    yield from splits(incomplete)
    yield from sources(incomplete)


def splits(incomplete: str) -> Completed:
    """Complete a forget split of TOFU."""
    return _begin(incomplete, ((name, "") for name in ("forget01", "forget05", "forget10")))


def long_texts(incomplete: str) -> Completed:
    """Complete a way to treat texts that are too long."""
    return _begin(incomplete, (("split", "into pieces"), ("cut", "and drop the rest")))


def precisions(incomplete: str) -> Completed:
    """Complete a precision."""
    return _begin(incomplete, (("auto", "bf16 where it is fast"), ("bf16", ""), ("fp32", "")))


def log_formats(incomplete: str) -> Completed:
    """Complete a format of the log."""
    return _begin(incomplete, (("auto", "a bar, or lines"), ("lines", "plain lines"), ("json", "JSON lines")))


def tables(incomplete: str) -> Completed:
    """Complete the name of a table of ``ngdiff ls``."""
    from ngdiff.cli.listing import TABLES

    return _begin(incomplete, ((name, "") for name in TABLES))
