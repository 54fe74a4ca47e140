"""progress and damage between two checks -> factor of the learning rate.

An optimizer such as AdamW moves every weight by about its rate, along the gradient and across it: the
progress of n steps grows with n times the rate, the damage across the gradient with n times its square. So
the damage for a given progress is proportional to the rate, and a run that would use up all utility above its
floor too early can still reach its target with smaller steps, and more of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

MARGIN = 0.5
"""Share of the remaining slack that a run plans to use: the last items cost the most."""
MOST_SLOWER, MOST_FASTER = 0.5, 1.25
"""Too slow costs time, too fast the target: a run slows down quickly and speeds up little by little. A single
check is noisy, so not even the worst one more than halves the rate."""
NOTHING_LEFT = 0.05
"""Share of the whole slack below which no run continues."""
STEADY = 1.2
"""Factors this close to 1, either way, are ignored."""
LEAST_PROGRESS, LEAST_SPENT = 0.1, 0.25
"""Shares of the whole way and of the whole slack; a stretch below both is too short to be informative."""


class Standing(NamedTuple):
    """Where a run stands at a check.

    Args:
        excess: the distance of the forget set's figure from its target, on a scale where equal steps make
            about equal progress; 0 or less where the target is met.
        slack: the distance of the retain set's utility from its floor; negative below the floor.
    """

    excess: float
    slack: float


def tells(start: Standing, before: Standing, now: Standing) -> bool:
    """Return whether enough happened between two checks to measure the cost of progress."""
    progress, spent = before.excess - now.excess, before.slack - now.slack
    return progress >= LEAST_PROGRESS * start.excess or spent >= LEAST_SPENT * start.slack


def pace(start: Standing, before: Standing, now: Standing, harm: float = 1.0) -> float:
    """Return the factor of the rate at which the rest of the way uses up the slack, with a margin.

    Args:
        start: before the first step.
        before: at an earlier check.
        now: at this check.
        harm: cost of progress at the current rate, relative to its mean cost since then (see
            :func:`relative_harm`).

    Returns:
        A number from :data:`MOST_SLOWER` to :data:`MOST_FASTER`; 1 to leave the rate alone.
    """
    if not tells(start, before, now) or now.excess <= 0:
        return 1.0
    progress, spent = before.excess - now.excess, before.slack - now.slack
    if spent <= 0:
        return MOST_FASTER
    need = harm * spent / progress * now.excess if progress > 0 else math.inf
    factor = MARGIN * max(now.slack, 0.0) / need if need > 0 else math.inf
    if 1 / STEADY < factor < STEADY:
        return 1.0
    return min(max(factor, MOST_SLOWER), MOST_FASTER)


def relative_harm(rate: float, rates: Sequence[float]) -> float:
    """Return the cost of progress at a rate, relative to its mean cost at the rates of earlier steps.

    Progress grows with the sum of the rates, damage with the sum of their squares, so progress cost
    sum(r^2) / sum(r) at rates r, and costs ``rate`` from here on.
    """
    path = math.fsum(rates)
    return rate * path / math.fsum(r * r for r in rates) if path > 0 else 1.0
