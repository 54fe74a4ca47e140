"""figures -> OpenUnlearning's result files, so that its tools and tables can read them.

What is written is what this package measured, by the definitions: OpenUnlearning's extraction strength gives
1/n where nothing is right, its truth ratios add 1e-10 to p(right); these do not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ngdiff.evaluation.openunlearning import ATTACKS, MUSE_FIGURES, TOFU_FIGURES
from ngdiff.evaluation.result import Figure
from ngdiff.system.output import finite, staged_folder

_TRUTH_RATIOS = {
    "forget_truth_ratio": "forget",
    "retain_Truth_Ratio": "retain",
    "ra_Truth_Ratio": "real_authors",
    "wf_Truth_Ratio": "world_facts",
}


def as_log(
    suite: str,
    figures: Mapping[str, Figure],
    truth_ratios: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Lay figures out as OpenUnlearning's ``..._EVAL.json``, metrics in the order of their names.

    Args:
        suite: ``tofu`` or ``muse``.
        figures: key to figure; those that OpenUnlearning has no name for are left out, and so are those
            without a value.
        truth_ratios: ``forget``, ``retain``, ``real_authors``, ``world_facts`` to p(wrong)/p(right) of each
            item; other code compares with these. A truth ratio's own items are min(t, 1/t) or max(0, 1 - t),
            from which they cannot be had back.
    """
    log: dict[str, Any] = {}
    for name, key in (MUSE_FIGURES if suite == "muse" else TOFU_FIGURES).items():
        found = figures.get(key)
        if found is None or found.value is None:
            continue
        entry: dict[str, Any] = {"agg_value": found.value}
        if name in ATTACKS:
            entry["auc"] = found.value
        elif statistic := _statistic(name, suite):
            items: Sequence[float | None] = found.items
            if name in _TRUTH_RATIOS:
                items = (truth_ratios or {}).get(_TRUTH_RATIOS[name], ())
            if items:
                entry["value_by_index"] = {str(row): {statistic: item} for row, item in enumerate(items)}
        log[name] = entry
    return finite(dict(sorted(log.items()))) or {}


def _statistic(name: str, suite: str) -> str | None:
    """Return what OpenUnlearning calls the per-item value of a metric."""
    if name.endswith("_ROUGE"):
        return "rougeL_f1" if suite == "muse" else "rougeL_recall"
    if "_Prob" in name:
        return "prob"
    return "score" if name in {*_TRUTH_RATIOS, "extraction_strength", "exact_memorization"} else None


def write_log(
    folder: Path,
    suite: str,
    figures: Mapping[str, Figure],
    truth_ratios: Mapping[str, Sequence[float]] | None = None,
) -> tuple[Path, Path]:
    """Write ``TOFU_EVAL.json`` and ``TOFU_SUMMARY.json`` (or MUSE's) into a new folder, whole or not at all.

    Args:
        folder: the folder to make.
        suite: see ``as_log``.
        figures: see ``as_log``.
        truth_ratios: see ``as_log``.

    Returns:
        The two files.

    Raises:
        RunError: something lies in the folder already; the new one is kept beside it, and named.
    """
    log = as_log(suite, figures, truth_ratios)
    summary = {name: entry["agg_value"] for name, entry in log.items()}
    names = [f"{suite.upper()}_{kind}.json" for kind in ("EVAL", "SUMMARY")]
    with staged_folder(folder, overwrite=False) as staging:
        for name, content in zip(names, (log, summary), strict=True):
            (staging / name).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    return folder / names[0], folder / names[1]
