"""weights before and after one optimizer step -> the retain loss at points along it, and what a probe found.

The optimizer steps once; a probe only moves the parameters along that step, measures, and puts them where the
chosen rate says. Restoring is by copy, never by arithmetic, and the optimizer's state is not touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ngdiff.steps.gradients import GradientPair
from ngdiff.steps.parabola import SIGNAL, Parabola
from ngdiff.system.processes import Sums, local

LossAtWeights = Callable[[], float]
"""Evaluates the retain loss, in nats per token, at the model's present weights; always on the same text."""

Outcome = Literal["accepted", "clamped", "widened", "kept", "halved", "bounded"]

SHORT_STEPS = (1.0, -1.0, 0.5, -0.5)
"""Multiples of a step too short to matter, at which rounding noise is looked for."""


@dataclass(frozen=True)
class Probe:
    """What one probe measured and decided.

    Args:
        step: optimizer step, counted from 1.
        outcome: what became of the rate.
        reason: why, in words.
        before: the rate it started from; None where there was none.
        after: the rate from here on.
        applied: the rate this step itself was given: ``after``, or 0 where no loss along it was finite.
        points: every parabola measured, in order.
        noise: rounding noise of one loss value that was assumed, in nats per token.
    """

    step: int
    outcome: Outcome
    reason: str
    before: float | None
    after: float
    applied: float
    points: tuple[Parabola, ...]
    noise: float


class Line:
    """The line through the weights before and after one optimizer step, this process's part of it."""

    def __init__(self, parameters: Sequence[nn.Parameter], before: Sequence[Tensor], rate: float) -> None:
        self.parameters, self.before, self.rate = parameters, before, rate
        self.after = [_reuse_gradient(parameter) for parameter in parameters]

    @torch.no_grad()
    def go_to(self, width: float) -> None:
        """Put the weights at w - width * u; exactly the optimizer's own where ``width`` is its rate."""
        for parameter, before, after in zip(self.parameters, self.before, self.after, strict=True):
            place = local(parameter)
            if width == self.rate:
                place.copy_(after)
            elif width == 0:
                place.copy_(before)
            else:
                start = before.to(place.device)
                place.copy_(after).sub_(start).mul_(width / self.rate).add_(start)

    @torch.no_grad()
    def tiny_width(self, relative: float) -> float:
        """Return the width whose step is ``relative`` times as long as the weights are; 0 for no step."""
        squares = Sums(self.parameters, 2)
        for parameter, before, after in zip(self.parameters, self.before, self.after, strict=True):
            start = before.to(after.device)
            for place, part in enumerate((start, after - start)):
                squares.add(parameter, place, torch.linalg.vector_norm(part, dtype=torch.float64).square())
        weights, step = squares.total().sqrt().tolist()
        return float(relative * weights * self.rate / step) if step > 0 else 0.0


def _reuse_gradient(parameter: nn.Parameter) -> Tensor:
    """Copy the parameter into its gradient's storage, which nobody needs after the optimizer has stepped."""
    place, gradient = local(parameter), parameter.grad
    storage = None if gradient is None else local(gradient)
    if storage is None or storage.dtype != place.dtype or storage.shape != place.shape:
        return place.clone()
    return storage.copy_(place)


def keep_weights(pair: GradientPair) -> list[Tensor]:
    """Copy the weights into the forget buffer, which is free once the gradients are combined."""
    kept = pair.spare()
    with torch.no_grad():
        for scratch, parameter in zip(kept, pair.parameters, strict=True):
            scratch.copy_(local(parameter))
    return kept


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give all parameter groups of an optimizer one learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


FLOAT32 = 2.0**-24
"""Half the distance between neighbouring float32 numbers around 1."""


class Measure:
    """Losses along a line, each point measured once."""

    def __init__(self, line: Line, loss: LossAtWeights) -> None:
        self.line = line
        self._loss = loss
        self._known: dict[float, float] = {}
        self.points: list[Parabola] = []

    def loss(self, width: float) -> float:
        """Return phi(width)."""
        if width not in self._known:
            self.line.go_to(width)
            self._known[width] = self._loss()
        return self._known[width]

    def at(self, width: float) -> Parabola:
        """Measure the parabola of one width."""
        plus = self.loss(width)
        parabola = Parabola(width, self.loss(-width), self.loss(0.0), plus)
        self.points.append(parabola)
        return parabola

    def is_still(self, width: float, noise: float) -> bool:
        """Return whether a step of this width leaves the loss where it was, as far as its noise can tell."""
        return abs(self.loss(width) - self.loss(0.0)) <= noise

    def noise(self, tiny: float, resolution: float) -> float:
        """Estimate rounding noise: what steps too short to matter change, and what the numbers resolve.

        A rounded logit moves a token's loss by 1 - p of what it was rounded by, so the noise of a small loss
        is in proportion to it, down to what the logarithm itself resolves in float32. Any step, however
        short, rounds some weights to other bf16 numbers; one such step may hit the same loss by chance, so
        several are looked at.
        """
        zero = self.loss(0.0)
        floor = max(FLOAT32, resolution * min(1.0, abs(zero)))
        short = [tiny * factor for factor in SHORT_STEPS] if tiny > 0 else []
        seen = max((abs(self.loss(width) - zero) for width in short), default=0.0)
        return max(seen, floor) if math.isfinite(seen) else resolution

    def lowest(self, noise: float) -> float | None:
        """Return the width measured ahead whose loss is the least, if it lies clearly below the start's."""
        ahead = {width: value for width, value in self._known.items() if width > 0 and math.isfinite(value)}
        best = min(ahead, key=lambda width: (ahead[width], width), default=None)
        return best if best is not None and self.loss(0.0) - ahead[best] > SIGNAL * noise else None

    def between(self, width: float, tolerance: float, agreement: float) -> tuple[float, bool]:
        """Keep a guess of the width that costs ``tolerance`` between those known to cost less and more.

        Where the loss is no parabola, guess and measurement could go round in circles for ever.

        Returns:
            The guess, or the geometric mean of the two where it lies outside; and whether the two agree
            within the factor ``agreement``, the guess then being the lesser.
        """
        rise = {w: value - self.loss(0.0) for w, value in self._known.items() if w > 0}
        dear = min((w for w, cost in rise.items() if not cost <= tolerance), default=math.inf)
        cheap = max((w for w, cost in rise.items() if cost <= tolerance and w < dear), default=0.0)
        if cheap > 0 and dear <= cheap * agreement:
            return cheap, True
        inside = cheap < width < dear
        return (width if inside or cheap == 0 or math.isinf(dear) else math.sqrt(cheap * dear)), False

    def widest_harmless(self, tolerance: float) -> float:
        """Return the widest step measured that raised the loss by no more than ``tolerance``."""
        zero = self.loss(0.0)
        ahead = {width: value for width, value in self._known.items() if width > 0}
        fine = [width for width, value in ahead.items() if value - zero <= tolerance]
        return max(fine, default=min(ahead))

    def finite_width(self, width: float) -> float:
        """Halve ``width`` until the loss there is finite, ten times at the most."""
        for _ in range(10):
            if math.isfinite(self.loss(width)):
                break
            width /= 2
        return width
