"""tuning trials of a benchmark -> what was tried, what was chosen, and whether that lies at an edge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ngdiff.bench.data import sources
from ngdiff.bench.grid import MOST_WIDENINGS, edges, values_tried, with_defaults
from ngdiff.bench.numbers import markdown_table, number, written
from ngdiff.bench.run import BenchResult, tried
from ngdiff.bench.trials import ending, selection_score
from ngdiff.bench.variants import find_variant
from ngdiff.bench.worker import RECORD
from ngdiff.system.untrusted import markdown_cell

SELECTION = (
    "Settings were chosen by the harmonic mean of three shares: how far the forget set's extraction "
    "strength and its answer probability fell towards those of never-seen text (the lesser of the two), "
    "and how much of the answer probability of held-out retain examples and of never-seen text was left. "
    "The rule was fixed before any trial ran and sees no retrained model. Trials that tune forget authors "
    "that no reported split has, with a seed that no reported run has; they ran under the stopping rule, "
    "also where runs without it (no-stop) are reported. Where the best value of a setting was the least or "
    f"the greatest tried, further trials went a step beyond it, at most {MOST_WIDENINGS} times. Methods "
    "with an automatic rate and no other range to search have nothing to choose."
)


def tuned_on(result: BenchResult) -> str:
    """Say which questions were forgotten and kept to tune."""
    lines = []
    for name in dict.fromkeys(outcome.split for outcome in result.tuned):
        forget, retain = sources(result.request, name)
        lines.append(f"- {name}: forget `{forget}`, keep `{retain}`")
    return "\n".join(lines)


def tuning_rows(result: BenchResult) -> list[dict[str, Any]]:
    """Return a row for every setting tried, its score and how its run went."""
    rows = []
    for outcome in result.tuned:
        record = None if outcome.error else outcome.read(RECORD)
        settings = {} if outcome.trial is None else tried(outcome.trial)
        row: dict[str, Any] = {
            "split": outcome.split,
            "method": outcome.name,
            "settings": settings,
            "score": None,
        }
        if record is not None:
            row |= {
                "score": selection_score(record),
                "forget_extraction_strength": record["after"]["forget"]["extraction_strength"],
                "forget_probability": record["after"]["forget"]["probability"],
                "retain_probability": record["after"]["retain"]["probability"],
                "never_seen_probability": record["after"]["never_seen"]["probability"],
                "steps": record["cost"]["steps"],
                "seconds": record["cost"]["seconds"],
                "ended": ending(record).code,
            }
        row["chosen"] = (
            row["score"] is not None and result.chosen.get((outcome.split, outcome.name)) == settings
        )
        rows.append(row)
    return rows


def tuning_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what was tried, in Markdown; the chosen settings in bold."""
    titles = {
        "score": "score ↑",
        "forget_extraction_strength": "forget ES",
        "forget_probability": "forget P",
        "retain_probability": "retain P ↑",
        "never_seen_probability": "never seen P",
        "steps": "steps",
        "seconds": "s ↓",
    }
    figures = [key for key in titles if any(row.get(key) is not None for row in rows)]
    lines = []
    for row in rows:
        settings = written(row["settings"])
        cells = ["" if row.get(key) is None else number(float(row[key])) for key in figures]
        shown = f"**{settings}**" if row["chosen"] else settings
        ended = markdown_cell(str(row.get("ended", "failed")))
        lines.append([row["split"], row["method"], shown, *cells, ended])
    return markdown_table(["split", "method", "settings", *map(titles.__getitem__, figures), "ended"], lines)


def grid_rows(result: BenchResult) -> list[dict[str, Any]]:
    """Return a row for every setting tuned: the values tried, the best, and the edge where it lies at one."""
    rows = []
    for (split, name), best in result.chosen.items():
        method = find_variant(name).method
        mine = [outcome.trial for outcome in result.tuned if (outcome.split, outcome.name) == (split, name)]
        settings = [tried(trial) for trial in mine if trial is not None]
        ends, chosen = edges(method, settings, best), with_defaults(method, best)
        rows += [
            {
                "split": split,
                "method": name,
                "setting": setting,
                "tried": values,
                "best": chosen[setting],
                "edge": ends.get(setting),
            }
            for setting, values in values_tried(method, settings).items()
        ]
    return rows


def grid_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return, for every setting that was tuned, what was tried and whether the best lies at an edge."""
    lines = [
        [
            row["split"],
            row["method"],
            row["setting"],
            ", ".join(f"{value:g}" for value in row["tried"]),
            f"{row['best']:g}",
            "no" if row["edge"] is None else f"yes, the {row['edge']}",
        ]
        for row in rows
    ]
    return markdown_table(["split", "method", "setting", "tried", "best", "at an edge"], lines)
