"""figures at a check -> go on or stop, and whether this is the best state so far.

The forget loss has no minimum, so a run ends at a stated target. The floor under the retain set's utility
holds for every state that is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from ngdiff.errors import Fault, RequestError, unknown_name
from ngdiff.steps.pace import NOTHING_LEFT, Standing, pace, relative_harm, tells

Measure = Literal["extraction_strength", "exact_memorisation", "probability", "nll"]
UTILITY: Measure = "probability"
CERTAINTY = "unlikelihood"
"""The forget set's mean -log(1 - p): see :func:`way_left`."""
TOP, BOTTOM = 0.95, 0.01
"""Shares between which the way to a target is measured."""


@dataclass(frozen=True)
class ForgetTarget:
    """When the forget set counts as forgotten.

    Args:
        measure: the mean figure of the forget set that decides.
        value: its threshold (``nll`` must reach it from below, the others from above); None where it is to be
            measured on text the model never saw.
        source: where the threshold comes from, in words.
    """

    measure: Measure
    value: float | None
    source: str

    def met(self, figures: Mapping[str, float]) -> bool:
        """Say whether the figures reach the target, whose value must be known by now."""
        return self.excess(figures) <= 0

    def excess(self, figures: Mapping[str, float]) -> float:
        """Return how far the figures are from the target; 0 or less where it is met."""
        if self.value is None:
            raise ValueError("the target's value has not been measured yet")
        gap = figures[self.measure] - self.value
        return -gap if self.measure == "nll" else gap

    def log_odds(self, figures: Mapping[str, float]) -> float:
        """Return how far the figures are from the target, in log-odds.

        From 0.95 to 0.9 and from 0.1 to 0.05 takes about as many steps as a fifth in the middle. Log-odds end
        at :data:`TOP` and :data:`BOTTOM`, beyond which a share is noise.
        """
        if self.value is None:
            raise ValueError("the target's value has not been measured yet")
        if self.measure == "nll":
            return _log_odds(math.exp(-figures["nll"])) - _log_odds(math.exp(-self.value))
        return _log_odds(figures[self.measure]) - _log_odds(self.value)

    def within_reach(self, figures: Mapping[str, float]) -> bool:
        """Say whether cheap figures of a few examples suggest that a full check may find the target met."""
        if self.value is None:
            return False
        if self.measure == "nll":
            return figures["nll"] >= 0.8 * self.value
        return figures[self.measure] <= 1.5 * self.value + 0.02


def _log_odds(share: float) -> float:
    inside = min(max(share, BOTTOM), TOP)
    return math.log(inside / (1 - inside))


def way_left(target: ForgetTarget, start: Mapping[str, float], now: Mapping[str, float]) -> float:
    """Return what is left of the way to the target, as a share on which steps of one length tell alike.

    By the target's own measure a run stands still for long, since what a model knows by heart gives way late;
    meanwhile :data:`CERTAINTY` falls, if the forget loss takes hold of every token. Where it drives a few
    tokens far off instead, as gradient ascent does, certainty stays, and the measure tells. So the lesser of
    the two counts: of certainty down to 0, of the target's measure in log-odds down to the target.
    """
    whole = target.log_odds(start)
    left = target.log_odds(now) / whole if whole > 0 else 0.0
    if start.get(CERTAINTY, 0.0) > 0 and CERTAINTY in now:
        left = min(left, now[CERTAINTY] / start[CERTAINTY])
    return left


def parse_stop_at(text: str) -> ForgetTarget | None:
    """Read ``auto``, ``never-seen-loss``, ``none`` or ``MEASURE=NUMBER``.

    Raises:
        RequestError: it is none of these, or the number is out of range.
    """
    if text == "none":
        return None
    if text == "auto":
        return ForgetTarget("extraction_strength", None, "the level of text the model never saw")
    if text == "never-seen-loss":
        return ForgetTarget("nll", None, "the loss of text the model never saw")
    measure, equals, number = text.partition("=")
    if measure not in get_args(Measure) or not equals:
        known = ["auto", "never-seen-loss", "none", *(f"{name}=NUMBER" for name in get_args(Measure))]
        raise RequestError(unknown_name("--stop-at", "forget target", text, known))
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    top = float("inf") if measure == "nll" else 1.0
    if not 0 <= value <= top or value == float("inf"):
        what = f"{number!r} is no threshold for {measure}"
        mend = "Give a number of nats per token" if measure == "nll" else "Give a number from 0 to 1"
        raise RequestError(Fault("--stop-at", what, mend))
    return ForgetTarget(measure, value, "given")  # type: ignore[arg-type]


@dataclass(frozen=True)
class Check:
    """One look at the forget set and at the held-out part of the retain set.

    Args:
        step: optimizer steps done.
        forget: mean figures of the forget set.
        utility: mean figures of the held-out retain examples.
        met: whether the forget target is met.
        above_floor: whether utility is at or above the floor.
        best: whether no earlier state above the floor was closer to the target.
    """

    step: int
    forget: Mapping[str, float]
    utility: Mapping[str, float]
    met: bool
    above_floor: bool
    best: bool

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Decision:
    """Why a run ends."""

    code: Literal["target", "floor", "stationary", "non-finite", "end"]
    text: str


class StoppingRule:
    """Follows the checks of one run.

    Args:
        target: the forget target, with its value known; None to run to the end.
        floor: least mean answer probability of the held-out retain examples; 0 for none.
        patience: checks in a row under the floor before the run is given up.
    """

    def __init__(self, target: ForgetTarget | None, floor: float, patience: int) -> None:
        self.target, self.floor, self.patience = target, floor, patience
        self.checks: list[Check] = []
        self.since = 0  # no step up to this one tells of the pace
        self.changed = 0  # the step after which the pace last changed
        self._under_floor = 0
        self._stretch = 0

    @property
    def watches_nll(self) -> bool:
        """Whether the target is one that the NLL of a few examples hints at."""
        return self.target is not None and self.target.measure in ("nll", "probability")

    @property
    def best(self) -> Check | None:
        """The best state so far, if any was above the floor."""
        found = [check for check in self.checks if check.best]
        return found[-1] if found else None

    def judge(self, step: int, forget: Mapping[str, float], utility: Mapping[str, float]) -> Decision | None:
        """Take in one check; return why to stop, or None to go on."""
        above = utility[UTILITY] >= self.floor
        met = self.target is not None and self.target.met(forget)
        check = Check(step, forget, utility, met, above, above and self._is_closest(forget))
        self.checks.append(check)
        self._under_floor = 0 if above else self._under_floor + 1
        if met and above and self.target is not None:
            measure, value = self.target.measure, self.target.value
            text = (
                f"forgotten: {measure.replace('_', ' ')} of the forget set is {forget[measure]:.3f}, "
                f"the target is {value:.3f} ({self.target.source})"
            )
            return Decision("target", text)
        if self._under_floor >= self.patience:
            text = (
                f"the retain set's answer probability stayed under its floor of {self.floor:.3f} "
                f"for {self.patience} checks"
            )
            return Decision("floor", text)
        return None

    def pace(
        self, rate: float = 1.0, rates: Mapping[int, float] = MappingProxyType({}), over: int = 0
    ) -> float:
        """Return the factor of the rate with which the rest of the way costs what is left above the floor.

        What progress costs is measured between the last check and one before it: the latest that is at least
        ``over`` steps back and tells of a price (see :func:`ngdiff.steps.pace.tells`), or the first since the
        start or a retreat. Steps that are dear once, the first ones above all, so do not slow down the rest.

        Args:
            rate: today's.
            rates: by step, what was paid with; none where they were all alike.
            over: least number of steps to look back.
        """
        if self.target is None or len(self.checks) < 2:
            return 1.0
        start, now = self._standing(self.checks[0]), self._standing(self.checks[-1])
        since, before = self.since, self._standing(self.checks[self._stretch])
        for check in reversed(self.checks[:-1]):
            far_enough = self.since < check.step <= self.checks[-1].step - over
            if far_enough and tells(start, self._standing(check), now):
                since, before = check.step, self._standing(check)
                break
        return pace(
            start, before, now, relative_harm(rate, [paid for step, paid in rates.items() if step > since])
        )

    @property
    def left(self) -> float:
        """What is left of the way at the last check: see :func:`way_left`; 1 without a target."""
        if self.target is None or not self.checks:
            return 1.0
        return way_left(self.target, self.checks[0].forget, self.checks[-1].forget)

    def spent(self) -> Decision | None:
        """Return why to stop where the best state's utility leaves no room for further steps."""
        best = self.best
        if self.target is None or best is None:
            return None
        start, left = self._slack(self.checks[0]), self._slack(best)
        if left >= NOTHING_LEFT * start:
            return None
        measure, value = self.target.measure, self.target.value
        text = (
            f"the retain set's answer probability met its floor of {self.floor:.3f} before the target: "
            f"{measure.replace('_', ' ')} of the forget set came to {best.forget[measure]:.3f}, "
            f"the target is {value:.3f}"
        )
        return Decision("floor", text)

    def begin_stretch(self, step: int) -> None:
        """Judge the pace from the best state on, to which the run went back at ``step``."""
        best = self.best
        self._stretch, self.since = 0 if best is None else self.checks.index(best), step

    def _standing(self, check: Check) -> Standing:
        assert self.target is not None
        return Standing(way_left(self.target, self.checks[0].forget, check.forget), self._slack(check))

    def _slack(self, check: Check) -> float:
        return check.utility[UTILITY] - self.floor

    def _is_closest(self, forget: Mapping[str, float]) -> bool:
        best = self.best
        if self.target is None or best is None:
            return True
        return max(0.0, self.target.excess(forget)) <= max(0.0, self.target.excess(best.forget))

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "target": None if self.target is None else asdict(self.target),
            "floor": self.floor,
            "checks": [check.as_json() for check in self.checks],
            "under_floor": self._under_floor,
            "stretch": self._stretch,
            "since": self.since,
            "changed": self.changed,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], patience: int) -> StoppingRule:
        """Go on from a saved state."""
        target = None if state["target"] is None else ForgetTarget(**state["target"])
        rule = cls(target, state["floor"], patience)
        rule.checks = [Check(**check) for check in state["checks"]]
        rule._under_floor, rule._stretch = state["under_floor"], state["stretch"]
        rule.since, rule.changed = state.get("since", 0), state.get("changed", 0)
        return rule
