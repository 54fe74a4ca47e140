"""GeN's rate: every decision worked out by hand, one optimizer step, and the curves of a real bowl."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy
import pytest
import torch

from bowl import EVERY_OPTIMIZER, Bowl, assert_same_state
from ngdiff.steps.gen import START, GenRate
from ngdiff.steps.line import Probe

RATE = 1e-3


def scripted(bowl: Bowl, losses: Mapping[int, float], rate: float) -> list[int]:
    """Let the bowl's loss at -1, 0 and +1 rates along the step be what is given; return what is asked for."""
    before, update = bowl.flat().double(), bowl.update()
    asked: list[int] = []

    def loss() -> float:
        place = float((before - bowl.flat().double()) @ update / (update @ update)) / rate
        asked.append(round(place))
        assert abs(place - asked[-1]) < 1e-2
        return losses[asked[-1]]

    bowl.loss = loss  # type: ignore[method-assign]
    return asked


def probed(losses: Mapping[int, float], rate: float = RATE) -> tuple[Probe, GenRate]:
    bowl = Bowl("sgd", seed=3)
    gen = GenRate(bowl.optimizer, start=rate, every=1)
    bowl.fill()
    asked = scripted(bowl, losses, rate)
    probe = gen.step(bowl.pair, bowl.loss)
    assert probe is not None and probe.before == rate and probe.after == gen.rate
    assert sorted(asked) == [-1, 0, 1]  # three points and no more
    return probe, gen


def valley(vertex: float, depth: float = 1e-3, sign: int = 1) -> dict[int, float]:
    """Three losses of a parabola with its minimum at ``vertex`` rates, ``depth`` below its middle point."""
    bend = 2 * depth / vertex**2
    return {s: 2.0 + sign * (bend * s * s / 2 - bend * vertex * s) for s in (-1, 0, 1)}


@pytest.mark.parametrize(
    ("losses", "outcome", "factor"),
    [
        (valley(1.0), "accepted", 1.0),
        (valley(1.5), "accepted", 0.9 + 0.1 * 1.5),
        (valley(0.6), "accepted", 0.9 + 0.1 * 0.6),
        (valley(1.99), "accepted", 0.9 + 0.1 * 1.99),
        (valley(10.0), "clamped", 0.9 + 0.1 * 2),
        (valley(0.1), "clamped", 0.9 + 0.1 / 2),
        (valley(-1.5), "kept", 1.0),  # the minimum lies behind
        (valley(1.5, sign=-1), "kept", 1.0),  # the loss rises, and bends down
        (valley(-1.5, sign=-1), "kept", 1.0),  # it falls ever faster
        ({-1: 2.0, 0: 2.0, 1: 2.0}, "kept", 1.0),
        ({-1: math.nan, 0: 2.0, 1: 2.0}, "halved", 0.5),
        ({-1: 2.1, 0: math.inf, 1: 2.0}, "halved", 0.5),
        ({-1: 2.1, 0: 2.0, 1: math.inf}, "halved", 0.5),
        ({-1: 2.1, 0: 2.0, 1: math.nan}, "halved", 0.5),
    ],
)
def test_what_three_losses_do_to_the_rate(losses: dict[int, float], outcome: str, factor: float) -> None:
    probe, gen = probed(losses)
    assert probe.outcome == outcome
    assert probe.after == pytest.approx(factor * RATE, rel=1e-6)
    # no step goes where the loss is not finite
    assert probe.applied == (probe.after if math.isfinite(losses[1]) else 0.0)
    assert all(group["lr"] == gen.rate for group in gen.optimizer.param_groups)
    (points,) = probe.points
    found = [points.width, points.minus, points.zero, points.plus]
    assert numpy.array_equal(found, [RATE, losses[-1], losses[0], losses[1]], equal_nan=True)


def test_a_fit_whose_solver_ends_short_is_not_accepted() -> None:
    """A drop this tall at a rate this small stops GeN's solver early; its R^2 says so."""
    probe, _ = probed(valley(1.5, depth=1.0), rate=1e-6)
    assert probe.outcome == "kept" and "R²" in probe.reason
    assert probe.after == probe.applied == 1e-6


def least_squares(losses: Mapping[int, float], rate: float) -> float:
    """The new rate by a linear solver in float64, where the fit counts."""
    widths = numpy.array([-rate, 0.0, rate])
    design = numpy.stack([widths**2 / 2, -widths], axis=1) / [rate**2, rate]
    values = numpy.array([losses[-1], losses[0], losses[1]]) - losses[0]
    bend, fall = numpy.linalg.lstsq(design, values, rcond=None)[0] / [rate**2, rate]
    if not (bend > 0 and fall > 0):
        return rate
    return float(0.9 * rate + 0.1 * min(max(fall / bend, rate / 2), 2 * rate))


@pytest.mark.parametrize("rate", [1e-5, 1e-4, 1e-2])
@pytest.mark.parametrize("seed", range(12))
def test_the_fit_is_that_of_linear_least_squares(rate: float, seed: int) -> None:
    drawn = numpy.random.default_rng(seed).normal(size=2)
    losses = {-1: 2 + 3e-3 * drawn[0], 0: 2.0, 1: 2 + 3e-3 * drawn[1]}
    probe, _ = probed(losses, rate)
    assert probe.after == pytest.approx(least_squares(losses, rate), rel=1e-5)
    assert (probe.outcome == "kept") == (probe.after == rate)


@EVERY_OPTIMIZER
def test_the_optimizer_steps_once_and_its_state_advances_once(kind: str) -> None:
    """With probes at steps 3, 6 and 9: weights and state are a twin's that takes plain steps."""
    bowl = Bowl(kind, seed=2, level=1.0)
    gen = GenRate(bowl.optimizer, start=0.02, every=3)
    moved = 0
    for step in range(1, 10):
        bowl.fill()
        before, update = bowl.flat().double(), bowl.update()
        weights, state = bowl.twin(gen.rate)
        calls, rate = bowl.calls, gen.rate
        probe = gen.step(bowl.pair, bowl.loss)
        assert_same_state(bowl.optimizer.state_dict()["state"], state)
        assert (probe is not None) == (step % 3 == 0)
        if probe is None:
            assert bowl.calls == calls and gen.rate == rate
            assert torch.equal(bowl.flat(), weights)
            continue
        assert bowl.calls == calls + 3 and probe.step == step
        moved += probe.after != rate
        expected = weights if probe.applied == rate else (before - probe.applied * update).float()
        torch.testing.assert_close(bowl.flat(), expected, rtol=0, atol=0 if probe.applied == rate else 1e-6)
    assert moved


def test_a_kept_rate_leaves_the_optimizers_own_step_bit_for_bit() -> None:
    bowl = Bowl("adamw", seed=3)
    gen = GenRate(bowl.optimizer, start=RATE, every=1)
    bowl.fill()
    weights, _ = bowl.twin(RATE)
    scripted(bowl, valley(-1.0), RATE)
    probe = gen.step(bowl.pair, bowl.loss)
    assert probe is not None and probe.outcome == "kept"
    assert torch.equal(bowl.flat(), weights)


def test_a_step_to_where_the_loss_is_not_finite_is_taken_back_bit_for_bit() -> None:
    bowl = Bowl("adamw", seed=3)
    gen = GenRate(bowl.optimizer, start=RATE, every=1)
    bowl.fill()
    before = bowl.flat()
    scripted(bowl, {-1: 2.0, 0: 2.0, 1: math.nan}, RATE)
    probe = gen.step(bowl.pair, bowl.loss)
    assert probe is not None and probe.applied == 0.0
    assert torch.equal(bowl.flat(), before)


def test_the_rate_creeps_towards_the_best_one() -> None:
    """By -5% to +10% a probe, whatever the parabola says: from a hundredth of the best it takes 49."""
    bowl = Bowl("sgd", seed=1)
    gen = GenRate(bowl.optimizer, start=1e-3, every=1)
    for _ in range(60):
        bowl.fill()
        before = gen.rate
        probe = gen.step(bowl.pair, bowl.loss)
        assert probe is not None
        assert 0.95 * before * (1 - 1e-9) <= gen.rate <= 1.1 * before * (1 + 1e-9)
    assert gen.rate > 0.05


def test_the_first_probe_is_at_the_first_multiple() -> None:
    bowl = Bowl("sgd", seed=1)
    gen = GenRate(bowl.optimizer)
    found = []
    for step in range(1, 31):
        bowl.fill()
        if gen.step(bowl.pair, bowl.loss) is not None:
            found.append(step)
    assert found == [10, 20, 30] and START == 1e-5


def test_a_resumed_rate_is_where_it_was() -> None:
    bowl = Bowl("adamw", seed=1)
    gen = GenRate(bowl.optimizer, start=0.01, every=2)
    for _ in range(3):
        bowl.fill()
        gen.step(bowl.pair, bowl.loss)
    assert gen.rate != 0.01
    resumed = GenRate(bowl.optimizer, start=0.5, every=2)
    resumed.load_state_dict(gen.state_dict())
    assert (resumed.rate, resumed.steps) == (gen.rate, 3)
    bowl.fill()
    probe = resumed.step(bowl.pair, bowl.loss)
    assert probe is not None and probe.step == 4


def test_the_rate_can_be_divided_by_the_caller() -> None:
    gen = GenRate(Bowl("sgd").optimizer, start=0.8)
    assert gen.be_careful(4.0) == gen.rate == 0.2


@pytest.mark.parametrize("settings", [{"start": 0.0}, {"start": math.inf}, {"start": -1.0}, {"every": 0}])
def test_settings_that_cannot_be(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        GenRate(Bowl("sgd").optimizer, **settings)  # type: ignore[arg-type]
