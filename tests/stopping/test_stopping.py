"""Stopping: targets, checks judged one by one, the best state, and going on from a saved rule."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngdiff.errors import RequestError
from ngdiff.stopping.criterion import Bound, View
from ngdiff.stopping.rule import Floor, ForgetTarget, StoppingRule, parse_stop_at, way_left


@pytest.mark.parametrize(
    ("text", "measure", "value"),
    [
        ("auto", "extraction_strength", None),
        ("never-seen-loss", "nll", None),
        ("extraction_strength=0.05", "extraction_strength", 0.05),
        ("exact_memorisation=1", "exact_memorisation", 1.0),
        ("probability=0", "probability", 0.0),
        ("nll=3", "nll", 3.0),
        ("nll=1e2", "nll", 100.0),
    ],
)
def test_stop_at(text: str, measure: str, value: float | None) -> None:
    target = parse_stop_at(text)
    assert target is not None
    assert (target.measure, target.value) == (measure, value)
    assert target.source


def test_stop_at_none() -> None:
    assert parse_stop_at("none") is None


@pytest.mark.parametrize("text", ["", "Auto", "nll", "probability:0.1", "loss=3", "=3", "auto=0.1"])
def test_stop_at_unknown(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_stop_at(text)
    (fault,) = caught.value.faults
    assert fault.where == "--stop-at"
    assert repr(text) in fault.what


@pytest.mark.parametrize(
    "text",
    [
        "nll=",
        "nll=x",
        "nll=nan",
        "nll=inf",
        "nll=-1",
        "probability=1.01",
        "probability=-0.1",
        "extraction_strength=5",
    ],
)
def test_stop_at_out_of_range(text: str) -> None:
    with pytest.raises(RequestError, match="is not a valid threshold for"):
        parse_stop_at(text)


@pytest.mark.parametrize("measure", ["extraction_strength", "exact_memorisation", "probability"])
def test_measures_that_fall(measure: str) -> None:
    target = ForgetTarget(measure, 0.25, "given")  # type: ignore[arg-type]
    assert target.excess({measure: 0.75}) == 0.5
    assert not target.met({measure: 0.3})
    assert target.met({measure: 0.25})
    assert target.met({measure: 0.0})
    # worth a full check a little before the target, never only behind it
    assert target.within_reach({measure: 0.35})
    assert target.within_reach({measure: 0.0})
    assert not target.within_reach({measure: 0.5})


STRENGTH = ForgetTarget("extraction_strength", 0.2, "given")


@given(st.floats(0.01, 0.95), st.floats(0.01, 0.95))
def test_log_odds_of_shares_and_losses(value: float, now: float) -> None:
    way = ForgetTarget("probability", value, "given").log_odds({"probability": now})
    assert math.exp(way) == pytest.approx(now / (1 - now) * (1 - value) / value)
    nll = ForgetTarget("nll", -math.log(value), "given")
    assert nll.log_odds({"nll": -math.log(now)}) == pytest.approx(way, abs=1e-9)


def test_log_odds_end_where_shares_are_noise() -> None:
    target = ForgetTarget("extraction_strength", 0.0, "given")
    assert target.log_odds({"extraction_strength": 1.0}) == target.log_odds({"extraction_strength": 0.95})
    assert target.log_odds({"extraction_strength": 0.005}) == 0.0
    assert target.log_odds({"extraction_strength": 0.5}) == pytest.approx(math.log(99))
    with pytest.raises(ValueError, match="not been measured"):
        ForgetTarget("probability", None, "later").log_odds({"probability": 0.5})


def test_the_lesser_of_two_ways_is_left() -> None:
    start = {"extraction_strength": 0.8, "unlikelihood": 6.0}  # odds of 4, where the target's are 1/4
    half = {"extraction_strength": 0.5, "unlikelihood": 5.0}
    assert way_left(STRENGTH, start, start) == 1.0
    assert way_left(STRENGTH, start, half) == pytest.approx(1 / 2)  # gradient ascent: certainty stays
    assert way_left(STRENGTH, start, half | {"unlikelihood": 2.0}) == pytest.approx(1 / 3)
    assert way_left(STRENGTH, start, start | {"unlikelihood": 2.0}) == pytest.approx(1 / 3)
    assert way_left(STRENGTH, start, {"extraction_strength": 0.2, "unlikelihood": 5.0}) == pytest.approx(0)
    assert way_left(STRENGTH, start, {"extraction_strength": 0.1, "unlikelihood": 5.0}) < 0
    met = {"extraction_strength": 0.1}
    assert way_left(STRENGTH, met, {"extraction_strength": 0.05}) == 0.0


@given(st.floats(0.2, 1), st.floats(0, 1), st.floats(0, 14), st.floats(0, 14))
def test_a_way_is_never_longer_than_by_either_measure(a: float, b: float, c: float, d: float) -> None:
    start, now = {"extraction_strength": a}, {"extraction_strength": b}
    alone = way_left(STRENGTH, start, now)
    left = way_left(STRENGTH, start | {"unlikelihood": c}, now | {"unlikelihood": d})
    assert left <= alone
    assert c == 0 or left <= d / c


def test_nll_rises() -> None:
    target = ForgetTarget("nll", 4.0, "given")
    assert target.excess({"nll": 1.0}) == 3.0
    assert not target.met({"nll": 3.9})
    assert target.met({"nll": 4.0})
    assert target.within_reach({"nll": 3.5})
    assert not target.within_reach({"nll": 2.0})


@pytest.mark.parametrize("measure", ["extraction_strength", "nll"])
def test_what_is_met_is_within_reach(measure: str) -> None:
    target = ForgetTarget(measure, 0.0, "given")  # type: ignore[arg-type]
    assert target.met({measure: 0.0})
    assert target.within_reach({measure: 0.0})


def test_not_a_number_meets_nothing() -> None:
    for measure in ("probability", "nll"):
        target = ForgetTarget(measure, 0.5, "given")  # type: ignore[arg-type]
        assert not target.met({measure: float("nan")})
        assert not target.within_reach({measure: float("nan")})


def test_unmeasured_target() -> None:
    target = ForgetTarget("nll", None, "the loss of text the model never saw")
    assert not target.within_reach({"nll": 9.0})
    with pytest.raises(ValueError, match="has not been measured"):
        target.met({"nll": 9.0})


def rule(value: float = 0.2, floor: float = 0.8, patience: int = 2) -> StoppingRule:
    floors = {"retain": Floor(0.0, 0.9, floor)}
    return StoppingRule(ForgetTarget("extraction_strength", value, "given"), floors, patience)


def view(strength: float, certainty: float = 5.0, value: float = 0.2, *, rows: int = 10) -> View:
    """The first rows of ten, all of one extraction strength."""
    figures = {"extraction_strength": strength, "unlikelihood": certainty}
    return View(range(rows), 10, figures, {"extraction_strength": float(strength > value)})


def look(
    stopping: StoppingRule, step: int, strength: float, utility: float, certainty: float = 5.0
) -> str | None:
    assert stopping.target is not None and stopping.target.value is not None
    seen = view(strength, certainty, stopping.target.value)
    decision = stopping.judge(step, seen, {"probability": utility}, {"retain": utility})
    return None if decision is None else decision.code


def best_step(stopping: StoppingRule) -> int | None:
    return None if stopping.best is None else stopping.best.step


def test_judged_by_hand() -> None:
    stopping = rule()
    assert best_step(stopping) is None
    for step, strength, utility, code, best in [
        (0, 1.0, 0.9, None, 0),
        (10, 0.6, 0.85, None, 10),
        (20, 0.7, 0.95, None, 10),  # further from the target: not the best, whatever its utility
        (30, 0.4, 0.79, None, 10),  # closer, but under the floor
        (40, 0.1, 0.79, "floor", 10),  # met, but under the floor for the second time
    ]:
        assert look(stopping, step, strength, utility) == code
        assert best_step(stopping) == best
    assert [check.met for check in stopping.checks] == [False, False, False, False, True]
    assert [check.above_floor for check in stopping.checks] == [True, True, True, False, False]


def test_target_above_floor_ends_the_run_and_is_best() -> None:
    stopping = rule()
    assert look(stopping, 0, 0.9, 0.9) is None
    assert look(stopping, 10, 0.15, 0.7) is None  # met, but under the floor
    # both exactly on the line
    decision = stopping.judge(20, view(0.2), {"probability": 0.8}, {"retain": 0.8})
    assert decision is not None
    assert decision.code == "target"
    assert "extraction strength" in decision.text
    assert "0.200" in decision.text
    assert best_step(stopping) == 20


def test_a_check_above_the_floor_renews_patience() -> None:
    stopping = rule(patience=2)
    codes = [
        look(stopping, step, 0.9, utility) for step, utility in enumerate([0.7, 0.9, 0.7, 0.8, 0.7, 0.7])
    ]
    assert codes == [None, None, None, None, None, "floor"]


def test_of_equal_states_the_later_is_best() -> None:
    stopping = rule()
    for step in (0, 10):
        look(stopping, step, 0.5, 0.9)
    assert best_step(stopping) == 10


def test_overshooting_counts_as_reached() -> None:
    """Below the target nothing is gained by forgetting more."""
    stopping = StoppingRule(ForgetTarget("nll", 3.0, "given"), {}, 1)
    for step, nll in ((10, 9.0), (20, 3.0), (30, 1.0)):
        seen = View(range(10), 10, {"nll": nll}, {"nll": float(nll < 3)})
        stopping.judge(step, seen, {"probability": 0.5}, {})
    assert best_step(stopping) == 20


def test_without_a_target_only_the_floor_counts() -> None:
    stopping = StoppingRule(None, {"retain": Floor(0.5, 1.0, 0.5)}, 1)
    seen = View(range(10), 10, {"extraction_strength": 0.0})
    assert stopping.judge(10, seen, {"probability": 0.6}, {"retain": 0.6}) is None
    assert stopping.checks[-1].best
    assert not stopping.checks[-1].met
    decision = stopping.judge(20, seen, {"probability": 0.4}, {"retain": 0.4})
    assert decision is not None and decision.code == "floor"
    assert "the retain set's answer probability was under its floor of 0.500" in decision.text
    assert best_step(stopping) == 10


def test_no_state_above_the_floor() -> None:
    stopping = rule()
    look(stopping, 10, 0.5, 0.1)
    assert stopping.best is None


@pytest.mark.parametrize("cut", range(5))
def test_going_on_from_a_saved_rule(cut: int) -> None:
    looks = [(0, 1.0, 0.9), (10, 0.6, 0.7), (20, 0.5, 0.9), (30, 0.4, 0.7), (40, 0.3, 0.7)]
    whole, first = rule(), rule()
    codes = [look(whole, *one) for one in looks]
    for one in looks[:cut]:
        look(first, *one)
    saved = json.loads(json.dumps(first.state_dict()))
    second = StoppingRule.from_state(saved, patience=2)
    assert [look(second, *one) for one in looks[cut:]] == codes[cut:]
    assert second.state_dict() == whole.state_dict()
    assert codes[-1] == "floor"
    assert best_step(second) == 20


def test_pace_is_judged_by_what_the_model_is_certain_of() -> None:
    stopping = rule(value=0.2, floor=0.8)
    look(stopping, 0, 1.0, 0.9, certainty=4)
    assert stopping.pace() == 1.0  # nothing to compare with
    look(stopping, 10, 1.0, 0.855, certainty=2)
    # half of the way cost 0.045 of 0.1; the other half may cost half of 0.055
    assert stopping.pace() == pytest.approx(0.0275 / 0.045)
    assert stopping.pace(rate=0.5, rates={4: 1.0, 7: 1.0}) == pytest.approx(0.0275 / 0.0225)
    look(stopping, 20, 0.9, 0.83, certainty=1)
    # the last 20 steps brought three quarters for 0.07, the last 10 a quarter for 0.025; half of 0.03 is left
    assert stopping.pace(over=20) == pytest.approx(0.015 / (0.07 / 3))
    assert stopping.pace(over=10) == stopping.pace() == pytest.approx(0.015 / 0.025)
    # and only what was paid with since then counts
    assert stopping.pace(0.75, {10: 9.0, 11: 1.0}, over=10) == pytest.approx(0.015 / 0.01875)
    resumed = StoppingRule.from_state(json.loads(json.dumps(stopping.state_dict())), patience=2)
    assert resumed.pace() == stopping.pace()
    look(stopping, 30, 0.9, 0.81, certainty=0)  # certain of nothing any more
    assert stopping.pace() == 1.0
    assert StoppingRule(None, {}, 1).pace() == 1.0


def test_a_price_is_measured_as_far_back_as_it_takes_to_tell_one() -> None:
    stopping = rule(value=0.2, floor=0.8)
    for step, utility, certainty in ((0, 0.88, 4), (10, 0.87, 3.2), (20, 0.86, 3), (30, 0.85, 2.75)):
        look(stopping, step, 1.0, utility, certainty=certainty)
    # the last ten steps, a sixteenth of the way, tell nothing; the last twenty, 0.1125 of it for 0.02: the
    # rest, 0.6875, would cost 0.122, and half of 0.05 may be spent: a fifth of it, held at a half
    assert stopping.pace(over=10) == stopping.pace(over=20) == 0.5
    look(stopping, 40, 1.0, 0.853, certainty=2.55)
    # 0.1125 of the way for 0.007 since step 20, and 0.6375 of it is left; half of 0.053 may be spent
    assert stopping.pace(over=10) == pytest.approx(0.0265 / (0.007 / 0.1125 * 0.6375))
    # nothing that far back: since the start, 0.3625 for 0.027
    since_start = 0.0265 / (0.027 / 0.3625 * 0.6375)
    assert stopping.pace(over=40) == stopping.pace(over=99) == pytest.approx(since_start)


def test_what_is_left_at_the_last_check() -> None:
    stopping = rule(value=0.2, floor=0.8)
    assert stopping.left == StoppingRule(None, {}, 1).left == 1.0
    look(stopping, 0, 1.0, 0.9, certainty=4)
    look(stopping, 10, 1.0, 0.9, certainty=3)
    assert stopping.left == pytest.approx(0.75)


def test_a_stretch_begins_at_the_state_that_was_put_back() -> None:
    stopping = rule(value=0.2, floor=0.8)
    look(stopping, 0, 1.0, 0.9, certainty=4)
    look(stopping, 10, 0.9, 0.86, certainty=2)
    look(stopping, 20, 0.9, 0.7, certainty=1.5)
    stopping.begin_stretch(20)
    assert stopping.since == 20
    look(stopping, 30, 0.9, 0.83, certainty=1)
    # from step 10's figures: half of what is left of the way for 0.03; the rest may cost half of 0.03
    assert stopping.pace() == pytest.approx(0.015 / 0.03)
    resumed = StoppingRule.from_state(json.loads(json.dumps(stopping.state_dict())), patience=2)
    assert (resumed.pace(), resumed.since) == (stopping.pace(), 20)


def test_utility_is_spent_where_the_best_state_lies_at_the_floor() -> None:
    stopping = rule(value=0.2, floor=0.8)
    assert stopping.spent() is None
    look(stopping, 0, 1.0, 0.9)
    look(stopping, 10, 0.6, 0.806)
    look(stopping, 20, 0.5, 0.79)
    assert stopping.spent() is None  # 0.006 of 0.1 left
    look(stopping, 30, 0.55, 0.804)
    assert stopping.spent() is None  # no floor is broken
    look(stopping, 40, 0.5, 0.79)
    decision = stopping.spent()
    assert decision is not None and decision.code == "floor"
    assert "was 0.550 (target 0.200)" in decision.text
    assert StoppingRule(None, {}, 1).spent() is None


def test_a_spent_floor_names_what_was_missed_and_nothing_that_was_reached() -> None:
    bounds = (Bound("extraction_strength", 0.5, 0.5), Bound("probability", 0.5, 0.5))
    target = ForgetTarget("extraction_strength", 0.5, "given", bounds)
    stopping = StoppingRule(target, {"retain": Floor(0.8, 1.0, 0.8)}, 3)
    for step, kept in ((0, 1.0), (10, 0.801), (20, 0.79)):
        figures = {"extraction_strength": 0.3, "probability": 0.4}
        seen = View(range(12), 12, figures, {"extraction_strength": 0.0, "probability": 5 / 12})
        stopping.judge(step, seen, {"probability": kept}, {"retain": kept})
    decision = stopping.spent()
    assert decision is not None and decision.text.endswith(
        "met its floor of 0.800 before the target was reached: about 5 of 12 items were left"
    )


def test_a_saved_rule_without_target() -> None:
    floors = {"retain": Floor(0.5, 0.5, 0.25)}
    stopping = StoppingRule.from_state(StoppingRule(None, floors, 3).state_dict(), patience=3)
    assert stopping.target is None
    assert stopping.floors == floors


def test_a_count_of_answers_says_nothing_of_the_pace() -> None:
    """One fact of forty is two thirds of its floor's slack: no reason to slow down."""
    target = ForgetTarget("extraction_strength", 0.1, "given")
    floors = {"retain": Floor(0.98, 1.0, 0.98), "general.answers": Floor(0.98, 0.825, 0.7875)}
    stopping = StoppingRule(target, floors, 3)
    utility = {"probability": 1.0}
    stopping.judge(0, view(1.0), utility, {"retain": 1.0, "general.answers": 0.825})
    stopping.judge(10, view(0.9), utility, {"retain": 0.999, "general.answers": 0.8})
    assert stopping.tightest(stopping.checks[-1]) == "retain"
    stopping.judge(20, view(0.8), utility, {"retain": 0.999, "general.answers": 0.775})
    assert list(stopping.checks[-1].broken) == ["general.answers"]  # as a floor it holds


def test_the_language_of_the_forget_answers_says_nothing_of_the_pace() -> None:
    """Where the forget loss expects less of its words, that floor comes near without any damage."""
    floors = {"retain": Floor(0.98, 1.0, 0.98), "language": Floor(0.98, 0.5, 0.4)}
    stopping = StoppingRule(ForgetTarget("extraction_strength", 0.1, "given"), floors, 3)
    utility = {"probability": 1.0}
    stopping.judge(0, view(1.0), utility, {"retain": 1.0, "language": 0.5})
    stopping.judge(10, view(0.9), utility, {"retain": 0.999, "language": 0.41})
    assert stopping.tightest(stopping.checks[-1]) == "retain"
    stopping.judge(20, view(0.8), utility, {"retain": 0.999, "language": 0.39})
    assert list(stopping.checks[-1].broken) == ["language"]  # as a floor it holds


@pytest.mark.parametrize(("limit", "near", "far"), [(0.05, 0.09, 0.1), (0.3, 0.39, 0.41), (0.6, 0.69, 0.71)])
def test_a_batch_near_the_target_asks_for_a_check(limit: float, near: float, far: float) -> None:
    target = ForgetTarget("extraction_strength", limit, "given")
    assert target.within_reach({"extraction_strength": near})
    assert not target.within_reach({"extraction_strength": far})
