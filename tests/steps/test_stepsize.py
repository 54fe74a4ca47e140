"""The automatic rate where the best step is known, with real optimizers and a twin that never probes."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bowl import EVERY_OPTIMIZER, Bowl, assert_same_state, best_rate
from ngdiff.steps.gradients import GradientPair
from ngdiff.steps.line import SHORT_STEPS, Probe
from ngdiff.steps.stepsize import AutomaticRate, FixedRate

# --- finding a rate from nothing -------------------------------------------------------------------------


@EVERY_OPTIMIZER
@pytest.mark.parametrize("start", [None, 1e-7, 1e-3, 1e2])
@pytest.mark.parametrize("scale", [1.0, 0.01, 30.0])
def test_finds_the_lowest_point_along_the_update(kind: str, start: float | None, scale: float) -> None:
    bowl = Bowl(kind, seed=1, scale=scale, level=1.7)
    auto = AutomaticRate(bowl.optimizer, start=start)
    bowl.fill()
    line = bowl.line()
    probe = auto.step(bowl.pair, bowl.loss)
    assert probe is not None
    assert probe.outcome == "accepted"
    assert auto.rate == probe.after == probe.applied == pytest.approx(best_rate(line), rel=0.03)
    assert all(group["lr"] == auto.rate for group in bowl.optimizer.param_groups)
    assert bowl.exact(bowl.flat()) == pytest.approx(line(auto.rate), rel=1e-5)


@pytest.mark.parametrize("bend", [-0.3, 0.3, 1.0])
def test_the_rate_found_does_not_depend_on_where_the_search_began(bend: float) -> None:
    """On a loss that is a parabola only near its minimum, as a model's is, wide fits see other curvatures."""
    found = []
    for start in (None, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        bowl = Bowl("adamw", seed=5)
        bowl.fill()
        before, update = bowl.flat().double(), bowl.update()

        def curved(
            bowl: Bowl = bowl, before: Tensor = before, update: Tensor = update
        ) -> float:  # its slope is that of a parabola with its minimum at 1e-3; the third order bends it
            rate = float((before - bowl.flat().double()) @ update / (update @ update)) / 1e-3
            return 3.0 + 0.4 * math.expm1(min(-rate, 50.0)) + 0.4 * rate**2 * (0.5 + bend * math.tanh(rate))

        auto = AutomaticRate(bowl.optimizer, start=start)
        probe = auto.step(bowl.pair, curved)
        assert probe is not None and probe.outcome == "accepted", start
        found.append(probe.after)
    assert max(found) / min(found) < 1.1


@EVERY_OPTIMIZER
@pytest.mark.parametrize("seed", range(3))
def test_the_first_step_lands_at_w_minus_rate_times_update(kind: str, seed: int) -> None:
    bowl = Bowl(kind, seed)
    auto = AutomaticRate(bowl.optimizer)
    bowl.fill()
    before, update = bowl.flat().double(), bowl.update()
    expected_state = bowl.twin(0.5)[1]  # the moments do not depend on the rate
    auto.step(bowl.pair, bowl.loss)
    assert auto.rate is not None
    expected = before - auto.rate * update
    # the update itself is the difference of two float32 weights, each rounded by 2**-24 of its size
    rounding = 2**-22 * float(before.abs().max() + update.abs().max()) * (1 + auto.rate)
    torch.testing.assert_close(bowl.flat().double(), expected, rtol=0, atol=rounding)
    assert_same_state(bowl.optimizer.state_dict()["state"], expected_state)


@pytest.mark.parametrize("start", [None, 1e-6, 10.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_staircase_does_not_fool_the_search(start: float | None, seed: int) -> None:
    """bf16 losses move in steps of about 2**-9: differences below that are not curvature."""
    bowl = Bowl("adamw", seed, level=1.0)
    auto = AutomaticRate(bowl.optimizer, start=start, resolution=2**-9)
    bowl.fill()
    best = best_rate(bowl.line())
    auto.step(bowl.pair, lambda: round(bowl.loss() * 2**9) / 2**9)
    assert auto.rate is not None
    assert best / 2 <= auto.rate <= best * 2


def test_a_loss_that_is_not_a_number_far_out_only_narrows_the_search() -> None:
    bowl = Bowl("adamw", seed=2)
    bowl.fill()
    best = best_rate(bowl.line())
    reach = float((bowl.update() * best).norm())
    before = bowl.flat()

    def cliff() -> float:
        return bowl.loss() if float((bowl.flat() - before).norm()) < 1.5 * reach else math.nan

    auto = AutomaticRate(bowl.optimizer, start=100 * best)
    probe = auto.step(bowl.pair, cliff)
    assert probe is not None and probe.outcome == "accepted"
    assert auto.rate == pytest.approx(best, rel=0.03)


@pytest.mark.parametrize("start", [None, 1e2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_nowhere_finite_leaves_the_first_weights_alone(
    start: float | None, value: float
) -> None:
    bowl = Bowl("adamw")
    with torch.no_grad():
        bowl.weights[0][0, 0] = 0.0  # a weight that absorbs no tiny step by rounding
    auto = AutomaticRate(bowl.optimizer, start=start)
    bowl.fill()
    before = bowl.flat()
    probe = auto.step(bowl.pair, lambda: value)
    assert probe is not None and probe.outcome == "bounded"
    assert probe.applied == 0
    assert torch.equal(bowl.flat(), before)
    assert auto.rate is not None and math.isfinite(auto.rate)


@pytest.mark.parametrize("start", [None, 1e-3])
@pytest.mark.parametrize("every", [1, 10])
def test_an_update_that_climbs_is_held_to_the_rate_at_which_the_way_to_the_next_probe_costs_the_tolerance(
    start: float | None, every: int
) -> None:
    bowl = Bowl("sgd", seed=3)
    bowl.fill()
    for parameter in bowl.weights:
        assert parameter.grad is not None
        parameter.grad.neg_()
    line = bowl.line()
    auto = AutomaticRate(bowl.optimizer, start=start, every=every, tolerance=0.05)
    probe = auto.step(bowl.pair, bowl.loss)
    assert probe is not None and probe.outcome == "bounded" and probe.applied == probe.after == auto.rate
    ahead = [every * probe.after * (1 + step / 1000) for step in range(-900, 1000)]
    costs = min(ahead, key=lambda width: abs(line(width) - line(0.0) - 0.05))
    assert every * probe.after == pytest.approx(costs, rel=0.02)


@pytest.mark.parametrize("start", [None, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("power", [3.0, 6.0])
def test_the_rate_that_costs_the_tolerance_is_found_where_the_loss_is_no_parabola(
    start: float | None, power: float
) -> None:
    bowl = Bowl("sgd", seed=3)
    bowl.fill()
    along, begin = bowl.update().float(), bowl.flat()

    def loss() -> float:
        s = 50 * float((begin - bowl.flat()) @ along) / float(along @ along)
        return 1.0 + 0.01 * s + math.copysign(abs(s) ** power, s) * (1.0 if s > 0 else 0.1)

    auto = AutomaticRate(bowl.optimizer, start=start, every=1, tolerance=0.05)
    probe = auto.step(bowl.pair, loss)
    assert probe is not None and probe.outcome == "bounded" and "cost" in probe.reason
    assert len(probe.points) < 25
    rise = 0.01 * 50 * probe.after + (50 * probe.after) ** power
    assert 0.05 / 1.1 ** (power + 1) <= rise <= 0.05 * 1.1 ** (power + 1)


@pytest.mark.parametrize("seed", range(6))
def test_noise_is_no_minimum_and_no_start_changes_the_rate(seed: int) -> None:
    """A target model under bf16: a retain loss of 0.01, whose rounding shows at any step, however short."""
    found = []
    for start in (None, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3):
        bowl = Bowl("adamw", seed)
        bowl.fill()
        along, begin = bowl.update().float(), bowl.flat()

        def loss(bowl: Bowl = bowl, along: Tensor = along, begin: Tensor = begin) -> float:
            s = float((begin - bowl.flat()) @ along) / float(along @ along)
            noise = 0.0 if s == 0 else 1e-4 * random.Random(f"{seed} {s:.9e}").uniform(-1, 1)
            return 0.0108 + 4.4e4 * s**2 + 0.1 * s + noise

        auto = AutomaticRate(bowl.optimizer, start=start, resolution=2**-9)
        probe = auto.step(bowl.pair, loss)
        assert probe is not None and probe.outcome == "bounded", start
        assert len(probe.points) < 20
        found.append(probe.after)
        # ten steps ahead cost 0.005: 4.4e4 s^2 + 0.1 s = 0.005
        assert 10 * probe.after == pytest.approx(3.36e-4, rel=0.06), start
        assert auto.grain * 0.0108 == pytest.approx(probe.noise)


@pytest.mark.parametrize("start", [None, 1e-5, 1.1e-5, 1e-4, 6.4e-4])
def test_a_search_whose_narrow_and_wide_points_disagree_comes_to_an_end(start: float | None) -> None:
    """Measured on forget05: ascent at 1.6e-4, and at 6.4e-4 a valley whose minimum lies at 1.6e-4."""
    bowl = Bowl("adamw", seed=1)
    bowl.fill()
    along, begin = bowl.update().float(), bowl.flat()

    def rise(s: float) -> float:
        x = s / 6.4e-4
        return 0.0358 * abs(x) ** 2.53 - math.copysign(0.0098 * x**4, x) + 5e-5 * min(abs(x), 1.0) * (x > 0)

    def loss() -> float:
        s = float((begin - bowl.flat()) @ along) / float(along @ along)
        noise = 0.0 if s == 0 else 7e-5 * random.Random(f"{s:.9e}").uniform(-1, 1)
        return 0.0108 + rise(s) + noise

    auto = AutomaticRate(bowl.optimizer, start=start, resolution=2**-9)
    probe = auto.step(bowl.pair, loss)
    assert probe is not None and probe.outcome == "bounded" and "cost" in probe.reason
    assert len(probe.points) < 20
    assert 0.005 / 1.1**2.6 - 1.4e-4 <= rise(10 * probe.after) <= 0.005 + 1.4e-4


@pytest.mark.parametrize("curve", [lambda loss: 1.0, lambda loss: -(loss**2)], ids=["flat", "concave"])
def test_a_line_without_a_minimum_is_bounded_without_harm(curve: Callable[[float], float]) -> None:
    bowl = Bowl("sgd", seed=4)
    if curve(2.0) != 1.0:
        for group in bowl.optimizer.param_groups:
            group["maximize"] = True  # up the bowl is down its negated square
    auto = AutomaticRate(bowl.optimizer)
    bowl.fill()
    start = curve(bowl.exact(bowl.flat()))
    probe = auto.step(bowl.pair, lambda: curve(bowl.loss()))
    assert probe is not None and probe.outcome == "bounded"
    assert auto.rate is not None and 0 < auto.rate < math.inf
    assert bool(bowl.flat().isfinite().all())
    assert curve(bowl.exact(bowl.flat())) <= start + auto.tolerance


# --- adapting the rate -----------------------------------------------------------------------------------


def going(bowl: Bowl, rate: float, **settings: Any) -> AutomaticRate:
    """An automatic rate in the middle of a run that probes at every step."""
    auto = AutomaticRate(bowl.optimizer, every=1, **settings)
    auto.load_state_dict({"rate": rate, "steps": 40})
    bowl.fill()
    return auto


@EVERY_OPTIMIZER
@pytest.mark.parametrize("factor", [0.3, 0.9, 1.0, 1.5, 3.0])
def test_a_probe_moves_rate_and_weights_to_the_minimum(kind: str, factor: float) -> None:
    bowl = Bowl(kind, seed=5, scale=0.3)
    bowl.fill()
    best = best_rate(bowl.line())
    rate = factor * best
    auto = going(bowl, rate)
    before, update, state = bowl.flat().double(), bowl.update(), bowl.twin(rate)[1]
    probe = auto.step(bowl.pair, bowl.loss)
    assert probe is not None and (probe.outcome, probe.step, probe.before) == ("accepted", 41, rate)
    reached = min(best, 1.25 * rate)
    assert probe.after == pytest.approx(reached, rel=0.01)
    assert bowl.calls == 3
    rounding = 2**-22 * float(before.abs().max() + best * update.abs().max()) * (1 + 1 / factor)
    torch.testing.assert_close(bowl.flat().double(), before - probe.after * update, rtol=0, atol=rounding)
    assert_same_state(bowl.optimizer.state_dict()["state"], state)


@pytest.mark.parametrize(("factor", "change"), [(0.01, 1.25), (100.0, 0.25)])
def test_a_probe_raises_the_rate_by_little_and_cuts_it_by_at_most_four(factor: float, change: float) -> None:
    bowl = Bowl("sgd", seed=6, scale=1e-4)
    bowl.fill()
    rate = factor * best_rate(bowl.line())
    auto = going(bowl, rate)
    probe = auto.step(bowl.pair, bowl.loss)
    assert probe is not None and probe.after == rate * change


@EVERY_OPTIMIZER
def test_a_shallow_loss_is_seen_by_probing_wider(kind: str) -> None:
    """Late in a run: a retain loss near 0.004 whose whole valley is 1e-4 deep, computed in float32."""
    bowl = Bowl(kind, seed=7)
    bowl.fill()
    line = bowl.line()
    best = best_rate(line)
    depth = line(0.0) - line(best)

    def shallow() -> float:
        return float(torch.tensor(0.004 + 1e-4 * (bowl.loss() - line(0.0)) / depth, dtype=torch.float32))

    rate = best / 200
    auto = going(bowl, rate)
    state = bowl.twin(rate)[1]
    probe = auto.step(bowl.pair, shallow)
    assert probe is not None and probe.outcome == "widened"
    assert probe.after == 1.25 * rate
    assert bowl.calls == 3 + 2 * (len(probe.points) - 1) and len(probe.points) > 1
    assert_same_state(bowl.optimizer.state_dict()["state"], state)


@EVERY_OPTIMIZER
@pytest.mark.parametrize("curve", ["flat", "concave", "ascent"])
def test_a_kept_rate_leaves_the_optimizers_own_step_bit_for_bit(kind: str, curve: str) -> None:
    bowl = Bowl(kind, seed=8)
    rate = 0.0123
    auto = going(bowl, rate)
    start = bowl.flat()
    along = bowl.update().float()
    along /= along.norm() ** 2

    def loss() -> float:
        bowl.calls += 1
        s = float((start - bowl.flat()) @ along)  # how far along the update, as a rate
        # falling ever faster; rising by less than the tolerance
        return {"flat": 0.7, "concave": 1 - 10 * s - 100 * s**2, "ascent": 1 + 0.1 * s}[curve]

    weights, state = bowl.twin(rate)
    probe = auto.step(bowl.pair, loss)
    assert probe is not None
    assert (probe.outcome, probe.after, probe.applied, auto.rate) == ("kept", rate, rate, rate)
    assert bowl.calls == {"flat": 9, "concave": 3, "ascent": 3}[curve]
    assert torch.equal(bowl.flat(), weights)
    assert_same_state(bowl.optimizer.state_dict()["state"], state)


def test_a_rate_that_climbs_by_more_than_the_tolerance_is_halved() -> None:
    bowl = Bowl("sgd", seed=9)
    rate = 0.3
    auto = going(bowl, rate)
    for parameter in bowl.weights:
        assert parameter.grad is not None
        parameter.grad.neg_()
    before, update = bowl.flat().double(), bowl.update()
    probe = auto.step(bowl.pair, bowl.loss)
    assert probe is not None and (probe.outcome, probe.after) == ("halved", rate / 2)
    torch.testing.assert_close(bowl.flat().double(), before - rate / 2 * update, rtol=0, atol=1e-5)


def test_a_rate_whose_loss_is_not_finite_is_halved_until_it_is() -> None:
    bowl = Bowl("adamw", seed=10)
    bowl.fill()
    before = bowl.flat()
    length = float(bowl.update().norm())
    auto = going(bowl, 1.0)

    def cliff() -> float:
        return bowl.loss() if float((bowl.flat() - before).norm()) < 0.2 * length else math.nan

    probe = auto.step(bowl.pair, cliff)
    assert probe is not None and (probe.outcome, probe.after, probe.applied) == ("halved", 0.125, 0.125)
    assert math.isfinite(cliff())
    assert not torch.equal(bowl.flat(), before)


def test_a_loss_that_is_nowhere_finite_puts_the_weights_back() -> None:
    bowl = Bowl("adamw", seed=11)
    auto = going(bowl, 0.25)
    before = bowl.flat()
    probe = auto.step(bowl.pair, lambda: math.nan)
    assert probe is not None and (probe.outcome, probe.applied) == ("halved", 0)
    assert torch.equal(bowl.flat(), before)
    assert 0 < probe.after < 0.25


# --- over many steps -------------------------------------------------------------------------------------


@EVERY_OPTIMIZER
def test_probes_come_at_1_and_every_k_steps_and_the_loss_is_not_called_between(kind: str) -> None:
    bowl = Bowl(kind, seed=12)
    auto = AutomaticRate(bowl.optimizer, every=4)
    probed = []
    for step in range(1, 14):
        bowl.fill()
        before = bowl.calls
        rate = auto.rate
        plain = bowl.twin(rate or 1.0)
        probe = auto.step(bowl.pair, bowl.loss)
        assert (probe is None) == (bowl.calls == before)
        assert_same_state(bowl.optimizer.state_dict()["state"], plain[1])
        if probe is None:
            assert torch.equal(bowl.flat(), plain[0])
            assert auto.rate == rate
        else:
            assert probe.step == step
            probed.append(step)
            # each point is measured once: the middle, one or two outer ones a parabola, a few for the noise
            points = {w for p in probe.points for w in (p.width, -p.width)}
            assert len(points) + 1 <= bowl.calls - before <= len(points) + 1 + len(SHORT_STEPS)
    assert probed == [1, 5, 9, 13]


@EVERY_OPTIMIZER
def test_the_retain_loss_falls_along_a_run(kind: str) -> None:
    bowl = Bowl(kind, seed=13)
    bowl.forget *= 0
    auto = AutomaticRate(bowl.optimizer, every=1)
    start = bowl.exact(bowl.flat())
    for _ in range(30):
        bowl.fill()
        auto.step(bowl.pair, bowl.loss)
    assert bowl.exact(bowl.flat()) < 0.05 * start


def test_a_resumed_run_goes_on_identically() -> None:
    def run(bowl: Bowl, auto: AutomaticRate, steps: int) -> list[Probe | None]:
        probes = []
        for _ in range(steps):
            bowl.fill()
            probes.append(auto.step(bowl.pair, bowl.loss))
        return probes

    bowl = Bowl("adamw", seed=14)
    auto = AutomaticRate(bowl.optimizer, every=3)
    run(bowl, auto, 5)
    saved = copy.deepcopy((auto.state_dict(), bowl.optimizer.state_dict(), bowl.flat()))
    expected = run(bowl, auto, 8)
    other = Bowl("adamw", seed=14)
    with torch.no_grad():
        other.weights[0].copy_(saved[2][:4].reshape(2, 2))
        other.weights[1].copy_(saved[2][4:])
    other.optimizer.load_state_dict(saved[1])
    resumed = AutomaticRate(other.optimizer, every=3)
    resumed.load_state_dict(saved[0])
    assert run(other, resumed, 8) == expected
    assert [probe is not None for probe in expected] == [False, True, False, False, True, False, False, True]
    assert torch.equal(other.flat(), bowl.flat())


def test_a_parameter_without_gradient_stays_where_it_is() -> None:
    bowl = Bowl("adamw", seed=15)
    idle = nn.Parameter(torch.tensor([3.0, -4.0]))
    bowl.pair = GradientPair([*bowl.weights, idle])
    bowl.optimizer.add_param_group({"params": [idle], "weight_decay": 0.0})
    auto = AutomaticRate(bowl.optimizer, every=2)
    for _ in range(3):
        bowl.fill()
        auto.step(bowl.pair, bowl.loss)
    assert idle.tolist() == [3.0, -4.0]
    assert [group["lr"] for group in bowl.optimizer.param_groups] == [auto.rate] * 2


@pytest.mark.parametrize("every", [0, -3])
def test_bad_interval(every: int) -> None:
    with pytest.raises(ValueError, match=f"every must be at least 1, got {every}"):
        AutomaticRate(Bowl().optimizer, every=every)


@pytest.mark.parametrize("start", [0.0, -1.0, math.nan, math.inf])
def test_bad_start(start: float) -> None:
    with pytest.raises(ValueError, match="start must be a positive number"):
        AutomaticRate(Bowl().optimizer, start=start)


def test_a_fixed_rate_does_nothing() -> None:
    bowl = Bowl("adamw")
    bowl.fill()
    plain = bowl.twin(123.0)[0]
    fixed = FixedRate()
    fixed.before_step(bowl.pair)
    bowl.optimizer.step()
    assert fixed.after_step(bowl.loss) is None
    assert bowl.calls == 0
    assert torch.equal(bowl.flat(), plain)


def test_no_probe_raises_a_rate_that_was_cut() -> None:
    bowl = Bowl("sgd")
    rate = AutomaticRate(bowl.optimizer, every=1)
    bowl.fill()
    rate.step(bowl.pair, bowl.loss)
    assert rate.rate is not None
    found = rate.rate
    ceiling = rate.be_careful(16.0)
    assert ceiling == rate.rate == found / 16
    for _ in range(4):
        bowl.fill()
        before = bowl.flat()
        update = bowl.update()
        probe = rate.step(bowl.pair, bowl.loss)
        assert probe is not None and probe.after == probe.applied == rate.rate == ceiling
        assert "held at the rate" in probe.reason
        torch.testing.assert_close(
            bowl.flat().double(), before.double() - ceiling * update, rtol=0, atol=1e-6
        )
    resumed = AutomaticRate(bowl.optimizer, every=1)
    resumed.load_state_dict(rate.state_dict())
    assert resumed.ceiling == ceiling and resumed.state_dict() == rate.state_dict()


def found_at(value: float) -> AutomaticRate:
    """An automatic rate whose first probe found this rate."""
    rate = AutomaticRate(Bowl("sgd").optimizer)
    rate.rate = rate.first = value
    return rate


def test_cuts_are_taken_back_and_the_rate_raised_up_to_a_limit() -> None:
    rate = found_at(0.8)
    assert rate.scale(1.0) == 0.8 and rate.ceiling == math.inf
    assert rate.scale(0.75) == rate.ceiling == pytest.approx(0.6)
    assert rate.scale(0.25) == rate.ceiling == 0.4  # no less than half of it
    assert rate.scale(1.25) == rate.ceiling == 0.5
    rate.rate = 0.1  # a probe lowered it
    assert rate.scale(0.25) == rate.ceiling == 0.1
    assert rate.scale(2.0) == rate.ceiling == 0.2
    assert rate.scale(100.0) == rate.ceiling == 2 * 0.8
    assert rate.be_careful(4.0) == 0.4
    assert rate.scale(2.0) == rate.ceiling == 0.4  # a rate that broke the floor does not come back


def test_half_and_twice_are_of_the_first_rate_whatever_probes_made_of_it() -> None:
    bowl = Bowl("sgd")
    rate = AutomaticRate(bowl.optimizer, every=1)
    bowl.fill()
    probe = rate.step(bowl.pair, bowl.loss)
    assert probe is not None and rate.first == probe.after
    first = probe.after
    rate.rate = 0.6 * first  # by a later probe, before anybody scales
    assert rate.scale(0.1) == pytest.approx(0.5 * first)
    assert rate.scale(100.0) == pytest.approx(2 * first)
    higher = found_at(0.8)
    higher.rate = 1.2
    assert higher.scale(0.1) == 0.4
    assert higher.scale(100.0, raise_it=False) == 0.8
    assert higher.scale(100.0) == 1.6
    beyond = found_at(0.8)
    beyond.rate = 4.0  # where probes took it stays: to raise is never to cut
    assert beyond.scale(1.25) == beyond.scale(1.25, raise_it=False) == 4.0


def test_a_rate_is_raised_above_the_first_only_where_that_is_allowed() -> None:
    rate = found_at(0.8)
    assert rate.scale(2.0, raise_it=False) == 0.8 and rate.ceiling == math.inf
    assert rate.scale(0.5) == 0.4
    assert rate.scale(100.0, raise_it=False) == 0.8  # the cut is taken back
    assert rate.scale(1.25) == 1.0
    assert rate.scale(1.25, raise_it=False) == 1.0  # and what was raised stays
    assert rate.be_careful(4.0) == 0.25
    assert rate.scale(2.0, raise_it=False) == rate.scale(2.0) == 0.25


def test_a_raised_rate_stays_with_the_probes() -> None:
    rate = found_at(0.8)
    assert rate.scale(1.25) == 1.0 and rate.ceiling == math.inf
    assert rate.scale(1.25) == 1.25
    resumed = AutomaticRate(Bowl("sgd").optimizer)
    resumed.load_state_dict(rate.state_dict())
    assert resumed.scale(100.0) == 2 * 0.8
    rate.be_careful(4.0)
    resumed.load_state_dict(rate.state_dict())
    assert resumed.first == 0.8 and resumed.scale(100.0) == 1.25 / 4


def test_a_checkpoint_from_before_the_first_rate_was_kept_still_resumes() -> None:
    state = found_at(0.8).state_dict()
    del state["first"]
    resumed = AutomaticRate(Bowl("sgd").optimizer)
    resumed.load_state_dict({**state, "limit": 3.2})  # four times the rate at the first call
    assert resumed.first == 0.8
    resumed.load_state_dict({**state, "limit": None})
    assert resumed.first == 0.8 and resumed.scale(100.0) == 2 * 0.8
    del state["limit"]  # still earlier: the rate from before the first cut, which was the limit
    resumed.load_state_dict({**state, "rate": 0.6, "uncut": 0.9})
    assert (
        resumed.first == pytest.approx(0.225) and resumed.scale(4.0) == 0.6
    )  # above twice the first: it stays


def test_nothing_to_scale_before_the_first_probe() -> None:
    rate = AutomaticRate(Bowl("sgd").optimizer)
    assert rate.scale(0.25) is None and rate.be_careful(4.0) is None and rate.ceiling == math.inf
