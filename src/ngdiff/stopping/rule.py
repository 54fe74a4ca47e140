"""figures at a check -> continue or stop, and whether this is the best state so far.

The forget loss has no minimum, so a run ends at a stated target. The floors under what must be kept hold for
every state that is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from ngdiff.errors import Fault, RequestError, unknown_name
from ngdiff.inference.teacher_forced import AnswerScore
from ngdiff.stopping.criterion import (
    AUTO,
    CERTAINTY,
    SHARE,
    TEXT,
    Bound,
    Guess,
    Measure,
    View,
    measured_bounds,
)
from ngdiff.stopping.forecast import Forecast, Nearing, Seen, forecast, nearing
from ngdiff.stopping.pace import NOTHING_LEFT, Standing, pace, relative_harm, tells

UTILITY: Measure = "probability"
NO_PACE = ("general.answers", "language")
"""Floors that say nothing about the pace: a count moves by whole facts, and the forget loss itself lowers the
probability of the forget answers' language, to what is expected of it."""
NEAR = 0.1
"""Largest distance of the mean of a step's batch above its limit at which a check is worthwhile."""
TOP, BOTTOM = 0.95, 0.01
"""Bounds of a share within which the way to a target is measured."""


@dataclass(frozen=True)
class ForgetTarget:
    """When the forget set counts as forgotten.

    Args:
        measure: the figure of the forget set by which the way to the target is measured.
        value: what its mean must fall to (``nll``: rise to); None before it is measured on text the model
            never saw.
        source: where the threshold comes from, in words.
        bounds: limits of each figure that decides, for items and for the mean; see
            :mod:`ngdiff.stopping.criterion`.
        guesses: by row of the forget set, how well the item could be guessed without having been learned.
        whole: whether no item may be reproduced whole.
    """

    measure: Measure
    value: float | None
    source: str
    bounds: tuple[Bound, ...] = ()
    guesses: Mapping[int, Guess] = field(default_factory=dict)
    whole: bool = False

    def __post_init__(self) -> None:
        """A value that was given is the threshold of every item and of the mean."""
        if self.value is not None and not self.bounds:
            object.__setattr__(self, "bounds", (Bound(self.measure, self.value, self.value),))

    def measured(
        self,
        never_seen: Sequence[AnswerScore],
        size: int,
        source: str,
        guesses: Mapping[int, Guess],
        errors: Sequence[float] = (),
        text: bool = False,
    ) -> ForgetTarget:
        """Return the target with thresholds measured on never-seen text; a given threshold stays.

        Args:
            never_seen: its scores under the starting model.
            size: items of the forget set.
            source: what the text is, in words.
            guesses: by row, how well the item could be guessed.
            errors: of such guesses, on never-seen text.
            text: whether the forget set is running text.
        """
        if self.value is not None:
            return self
        auto = self.measure != "nll"
        measures: tuple[Measure, ...] = (TEXT if text else AUTO) if auto else ("nll",)
        bounds = measured_bounds(measures, never_seen, size, guesses, errors)
        return replace(
            self,
            measure=measures[0],
            value=bounds[0].mean,
            source=f"{self.source}: {source}",
            bounds=bounds,
            guesses=guesses,
            whole=auto,
        )

    def met(self, figures: Mapping[str, float]) -> bool:
        """Return whether mean figures reach the target of the main measure, whose value must be known."""
        return self.excess(figures) <= 0

    def forgotten(self, view: View) -> bool:
        """Return whether a view of the forget set meets the criterion for items and means."""
        return not view.whole and all(
            view.shares[bound.measure] <= SHARE + 1e-9
            and bound.within(view.figures[bound.measure], bound.mean)
            for bound in self.bounds
        )

    def distance(self, view: View) -> float:
        """Return how far a view is from the criterion: 0 where it is met."""
        apart = [
            max(0.0, view.shares[bound.measure] - SHARE) + bound.excess(view.figures[bound.measure])
            for bound in self.bounds
        ]
        return math.fsum(apart) + len(view.whole) / view.of

    def excess(self, figures: Mapping[str, float]) -> float:
        """Return how far the main figure is from the target; 0 or less where it is met."""
        if self.value is None:
            raise ValueError("the target's value has not been measured yet")
        gap = figures[self.measure] - self.value
        return -gap if self.measure == "nll" else gap

    def log_odds(self, figures: Mapping[str, float]) -> float:
        """Return how far the main figure is from the target, in log-odds.

        From 0.95 to 0.9 and from 0.1 to 0.05 takes about as many steps as a fifth in the middle. Log-odds end
        at :data:`TOP` and :data:`BOTTOM`, beyond which a share is noise.
        """
        if self.value is None:
            raise ValueError("the target's value has not been measured yet")
        return _gap(Bound(self.measure, self.value, self.value), figures)

    def within_reach(self, figures: Mapping[str, float]) -> bool:
        """Return whether cheap figures of a few examples suggest that the target is met."""
        return self.value is not None and all(_near(bound, figures) for bound in self.bounds)


def _near(bound: Bound, figures: Mapping[str, float]) -> bool:
    if bound.measure not in figures:
        return True
    if bound.measure == "nll":
        return figures["nll"] >= 0.8 * bound.mean
    return figures[bound.measure] <= bound.mean + min(0.5 * bound.mean + 0.02, NEAR)


def _gap(bound: Bound, figures: Mapping[str, float]) -> float:
    """Return how far a mean is from its limit, in log-odds."""
    if bound.measure == "nll":
        return _log_odds(math.exp(-figures["nll"])) - _log_odds(math.exp(-bound.mean))
    return _log_odds(figures[bound.measure]) - _log_odds(bound.mean)


def _log_odds(share: float) -> float:
    inside = min(max(share, BOTTOM), TOP)
    return math.log(inside / (1 - inside))


def way_left(target: ForgetTarget, start: Mapping[str, float], now: Mapping[str, float]) -> float:
    """Return the share of the way to the target that is left, on a scale where equal steps count alike.

    The target's own measures barely move for a long time, since memorised text gives way late; meanwhile
    :data:`CERTAINTY` falls, if the forget loss acts on every token. Where the loss drives a few tokens far
    off instead, as gradient ascent does, certainty stays and the measures move. So the smaller of two shares
    counts: that of certainty, down to 0, and that of the target's measures in log-odds, down to the target
    (with two measures, of the one with the longer way left).
    """
    left = max(_share_left(bound, start, now) for bound in target.bounds)
    if start.get(CERTAINTY, 0.0) > 0 and CERTAINTY in now:
        left = min(left, now[CERTAINTY] / start[CERTAINTY])
    return left


def _share_left(bound: Bound, start: Mapping[str, float], now: Mapping[str, float]) -> float:
    if bound.measure not in start or bound.measure not in now:
        return 0.0
    whole = _gap(bound, start)
    return _gap(bound, now) / whole if whole > 0 else 0.0


def parse_stop_at(text: str) -> ForgetTarget | None:
    """Parse ``auto``, ``never-seen-loss``, ``none`` or ``MEASURE=NUMBER``.

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
        what = f"{number!r} is not a valid threshold for {measure}"
        fix = "Give a number in nats per token" if measure == "nll" else "Give a number from 0 to 1"
        raise RequestError(Fault("--stop-at", what, fix))
    return ForgetTarget(measure, value, "given")  # type: ignore[arg-type]


@dataclass(frozen=True)
class Floor:
    """The lowest permitted value of one figure.

    Args:
        share: requested share of the value at the start.
        start: the figure before the first step.
        least: the floor itself.
    """

    share: float
    start: float
    least: float

    @property
    def slack(self) -> float:
        """The distance from the start to the floor."""
        return self.start - self.least


@dataclass(frozen=True)
class Check:
    """One check of the forget set and of what must be kept.

    Args:
        step: optimizer steps done.
        forget: mean figures of the forget set (estimates where not every row was looked at).
        utility: mean figures of the held-out retain examples.
        met: whether the forget target is met; only a check of every row decides that.
        above_floor: whether every figure that must be kept is at or above its floor.
        best: whether no earlier state above the floors was closer to the target.
        kept: by floor, the figure it holds.
        broken: floors that were broken.
        left: estimated number of items that are left.
        rows: rows of the forget set that were measured.
        of: rows in the forget set.
        distance: from the criterion, 0 where it is met; see :meth:`ForgetTarget.distance`.
    """

    step: int
    forget: Mapping[str, float]
    utility: Mapping[str, float]
    met: bool
    above_floor: bool
    best: bool
    kept: Mapping[str, float] = field(default_factory=dict)
    broken: Sequence[str] = ()
    left: float | None = None
    rows: int = 0
    of: int = 0
    distance: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self) | {"broken": list(self.broken)}


@dataclass(frozen=True)
class Decision:
    """Why a run ends."""

    code: Literal["target", "floor", "stationary", "non-finite", "end"]
    text: str


class StoppingRule:
    """Follows the checks of one run.

    Args:
        target: the forget target, with its thresholds known; None to run to the end.
        floors: by name; empty for no floor.
        patience: consecutive checks below a floor after which the run stops.
    """

    def __init__(self, target: ForgetTarget | None, floors: Mapping[str, Floor], patience: int) -> None:
        self.target, self.floors, self.patience = target, dict(floors), patience
        self.checks: list[Check] = []
        self.since = 0  # steps up to this one say nothing about the pace
        self.changed = 0  # the step after which the pace last changed
        self._under_floor = 0
        self._stretch = 0

    @property
    def watches_nll(self) -> bool:
        """Whether the target is one that the NLL of a few examples hints at."""
        bounds = () if self.target is None else self.target.bounds
        return any(bound.measure in ("nll", "probability") for bound in bounds)

    @property
    def checks_needed(self) -> bool:
        """Whether a check decides anything: there is a target or a floor."""
        return self.target is not None or bool(self.floors)

    @property
    def best(self) -> Check | None:
        """The best state so far, if any was above the floors."""
        found = [check for check in self.checks if check.best]
        return found[-1] if found else None

    @property
    def first_below(self) -> bool:
        """Whether the last check found a floor broken and the one before it did not."""
        return self._under_floor == 1

    def broken(self, kept: Mapping[str, float]) -> list[str]:
        """Return the floors that figures are below; NaN counts as below."""
        return [name for name, floor in self.floors.items() if not kept[name] >= floor.least]

    def judge(
        self, step: int, view: View, utility: Mapping[str, float], kept: Mapping[str, float]
    ) -> Decision | None:
        """Record one check; return why to stop, or None to continue.

        Args:
            step: optimizer steps done.
            view: the forget set.
            utility: mean figures of the held-out retain examples.
            kept: by floor, the figure it holds.
        """
        broken = self.broken(kept)
        met = self.target is not None and view.complete and self.target.forgotten(view)
        far = 0.0 if self.target is None else self.target.distance(view)
        best = not broken and (self.best is None or far <= self.best.distance)
        left = max(view.shares.values()) * view.of if view.shares else None
        forget, rows = dict(view.figures), len(view.rows)
        check = Check(
            step, forget, utility, met, not broken, best, dict(kept), broken, left, rows, view.of, far
        )
        self.checks.append(check)
        self._under_floor = self._under_floor + 1 if broken else 0
        if met and not broken:
            return Decision("target", self._met_text(view))
        if self._under_floor >= self.patience:
            told = self._broken_text(broken)
            return Decision("floor", f"{told} for {self.patience} checks in a row")
        return None

    def _met_text(self, view: View) -> str:
        assert self.target is not None
        figures = ", ".join(
            f"{named(bound.measure)} of the forget set is {view.figures[bound.measure]:.3f} "
            f"(target {bound.mean:.3f})"
            for bound in self.target.bounds
        )
        return (
            f"forgotten: {figures}, and {len(view.left)} of {view.of} items are above their thresholds "
            f"({self.target.source})"
        )

    def _broken_text(self, names: Sequence[str]) -> str:
        found = [
            f"{floor_title(name)} was under its floor of {self.floors[name].least:.3f}" for name in names
        ]
        return "; ".join(found)

    def pace(
        self, rate: float = 1.0, rates: Mapping[int, float] = MappingProxyType({}), over: int = 0
    ) -> float:
        """Return the factor of the rate at which the rest of the way uses up the slack above the floors.

        The cost of progress is measured between the last check and an earlier one: the latest that is at
        least ``over`` steps back and informative (see :func:`ngdiff.stopping.pace.tells`), or the first since
        the start or a retreat. So a few costly steps, such as the first ones, do not slow down the rest. The
        floor that counts is the one nearest to being broken.

        Args:
            rate: the current rate.
            rates: rate of each step; empty where all were the same.
            over: fewest steps to look back.
        """
        if self.target is None or len(self.checks) < 2:
            return 1.0
        name = self.tightest(self.checks[-1])
        start, now = self._standing(self.checks[0], name), self._standing(self.checks[-1], name)
        since, before = self.since, self._standing(self.checks[self._stretch], name)
        for check in reversed(self.checks[:-1]):
            far_enough = self.since < check.step <= self.checks[-1].step - over
            if far_enough and tells(start, self._standing(check, name), now):
                since, before = check.step, self._standing(check, name)
                break
        return pace(
            start, before, now, relative_harm(rate, [paid for step, paid in rates.items() if step > since])
        )

    @property
    def left(self) -> float:
        """Share of the way left at the last check, see :func:`way_left`; 1 without a target."""
        if self.target is None or not self.checks:
            return 1.0
        return way_left(self.target, self.checks[0].forget, self.checks[-1].forget)

    def forecast(self, steps: int) -> Forecast | None:
        """Return how many further steps the target takes at the pace of the last checks.

        Where the means are where they belong, items alone are left, and their number is what goes down.

        Args:
            steps: that the run has in all.
        """
        if self.target is None or not self.checks:
            return None
        stretch, start = self.stretch, self.checks[0]
        seen = [Seen(check.step, way_left(self.target, start.forget, check.forget)) for check in stretch]
        if seen[-1].way <= 0 and start.left:
            seen = [Seen(check.step, (check.left or 0.0) / start.left) for check in stretch]
        return forecast(seen, steps)

    @property
    def slack_left(self) -> float:
        """What the last check leaves of the tightest floor's slack, as a share; 1 without floors."""
        name = self.tightest(self.checks[-1]) if self.checks else None
        if name is None:
            return 1.0
        return self._slack(self.checks[-1], name) / max(self._slack(self.checks[0], name), 1e-9)

    @property
    def nearing(self) -> Nearing | None:
        """The floor that the run meets first at the pace of the last checks, if it is about to meet any."""
        found = [self._nearing(name) for name in self.floors if name not in NO_PACE and self.checks]
        return min((floor for floor in found if floor), key=lambda floor: floor.steps, default=None)

    def _nearing(self, name: str) -> Nearing | None:
        whole = max(self._slack(self.checks[0], name), 1e-9)
        seen = [Seen(check.step, self._slack(check, name) / whole) for check in self.stretch]
        return nearing(floor_title(name), name.partition(".")[0] if name in FLOORS else name, seen)

    def spent(self) -> Decision | None:
        """Return why to stop, where the best state leaves no slack above a broken floor."""
        best = self.best
        if best is None:
            return None
        gone = [
            name
            for name in self.checks[-1].broken
            if self._slack(best, name) < NOTHING_LEFT * self._slack(self.checks[0], name)
        ]
        if not gone:
            return None
        name = gone[0]
        text = f"{floor_title(name)} met its floor of {self.floors[name].least:.3f}"
        if self.target is None:
            return Decision("floor", text)
        missed = [
            f"{named(bound.measure)} of the forget set was {best.forget[bound.measure]:.3f} "
            f"(target {bound.mean:.3f})"
            for bound in self.target.bounds
            if not bound.within(best.forget[bound.measure], bound.mean)
        ]
        if best.left:
            missed.append(f"about {best.left:.0f} of {best.of} items were left")
        why = ", ".join(missed) or "an item was reproduced whole"
        return Decision("floor", f"{text} before the target was reached: {why}")

    def begin_stretch(self, step: int) -> None:
        """Judge the pace from the best state, to which the run went back at ``step``."""
        best = self.best
        self._stretch, self.since = 0 if best is None else self.checks.index(best), step

    @property
    def stretch(self) -> Sequence[Check]:
        """The last check and those before it since the start or the last retreat, oldest first."""
        begun = [self.checks[self._stretch]] if self.checks else []
        return begun + [check for check in self.checks[self._stretch + 1 :] if check.step > self.since]

    def tightest(self, check: Check) -> str | None:
        """Return the floor with the smallest share of its slack left; None without floors.

        Floors in :data:`NO_PACE` hold, but say nothing about the pace.
        """
        shares = {
            name: self._slack(check, name) / max(self._slack(self.checks[0], name), 1e-9)
            for name in self.floors
            if name not in NO_PACE
        }
        return min(shares, key=lambda name: shares[name]) if shares else None

    def _standing(self, check: Check, name: str | None) -> Standing:
        assert self.target is not None
        slack = check.utility[UTILITY] if name is None else self._slack(check, name)
        return Standing(way_left(self.target, self.checks[0].forget, check.forget), slack)

    def _slack(self, check: Check, name: str) -> float:
        return check.kept[name] - self.floors[name].least

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "target": None if self.target is None else asdict(self.target),
            "floors": {name: asdict(floor) for name, floor in self.floors.items()},
            "checks": [check.as_json() for check in self.checks],
            "under_floor": self._under_floor,
            "stretch": self._stretch,
            "since": self.since,
            "changed": self.changed,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], patience: int) -> StoppingRule:
        """Continue from a saved state."""
        target = None if state["target"] is None else _target_of(state["target"])
        rule = cls(target, {name: Floor(**floor) for name, floor in state["floors"].items()}, patience)
        rule.checks = [Check(**check) for check in state["checks"]]
        rule._under_floor, rule._stretch = state["under_floor"], state["stretch"]
        rule.since, rule.changed = state["since"], state["changed"]
        return rule


def _target_of(state: Mapping[str, Any]) -> ForgetTarget:
    bounds = tuple(Bound(**bound) for bound in state["bounds"])
    guesses = {int(row): tuple(guess) for row, guess in state["guesses"].items()}
    return ForgetTarget(**{**state, "bounds": bounds, "guesses": guesses})


FLOORS = {
    "retain": "the retain set's answer probability",
    "general.facts": "the probability of general facts",
    "general.answers": "the share of general facts that are answered correctly",
    "general.text": "the answer probability of general text",
    "language": "the probability of the forget answers' language",
}
"""The floors in words; those of ``--keep`` have the name of their set."""


def floor_title(name: str) -> str:
    """Return what a floor protects, in words."""
    return FLOORS.get(name) or f"the set to keep {name!r}"


def named(measure: str) -> str:
    """Return a measure's name in words."""
    return {"nll": "NLL", "verbatim": "verbatim continuation"}.get(measure) or measure.replace("_", " ")
