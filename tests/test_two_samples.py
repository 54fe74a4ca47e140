from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngdiff.evaluation.statistics import auc_interval, auc_resamples, percentiles

scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=12)


@given(scores, scores)
def test_auc_is_the_share_of_pairs_won(members: list[float], others: list[float]) -> None:
    value, (low, high) = auc_interval(members, others, resamples=50)
    won = [1.0 if m > o else 0.5 if m == o else 0.0 for m in members for o in others]
    assert value == pytest.approx(sum(won) / len(won), abs=1e-12)
    assert auc_interval(others, members, resamples=2)[0] == pytest.approx(1 - value, abs=1e-12)
    assert 0 <= low <= high <= 1


def test_resamples_against_drawing_items_one_by_one() -> None:
    rng = random.Random(0)
    members, others = [rng.gauss(0.7, 1) for _ in range(30)], [rng.gauss(0, 1) for _ in range(40)]
    slow = []
    for _ in range(1500):
        left, right = rng.choices(members, k=30), rng.choices(others, k=40)
        slow.append(sum((m > o) + (m == o) / 2 for m in left for o in right) / 1200)
    fast = auc_resamples(members, others, resamples=1500, seed=1)
    spread = float(np.std(slow))
    assert float(fast.mean()) == pytest.approx(sum(slow) / 1500, abs=5 * spread / math.sqrt(1500))
    assert float(fast.std()) == pytest.approx(spread, rel=0.12)


def test_perfect_separation_has_a_point_interval() -> None:
    assert auc_interval([2.0, 3.0], [0.0, 1.0]) == (1.0, (1.0, 1.0))


def test_percentiles_by_hand() -> None:
    assert percentiles([float(i) for i in range(101)], level=0.9) == pytest.approx((5.0, 95.0))


@pytest.mark.parametrize(("members", "others"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0])])
def test_no_auc_of_nothing_or_nan(members: list[float], others: list[float]) -> None:
    with pytest.raises(ValueError, match="an AUC needs"):
        auc_interval(members, others)
