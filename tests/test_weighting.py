"""Every row of the rule table: finite, and as good as its row says; NGDiff: its closed-form facts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ngdiff.errors import RequestError
from ngdiff.gradients import Weights
from ngdiff.weighting import RULES, Verdict, judge, make_rule

EVERY_RULE = pytest.mark.parametrize("name", sorted(RULES))
CONFLICT_FREE = pytest.mark.parametrize("name", sorted(n for n, row in RULES.items() if row.conflict_free))
FIXED = pytest.mark.parametrize("name", sorted(n for n, row in RULES.items() if row.fixed))
ROUNDING = 1e-12


def matrix(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gramian_of(retain: Tensor, forget: Tensor) -> Tensor:
    stacked = torch.stack([retain, forget])
    return stacked @ stacked.T


@st.composite
def gradients(
    draw: st.DrawFn, exponents: tuple[int, int] = (-15, 15), zero: bool = True
) -> tuple[Tensor, Tensor]:
    """Two vectors of 3 to 6 components in thousandths, times a power of ten each; sometimes related."""
    size = draw(st.integers(3, 6))
    vectors = st.lists(st.integers(-1000, 1000), min_size=size, max_size=size)
    if not zero:
        vectors = vectors.filter(any)
    retain = torch.tensor(draw(vectors), dtype=torch.float64) / 1000
    kind = draw(st.sampled_from(["free", "free", "free", "parallel", "opposed"]))
    forget = {"free": None, "parallel": retain, "opposed": -retain}[kind]
    if forget is None:
        forget = torch.tensor(draw(vectors), dtype=torch.float64) / 1000
    scale = st.integers(*exponents).map(lambda exponent: 10.0**exponent)
    return retain * draw(scale), forget * draw(scale)


def combined(weights: Weights, retain: Tensor, forget: Tensor) -> Tensor:
    return weights.retain * retain + weights.forget * forget


def assert_no_conflict(weights: Weights, retain: Tensor, forget: Tensor) -> None:
    """Neither loss rises to first order, up to rounding relative to the terms of each inner product."""
    d = combined(weights, retain, forget)
    length = abs(weights.retain) * float(retain.norm()) + abs(weights.forget) * float(forget.norm())
    for gradient in (retain, forget):
        assert float(gradient @ d) >= -ROUNDING * float(gradient.norm()) * length


@EVERY_RULE
@given(pair=gradients())
@settings(deadline=None, max_examples=50)
def test_weights_are_finite_at_any_scale(name: str, pair: tuple[Tensor, Tensor]) -> None:
    weights = make_rule(name)(gramian_of(*pair))
    assert isinstance(weights, Weights)
    assert math.isfinite(weights.retain) and math.isfinite(weights.forget)


@EVERY_RULE
@pytest.mark.parametrize(
    "gramian", [[[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 4.0]], [[4.0, 0.0], [0.0, 0.0]]]
)
def test_weights_are_finite_at_zero_gradients(name: str, gramian: list[list[float]]) -> None:
    weights = make_rule(name)(matrix(gramian))
    assert math.isfinite(weights.retain) and math.isfinite(weights.forget)


@CONFLICT_FREE
@given(pair=gradients())
@settings(deadline=None, max_examples=100)
def test_neither_loss_rises_to_first_order(name: str, pair: tuple[Tensor, Tensor]) -> None:
    assert_no_conflict(make_rule(name)(gramian_of(*pair)), *pair)


def test_the_conflict_check_can_fail() -> None:
    """The plain sum follows the longer gradient into a conflict: the check above must see it."""
    retain, forget = matrix([[1.0, 0.0, 0.0], [-10.0, 1.0, 0.0]])
    with pytest.raises(AssertionError):
        assert_no_conflict(make_rule("constant")(gramian_of(retain, forget)), retain, forget)


@FIXED
@given(first=gradients(), second=gradients())
@settings(deadline=None, max_examples=20)
def test_fixed_rules_ignore_the_gramian(
    name: str, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
) -> None:
    rule = make_rule(name)
    assert rule(gramian_of(*first)) == rule(gramian_of(*second))


def test_a_rule_that_reads_the_gramian_is_not_called_fixed() -> None:
    rows = [row for row in RULES.values() if not row.fixed]
    assert rows
    for row in rows:
        found = {row.make()(matrix([[a, 0.1], [0.1, b]])) for a, b in ((1.0, 1.0), (4.0, 1.0), (1.0, 9.0))}
        assert len(found) > 1, row.name


@EVERY_RULE
def test_rows_are_complete_and_found_under_their_names(name: str) -> None:
    row = RULES[name]
    assert row.name == name
    assert row.summary and row.paper
    assert make_rule(name, dict(row.settings))(matrix([[2.0, 1.0], [1.0, 3.0]])) == make_rule(name)(
        matrix([[2.0, 1.0], [1.0, 3.0]])
    )


def test_fixed_values() -> None:
    gramian = matrix([[4.0, 1.0], [1.0, 25.0]])
    assert make_rule("ngdiff")(gramian) == Weights(retain=0.5, forget=0.2)
    assert make_rule("retain-only")(gramian) == Weights(1, 0)
    assert make_rule("forget-only")(gramian) == Weights(0, 1)
    assert make_rule("constant")(gramian) == Weights(1, 1)
    assert make_rule("constant", {"gamma": 0.25})(gramian) == Weights(retain=1, forget=0.25)
    assert make_rule("constant", {"alpha": 3.0})(gramian) == Weights(retain=3, forget=1)


@given(pair=gradients(zero=False))
@settings(deadline=None, max_examples=50)
def test_ngdiff_has_squared_length_two_plus_twice_the_cosine(pair: tuple[Tensor, Tensor]) -> None:
    retain, forget = pair
    d = combined(make_rule("ngdiff")(gramian_of(retain, forget)), retain, forget)
    c = float(retain @ forget / (retain.norm() * forget.norm()))
    assert float(d @ d) == pytest.approx(2 * (1 + c), rel=1e-12, abs=1e-14)
    assert float(retain @ d / retain.norm()) == pytest.approx(1 + c, rel=1e-12, abs=1e-14)
    assert float(forget @ d / forget.norm()) == pytest.approx(1 + c, rel=1e-12, abs=1e-14)


@given(pair=gradients())
@settings(deadline=None, max_examples=50)
def test_ngdiff_swaps_its_weights_with_the_tasks(pair: tuple[Tensor, Tensor]) -> None:
    retain, forget = pair
    rule = make_rule("ngdiff")
    there, back = rule(gramian_of(retain, forget)), rule(gramian_of(forget, retain))
    assert (there.retain, there.forget) == (back.forget, back.retain)


@given(
    pair=gradients(exponents=(-6, 6)),
    factors=st.tuples(*[st.integers(-9, 9).map(lambda exponent: 3.0**exponent)] * 2),
)
@settings(deadline=None, max_examples=50)
def test_ngdiff_does_not_see_the_scale_of_either_loss(
    pair: tuple[Tensor, Tensor], factors: tuple[float, float]
) -> None:
    retain, forget = pair
    rule = make_rule("ngdiff")
    d = combined(rule(gramian_of(retain, forget)), retain, forget)
    retain, forget = retain * factors[0], forget * factors[1]
    scaled = combined(rule(gramian_of(retain, forget)), retain, forget)
    torch.testing.assert_close(scaled, d, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("length", [1e-15, 0.3, 1.0, 1e15])
def test_ngdiff_stands_still_where_the_gradients_are_opposed(length: float) -> None:
    retain = torch.tensor([3.0, -4.0, 12.0], dtype=torch.float64)
    forget = -length * retain
    d = combined(make_rule("ngdiff")(gramian_of(retain, forget)), retain, forget)
    assert float(d.norm()) < 1e-14


def test_ngdiff_gives_a_zero_gradient_weight_zero() -> None:
    rule = make_rule("ngdiff")
    assert rule(matrix([[0.0, 0.0], [0.0, 4.0]])) == Weights(0, 0.5)
    assert rule(matrix([[4.0, 0.0], [0.0, 0.0]])) == Weights(0.5, 0)
    assert rule(matrix([[0.0, 0.0], [0.0, 0.0]])) == Weights(0, 0)


def direction(vector: Tensor) -> Tensor:
    return vector / vector.norm()


@given(pair=gradients(exponents=(-15, 15), zero=False))
@settings(deadline=None, max_examples=50)
def test_mgda_on_unit_gradients_has_ngdiffs_direction(pair: tuple[Tensor, Tensor]) -> None:
    """The shortest point between two unit vectors is their middle, from which TorchJD's solver starts.

    So its approximation plays no part here: it stays there up to a rounding-sized step. Nearly opposed
    gradients are left out: what remains of them is rounding.
    """
    mgda = pytest.importorskip("torchjd.aggregation").MGDAWeighting()
    units = [direction(gradient) for gradient in pair]
    assume(float(units[0] @ units[1]) > -0.99)
    weights = mgda(gramian_of(*units))
    theirs = weights[0] * units[0] + weights[1] * units[1]
    ours = combined(make_rule("ngdiff")(gramian_of(*pair)), *pair)
    torch.testing.assert_close(direction(ours), direction(theirs), rtol=0, atol=1e-7)


@pytest.mark.parametrize("angle", [0.3, 1.5, 2.8])
def test_ngdiffs_direction_is_the_shortest_point_between_the_unit_gradients(angle: float) -> None:
    """The same by brute force."""
    retain = torch.tensor([5.0, 0.0, 0.0], dtype=torch.float64)
    forget = torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=torch.float64) * 1e-3
    share = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:, None]
    between = share * direction(retain) + (1 - share) * direction(forget)
    shortest = between[between.norm(dim=1).argmin()]
    ours = combined(make_rule("ngdiff")(gramian_of(retain, forget)), retain, forget)
    torch.testing.assert_close(direction(ours), direction(shortest), rtol=0, atol=1e-3)


@given(pair=gradients(exponents=(0, 1), zero=False))
@settings(deadline=None, max_examples=50)
def test_imtl_g_has_ngdiffs_direction(pair: tuple[Tensor, Tensor]) -> None:
    """IMTL-G inverts the Gramian, so its error is the condition number times 1e-16.

    Lengths between 0.1 and 25 and |c| <= 0.99 keep that number below 1e7.
    """
    imtl = pytest.importorskip("torchjd.aggregation").IMTLGWeighting()
    retain, forget = pair
    assume(min(retain.norm(), forget.norm()) > 0.1)
    assume(abs(float(direction(retain) @ direction(forget))) < 0.99)
    weights = imtl(gramian_of(retain, forget))
    theirs = weights[0] * retain + weights[1] * forget
    ours = combined(make_rule("ngdiff")(gramian_of(retain, forget)), retain, forget)
    torch.testing.assert_close(direction(ours), direction(theirs), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("gramian", "verdict"),
    [
        ([[0.0, 0.0], [0.0, 0.0]], Verdict.STATIONARY),
        ([[1.0, 0.0], [0.0, 0.0]], Verdict.STEP),
        ([[0.0, 0.0], [0.0, 1.0]], Verdict.STEP),
        ([[1e-30, 0.0], [0.0, 1e-30]], Verdict.STEP),
        ([[4.0, -6.0], [-6.0, 9.0]], Verdict.STEP),
        ([[math.nan, 1.0], [1.0, 1.0]], Verdict.NON_FINITE),
        ([[1.0, math.nan], [math.nan, 1.0]], Verdict.NON_FINITE),
        ([[1.0, 1.0], [1.0, math.inf]], Verdict.NON_FINITE),
        ([[0.0, math.nan], [math.nan, 0.0]], Verdict.NON_FINITE),
        ([[1.0, -math.inf], [-math.inf, 1.0]], Verdict.NON_FINITE),
    ],
)
def test_judge(gramian: list[list[float]], verdict: Verdict) -> None:
    assert judge(matrix(gramian)) is verdict


def test_an_unknown_rule_is_answered_with_the_nearest() -> None:
    with pytest.raises(RequestError, match=r"--rule.*'ngdif'.*Did you mean ngdiff"):
        make_rule("ngdif")


def test_an_unknown_setting_is_answered_with_those_that_exist() -> None:
    with pytest.raises(RequestError, match=r"'constant' has no setting called beta, delta.*alpha, gamma"):
        make_rule("constant", {"delta": 1.0, "beta": 1.0, "gamma": 1.0})
    with pytest.raises(RequestError, match=r"'ngdiff' has no setting called alpha.*none"):
        make_rule("ngdiff", {"alpha": 1.0})
