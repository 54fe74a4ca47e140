"""Two losses over seven weights whose best step is known, and a twin that takes plain steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from ngdiff.steps.gradients import GradientPair, Weights

Line = Callable[[float], float]
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "sgd": lambda parameters: SGD(parameters, lr=123.0),
    "momentum": lambda parameters: SGD(parameters, lr=123.0, momentum=0.9),
    "adamw": lambda parameters: AdamW(parameters, lr=123.0, weight_decay=0.1),
}
EVERY_OPTIMIZER = pytest.mark.parametrize("kind", list(OPTIMIZERS))


class Bowl:
    """A retain loss ``(w - t)A(w - t)/2 + level`` over two parameters, and a linear forget loss.

    Both gradients are taken in two micro-batches, so whatever happens once a backward pass would show.
    """

    def __init__(self, kind: str = "adamw", seed: int = 0, scale: float = 1.0, level: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(7, generator=generator)
        self.target = (start + torch.randn(7, generator=generator)).double()
        root = torch.randn(7, 7, generator=generator, dtype=torch.float64)
        self.matrix = scale * (root @ root.T / 7 + 0.3 * torch.eye(7, dtype=torch.float64))
        self.forget = 0.1 * torch.randn(7, generator=generator)
        self.level = level
        self.weights = [nn.Parameter(start[:4].reshape(2, 2).clone()), nn.Parameter(start[4:].clone())]
        self.optimizer = OPTIMIZERS[kind](self.weights)
        self.pair = GradientPair(self.weights)
        self.calls = 0

    def flat(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.weights])

    def exact(self, weights: Tensor) -> float:
        """The retain loss in float64."""
        away = weights.double() - self.target
        return float(away @ self.matrix @ away / 2) + self.level

    def loss(self) -> float:
        self.calls += 1
        return self.exact(self.flat())

    def fill(self) -> None:
        """Both gradients, from two micro-batches a task, combined."""
        self.pair.clear()
        for share in (0.25, 0.75):
            live = torch.cat([p.flatten() for p in self.weights])
            with self.pair.task("forget"):
                (share * (self.forget * live).sum()).backward()
            live = torch.cat([p.flatten() for p in self.weights])
            away = live - self.target.float()
            with self.pair.task("retain"):
                (share * (away @ self.matrix.float() @ away) / 2).backward()
        self.pair.combine(Weights(1.0, 1.0))

    def twin(self, rate: float) -> tuple[Tensor, dict[str, Any]]:
        """Weights and optimizer state after one plain step at ``rate`` from here; changes nothing here."""
        weights = [nn.Parameter(p.detach().clone()) for p in self.weights]
        for ours, other in zip(self.weights, weights, strict=True):
            other.grad = None if ours.grad is None else ours.grad.clone()
        optimizer = type(self.optimizer)(weights, lr=1.0)
        optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        return torch.cat([p.detach().flatten() for p in weights]), optimizer.state_dict()["state"]

    def update(self) -> Tensor:
        """The update per unit of learning rate at the present weights and gradients, in float64."""
        return self.flat().double() - self.twin(1.0)[0].double()

    def line(self) -> Line:
        """The retain loss along the present update."""
        weights, update = self.flat().double(), self.update()
        return lambda rate: self.exact(weights - rate * update)


def best_rate(line: Line) -> float:
    """The lowest point of the line, found by looking: over powers of ten, then ever finer around the best."""
    rates = [10 ** (exponent / 20) for exponent in range(-160, 80)]
    best = min(rates, key=line)
    for width in (0.12, 0.01, 0.001):
        rates = [best * (1 + width * step / 50) for step in range(-50, 51)]
        best = min(rates, key=line)
    return best


def assert_same_state(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for index in expected:
        assert found[index].keys() == expected[index].keys()
        for name, value in expected[index].items():
            assert torch.equal(torch.as_tensor(found[index][name]), torch.as_tensor(value)), (index, name)
