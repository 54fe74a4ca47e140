"""what was left at each check -> further steps that the rest takes, and what to change if they are too many.

The slack of each floor is drawn on too. Where one runs out before the target is reached, more epochs are not
suggested. Both lines are rough: late progress is dear, and an automatic rate slows down near a floor.

The way to a target is measured on a scale on which steps of one length tell alike (see
:func:`ngdiff.stopping.rule.way_left`), so the last stretch of it is drawn on in a straight line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

FEWEST = 3
"""Checks that a forecast needs, the one before the first step included."""
EARLIEST = 0.25
"""Share of a run's steps after which it is forecast."""
MARGIN = 1.25
"""Steps that are suggested, over those that the forecast needs: what is forgotten last is the dearest."""
FARTHEST = 4.0
"""Times as many steps as the run has, beyond which further steps are no help and a higher rate is."""
FASTER = 5.0
"""By what the rate is to be raised then."""
FAR = 0.5
"""Share of the slack of the tightest floor that has to be left for a higher rate to be suggested, and from
which on nothing is said of when the floor is reached: figures of so little change are mostly noise."""
WORDS = "the target is out of reach at this pace"


class Seen(NamedTuple):
    """What one check found.

    Args:
        step: optimizer steps done.
        way: what is left of the way, as a share of the whole; 0 or less where the target is met.
    """

    step: int
    way: float


@dataclass(frozen=True)
class Forecast:
    """How a run would go on at its present pace.

    Args:
        needed: further steps to the target; None where the last checks show no progress.
        left: further steps that the run has.
        done: steps done.
    """

    needed: int | None
    left: int
    done: int

    @property
    def enough(self) -> bool:
        """Whether the run has the steps that it needs."""
        return self.needed is not None and self.needed <= self.left

    @property
    def stuck(self) -> bool:
        """Whether no number of steps in proportion to the run's own is enough."""
        return self.needed is None or self.done + self.needed > FARTHEST * (self.done + self.left)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"steps_needed": self.needed, "steps_left": self.left}


@dataclass(frozen=True)
class Nearing:
    """The floor that a run reaches first at its present pace.

    Args:
        title: what it holds, in words.
        setting: its name in ``floors``.
        steps: further steps until nothing of its slack is left.
    """

    title: str
    setting: str
    steps: int


def steps_to_zero(seen: Sequence[Seen]) -> float:
    """Draw the last half of the checks on to 0; return the further steps to there, infinite if never."""
    # half of the stretch at least, so that one noisy check does not decide
    before, now = seen[min(len(seen) - 2, len(seen) // 2)], seen[-1]
    speed = (before.way - now.way) / max(1, now.step - before.step)
    return max(0.0, now.way / speed) if speed > 0 else math.inf


def forecast(seen: Sequence[Seen], steps: int) -> Forecast | None:
    """Draw the last half of the checks on to the target.

    Args:
        seen: the checks since the start or the last retreat, oldest first.
        steps: that the run has in all.

    Returns:
        None where the checks are too few, or the last one found nothing left.
    """
    if len(seen) < FEWEST:
        return None
    before, now = seen[min(len(seen) - 2, len(seen) // 2)], seen[-1]
    if now.way <= 0 or now.step <= before.step:
        return None
    needed = steps_to_zero(seen)
    whole = math.ceil(needed - 1e-9) if needed < 2**31 else None  # rounding makes no step of its own
    return Forecast(whole, max(0, steps - now.step), now.step)


def nearing(title: str, setting: str, seen: Sequence[Seen]) -> Nearing | None:
    """Draw the slack of a floor on to where nothing of it is left.

    Args:
        title: what the floor holds, in words.
        setting: its name in ``floors``.
        seen: share of its slack that is left at each check, oldest first.

    Returns:
        None where the checks are too few, more than :data:`FAR` is left, or the slack is not shrinking.
    """
    if len(seen) < FEWEST or seen[-1].way >= FAR:
        return None
    steps = steps_to_zero(seen)
    return Nearing(title, setting, math.ceil(steps - 1e-9)) if steps < 2**31 else None


def suggestion(
    found: Forecast, epochs: float, rate: float | None, slack: float, floor: Nearing | None = None
) -> str | None:
    """Say what to change so that the target comes within reach.

    Args:
        found: the forecast.
        epochs: passes over the forget set that the run has.
        rate: learning rate of the last steps; None where it is not known.
        slack: share of the tightest floor's slack that is left, 1 without floors.
        floor: the floor that is reached first, if any is.

    Returns:
        None where the run has the steps that it needs, and no floor is in the way.
    """
    if floor is not None and found.needed is not None and floor.steps < found.needed:
        rest = 100 * (found.needed - floor.steps) / found.needed
        soon = f"about {floor.steps} steps" if floor.steps > 1 else "a step"
        when = f"will meet its floor in {soon}" if floor.steps else "is at its floor"
        return (
            f"{floor.title} {when}, and the target is {found.needed} steps away, so about {rest:.0f}% of the "
            "remaining way would still be left then; more steps alone may not reach it. Accept what is left, "
            f"lower that floor with --set floors.{floor.setting}=SHARE, or give rows to keep that are more "
            "like what falls"
        )
    if found.enough:
        return None
    if not found.stuck:
        assert found.needed is not None
        share = MARGIN * (found.done + found.needed) / (found.done + found.left)
        wanted = f"about {found.needed} more steps are needed and {found.left} are left"
        return f"{wanted}; run again with at least --epochs {math.ceil(epochs * share)}"
    said = "the last checks show no progress" if found.needed is None else f"{found.needed} steps are needed"
    if rate and slack >= FAR:
        return f"{said} and the floors are far; run again with --lr {FASTER * rate:.1e}"
    return f"{said}; lower a floor with --set floors.NAME=SHARE, or add rows of the forget set's kind to keep"
