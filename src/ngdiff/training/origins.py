"""settings of a run -> where each part of its method comes from: a paper, or this software."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ngdiff.losses import LOSSES
from ngdiff.methods import STEP_SIZES, StepSizeName
from ngdiff.steps.weighting import RULES

if TYPE_CHECKING:
    from ngdiff.training.config import UnlearningConfig


def sources(config: UnlearningConfig) -> dict[str, str]:
    """Return the source of each part that is in use, in the words of the tables.

    A part that is switched off is not there: with ``stop_at`` at none and ``keep_utility`` at 0, nothing of
    this software's own decides when the run ends.
    """
    found = {
        "forget_loss": LOSSES[str(config.forget_loss)].paper,
        "retain_loss": LOSSES[str(config.retain_loss)].paper,
        "rule": RULES[str(config.rule)].paper,
        "step_size": STEP_SIZES[cast(StepSizeName, config.step_size)],
    }
    if config.sam_radius > 0:
        found["sam_radius"] = "Fan et al. 2025, arXiv 2502.05374"
    if config.stop_at != "none":
        found["stop_at"] = "NGDiff's own"
    if config.keep_utility > 0:
        found["keep_utility"] = "NGDiff's own"
    if config.hold_general and LOSSES[str(config.retain_loss)].compares == "predictions":
        found["hold_general"] = "NGDiff's own"
    if config.stop_at != "none" and config.step_size == "auto":
        found["pace"] = "NGDiff's own"
    return found
