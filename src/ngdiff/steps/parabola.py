"""three losses along a line -> a parabola and what it says about the step.

With u the update per unit of learning rate and phi(s) = L_R(w - s u), the values phi(-s), phi(0), phi(s) give
in closed form ``slope = (phi(-s) - phi(s)) / 2s``, the descent rate, and
``curvature = (phi(s) - 2 phi(0) + phi(-s)) / s^2``; the minimum lies at ``slope / curvature``.
Source: Bu & Xu, "Automatic gradient descent with generalized Newton's method", ICLR 2025, arXiv 2407.02772.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

SIGNAL = 4.0
"""A difference counts where it exceeds this many times the loss's own rounding noise."""


class Shape(Enum):
    """What three points along the update look like."""

    BROKEN = "a loss is not finite"
    FLAT = "the three losses differ by no more than rounding noise"
    VALLEY = "the loss falls, then rises: it has a minimum ahead that can be seen"
    SLOPE = "the loss falls without visible curvature"
    CONCAVE = "the loss falls ever faster"
    ASCENT = "the loss does not fall along the update"


@dataclass(frozen=True)
class Parabola:
    """The parabola through three points.

    Args:
        width: distance s of the outer points from the middle one, as a learning rate.
        minus: phi(-s), in nats per token.
        zero: phi(0).
        plus: phi(s).
    """

    width: float
    minus: float
    zero: float
    plus: float

    @property
    def slope(self) -> float:
        """First-order fall of the loss per unit of learning rate (positive: the update descends)."""
        return (self.minus - self.plus) / (2 * self.width)

    @property
    def curvature(self) -> float:
        """Second derivative along the update."""
        return (self.plus - 2 * self.zero + self.minus) / self.width**2

    @property
    def depth(self) -> float:
        """What the parabola falls from its middle point to its minimum, in nats per token."""
        return self.slope**2 / (2 * self.curvature)

    @property
    def vertex(self) -> float:
        """The learning rate at the parabola's minimum; only a VALLEY has one."""
        return self.slope / self.curvature

    def shape(self, noise: float) -> Shape:
        """Judge the points by their signs, counting only what stands clear of the noise.

        Three points always fit a parabola exactly, so the quality of the fit says nothing.

        Args:
            noise: rounding noise of one loss value, in nats per token.
        """
        if not all(math.isfinite(value) for value in (self.minus, self.zero, self.plus)):
            return Shape.BROKEN
        bend = self.plus - 2 * self.zero + self.minus
        tilt = self.minus - self.plus
        bent, tilted = abs(bend) > SIGNAL * noise, abs(tilt) > SIGNAL * noise
        if not bent and not tilted:
            return Shape.FLAT
        if tilt <= 0 or not tilted:
            return Shape.ASCENT
        if not bent:
            return Shape.SLOPE
        if bend < 0:
            return Shape.CONCAVE
        # far outside a minimum, three points always have one somewhere: it counts if the fall to it does
        return Shape.VALLEY if self.depth > SIGNAL * noise / 2 else Shape.ASCENT

    def width_that_costs(self, cost: float) -> float:
        """Return the rate at which the parabola has risen ``cost`` above its middle point.

        Args:
            cost: in nats per token, positive; needs a positive curvature.
        """
        slope, curvature = self.slope, self.curvature
        return (slope + math.sqrt(slope**2 + 2 * curvature * cost)) / curvature
