"""figures of a model, the target and the retrained model -> how far it is from the retrained one, and why.

Defined in ``docs/metrics.md`` under "distance". Keys are those of an evaluation's figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ngdiff.evaluation.suites.tofu import UTILITY_MEASURES, UTILITY_SETS

FORGET = tuple(
    f"forget.{measure}" for measure in ("probability", "extraction_strength", "rouge", "truth_ratio")
)
"""Figures of the forget set, which should be the retrained model's."""
SHARES = tuple(f"{name}.{measure}" for name in UTILITY_SETS for measure in UTILITY_MEASURES)
"""Parts of model utility, which should be no less than the target's."""
NLLS = ("general_nll", "holdout.nll")
"""Losses in nats per token, of general and of never-seen text, which should be no more than the target's."""
MUSE_FORGET = ("forget.verbatim", "forget.knowledge", "forget.extraction_strength")
"""Figures of the forget set under MUSE."""
MUSE_SHARES = ("retain.knowledge",)
PARTS = FORGET + SHARES + NLLS
MUSE_PARTS = MUSE_FORGET + MUSE_SHARES + ("general_nll",)
VITAL = ("retain.probability", "retain.rouge", "general_nll")
"""A model that lost half of one of these is destroyed. Of the NLL the half is that of exp(-NLL)."""
MUSE_VITAL = ("retain.knowledge", "general_nll")
LEAST = 0.05
"""Least denominator: smaller figures, and smaller differences between target and retrained, are noise."""
HALF = 0.5


@dataclass(frozen=True)
class Distance:
    """How far a model is from the retrained one.

    Args:
        value: the largest part; infinite for a model that is destroyed.
        part: the key of the part that decides.
        parts: every part that could be compared.
        missing: keys of those that could not, since target or retrained model have no such figure.
    """

    value: float
    part: str
    parts: Mapping[str, float]
    missing: tuple[str, ...] = ()


def distance(
    model: Mapping[str, float], target: Mapping[str, float], retrained: Mapping[str, float]
) -> Distance | None:
    """Return a model's distance from the retrained one; None where no figure of the forget set compares them.

    A figure that the target has and the model lacks, or that is not finite, counts as infinitely far.

    Args:
        model: its figures by key.
        target: those of the model that knows everything.
        retrained: those of the model that never saw the forget set.
    """
    wanted, kept = (MUSE_FORGET, MUSE_PARTS) if "forget.verbatim" in target else (FORGET, PARTS)
    compared = [key for key in wanted if key in target and key in retrained]
    if not compared:
        return None
    compared += [key for key in kept if key in target and key not in wanted]
    parts = {}
    for key in compared:
        found = model.get(key, math.nan)
        if not math.isfinite(found):
            parts[key] = math.inf
        elif key in wanted:
            parts[key] = abs(found - retrained[key]) / max(abs(target[key] - retrained[key]), LEAST)
        else:
            parts[key] = _loss(key, found, target[key])
    lost = destroyed(model, target)
    part = max(lost or parts, key=lambda key: parts[key])
    value = math.inf if lost else parts[part]
    return Distance(value, part, parts, tuple(key for key in kept if key not in parts))


def destroyed(model: Mapping[str, float], target: Mapping[str, float]) -> list[str]:
    """Return the vital figures of which a model lost half of the target's or more.

    Args:
        model: its figures by key.
        target: those of the model that knows everything.
    """
    vital = MUSE_VITAL if "forget.verbatim" in target else VITAL
    return [key for key in vital if key in target and _is_lost(key, model.get(key), target[key])]


def _loss(key: str, found: float, target: float) -> float:
    """Return how much worse than the target's a figure is, as a share of the target's; at least 0."""
    worse = found - target if key in NLLS else target - found
    return max(0.0, worse / max(target, LEAST))


def _is_lost(key: str, found: float | None, target: float) -> bool:
    """Return whether half of what the target has is gone."""
    if found is None or not math.isfinite(found):
        return True
    if key in NLLS:
        return math.exp(min(0.0, target - found)) <= HALF
    return _loss(key, found, target) >= HALF
