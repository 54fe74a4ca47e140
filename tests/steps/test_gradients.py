"""Two gradients, their Gramian and their combination, against gradients flattened into one long vector."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ngdiff.steps.gradients import GradientPair, Weights, cosine


class Net(nn.Module):
    """A layer that both tasks use, one for each task alone, and one that neither uses."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.shared = nn.Linear(3, 4)
            self.retain_only = nn.Linear(4, 1)
            self.forget_only = nn.Linear(4, 2)
            self.unused = nn.Linear(2, 2)
        self.to(dtype)

    def retain_loss(self, rows: Tensor) -> Tensor:
        return self.retain_only(torch.tanh(self.shared(rows))).square().mean()

    def forget_loss(self, rows: Tensor) -> Tensor:
        return -self.forget_only(torch.tanh(self.shared(rows))).square().mean()


def rows(seed: int, count: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def flat(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """The gradient as one vector, zeros where the loss does not depend on a parameter."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    pieces = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    return torch.cat([piece.flatten() for piece in pieces])


def flat_grad(parameters: list[nn.Parameter]) -> Tensor:
    pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([piece.flatten() for piece in pieces])


def filled(net: Net, seed: int = 0) -> tuple[GradientPair, Tensor, Tensor]:
    """A pair that has seen one batch of each task, and the two gradients as vectors."""
    parameters = list(net.parameters())
    retain, forget = net.retain_loss(rows(seed)), net.forget_loss(rows(seed + 100))
    expected = flat(retain, parameters), flat(forget, parameters)
    pair = GradientPair(parameters)
    with pair.task("forget"):
        net.forget_loss(rows(seed + 100)).backward()
    with pair.task("retain"):
        net.retain_loss(rows(seed)).backward()
    return pair, *expected


def snapshot(pair: GradientPair, task: str) -> list[Tensor | None]:
    with pair.task(task):
        return [None if p.grad is None else p.grad.clone() for p in pair.parameters]


def test_hand_computed() -> None:
    a, b = nn.Parameter(torch.tensor([5.0, 7.0])), nn.Parameter(torch.tensor(11.0))
    pair = GradientPair([a, b])
    with pair.task("retain"):
        (2 * a[0] + 3 * b).backward()  # gradient (2, 0, 3)
    with pair.task("forget"):
        (a[0] + 4 * a[1] - b).backward()  # gradient (1, 4, -1)
    gramian = pair.gramian()
    assert gramian.dtype == torch.float64
    assert gramian.tolist() == [[13, -1], [-1, 18]]
    pair.combine(Weights(retain=2, forget=-1))
    assert a.grad is not None and b.grad is not None
    assert a.grad.tolist() == [3, -4]
    assert b.grad.item() == 7


@pytest.mark.parametrize("seed", range(5))
def test_gramian_of_flattened_gradients(seed: int) -> None:
    pair, retain, forget = filled(Net(seed), seed)
    stacked = torch.stack([retain, forget])
    torch.testing.assert_close(pair.gramian(), stacked @ stacked.T, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gramian_of_lower_precision_is_summed_in_at_least_float32(dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.zeros(20_000, dtype=dtype))
    pair = GradientPair([parameter])
    with pair.task("retain"):
        (parameter * 0.5).sum().backward()
    with pair.task("forget"):
        (parameter * -0.25).sum().backward()
    # a bfloat16 sum of these would stop growing at 2**-2 * 2**9 = 128 or so
    torch.testing.assert_close(
        pair.gramian(),
        torch.tensor([[5000.0, -2500.0], [-2500.0, 1250.0]], dtype=torch.float64),
        rtol=1e-5,
        atol=0,
    )


@pytest.mark.parametrize(
    "weights", [Weights(1, 1), Weights(0.3, -2.5), Weights(0, 1), Weights(1, 0), Weights(0, 0)]
)
def test_combine_is_the_weighted_sum(weights: Weights) -> None:
    net = Net()
    pair, retain, forget = filled(net)
    pair.combine(weights)
    expected = weights.retain * retain + weights.forget * forget
    torch.testing.assert_close(flat_grad(pair.parameters), expected, rtol=1e-14, atol=1e-16)


def test_each_task_alone_where_the_other_gave_no_gradient() -> None:
    """``retain_only`` has no forget gradient, ``forget_only`` no retain gradient, ``unused`` neither."""
    net = Net()
    pair, _, _ = filled(net)
    by_task = {
        task: dict(zip([n for n, _ in net.named_parameters()], snapshot(pair, task), strict=True))
        for task in ("retain", "forget")
    }
    assert by_task["retain"]["forget_only.weight"] is None
    assert by_task["forget"]["retain_only.weight"] is None
    pair.combine(Weights(0.5, 3.0))
    torch.testing.assert_close(
        net.retain_only.weight.grad, by_task["retain"]["retain_only.weight"] * 0.5, rtol=0, atol=0
    )
    torch.testing.assert_close(
        net.forget_only.weight.grad, by_task["forget"]["forget_only.weight"] * 3.0, rtol=0, atol=0
    )
    assert net.unused.weight.grad is None
    # and the scratch space covers them all the same
    assert [s.shape for s in pair.spare()] == [p.shape for p in pair.parameters]


def test_weight_zero_shuts_a_broken_forget_gradient_out() -> None:
    parameter = nn.Parameter(torch.ones(2))
    pair = GradientPair([parameter])
    with pair.task("retain"):
        parameter.sum().backward()
    with pair.task("forget"):
        (parameter * torch.nan).sum().backward()
    pair.combine(Weights(1, 0))
    assert parameter.grad is not None and parameter.grad.tolist() == [1, 1]


@pytest.mark.parametrize("order", ["ffrr", "rfrf", "frrf", "rrrfff"])
def test_micro_batches_in_any_order_add_up_exactly(order: str) -> None:
    """Bit for bit what plain ``backward`` calls give for each task alone."""
    net = Net(dtype=torch.float32)
    losses = {"r": net.retain_loss, "f": net.forget_loss}
    batches = [rows(seed, dtype=torch.float32) for seed in range(len(order))]
    pair = GradientPair(net.parameters())
    for letter, batch in zip(order, batches, strict=True):
        with pair.task("retain" if letter == "r" else "forget"):
            losses[letter](batch).backward()
    for letter, task in (("r", "retain"), ("f", "forget")):
        found = snapshot(pair, task)
        plain = Net(dtype=torch.float32)
        function = plain.retain_loss if letter == "r" else plain.forget_loss
        for other, batch in zip(order, batches, strict=True):
            if other == letter:
                function(batch).backward()
        for gradient, parameter in zip(found, plain.parameters(), strict=True):
            if parameter.grad is None:
                assert gradient is None
            else:
                assert gradient is not None and torch.equal(gradient, parameter.grad)


def pointers(pair: GradientPair, task: str) -> list[int]:
    with pair.task(task):
        return [p.grad.data_ptr() for p in pair.parameters if p.grad is not None]


def test_buffers_trade_places_by_reference() -> None:
    net = Net()
    pair, _, _ = filled(net)
    retain, forget = pointers(pair, "retain"), pointers(pair, "forget")
    assert not set(retain) & set(forget)
    with pair.task("forget"):
        net.forget_loss(rows(9)).backward()
    with pair.task("retain"):
        net.retain_loss(rows(9)).backward()
    assert pointers(pair, "retain") == retain, "a second micro-batch accumulates in place"
    assert pointers(pair, "forget") == forget
    both = [p for p in pair.parameters if p is net.shared.weight or p is net.shared.bias]
    shared = [p.data_ptr() for p in pair.spare()[: len(both)]]
    pair.combine(Weights(1, 1))
    assert [p.grad.data_ptr() for p in both if p.grad is not None] == retain[: len(both)]
    assert [s.data_ptr() for s in pair.spare()[: len(both)]] == shared == forget[: len(both)]


def test_outside_a_task_no_gradient_is_on_the_parameters_even_after_an_exception() -> None:
    net = Net()
    pair, retain, _ = filled(net)
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(RuntimeError, match="boom"), pair.task("retain"):
        raise RuntimeError("boom")
    assert all(p.grad is None for p in net.parameters())
    torch.testing.assert_close(pair.gramian()[0, 0], retain @ retain, rtol=1e-13, atol=0)


def test_tied_weights_count_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                self.embed = nn.Embedding(5, 3).double()
                self.head = nn.Linear(3, 5, bias=False).double()
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.embed(ids)).logsumexp(-1).sum()

    net = Tied()
    first, second = torch.tensor([0, 1, 2]), torch.tensor([3, 1])
    weight = net.embed.weight
    retain = flat(net(first), [weight])
    forget = flat(-net(second), [weight])
    pair = GradientPair(net.parameters())
    assert len(pair.parameters) == 1
    with pair.task("retain"):
        net(first).backward()
    with pair.task("forget"):
        (-net(second)).backward()
    stacked = torch.stack([retain, forget])
    torch.testing.assert_close(pair.gramian(), stacked @ stacked.T, rtol=1e-13, atol=0)
    pair.combine(Weights(2, 3))
    torch.testing.assert_close(flat_grad([weight]), 2 * retain + 3 * forget, rtol=1e-13, atol=1e-16)


def test_frozen_parameters_are_left_out() -> None:
    net = Net()
    net.shared.requires_grad_(False)
    pair = GradientPair(net.parameters())
    assert not {id(p) for p in net.shared.parameters()} & {id(p) for p in pair.parameters}
    with pair.task("retain"):
        net.retain_loss(rows(0)).backward()
    with pair.task("forget"):
        net.forget_loss(rows(1)).backward()
    trainable = [p for p in net.parameters() if p.requires_grad]
    retain, forget = flat(net.retain_loss(rows(0)), trainable), flat(net.forget_loss(rows(1)), trainable)
    stacked = torch.stack([retain, forget])
    torch.testing.assert_close(pair.gramian(), stacked @ stacked.T, rtol=1e-13, atol=0)
    pair.combine(Weights(1, 1))
    assert net.shared.weight.grad is None


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="no parameter needs a gradient"):
        GradientPair(nn.Linear(2, 2).requires_grad_(False).parameters())
    with pytest.raises(ValueError, match="no parameter needs a gradient"):
        GradientPair([])


def test_drop_makes_the_optimizer_a_no_op() -> None:
    """Weight decay and momentum included: after one real step both would move the weights."""
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    pair, _, _ = filled(net)
    pair.combine(Weights(1, 1))
    optimizer.step()
    weights = [p.detach().clone() for p in net.parameters()]
    moments = [state["exp_avg"].clone() for state in optimizer.state.values()]
    pair.clear()
    with pair.task("retain"):
        net.retain_loss(rows(0)).backward()
    pair.combine(Weights(1, 1))
    pair.drop()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))
    now = [state["exp_avg"] for state in optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, now, strict=True))
    assert {float(state["step"]) for state in optimizer.state.values()} == {1.0}


def test_clear_starts_afresh() -> None:
    net = Net()
    pair, _, _ = filled(net)
    pair.combine(Weights(1, 1))
    pair.clear()
    assert all(p.grad is None for p in net.parameters())
    assert pair.gramian().tolist() == [[0, 0], [0, 0]]
    with pair.task("retain"):
        net.retain_loss(rows(0)).backward()
    alone = flat(net.retain_loss(rows(0)), pair.parameters)
    torch.testing.assert_close(pair.gramian()[0, 0], alone @ alone, rtol=1e-13, atol=0)


def test_spare_has_the_parameters_shapes_and_types_and_leaves_the_step_alone() -> None:
    net = Net(dtype=torch.float32)
    net.unused.to(torch.bfloat16)
    pair = GradientPair(net.parameters())
    with pair.task("forget"):
        net.forget_loss(rows(0, dtype=torch.float32)).backward()
    with pair.task("retain"):
        net.retain_loss(rows(1, dtype=torch.float32)).backward()
    pair.combine(Weights(1, 1))
    step = [None if p.grad is None else p.grad.clone() for p in pair.parameters]
    scratch = pair.spare()
    assert [(s.shape, s.dtype) for s in scratch] == [(p.shape, p.dtype) for p in pair.parameters]
    for tensor in scratch:
        tensor.fill_(math.nan)
    for before, parameter in zip(step, pair.parameters, strict=True):
        assert (before is None) == (parameter.grad is None)
        assert before is None or torch.equal(before, parameter.grad)


@pytest.mark.parametrize(
    ("gramian", "expected"),
    [
        ([[4.0, 6.0], [6.0, 9.0]], 1.0),
        ([[4.0, -6.0], [-6.0, 9.0]], -1.0),
        ([[4.0, 0.0], [0.0, 9.0]], 0.0),
        ([[4.0, 3.0], [3.0, 9.0]], 0.5),
        ([[0.0, 0.0], [0.0, 9.0]], 0.0),
        ([[4.0, 0.0], [0.0, 0.0]], 0.0),
        ([[0.0, 0.0], [0.0, 0.0]], 0.0),
        ([[1.0, 1.0 + 1e-12], [1.0 + 1e-12, 1.0]], 1.0),  # rounding must not leave [-1, 1]
        ([[1.0, -1.0 - 1e-12], [-1.0 - 1e-12, 1.0]], -1.0),
        ([[1e-300, 0.0], [0.0, 1e300]], 0.0),
        ([[1e-300, 5e-1], [5e-1, 1e300]], 0.5),
    ],
)
def test_cosine(gramian: list[list[float]], expected: float) -> None:
    found = cosine(torch.tensor(gramian, dtype=torch.float64))
    assert found == pytest.approx(expected, abs=1e-15)
    assert -1 <= found <= 1
