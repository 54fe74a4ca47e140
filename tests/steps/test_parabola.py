"""The parabola through three losses: its figures, and what it may be taken for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngdiff.steps.parabola import SIGNAL, Parabola, Shape


def through(width: float, slope: float, curvature: float, level: float = 0.0) -> Parabola:
    """Measure ``level - slope s + curvature s^2 / 2``."""

    def phi(s: float) -> float:
        return level - slope * s + curvature * s * s / 2

    return Parabola(width, phi(-width), phi(0.0), phi(width))


WHOLE = st.integers(-1000, 1000)


@settings(max_examples=50)
@given(slope=WHOLE, curvature=WHOLE.filter(bool), level=WHOLE, exponent=st.integers(-8, 8))
def test_a_quadratic_is_recovered_exactly(slope: int, curvature: int, level: int, exponent: int) -> None:
    """Whole coefficients and a power of two as width: no value here is rounded."""
    parabola = through(2.0**exponent, slope, curvature, level)
    assert parabola.slope == slope
    assert parabola.curvature == curvature
    assert parabola.vertex == slope / curvature


@given(
    width=st.floats(1e-3, 1e3),
    minus=st.floats(-10, 10),
    zero=st.floats(-10, 10),
    plus=st.floats(-10, 10),
)
@settings(deadline=None)
def test_the_same_as_a_least_squares_fit(width: float, minus: float, zero: float, plus: float) -> None:
    second, first, _ = np.polyfit([-1.0, 0.0, 1.0], [minus, zero, plus], 2)  # in units of the width
    parabola = Parabola(width, minus, zero, plus)
    assert parabola.slope * width == pytest.approx(-first, abs=1e-12)
    assert parabola.curvature * width**2 == pytest.approx(2 * second, abs=1e-12)
    if abs(second) > 1e-3:
        assert parabola.vertex == pytest.approx(-first / (2 * second) * width, rel=1e-8, abs=1e-8 * width)


def test_the_vertex_is_where_the_loss_is_lowest() -> None:
    s = np.linspace(-1, 1, 200_001)
    losses = 2.3 - 0.7 * s + 0.5 * 4.1 * s**2
    assert through(0.3, 0.7, 4.1, 2.3).vertex == pytest.approx(s[losses.argmin()], abs=1e-5)


NOISE = 1e-3
CLEAR, HIDDEN = 1.01 * SIGNAL * NOISE, 0.99 * SIGNAL * NOISE


@pytest.mark.parametrize(
    ("minus", "plus", "shape"),
    [
        (3.0, 1.0, Shape.VALLEY),  # around phi(0) = 1: tilt 2, bend 2
        (3.0, 0.0, Shape.VALLEY),
        (3.0, 2.0, Shape.VALLEY),  # width beyond the vertex
        (2.0, 0.0, Shape.SLOPE),
        (1.5, -1.0, Shape.CONCAVE),
        (0.5, -1.0, Shape.CONCAVE),
        (0.0, 2.0, Shape.ASCENT),
        (1.0, 3.0, Shape.ASCENT),
        (2.0, 2.0, Shape.ASCENT),  # symmetric: bends, does not fall
        (0.0, 0.0, Shape.ASCENT),
        (-1.0, 0.5, Shape.ASCENT),
        (1.0, 1.0, Shape.FLAT),
        (1 + HIDDEN / 2, 1 - HIDDEN / 2, Shape.FLAT),  # tilt just inside the noise
        (1 + CLEAR / 2, 1 - CLEAR / 2, Shape.SLOPE),
        (1 - HIDDEN / 2, 1 + HIDDEN / 2, Shape.FLAT),
        (1 - CLEAR / 2, 1 + CLEAR / 2, Shape.ASCENT),
        (1 + HIDDEN / 2, 1 + HIDDEN / 2, Shape.FLAT),  # bend just inside the noise
        (1 + CLEAR / 2, 1 + CLEAR / 2, Shape.ASCENT),
        (2 + HIDDEN, 0.0, Shape.SLOPE),
        (2 + CLEAR, 0.0, Shape.VALLEY),
        (2 - CLEAR, 0.0, Shape.CONCAVE),
        (math.nan, 1.0, Shape.BROKEN),
        (1.0, math.nan, Shape.BROKEN),
        (math.inf, 1.0, Shape.BROKEN),
        (1.0, -math.inf, Shape.BROKEN),
        (math.inf, math.inf, Shape.BROKEN),
    ],
)
def test_shapes(minus: float, plus: float, shape: Shape) -> None:
    assert Parabola(0.1, minus, 1.0, plus).shape(NOISE) is shape


@pytest.mark.parametrize("zero", [math.nan, math.inf])
def test_a_broken_middle(zero: float) -> None:
    assert Parabola(0.1, 1.0, zero, 1.0).shape(NOISE) is Shape.BROKEN


@given(
    slope=st.floats(0.1, 10),
    curvature=st.floats(0.1, 10),
    width=st.floats(0.1, 10),
)
def test_a_descending_convex_line_is_a_valley_that_noise_can_hide(
    slope: float, curvature: float, width: float
) -> None:
    parabola = through(width, slope, curvature, level=1.0)
    assert parabola.shape(0.0) is Shape.VALLEY
    assert parabola.shape(1e-7) is Shape.VALLEY
    tallest = max(
        abs(parabola.minus - parabola.plus), abs(parabola.plus - 2 * parabola.zero + parabola.minus)
    )
    assert parabola.shape(tallest) is Shape.FLAT


@given(
    slope=st.floats(-2, 2),
    curvature=st.floats(0.5, 4),
    cost=st.floats(0.01, 1),
    width=st.sampled_from([0.25, 1.0, 3.0]),
)
@settings(deadline=None, max_examples=30)
def test_the_width_that_costs_by_brute_force(
    slope: float, curvature: float, cost: float, width: float
) -> None:
    s = np.linspace(0, 12, 120_001)
    affordable = s[-slope * s + curvature * s**2 / 2 <= cost].max()
    found = through(width, slope, curvature, level=2.0).width_that_costs(cost)
    assert found == pytest.approx(affordable, abs=1.1e-4)
