"""A forget gradient kept elsewhere: the same gradients, Gramian and steps, and an exact copy for probes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ngdiff.errors import RequestError
from ngdiff.steps.forget_buffer import ForgetBuffer, Keep
from ngdiff.steps.gradients import GradientPair, Weights
from ngdiff.steps.stepsize import AutomaticRate
from ngdiff.training.config import UnlearningConfig

torch.set_num_threads(1)


def _model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def _accumulate(model: nn.Module, pair: GradientPair, micro_batches: int = 3) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(micro_batches):
        inputs = torch.randn(4, 6, generator=generator)
        with pair.task("forget"):
            (-model(inputs).square().mean()).backward()
        with pair.task("retain"):
            (model(inputs) - 1).square().mean().backward()


def _pair(keep: Keep) -> tuple[nn.Module, GradientPair]:
    model = _model()
    pair = GradientPair(model.parameters(), keep)
    _accumulate(model, pair)
    return model, pair


def test_on_the_cpu_nothing_differs() -> None:
    (_, here), (_, there) = _pair("device"), _pair("cpu")
    for left, right in zip(here.gradient("forget"), there.gradient("forget"), strict=True):
        assert left is not None and right is not None and torch.equal(left, right)
    assert torch.equal(here.gramian(), there.gramian())
    for pair in (here, there):
        pair.combine(Weights(0.7, 0.3))
    for left, right in zip(here.parameters, there.parameters, strict=True):
        assert left.grad is not None and right.grad is not None and torch.equal(left.grad, right.grad)


def test_in_bf16_only_the_rounding_differs() -> None:
    (_, here), (_, there) = _pair("device"), _pair("bf16")
    for left, right in zip(here.gradient("forget"), there.gradient("forget"), strict=True):
        assert left is not None and right is not None
        assert right.dtype == torch.bfloat16
        torch.testing.assert_close(right.float(), left, rtol=3 * 2.0**-8, atol=1e-4)
    torch.testing.assert_close(here.gramian(), there.gramian(), rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("keep", ["cpu", "bf16"])
def test_no_second_gradient_stays_on_a_parameter(keep: Keep) -> None:
    model = _model()
    pair = GradientPair(model.parameters(), keep)
    seen: list[list[bool]] = []
    # when the first layer's gradients come, those of the layers behind it must be gone
    model[0].weight.register_hook(lambda _: seen.append([p.grad is None for p in model[2].parameters()]))
    with pair.task("forget"):
        model(torch.ones(2, 6)).sum().backward()
    assert seen == [[True, True]]
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("keep", ["cpu", "bf16"])
def test_the_next_step_begins_at_nothing(keep: Keep) -> None:
    model, pair = _pair(keep)
    first = pair.gramian()
    pair.clear()
    assert pair.gradient("forget") == [None] * 4
    _accumulate(model, pair)
    assert torch.equal(pair.gramian(), first)


@pytest.mark.parametrize("keep", ["device", "cpu", "bf16"])
def test_spare_room_holds_parameters_exactly(keep: Keep) -> None:
    _, pair = _pair(keep)
    pair.combine(Weights(1.0, 1.0))
    room = pair.spare()
    for scratch, parameter in zip(room, pair.parameters, strict=True):
        scratch.copy_(parameter.detach())
        assert torch.equal(scratch, parameter.detach())


def test_the_buffer_on_the_cpu_is_the_room() -> None:
    _, pair = _pair("cpu")
    kept = [gradient for gradient in pair.gradient("forget") if gradient is not None]
    places = [scratch.data_ptr() for scratch in pair.spare()]
    assert places == [gradient.data_ptr() for gradient in kept]


def test_a_task_that_does_not_reach_a_parameter() -> None:
    model = _model()
    pair = GradientPair(model.parameters(), "cpu")
    with pair.task("retain"):
        model(torch.ones(2, 6)).sum().backward()
    with pair.task("forget"):
        model[0](torch.ones(2, 6)).sum().backward()
    found = pair.gradient("forget")
    assert found[2] is None and found[3] is None and found[0] is not None
    assert float(pair.gramian()[1, 1]) == pytest.approx(
        float(sum((g**2).sum() for g in found[:2] if g is not None))
    )


def _run(keep: Keep, steps: int = 12) -> tuple[list[Tensor], list[float]]:
    model = _model()
    pair = GradientPair(model.parameters(), keep)
    rate = AutomaticRate(torch.optim.AdamW(model.parameters(), lr=1.0), every=5)
    target = torch.linspace(-1, 1, 8 * 3).view(8, 3)
    inputs = torch.linspace(-2, 2, 8 * 6).view(8, 6).sin()
    rates = []
    for _ in range(steps):
        pair.clear()
        with pair.task("forget"):
            (0.1 * model(inputs[:4]).square().mean()).backward()
        with pair.task("retain"):
            (model(inputs) - target).square().mean().backward()
        gramian = pair.gramian()
        pair.combine(Weights(1 / float(gramian[0, 0].sqrt()), 0.2 / float(gramian[1, 1].sqrt())))
        with torch.no_grad():
            rate.step(pair, lambda: float((model(inputs) - target).square().mean()))
        rates.append(float(rate.rate or 0))
    return [parameter.detach().clone() for parameter in model.parameters()], rates


def test_the_same_trajectory_with_probes() -> None:
    here, rates = _run("device")
    there, same = _run("cpu")
    assert rates == same
    assert all(torch.equal(left, right) for left, right in zip(here, there, strict=True))
    rounded, near = _run("bf16")
    assert near == pytest.approx(rates, rel=0.05)
    for left, right in zip(here, rounded, strict=True):
        torch.testing.assert_close(left, right, rtol=0.05, atol=0.02)


def test_a_place_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"forget_buffer.*'disk'"):
        UnlearningConfig(output_dir=str(tmp_path), forget_buffer="disk", use_cpu=True)


def test_clear_keeps_the_storage() -> None:
    model = _model()
    buffer = ForgetBuffer(list(model.parameters()), "cpu")
    with buffer.catching():
        model(torch.ones(2, 6)).sum().backward()
    places = [g.data_ptr() for g in buffer.gradients() if g is not None]
    buffer.clear()
    with buffer.catching():
        model(torch.ones(2, 6)).sum().backward()
    assert [g.data_ptr() for g in buffer.gradients() if g is not None] == places
