"""progress and damage between two checks -> factor of the learning rate.

An optimizer such as AdamW moves every weight by about its rate, along the gradient and across it: the
progress of n steps grows with n times the rate, the damage done across with n times its square. So the damage
that a given progress costs is in proportion to the rate, and a run that would spend all the utility above its
floor before it is done can still get there with smaller steps, and more of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

MARGIN = 0.5
"""Share of what is left of the utility that a run plans to spend: what is forgotten last is the dearest."""
MOST_SLOWER, MOST_FASTER = 0.25, 1.25
"""Too slow costs time, too fast the target: a run may slow down at once, and speeds up by little."""
NOTHING_LEFT = 0.05
"""A share of the whole slack with which no run goes any further."""
STEADY = 1.2
"""A factor this close to 1, either way, changes nothing."""
LEAST_PROGRESS, LEAST_SPENT = 0.1, 0.25
"""Shares of the whole way and of the whole slack: below both, a stretch is too short to say anything."""


class Standing(NamedTuple):
    """Where a run stands at a check.

    Args:
        excess: the way from the forget set's figure to its target, on a scale on which steps of one length
            make about the same way; 0 or less where the target is met.
        slack: what lies between the retain set's utility and its floor; negative below the floor.
    """

    excess: float
    slack: float


def tells(start: Standing, before: Standing, now: Standing) -> bool:
    """Say whether enough happened between two checks for a price of progress."""
    progress, spent = before.excess - now.excess, before.slack - now.slack
    return progress >= LEAST_PROGRESS * start.excess or spent >= LEAST_SPENT * start.slack


def pace(start: Standing, before: Standing, now: Standing, harm: float = 1.0) -> float:
    """Return the factor that lets the rest of the way cost what is left of the slack, with a margin.

    Args:
        start: before the first step.
        before: at an earlier check.
        now: at this check.
        harm: what a given progress costs at today's rate, over what it cost on average since then (see
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
    """Return what progress costs at a rate, over what it cost on average at the rates of earlier steps.

    Progress goes with the sum of the rates, damage with the sum of their squares, so the price of progress at
    rates r was sum(r^2) / sum(r), and is ``rate`` from here on.
    """
    path = math.fsum(rates)
    return rate * path / math.fsum(r * r for r in rates) if path > 0 else 1.0
