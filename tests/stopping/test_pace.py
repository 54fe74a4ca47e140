"""Pace: hand-worked factors, and that the rule's law brings a run to its target above its floor."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ngdiff.stopping.pace import (
    LEAST_PROGRESS,
    LEAST_SPENT,
    MARGIN,
    MOST_FASTER,
    MOST_SLOWER,
    Standing,
    pace,
    relative_harm,
)

START = Standing(excess=0.8, slack=0.05)
shares = st.floats(0, 1, allow_subnormal=False)


def test_half_the_way_for_half_the_slack_is_a_little_too_dear() -> None:
    # 0.4 of the way cost 0.025; the other 0.4 would cost 0.025, and half of the 0.025 left may be spent
    assert pace(START, START, Standing(0.4, 0.025)) == pytest.approx(0.5)
    # where the steps so far were half as harmful as today's are, the rest would cost twice as much
    assert pace(START, START, Standing(0.4, 0.035), harm=2) == pytest.approx(0.5 * 0.035 / 0.03)


def test_a_small_correction_is_not_made() -> None:
    # price 0.0375; the other 0.4 costs 0.015, half of the 0.035 left may be spent: 1.17
    assert pace(START, START, Standing(0.4, 0.035)) == 1.0


def test_a_quarter_of_the_way_for_half_the_slack() -> None:
    # price 0.025 / 0.2 = 0.125, the rest 0.6 costs 0.075, half of the 0.025 left may be spent: a sixth of it
    assert pace(START, START, Standing(0.6, 0.025)) == MOST_SLOWER
    # price 0.015 / 0.2 = 0.075, the rest costs 0.03, half of the 0.04 left may be spent
    assert pace(START, Standing(0.6, 0.055), Standing(0.4, 0.04)) == pytest.approx(0.02 / 0.03)


def test_cheap_progress_allows_longer_steps() -> None:
    # price 0.001 / 0.4; the rest costs 0.001; 0.5 * 0.049 may be spent: 24 times, held at 1.25
    assert pace(START, START, Standing(0.4, 0.049)) == MOST_FASTER


def test_damage_without_progress_is_answered_by_the_smallest_factor() -> None:
    assert pace(START, START, Standing(0.8, 0.03)) == MOST_SLOWER
    assert pace(START, START, Standing(0.9, 0.03)) == MOST_SLOWER
    assert pace(START, START, Standing(0.4, 0.0)) == MOST_SLOWER


def test_too_short_a_stretch_says_nothing() -> None:
    assert pace(START, START, Standing(0.73, 0.049)) == 1.0


def test_the_stretch_counts_not_the_whole_run() -> None:
    before = Standing(0.6, 0.025)
    # 0.3 of the way for 0.004: the other 0.3 costs 0.004, 0.5 * 0.021 may be spent: 2.6 times, held at 1.25
    assert pace(START, before, Standing(0.3, 0.021)) == MOST_FASTER


@given(shares, shares, shares, st.floats(-1, 1, allow_subnormal=False))
def test_always_a_factor_within_bounds(e1: float, e2: float, s1: float, s2: float) -> None:
    factor = pace(Standing(1.0, 1.0), Standing(e1, s1), Standing(e2, s2))
    assert MOST_SLOWER <= factor <= MOST_FASTER


@given(st.floats(0.3, 0.9), st.floats(1e-3, 2.0), st.floats(0.01, 1.0))
def test_scaling_either_figure_changes_nothing(done: float, spent: float, scale: float) -> None:
    assume(abs(done - LEAST_PROGRESS) > 1e-6 and abs(spent - LEAST_SPENT) > 1e-6)  # rounding may tip either
    plain = pace(Standing(1, 1), Standing(1, 1), Standing(1 - done, 1 - spent))
    scaled = pace(Standing(scale, 3), Standing(scale, 3), Standing(scale * (1 - done), 3 * (1 - spent)))
    assert plain == pytest.approx(scaled, rel=1e-6)


@given(st.floats(0.5, 4.0), st.floats(0.02, 0.15))
def test_under_its_own_law_a_run_ends_above_its_floor(price: float, stride: float) -> None:
    """Progress goes with the rate, damage with the rate times its square's share: simulate check by check."""
    start = now = Standing(1.0, 1.0)
    rate, rates = 1.0, []
    for _ in range(2000):
        share = min(1.0, now.excess / (rate * stride))  # of this stretch, up to where the target is met
        now = Standing(now.excess - share * rate * stride, now.slack - share * price * stride * rate**2)
        if now.excess <= 1e-12:
            break
        rates += [rate]
        rate *= min(pace(start, start, now, relative_harm(rate, rates)), 1 / rate)
    assert now.excess <= 1e-12
    assert now.slack >= 0


@given(st.lists(st.floats(1e-6, 1e-3), min_size=1, max_size=30), st.floats(1e-6, 1e-3))
def test_harm_by_the_law_itself(rates: list[float], rate: float) -> None:
    price = sum(r * r for r in rates) / sum(rates)  # damage over progress, each up to a constant
    assert relative_harm(rate, rates) == pytest.approx(rate / price)
    assert relative_harm(rates[0], rates[:1]) == pytest.approx(1)
    assert relative_harm(rate, []) == 1.0


def test_a_plan_keeps_its_margin() -> None:
    # after the cut, damage per progress is the price times the factor, so the rest costs MARGIN of the slack
    now = Standing(0.5, 0.035)
    factor = pace(START, START, now)
    price = (START.slack - now.slack) / (START.excess - now.excess)
    assert factor * price * now.excess == pytest.approx(MARGIN * now.slack)
