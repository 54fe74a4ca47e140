"""Every row of the rule table: finite, and as good as its row says; NGDiff: its closed-form facts."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ngdiff.errors import RequestError
from ngdiff.steps.gradients import Weights
from ngdiff.steps.weighting import RULES, Losses, Verdict, agreeing_signs, judge, make_rule

EVERY_RULE = pytest.mark.parametrize("name", sorted(RULES))
CONFLICT_FREE = pytest.mark.parametrize("name", sorted(n for n, row in RULES.items() if row.conflict_free))
FIXED = pytest.mark.parametrize("name", sorted(n for n, row in RULES.items() if row.fixed))
ROUNDING = 1e-12
LOSSES = Losses(retain=0.5, forget=-4.0)


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
    weights = make_rule(name)(gramian_of(*pair), LOSSES)
    assert isinstance(weights, Weights)
    assert math.isfinite(weights.retain) and math.isfinite(weights.forget)


@EVERY_RULE
@pytest.mark.parametrize(
    "gramian", [[[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 4.0]], [[4.0, 0.0], [0.0, 0.0]]]
)
def test_weights_are_finite_at_zero_gradients(name: str, gramian: list[list[float]]) -> None:
    weights = make_rule(name)(matrix(gramian), LOSSES)
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
        lengths = ((1.0, 1.0), (2.0, 1.0), (1.0, 3.0))  # at a cosine of -0.9
        gramians = [matrix([[a * a, -0.9 * a * b], [-0.9 * a * b, b * b]]) for a, b in lengths]
        found = {row.make(**row.settings)(gramian, LOSSES) for gramian in gramians}
        assert (len(found) > 1) == row.reads_gramian, row.name


@EVERY_RULE
def test_rows_are_complete_and_found_under_their_names(name: str) -> None:
    row = RULES[name]
    assert row.name == name
    assert row.summary and row.paper
    gramian = matrix([[2.0, 1.0], [1.0, 3.0]])
    assert make_rule(name, dict(row.settings))(gramian, LOSSES) == make_rule(name)(gramian, LOSSES)


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


def test_ngdiffs_retain_weight_hand_computed() -> None:
    across = matrix([[4.0, 0.0], [0.0, 25.0]])
    assert make_rule("ngdiff", {"retain": 2})(across) == Weights(retain=1.0, forget=0.2)
    conflicting = matrix([[4.0, -8.0], [-8.0, 25.0]])  # cosine -0.8: at most 1.25 times the retain gradient
    assert make_rule("ngdiff", {"retain": 2})(conflicting) == pytest.approx((0.625, 0.2))
    assert make_rule("ngdiff", {"retain": 1.1})(conflicting) == pytest.approx((0.55, 0.2))
    with pytest.raises(RequestError, match="less than 1"):
        make_rule("ngdiff", {"retain": 0.5})


@given(gradients(zero=False), st.floats(1, 100))
def test_no_retain_weight_of_ngdiffs_lets_a_loss_rise(pair: tuple[Tensor, Tensor], weight: float) -> None:
    retain, forget = pair
    gramian = gramian_of(retain, forget)
    weights = make_rule("ngdiff", {"retain": weight})(gramian)
    assert_no_conflict(weights, retain, forget)
    if float(gramian[0, 1]) >= 0:  # no conflict, no limit
        assert weights.retain == pytest.approx(weight * make_rule("ngdiff")(gramian).retain)


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
    with pytest.raises(RequestError, match=r"'ngdiff' has no setting called alpha.*retain"):
        make_rule("ngdiff", {"alpha": 1.0})


# retain (1, 0), forget (-1, sqrt 3): conflict; the weights below are worked out by hand
CONFLICT = matrix([[1.0, -1.0], [-1.0, 4.0]])


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "pcgrad": (2.0, 1.25),  # g_R + g_f/4, and g_f + g_R
        "mgda": (5 / 7, 2 / 7),  # (4 + 1) / (1 + 4 + 2)
        "imtlg": (2 / 3, 1 / 3),  # NGDiff's (1, 1/2), adding up to 1
        "upgrad": (1.0, 0.625),  # half of what pcgrad adds up
        "dualproj": (0.5, 0.5),  # the mean harms neither
        "nashmtl": (1 / math.sqrt(0.5), 0.5 / math.sqrt(0.5)),  # NGDiff's over sqrt(1 - 1/2)
        "gru": (1.0, 1.0),  # g_f + g_R is at a right angle to g_R
        "blur": (1.0, 1.25),  # g_f + (g_R + g_f/4), which is at a right angle to g_f
        "hamu": (1.0, 0.5),  # (1/2, sqrt(3)/2): as long as g_R, at 60 degrees from g_f
        "lossnorm": (2.0, 0.25),
        "pdu": (1.0, 1.0),
        "sago": (1.0, 1.0),
    }.items(),
)
def test_by_hand(name: str, expected: tuple[float, float]) -> None:
    assert make_rule(name)(CONFLICT, LOSSES) == pytest.approx(expected, rel=1e-5)


def test_dualproj_by_hand_where_the_mean_harms() -> None:
    found = make_rule("dualproj")(matrix([[1.0, -2.0], [-2.0, 9.0]]))
    assert found == pytest.approx((1.0, 0.5), rel=1e-5)  # w_R - 2 · 0.5 = 0


def two_gradients_by_the_papers(name: str, retain: Tensor, forget: Tensor) -> Tensor:
    """The combined gradient of two tasks, from each paper's own words, vector by vector."""

    def off(one: Tensor, other: Tensor) -> Tensor:  # without what conflicts with the other
        return one - min(0.0, float(one @ other)) / float(other @ other) * other

    if name == "pcgrad":
        return off(retain, forget) + off(forget, retain)
    if name == "upgrad":  # each projected onto the cone that harms neither, then their mean
        return (off(retain, forget) + off(forget, retain)) / 2
    if name == "dualproj":  # at most one of two gradients is harmed by their mean
        return off(off((retain + forget) / 2, retain), forget)
    assert name == "mgda"
    apart = retain - forget
    share = min(1.0, max(0.0, float(-forget @ apart) / float(apart @ apart)))
    return share * retain + (1 - share) * forget


@pytest.mark.parametrize("name", ["pcgrad", "mgda", "upgrad", "dualproj"])
@given(pair=gradients(exponents=(-4, 4), zero=False))
@settings(deadline=None, max_examples=60)
def test_the_closed_forms_against_the_papers(name: str, pair: tuple[Tensor, Tensor]) -> None:
    gramian = gramian_of(*pair)
    lengths = gramian.diagonal().sqrt()
    cosine = float(gramian[0, 1] / lengths.prod())
    assume(abs(cosine) < 1 - 1e-6)
    found = combined(make_rule(name)(gramian), *pair)
    expected = two_gradients_by_the_papers(name, *pair)
    assert float((found - expected).norm()) < 1e-9 * float(lengths.max())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
@given(pair=gradients(exponents=(-4, 4), zero=False))
@settings(deadline=None, max_examples=40)
def test_blur_against_a_least_squares_projection(gamma: float, pair: tuple[Tensor, Tensor]) -> None:
    retain, forget = pair
    along = torch.linalg.lstsq(forget[:, None], retain[:, None]).solution
    expected = retain - forget * float(along) + gamma * forget
    found = combined(make_rule("blur", {"gamma": gamma})(gramian_of(*pair)), *pair)
    assert float((found - expected).norm()) < 1e-9 * float(retain.norm() + gamma * forget.norm())
    size = float(retain.norm() * forget.norm() + gamma * forget @ forget)
    assert float(found @ forget) == pytest.approx(gamma * float(forget @ forget), abs=1e-9 * size)


@pytest.mark.parametrize("cosine", [0.0, 0.25, 0.5, 0.9, 1.0])
@given(pair=gradients(exponents=(-4, 4), zero=False))
@settings(deadline=None, max_examples=25)
def test_hamu_against_a_search(cosine: float, pair: tuple[Tensor, Tensor]) -> None:
    """All directions in the plane of both gradients, of the retain gradient's length or shorter."""
    retain, forget = (float(gradient.norm()) for gradient in pair)
    c = float(pair[0] @ pair[1]) / retain / forget
    assume(abs(c) < 1 - 1e-6)
    found = combined(make_rule("hamu", {"cosine": cosine})(gramian_of(*pair)), *pair)
    assert float(found.norm()) == pytest.approx(retain, rel=1e-6)
    assert float(found @ pair[1]) >= (cosine - 1e-6) * retain * forget
    angles = torch.linspace(0, 2 * math.pi, 20_001, dtype=torch.float64)
    from_forget = angles.cos()
    from_retain = angles.cos() * c + angles.sin() * math.sqrt(1 - c * c)
    for length in (0.5, 1.0):
        allowed = length * from_forget >= cosine - 1e-12
        if bool(allowed.any()):
            best = float((length * from_retain)[allowed].max()) * retain * retain
            assert float(found @ pair[0]) >= best - 1e-3 * retain * retain


def test_hamu_where_the_gradients_are_parallel_opposed_or_missing() -> None:
    rule = make_rule("hamu", {"cosine": 0.5})
    assert rule(matrix([[4.0, 6.0], [6.0, 9.0]])) == Weights(1.0, 0.0)
    assert rule(matrix([[4.0, -6.0], [-6.0, 9.0]])) == pytest.approx((0.0, 1 / 3))  # half as long as g_R
    assert rule(matrix([[4.0, 0.0], [0.0, 0.0]])) == Weights(1.0, 0.0)
    assert rule(matrix([[0.0, 0.0], [0.0, 9.0]])) == Weights(0.0, 1.0)
    with pytest.raises(RequestError, match=r"hamu's cosine = 2 is not between 0 and 1"):
        make_rule("hamu", {"cosine": 2.0})


@pytest.mark.parametrize("c", [0.2, 0.5, 0.8])
@given(pair=gradients(exponents=(0, 0), zero=False))
@settings(deadline=None, max_examples=25)
def test_cagrad_against_a_search(c: float, pair: tuple[Tensor, Tensor]) -> None:
    """d = g_0 + c |g_0| g_w / |g_w|, with w the minimiser of g_w·g_0 + c |g_0| |g_w|; all w tried."""
    gramian = gramian_of(*pair)
    square = float(gramian.diagonal().min() / gramian.diagonal().max())
    cos = float(gramian[0, 1] / (gramian[0, 0] * gramian[1, 1]).sqrt())
    assume(square > 1e-2 and abs(cos) < 0.99)
    mean = (pair[0] + pair[1]) / 2
    tried = torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None]
    convex = tried * pair[0] + (1 - tried) * pair[1]
    costs = convex @ mean + c * mean.norm() * convex.norm(dim=1)
    best = convex[costs.argmin()]
    expected = mean + c * mean.norm() * best / best.norm()
    found = combined(make_rule("cagrad", {"c": c})(gramian), *pair)
    assert float((found - expected).norm()) < 2e-2 * float(expected.norm())


RATIOS = [10.0**exponent for exponent in range(-8, 9)]
COSINES = (-1.0, 1e-9 - 1, -0.999, -0.9, -0.5, -0.1, -1e-9, 0.0, 1e-9, 0.1, 0.5, 0.999, 1.0)


def gramian_at(ratio: float, cosine: float, length: float = 1.0) -> Tensor:
    """The Gramian of a retain gradient of this length and a forget gradient ``ratio`` times as long."""
    return length**2 * matrix([[1.0, ratio * cosine], [ratio * cosine, ratio**2]])


def cosines_with_update(weights: Weights, gramian: Tensor) -> list[float]:
    """The cosines of the update with either gradient, in exact arithmetic; none where it vanishes."""
    entries = [[Fraction(value) for value in row] for row in gramian.tolist()]
    by = [Fraction(weights.retain), Fraction(weights.forget)]
    inner = [row[0] * by[0] + row[1] * by[1] for row in entries]
    square = float(by[0] * inner[0] + by[1] * inner[1])
    lengths = [math.sqrt(row[place]) for place, row in enumerate(entries)]
    terms = sum(abs(weight) * length for weight, length in zip(weights, lengths, strict=True))
    if square <= (1e-6 * terms) ** 2:  # opposed gradients: what is left is rounding
        return []
    return [float(one) / length / math.sqrt(square) for one, length in zip(inner, lengths, strict=True)]


@EVERY_RULE
def test_every_rule_is_stable_at_any_ratio_of_the_norms(name: str) -> None:
    for ratio, cosine in itertools.product(RATIOS, COSINES):
        weights = make_rule(name)(gramian_at(ratio, cosine), LOSSES)
        assert all(math.isfinite(weight) for weight in weights), (ratio, cosine)
        opposed = name == "nashmtl" and cosine < 1e-8 - 1  # nothing to bargain over
        assert any(weights) or opposed, (ratio, cosine)


@CONFLICT_FREE
@pytest.mark.parametrize("length", [1e-8, 1.0, 1e8])
def test_no_conflict_at_any_ratio_of_the_norms(name: str, length: float) -> None:
    for ratio, cosine in itertools.product(RATIOS, COSINES):
        gramian = gramian_at(ratio, cosine, length)
        found = cosines_with_update(make_rule(name)(gramian, LOSSES), gramian)
        assert found or cosine < 1e-8 - 1
        assert min(found, default=0.0) > -1e-6, (ratio, cosine, found)


def test_the_ratio_check_can_fail() -> None:
    """Weights with TorchJD's usual regularisation, relative to the longer gradient: the short one loses."""
    aggregation = pytest.importorskip("torchjd.aggregation")
    gramian = gramian_at(1e4, -0.5)
    found = aggregation.UPGradWeighting()(gramian / 1e8)
    assert min(cosines_with_update(Weights(*map(float, found)), gramian)) < -0.3


def test_the_rules_that_claim_no_conflict() -> None:
    found = {name for name, row in RULES.items() if row.conflict_free}
    assert found == {"ngdiff", "pcgrad", "mgda", "imtlg", "upgrad", "dualproj", "nashmtl", "gru"}


TORCHJD = {
    "pcgrad": "PCGradWeighting",
    "mgda": "MGDAWeighting",
    "imtlg": "IMTLGWeighting",
    "upgrad": "UPGradWeighting",
    "dualproj": "DualProjWeighting",
    "cagrad": "CAGradWeighting",
}


@pytest.mark.parametrize("name", TORCHJD)
@pytest.mark.parametrize("ratio", [0.1, 0.7, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("cosine", [-0.95, -0.5, 0.0, 0.4, 0.95])
def test_the_closed_forms_against_torchjds_solvers(name: str, ratio: float, cosine: float) -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    from torchjd.linalg import QuadprogProjector

    settings = {"projector": QuadprogProjector(reg_eps=1e-9)} if name in ("upgrad", "dualproj") else {}
    settings |= {"c": 0.5} if name == "cagrad" else {}
    gramian = gramian_at(ratio, cosine)
    theirs = getattr(aggregation, TORCHJD[name])(**settings)(gramian / float(gramian.max()))
    difference = torch.tensor(make_rule(name)(gramian), dtype=torch.float64) - theirs
    apart = float(difference @ gramian @ difference) ** 0.5
    assert apart < 1e-4 * float(theirs @ gramian @ theirs) ** 0.5 + 1e-6 * max(1.0, ratio)


@pytest.mark.parametrize("c", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("ratio", RATIOS)
def test_cagrad_against_a_dense_search_at_any_ratio(c: float, ratio: float) -> None:
    """All w of a grid that is as fine at both ends as the ratio of the norms asks for."""
    for cosine in (-0.999, -0.7, -0.2, 0.0, 0.3, 0.9):
        retain = torch.tensor([1.0, 0.0], dtype=torch.float64)
        forget = ratio * torch.tensor([cosine, math.sqrt(1 - cosine**2)], dtype=torch.float64)
        small = torch.logspace(-20, math.log10(0.5), 40001, dtype=torch.float64)
        shares = torch.cat([torch.zeros(1, dtype=torch.float64), small])
        ends = [torch.stack([shares, 1 - shares], 1), torch.stack([1 - shares, shares], 1)]
        convex = torch.cat(ends) @ torch.stack([retain, forget])
        mean = (retain + forget) / 2
        reach = c * float(mean.norm())
        best = convex[(convex @ mean + reach * convex.norm(dim=1)).argmin()]
        expected = mean + reach * direction(best)
        found = combined(make_rule("cagrad", {"c": c})(gramian_of(retain, forget)), retain, forget)
        assert float((found - expected).norm()) < 2e-2 * float(expected.norm()), cosine


def test_cagrad_at_its_edges() -> None:
    assert make_rule("cagrad", {"c": 0.0})(CONFLICT) == Weights(0.5, 0.5)
    assert make_rule("cagrad")(matrix([[4.0, 4.0], [4.0, 4.0]])) == pytest.approx((0.75, 0.75))  # the same
    opposed = matrix([[1.0, -3.0], [-3.0, 9.0]])
    still = make_rule("cagrad", {"c": 2.0})(opposed)
    assert cosines_with_update(still, opposed) == [] and any(still)
    with pytest.raises(RequestError, match=r"--rule.*c = -0\.5"):
        make_rule("cagrad", {"c": -0.5})


def test_nash_solves_its_equation() -> None:
    weights = torch.tensor(make_rule("nashmtl")(CONFLICT), dtype=torch.float64)
    assert (CONFLICT @ weights).tolist() == pytest.approx((1 / weights).tolist())
    assert make_rule("nashmtl")(matrix([[1.0, -2.0], [-2.0, 4.0]])) == Weights(0.0, 0.0)  # opposed


def test_gru_leaves_alone_what_does_no_harm() -> None:
    assert make_rule("gru")(matrix([[1.0, 0.5], [0.5, 1.0]])) == Weights(0.0, 1.0)
    assert make_rule("gru")(matrix([[0.0, 0.0], [0.0, 1.0]])) == Weights(0.0, 1.0)


def test_random_weights_are_those_of_their_seed_and_go_on() -> None:
    gramian = matrix([[1.0, 0.0], [0.0, 1.0]])
    first, again, other = (make_rule("rlw", {"seed": seed}) for seed in (0, 0, 1))
    drawn = [first(gramian) for _ in range(5)]
    assert drawn == [again(gramian) for _ in range(5)]
    assert drawn != [other(gramian) for _ in range(5)]
    assert all(sum(weights) == pytest.approx(1) and min(weights) > 0 for weights in drawn)
    resumed = make_rule("rlw", {"seed": 7})
    resumed.load_state_dict(first.state_dict())  # type: ignore[attr-defined]
    assert [resumed(gramian) for _ in range(3)] == [first(gramian) for _ in range(3)]


def test_the_multiplier_rises_while_the_retain_loss_is_too_high() -> None:
    rule = make_rule("pdu", {"bound": 0.25, "rate": 2.0, "start": 1.0})
    found = [rule(CONFLICT, Losses(retain, -1.0)) for retain in (0.75, 0.25, 0.0, 0.0, 0.0, 0.0)]
    assert [weights.retain for weights in found] == [1.0, 2.0, 2.0, 1.5, 1.0, 0.5]
    assert all(weights.forget == 1 for weights in found)
    assert rule(CONFLICT, Losses(0.0, 0.0)).retain == 0.0
    assert rule(CONFLICT, Losses(0.0, 0.0)).retain == 0.0  # never below
    resumed = make_rule("pdu")
    resumed.load_state_dict({"multiplier": 3.0})  # type: ignore[attr-defined]
    assert resumed(CONFLICT, LOSSES).retain == 3.0


def test_the_multiplier_stays_while_it_warms_up() -> None:
    rule = make_rule("pdu", {"bound": 0.0, "start": 2.0, "warmup": 3})
    assert [rule(CONFLICT, LOSSES).retain for _ in range(3)] == [2.0, 2.0, 2.0]
    resumed = make_rule("pdu", {"bound": 0.0, "warmup": 3})
    resumed.load_state_dict(rule.state_dict())  # type: ignore[attr-defined]
    assert [resumed(CONFLICT, LOSSES).retain for _ in range(3)] == [2.0, 2.5, 3.0]


@pytest.mark.parametrize("name", sorted(n for n, row in RULES.items() if row.uses_losses))
def test_rules_that_weigh_by_losses_say_so(name: str) -> None:
    with pytest.raises(ValueError, match="Losses"):
        make_rule(name)(CONFLICT)


@given(pair=gradients(exponents=(-3, 3)))
@settings(deadline=None)
def test_agreeing_signs(pair: tuple[Tensor, Tensor]) -> None:
    retain, forget = pair
    for mine, r, f in zip(agreeing_signs(*pair).tolist(), retain.tolist(), forget.tolist(), strict=True):
        assert mine == (r if (r > 0 and f < 0) or (r < 0 and f > 0) else f)
    assert float(agreeing_signs(*pair) @ retain) >= 0  # the retain loss does not rise to first order


def test_a_zero_is_in_conflict_with_nothing() -> None:
    """As in SAGO's own code: where either gradient is zero, the forget gradient is taken."""
    retain, forget = torch.tensor([0.0, 2.0, 0.0, 1e-30]), torch.tensor([2.0, 0.0, -2.0, -1e-30])
    assert agreeing_signs(retain, forget).tolist() == [2.0, 0.0, -2.0, pytest.approx(1e-30)]
