"""three retain losses along the optimizer's own step -> learning rate, as GeN's released code takes it.

Source: Bu & Xu, "Automatic gradient descent with generalized Newton's method", ICLR 2025, arXiv 2407.02772,
and their package ``gen-optim`` 0.1.1, which this module follows; NGDiff's paper takes its rate from GeN.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from ngdiff.steps.gradients import GradientPair
from ngdiff.steps.line import Line, LossAtWeights, Measure, Outcome, Probe, keep_weights, set_rate
from ngdiff.steps.parabola import Parabola

START = 1e-5
"""The rate to begin with: that of TOFU's own unlearning runs (locuslab/tofu, ``config/forget.yaml``)."""


class GenRate:
    """Fits a parabola to three retain losses, and moves the learning rate a tenth of the way to its minimum.

    At every ``every``-th step the loss is measured at -1, 0 and +1 times the rate along the optimizer's step,
    and ``c s^2 / 2 - b s`` is fitted to the differences from the middle loss. Where the curvature c and the
    slope b are positive and R^2 is above 0.99, the new rate is 0.9 of the old plus 0.1 of b / c, clamped to
    between half and twice the old. Otherwise the rate stays; where the fit fails, as it does on a loss that
    is not finite, it is halved. The step itself is taken at the new rate.

    Two coefficients fit these three points exactly, since the middle difference is 0. R^2 still falls below
    0.99 at times: ``scipy.optimize.curve_fit`` starts at (1, 1), does not scale, and may stop too early. At a
    rate of 1e-6 that happens where losses differ by more than about 1e-4, at 1e-5 from about 1e-2. The same
    solver is used here, so that the same fits count.

    Differences from the released code: the optimizer steps once, where theirs steps a second time after a
    probe and so moves Adam's moments twice; weights are restored by copy, not by arithmetic; losses are
    measured in eval mode; and a step to where the loss is not finite is not taken.

    Args:
        optimizer: any torch optimizer whose step is proportional to its learning rate; all its groups get the
            same rate.
        start: the rate to begin with.
        every: optimizer steps from one probe to the next; the first is at step ``every``.
    """

    SMOOTHING = 0.9
    MOST_CHANGE = 2.0

    def __init__(self, optimizer: Optimizer, *, start: float = START, every: int = 10) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if not (start > 0 and math.isfinite(start)):
            raise ValueError(f"start must be a positive number, got {start}")
        self.optimizer, self.rate, self.every = optimizer, start, every
        self.steps = 0
        self._before: list[Tensor] | None = None

    def before_step(self, pair: GradientPair) -> None:
        """Set the optimizer's rate for the step to come; where a probe is due, keep the weights.

        Call after ``pair.combine``: the weights go into the forget buffer.
        """
        self._pair = pair
        self._before = keep_weights(pair) if (self.steps + 1) % self.every == 0 else None
        set_rate(self.optimizer, self.rate)

    def after_step(self, loss: LossAtWeights) -> Probe | None:
        """Probe if it is due, and put the weights where the new rate says.

        Args:
            loss: evaluates the retain loss, on examples that had no part in this step's gradient.

        Returns:
            What the probe found; None where none was due.
        """
        self.steps += 1
        if self._before is None:
            return None
        measure = Measure(Line(self._pair.parameters, self._before, self.rate), loss)
        parabola = measure.at(self.rate)
        outcome, reason, after = self._decide(parabola)
        applied = after if math.isfinite(parabola.plus) else 0.0
        probe = Probe(self.steps, outcome, reason, self.rate, after, applied, (parabola,), 0.0)
        measure.line.go_to(applied)
        self.rate, self._before = after, None
        set_rate(self.optimizer, after)
        return probe

    def step(self, pair: GradientPair, loss: LossAtWeights) -> Probe | None:
        """Step the optimizer once, probing where due: the whole of it, for a plain loop."""
        self.before_step(pair)
        self.optimizer.step()
        return self.after_step(loss)

    def be_careful(self, factor: float) -> float:
        """Divide the rate by ``factor``; return the new rate."""
        self.rate /= factor
        return self.rate

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"rate": self.rate, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.rate, self.steps = float(state["rate"]), int(state["steps"])

    def _decide(self, parabola: Parabola) -> tuple[Outcome, str, float]:
        """Return what becomes of the rate, why, and the new rate."""
        rate, fit = self.rate, fit_parabola(parabola)
        if fit is None:
            return "halved", "the fit failed: a loss is not finite, or the solver did not converge", rate / 2
        if not fit.counts:
            return "kept", fit.fault, rate
        target = fit.slope / fit.curvature
        near = min(max(target, rate / self.MOST_CHANGE), rate * self.MOST_CHANGE)
        after = self.SMOOTHING * rate + (1 - self.SMOOTHING) * near
        where = f"the parabola's minimum at {target:.2g}"
        if near != target:
            return "clamped", f"a tenth of the way to {near:.2g}, towards {where}", after
        return "accepted", f"a tenth of the way to {where}", after


@dataclass(frozen=True)
class Fit:
    """A parabola ``curvature s^2 / 2 - slope s`` fitted to loss differences, and how well it fits."""

    curvature: float
    slope: float
    r_squared: float

    @property
    def counts(self) -> bool:
        """Whether GeN takes a rate from it."""
        return not self.fault

    @property
    def fault(self) -> str:
        """Why it does not count, in words; empty where it does."""
        if not self.slope > 0:
            return "the loss does not fall along the update"
        if not self.curvature > 0:
            return "the loss does not bend upwards along the update"
        return "" if self.r_squared > 0.99 else f"the fit is poor: R² is {self.r_squared:.2g}"


def fit_parabola(points: Parabola) -> Fit | None:
    """Fit as GeN's released code does; None where its fit raises an error."""
    from scipy.optimize import OptimizeWarning, curve_fit

    if not all(math.isfinite(value) for value in (points.minus, points.zero, points.plus)):
        return None
    widths = np.array([-points.width, points.width, 0.0])
    differences = np.array([points.minus, points.plus, points.zero]) - points.zero
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", OptimizeWarning
        )  # no error bars: there are as good as no data to spare
        try:
            curvature, slope = curve_fit(_curve, widths, differences)[0]
        except RuntimeError:  # the solver did not converge
            return None
    spread = float(((differences - differences.mean()) ** 2).sum())
    missed = float(((differences - _curve(widths, curvature, slope)) ** 2).sum())
    return Fit(float(curvature), float(slope), 1 - missed / spread if spread > 0 else 0.0)


def _curve(width: NDArray[np.float64], curvature: float, slope: float) -> NDArray[np.float64]:
    return 0.5 * curvature * width**2 - slope * width
