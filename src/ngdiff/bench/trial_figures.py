"""files of a trial or of a compared model -> its figures, and the shares that compare it with the target."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from ngdiff.bench.run import Outcome
from ngdiff.bench.trials import ending
from ngdiff.bench.worker import EVALUATION, GENERAL, RECORD
from ngdiff.evaluation.openunlearning import read_reference
from ngdiff.evaluation.result import is_result, read_result

Interval = tuple[float | None, float | None]
Figures = dict[str, tuple[float, Interval]]


def figures_of(outcome: Outcome, base: Mapping[str, Figures]) -> Figures:
    """Return the figures of one model, with those shares that compare it with the target and others."""
    found = _evaluated(outcome) if outcome.given is None else _given_figures(outcome.given)
    target = base.get("target")
    if target and forgetting(target) in found:  # none where an evaluation failed
        shares = shares_of(values_of(found), values_of(target), values_of(base.get("retrained", {})))
        found |= {name: (value, (None, None)) for name, value in shares.items()}
    return found


def _evaluated(outcome: Outcome) -> Figures:
    evaluation = outcome.read(EVALUATION)
    if evaluation is None or outcome.error is not None:
        return {}
    found: Figures = {}
    for key, figure in evaluation["figures"].items():
        if figure["value"] is not None:
            low, high = figure.get("interval") or (None, None)
            found[key] = figure["value"], (low, high)
    general, record = outcome.read(GENERAL), outcome.read(RECORD)
    if general is not None and general["nll"] is not None:  # None: it was not finite
        found["general_nll"] = general["nll"], (None, None)
    if record is not None:
        left = ending(record).left
        if left is not None:
            found["items_left"] = float(left), (None, None)
        found["steps"] = float(record["cost"]["steps"]), (None, None)
        found["seconds"] = record["cost"]["seconds"], (None, None)
        peaks = record["cost"]["peak_memory_gib"]  # the accelerator's, where one did the work
        found["peak_gib"] = peaks.get("accelerator", peaks["process"]), (None, None)
    return found


def _given_figures(path: Path) -> Figures:
    """Return what a retrained model's evaluation found, without figures whose definition has changed since.

    What an earlier benchmark found on general text lies beside the evaluation that it made.
    """
    if not is_result(path):  # a log of OpenUnlearning or TOFU, which has no intervals
        return {key: (value, (None, None)) for key, value in read_reference(path).figures.items()}
    figures = read_result(path, "--reference").figures.items()
    found: Figures = {
        key: (figure.value, figure.interval or (None, None))
        for key, figure in figures
        if figure.outdated is None and figure.value is not None
    }
    general = path.with_name(GENERAL)
    if path.name == EVALUATION and general.is_file():
        found["general_nll"] = json.loads(general.read_text(encoding="utf-8"))["nll"], (None, None)
    return found


def values_of(figures: Figures) -> dict[str, float]:
    """Return the figures without their intervals."""
    return {key: value for key, (value, _) in figures.items()}


def shares_of(
    model: Mapping[str, float], target: Mapping[str, float], retrained: Mapping[str, float]
) -> dict[str, float]:
    """Return three shares in [0, 1] that say how a model compares with the target.

    - forgotten: how far the forget set's extraction strength (of MUSE, its verbatim memorisation) came down
      from the target's to the retrained model's (or, without one, to that of the holdout), no more than all
      of it counting.
    - kept: model utility over the target's.
    - collateral: the least of what is left of what was not to be touched: the answer probability of
      never-seen text of the same kind, of real authors and of world facts over the target's, and the
      probability per token of general text, as well. A method that ruins one of them has ruined its
      neighbourhood, whatever the others say.
    """
    key = forgetting(target)
    level = retrained.get(key, target.get("holdout.extraction_strength", 0.0))
    span = target[key] - level
    found = {"forgotten": _share(target[key] - model[key], span)}
    utility = next((name for name in ("model_utility", "utility") if target.get(name)), None)
    if utility is not None and model.get(utility) is not None:
        found["kept"] = _share(model[utility], target[utility])
    parts = [
        _share(model[name], target[name])
        for name in ("holdout.probability", "real_authors.probability", "world_facts.probability")
        if name in model and name in target
    ]
    if "general_nll" in model and "general_nll" in target:
        parts.append(min(1.0, math.exp(target["general_nll"] - model["general_nll"])))
    return found | ({"collateral": min(parts)} if parts else {})


def forgetting(figures: Mapping[str, object]) -> str:
    """Return the key of the figure that says how much of the forget set is left."""
    return "forget.verbatim" if "forget.verbatim" in figures else "forget.extraction_strength"


def _share(value: float, whole: float) -> float:
    return 1.0 if whole <= 0 else min(1.0, max(0.0, value / whole))
