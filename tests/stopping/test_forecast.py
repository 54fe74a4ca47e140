"""How many further steps the rest of the way takes, and what to change where they are too many."""

from __future__ import annotations

import math
import re

from hypothesis import given
from hypothesis import strategies as st

from ngdiff.outcome import NEXT, verdict
from ngdiff.stopping.criterion import View
from ngdiff.stopping.forecast import FAR, FASTER, Forecast, Nearing, Seen, forecast, nearing, suggestion
from ngdiff.stopping.rule import Floor, StoppingRule, parse_stop_at

STEADY = [Seen(0, 1.0), Seen(10, 0.9), Seen(20, 0.8)]


def test_a_steady_pace_is_drawn_on_in_a_straight_line() -> None:
    # a hundredth a step: 80 steps for the 0.8 that is left
    assert forecast(STEADY, 60) == Forecast(80, 40, 20)
    assert forecast(STEADY, 100) == Forecast(80, 80, 20)
    longer = [*STEADY, Seen(30, 0.78), Seen(40, 0.76)]
    # the last half of five checks begins at step 20: 0.04 in 20 steps
    assert forecast(longer, 60) == Forecast(380, 20, 40)


def test_too_few_checks_and_a_target_that_is_met_say_nothing() -> None:
    assert forecast(STEADY[:2], 60) is None
    assert forecast([*STEADY[:2], Seen(20, 0.0)], 60) is None
    assert forecast([*STEADY[:2], Seen(10, 0.8)], 60) is None


def test_no_progress_needs_no_number_of_steps() -> None:
    for way in (0.9, 0.95):
        found = forecast([*STEADY[:2], Seen(20, way)], 60)
        assert found == Forecast(None, 40, 20) and found.stuck and not found.enough


def test_epochs_are_suggested_with_a_margin() -> None:
    # 100 steps instead of 60, and a quarter more: 125 of 60 steps, of 20 epochs are 41.7
    said = suggestion(Forecast(80, 40, 20), 20, 1e-6, 1.0)
    assert said == "about 80 more steps are needed and 40 are left; run again with at least --epochs 42"
    assert suggestion(Forecast(40, 40, 20), 20, 1e-6, 1.0) is None


def test_a_rate_is_suggested_where_a_run_stands_still_far_from_its_floors() -> None:
    said = suggestion(Forecast(None, 40, 20), 20, 2e-6, 0.9)
    assert said == "the last checks show no progress and the floors are far; run again with --lr 1.0e-05"
    slow = suggestion(Forecast(400, 40, 20), 20, 2e-6, 0.9)
    assert slow == "400 steps are needed and the floors are far; run again with --lr 1.0e-05"
    near = suggestion(Forecast(None, 40, 20), 20, 2e-6, 0.2)
    assert near is not None and "floors.NAME" in near and "--lr" not in near
    unknown = suggestion(Forecast(None, 40, 20), 20, None, 1.0)
    assert unknown is not None and "--lr" not in unknown


@given(
    done=st.integers(1, 1000),
    left=st.integers(0, 1000),
    needed=st.none() | st.integers(1, 10_000),
    epochs=st.floats(0.1, 100),
    rate=st.floats(1e-9, 1e-2),
)
def test_what_is_suggested_is_more_than_the_run_had(
    done: int, left: int, needed: int | None, epochs: float, rate: float
) -> None:
    found = Forecast(needed, left, done)
    said = suggestion(found, epochs, rate, 1.0)
    assert (said is None) == found.enough
    if said is None:
        return
    more = re.search(r"--epochs (\d+)", said)
    raised = re.search(r"--lr (\S+)", said)
    assert (more is None) != (raised is None)
    if more is not None:
        assert needed is not None and int(more[1]) * (done + left) >= epochs * (done + needed)
    else:
        assert raised is not None and rate < float(raised[1]) <= 1.06 * FASTER * rate


def test_a_floor_is_drawn_on_to_where_none_of_its_slack_is_left() -> None:
    # of five checks, the last half begins at step 20: 0.2 of the slack in 20 steps, 0.3 is left
    seen = [Seen(0, 1.0), Seen(10, 0.9), Seen(20, 0.5), Seen(30, 0.45), Seen(40, 0.3)]
    assert nearing("facts", "general", seen) == Nearing("facts", "general", 30)
    assert nearing("facts", "general", seen[:2]) is None
    far = [Seen(0, 1.0), Seen(10, 0.9), Seen(20, 0.8), Seen(30, 0.6)]
    assert nearing("facts", "general", [*far, Seen(40, FAR)]) is None
    assert nearing("facts", "general", [*far, Seen(40, FAR - 0.01)]) == Nearing("facts", "general", 32)
    assert nearing("facts", "general", [*seen[:2], Seen(20, 0.3), Seen(30, 0.3), Seen(40, 0.4)]) is None
    assert nearing("facts", "general", [*seen[:4], Seen(40, -0.1)]) == Nearing("facts", "general", 0)


def test_more_epochs_are_not_suggested_where_a_floor_ends_the_run_first() -> None:
    for left in (40, 400):  # whether or not the run has the steps
        said = suggestion(Forecast(80, left, 20), 20, 1e-6, 0.3, Nearing("general facts", "general", 12))
        assert said is not None and "--epochs" not in said and "--lr" not in said
        assert said.startswith(
            "general facts will meet its floor in about 12 steps, and the target is 80 steps"
        )
        assert "--set floors.general=SHARE" in said
        assert "about 85% of the remaining way" in said  # 68 of 80 steps
    next_step = suggestion(Forecast(80, 40, 20), 20, 1e-6, 0.0, Nearing("general facts", "general", 1))
    assert next_step is not None and "will meet its floor in a step, and" in next_step
    met = suggestion(Forecast(80, 40, 20), 20, 1e-6, 0.0, Nearing("general facts", "general", 0))
    assert met is not None and met.startswith("general facts is at its floor") and "about 100%" in met
    behind = Nearing("general facts", "general", 80)
    assert suggestion(Forecast(80, 100, 20), 20, 1e-6, 0.3, behind) is None
    assert "--epochs" in str(suggestion(Forecast(80, 40, 20), 20, 1e-6, 0.3, behind))


def test_the_rule_looks_at_the_floor_that_is_met_first() -> None:
    floors = {"retain": Floor(0.5, 1.0, 0.5), "general.facts": Floor(0.8, 1.0, 0.8)}
    rule = StoppingRule(parse_stop_at("nll=3"), floors, 3)
    for step, facts in ((0, 1.0), (10, 0.95), (20, 0.85)):
        seen = View(range(4), 4, {"nll": 0.1 + step / 100, "unlikelihood": 1.0}, {"nll": 1.0})
        rule.judge(step, seen, {"probability": 1.0}, {"retain": 0.9, "general.facts": facts})
    # of the facts' slack a quarter is left, half of it went in the last ten steps
    assert rule.nearing == Nearing("the probability of general facts", "general", 5)


def test_the_tightest_floor_is_not_always_the_first() -> None:
    floors = {name: Floor(0.8, 1.0, 0.8) for name in ("retain", "mine", "language", "general.answers")}
    rule = StoppingRule(parse_stop_at("nll=3"), floors, 3)
    assert rule.nearing is None
    # of the retain set's slack 0.25 is left, and 0.05 went; of the other's 0.3, and 0.3 went
    for step, retain, mine in ((0, 1.0, 1.0), (10, 0.86, 0.92), (20, 0.85, 0.86)):
        seen = View(range(4), 4, {"nll": 0.1 + step / 100, "unlikelihood": 1.0}, {"nll": 1.0})
        kept = {"retain": retain, "mine": mine, "language": 0.81, "general.answers": 0.81}
        rule.judge(step, seen, {"probability": 1.0}, kept)
    assert rule.tightest(rule.checks[-1]) == "retain"
    assert rule.nearing == Nearing("the set to keep 'mine'", "mine", 10)


@given(slacks=st.lists(st.tuples(st.integers(1, 100), st.integers(1, 100)), min_size=1, max_size=4))
def test_no_floor_is_met_sooner_than_the_one_that_is_named(slacks: list[tuple[int, int]]) -> None:
    floors = {f"set {number}": Floor(0.5, 1.0, 0.5) for number in range(len(slacks))}
    rule = StoppingRule(parse_stop_at("nll=3"), floors, 9)
    for step in range(3):
        seen = View(range(4), 4, {"nll": 0.1 + step / 100, "unlikelihood": 1.0}, {"nll": 1.0})
        left = [100 if step == 0 else pair[step - 1] for pair in slacks]
        kept = {f"set {number}": 0.5 + percent / 200 for number, percent in enumerate(left)}
        rule.judge(step, seen, {"probability": 1.0}, kept)
    falling = [(before, now) for before, now in slacks if now < min(before, 100 * FAR)]
    soonest = min((math.ceil(now / (before - now)) for before, now in falling), default=None)
    found = rule.nearing
    assert (found is None) == (soonest is None)
    assert found is None or soonest is None or abs(found.steps - soonest) <= 1  # rounding


@given(
    ways=st.lists(st.floats(-1, 2, allow_nan=False), min_size=3, max_size=8),
    apart=st.integers(1, 50),
    steps=st.integers(1, 500),
)
def test_the_line_that_is_drawn_on_meets_the_target_where_it_says(
    ways: list[float], apart: int, steps: int
) -> None:
    seen = [Seen(number * apart, way) for number, way in enumerate(ways)]
    found = forecast(seen, steps)
    if found is None:
        assert seen[-1].way <= 0
        return
    assert found.left == max(0, steps - seen[-1].step) and found.done == seen[-1].step
    if found.needed is None:
        return
    before = seen[min(len(seen) - 2, len(seen) // 2)]
    slope = (seen[-1].way - before.way) / (seen[-1].step - before.step)
    assert seen[-1].way + slope * found.needed <= 1e-6
    assert seen[-1].way + slope * (found.needed - 1) >= -1e-6


def test_the_verdict_advises_what_the_forecast_does() -> None:
    stop = {"code": "end", "target_met": False, "reason": "all 60 steps asked for are done"}
    assert verdict(stop, {}).advice == NEXT["end"]
    foretold = {"steps_needed": 80, "steps_left": 0, "advice": "run again with --epochs 42"}
    assert verdict(stop | {"forecast": foretold}, {}).advice.endswith("run again with --epochs 42.")
    assert verdict(stop | {"forecast": foretold | {"advice": None}}, {}).advice == NEXT["end"]
    assert verdict(stop | {"forecast": "x", "code": "floor"}, {}).advice == NEXT["floor"]
