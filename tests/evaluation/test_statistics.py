"""Statistics against their definitions, written out slowly."""

from __future__ import annotations

import math
import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngdiff.evaluation.statistics import auc, harmonic_mean, interval, ks_distance, ks_p_value

samples = st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=1, max_size=12)


def slow_auc(members: list[float], others: list[float]) -> float:
    pairs = list(product(members, others))
    return sum(1.0 if m > o else 0.5 if m == o else 0.0 for m, o in pairs) / len(pairs)


def slow_ks(left: list[float], right: list[float]) -> float:
    def below(sample: list[float], x: float) -> float:
        return sum(value <= x for value in sample) / len(sample)

    return max(abs(below(left, x) - below(right, x)) for x in [*left, *right])


@settings(max_examples=60, deadline=None)
@given(samples, samples)
def test_auc_counts_pairs(members: list[float], others: list[float]) -> None:
    assert auc(members, others) == pytest.approx(slow_auc(members, others), abs=1e-12)
    assert auc(others, members) == pytest.approx(1 - auc(members, others), abs=1e-12)
    assert auc([math.exp(m) for m in members], [math.exp(o) for o in others]) == auc(members, others)


@settings(max_examples=60, deadline=None)
@given(samples, samples)
def test_ks_is_the_largest_gap(left: list[float], right: list[float]) -> None:
    assert ks_distance(left, right) == pytest.approx(slow_ks(left, right), abs=1e-12)
    assert 0 <= ks_p_value(left, right) <= 1
    assert ks_p_value(left, right) == pytest.approx(ks_p_value(right, left), abs=1e-9)


def test_ks_p_value_by_counting_orders() -> None:
    """With 3 against 2 values apart, 2 of the 10 equally likely orders have a gap as large as 1."""
    assert ks_p_value([1.0, 2.0, 3.0], [4.0, 5.0]) == pytest.approx(0.2)
    assert ks_p_value([1.0, 2.0], [1.0, 2.0]) == pytest.approx(1.0)


def test_harmonic_mean_by_hand() -> None:
    assert harmonic_mean([1.0, 2.0, 4.0]) == pytest.approx(3 / (1 + 0.5 + 0.25))
    assert harmonic_mean([0.5]) == 0.5
    assert harmonic_mean([0.9, 0.0, 1.0]) == 0.0
    with pytest.raises(ValueError, match="0 or more"):
        harmonic_mean([0.5, -0.1])


def test_interval_agrees_with_a_slow_bootstrap() -> None:
    generator = random.Random(0)
    values = [generator.random() ** 2 for _ in range(60)]
    means = sorted(sum(generator.choices(values, k=60)) / 60 for _ in range(4000))
    low, high = interval(values, seed=3)
    assert low == pytest.approx(means[100], abs=0.01)
    assert high == pytest.approx(means[3900], abs=0.01)
    assert low < sum(values) / 60 < high
    assert interval(values, seed=3) == (low, high) != interval(values, seed=4)
    narrow = interval(values, level=0.5, seed=3)
    assert low < narrow[0] < narrow[1] < high


def test_an_interval_of_equal_values_has_no_width() -> None:
    assert interval([0.25]) == interval([0.25] * 7) == (0.25, 0.25)


@pytest.mark.parametrize("bad", [[], [0.1, math.nan], [math.inf]])
def test_values_that_are_none_or_not_finite_are_refused(bad: list[float]) -> None:
    for use in (interval, harmonic_mean, lambda v: ks_p_value(v, [1.0]), lambda v: auc([1.0], v)):
        with pytest.raises(ValueError, match=r"values are needed|not finite"):
            use(bad)
