"""retain loss at probe points -> learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ngdiff.steps.gen import GenRate
from ngdiff.steps.gradients import GradientPair
from ngdiff.steps.line import Line, LossAtWeights, Measure, Outcome, Probe, keep_weights, set_rate
from ngdiff.steps.parabola import Shape


@dataclass
class FixedRate:
    """A learning rate that nobody adapts: the optimizer's own, or its scheduler's."""

    history: list[Probe] = field(default_factory=list)

    def before_step(self, pair: GradientPair) -> None:
        """Do nothing."""

    def after_step(self, loss: LossAtWeights) -> Probe | None:
        """Do nothing."""
        return None


class AutomaticRate:
    """Takes the learning rate from parabolas fitted to the retain loss along the optimizer's own update.

    Args:
        optimizer: any torch optimizer whose step is proportional to its learning rate; all its groups get the
            same rate.
        start: a rate to begin the search from; without one the search begins at a step a ten-millionth as
            long as the weights.
        every: optimizer steps from one probe to the next.
        resolution: relative rounding of the numbers that the loss is computed in: 2**-24 for float32, 2**-9
            under bf16 autocast.
        tolerance: rise of the retain loss, in nats per token, that counts as no harm from one probe to the
            next: where no descent is to be had, ``every`` steps straight ahead may cost so much. A single
            step that costs more than half of it is too long.
    """

    START_RELATIVE = 1e-7
    MOST_CHANGE = 4.0
    MOST_FASTER = 1.25
    MOST_WIDENINGS = 3
    MOST_SEARCH = 30
    TALL = 1.0
    AGREEMENT = 1.1
    MOST_RAISED, LEAST_KEPT = 2.0, 0.5

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        start: float | None = None,
        every: int = 10,
        resolution: float = 2**-24,
        tolerance: float = 0.005,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if start is not None and not (start > 0 and math.isfinite(start)):
            raise ValueError(f"start must be a positive number, got {start}")
        self.optimizer, self.every = optimizer, every
        self.resolution, self.tolerance = resolution, tolerance
        self.start = start
        self.rate: float | None = None
        self.first: float | None = None
        self.ceiling = self.limit = math.inf
        self.grain = 0.0
        self.steps = 0
        self._before: list[Tensor] | None = None

    def before_step(self, pair: GradientPair) -> None:
        """Set the optimizer's rate for the step to come; where a probe is due, keep the weights.

        Call after ``pair.combine``: the weights go into the forget buffer.
        """
        self._pair = pair
        self._before = None
        if self.rate is None or self.steps % self.every == 0:
            self._before = keep_weights(pair)
        # the first update is taken at rate 1, where it stands clear of the weights' own rounding
        set_rate(self.optimizer, 1.0 if self.rate is None else self.rate)

    def after_step(self, loss: LossAtWeights) -> Probe | None:
        """Probe if it is due, and put the weights where the chosen rate says.

        Args:
            loss: evaluates the retain loss, on examples that had no part in this step's gradient.

        Returns:
            What the probe found; None where none was due.
        """
        self.steps += 1
        if self._before is None:
            return None
        line = Line(self._pair.parameters, self._before, 1.0 if self.rate is None else self.rate)
        measure = Measure(line, loss)
        probe = self._search(measure) if self.rate is None else self._adapt(measure, self.rate)
        if probe.after > self.ceiling:
            why = f"{probe.reason}; held at the rate to which it was cut"
            probe = replace(probe, after=self.ceiling, applied=min(probe.applied, self.ceiling), reason=why)
        line.go_to(probe.applied)
        self.rate = probe.after
        self.first = self.rate if self.first is None else self.first
        set_rate(self.optimizer, self.rate)
        self._before = None
        return probe

    def step(self, pair: GradientPair, loss: LossAtWeights) -> Probe | None:
        """Step the optimizer once, probing where due: the whole of it, for a plain loop."""
        self.before_step(pair)
        self.optimizer.step()
        return self.after_step(loss)

    def scale(self, factor: float, raise_it: bool = True) -> float | None:
        """Multiply the rate by ``factor``; return the new rate.

        After a cut no probe raises the rate above that. A factor above 1 takes back earlier cuts, up to the
        first rate, or where ``raise_it`` allows to :data:`MOST_RAISED` times that; one below 1 ends at
        :data:`LEAST_KEPT` of it. A rate that is beyond these bounds already stays where it is.
        """
        if self.rate is None or self.first is None or factor == 1:
            return self.rate
        highest = self.MOST_RAISED * self.first if raise_it else self.first
        most = max(self.rate, min(highest, self.limit))
        least = min(self.rate, self.LEAST_KEPT * self.first)
        self.rate = min(max(self.rate * factor, least), most)
        self.ceiling = self.rate if factor <= 1 else max(self.ceiling, self.rate)
        return self.rate

    def be_careful(self, factor: float) -> float | None:
        """Divide the rate by ``factor``, for good; return the new rate."""
        if self.rate is not None:
            self.rate = self.ceiling = self.limit = self.rate / factor
        return self.rate

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        bounds = {"ceiling": self.ceiling, "limit": self.limit}
        return {
            **{"rate": self.rate, "first": self.first, "steps": self.steps, "grain": self.grain},
            **{name: None if bound == math.inf else bound for name, bound in bounds.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.rate, self.steps = state["rate"], state["steps"]
        # a checkpoint of an early version has the rate from before the first cut, which was the limit
        ceiling, limit = state.get("ceiling"), state.get("limit", state.get("uncut"))
        self.ceiling = math.inf if ceiling is None else float(ceiling)
        self.limit = math.inf if limit is None else float(limit)
        # a later one has four times the rate at the first change of pace
        self.first = state.get("first", self.rate if limit is None else limit / 4)
        self.grain = float(state.get("grain", 0.0))

    def _search(self, measure: Measure) -> Probe:
        """Find a first rate: widen until the parabola shows, then close in on its minimum."""
        tiny = measure.line.tiny_width(self.START_RELATIVE)
        noise = measure.noise(tiny, self.resolution)
        zero = abs(measure.loss(0.0))
        self.grain = noise / zero if zero > 0 and math.isfinite(noise / zero) else 0.0
        # beyond a step as long as the weights themselves, a loss that levels off says nothing of harm
        width, ceiling = self.start or max(tiny, 1e-30), tiny / self.START_RELATIVE or math.inf
        walked: set[float] = set()
        for _ in range(self.MOST_SEARCH):
            if width in walked:  # narrow points say ascent, wide ones valley: what a step costs decides
                width, closed = measure.between(width, self.tolerance, self.AGREEMENT)
                if closed:
                    return self._costing(width, measure, noise)
                if width in walked:
                    break
            walked.add(width)
            if measure.is_still(width, noise):  # nothing moves yet: spare the point on the other side
                width = min(width * self.MOST_CHANGE, 0.9 * ceiling)
                continue
            parabola = measure.at(width)
            shape = parabola.shape(noise)
            rise = parabola.plus - parabola.zero
            far_up = shape is Shape.ASCENT and rise > self.MOST_CHANGE * self.tolerance
            if shape is Shape.BROKEN or rise > self.TALL or far_up:
                ceiling = min(ceiling, width)
                width, _ = measure.between(width / self.MOST_CHANGE, self.tolerance, self.AGREEMENT)
            elif shape is Shape.VALLEY:
                # a parabola through points far beyond its minimum sees the bends out there: fit again at the
                # minimum itself, until the two agree, so that the rate found does not depend on the start
                agreed = width / self.AGREEMENT <= parabola.vertex <= width * self.AGREEMENT
                nearest = min(max(parabola.vertex, width / self.MOST_CHANGE), width * self.MOST_CHANGE)
                nearest = min(nearest, 0.9 * ceiling)
                held_back = nearest == width and parabola.vertex <= 2 * width
                if agreed or held_back:
                    return self._done("accepted", "the parabola's minimum", parabola.vertex, measure, noise)
                width = nearest
            elif shape is Shape.ASCENT and parabola.curvature > 0 and rise > self.tolerance / 4:
                # its fixed point is where the loss itself has risen by the tolerance, parabola or not
                wide = min(parabola.width_that_costs(self.tolerance), self.MOST_CHANGE * width)
                wide, closed = measure.between(wide, self.tolerance, self.AGREEMENT)
                if closed or width / self.AGREEMENT <= wide <= width * self.AGREEMENT:
                    return self._costing(wide, measure, noise)
                wide = min(wide, 0.9 * ceiling)
                if wide == width:  # as long as the weights are
                    break
                width = wide
            elif width * 2 >= ceiling:
                break
            else:
                width = min(width * self.MOST_CHANGE, 0.9 * ceiling)
        reason = "no minimum found along the first update: the step of least loss, or the widest without harm"
        chosen = measure.lowest(noise) or measure.widest_harmless(self.tolerance) / self.every
        applied = None if math.isfinite(measure.loss(chosen)) else 0.0
        return self._done("bounded", reason, chosen, measure, noise, applied=applied)

    def _costing(self, width: float, measure: Measure, noise: float) -> Probe:
        """Settle on the rate with which the way to the next probe is as long as ``width``."""
        reason = f"no descent along the first update: {self.every} such steps cost {self.tolerance:g} nats"
        return self._done("bounded", reason, width / self.every, measure, noise)

    def _adapt(self, measure: Measure, rate: float) -> Probe:
        """Fit around the present rate; move it to the minimum: down by at most a factor of 4, up by 1.25.

        The minimum is that of one step. Along a direction that mends what earlier steps did to the retain
        loss it lies far out, but the steps after it share its momentum, not its direction.
        """
        noise = measure.noise(0.0, max(self.resolution, self.grain))
        parabola = measure.at(rate)
        widenings = 0
        while parabola.shape(noise) in (Shape.FLAT, Shape.SLOPE) and widenings < self.MOST_WIDENINGS:
            wider = measure.at(parabola.width * self.MOST_CHANGE)
            widenings += 1
            if wider.shape(noise) is Shape.BROKEN:
                break
            parabola = wider
        shape = parabola.shape(noise)
        if shape is Shape.VALLEY:
            after = min(max(parabola.vertex, rate / self.MOST_CHANGE), rate * self.MOST_FASTER)
            outcome: Outcome = "widened" if widenings else "accepted"
            most = self.MOST_FASTER if after > rate else self.MOST_CHANGE
            towards = f"towards the minimum, by a factor of {most:g}"
            reason = "the parabola's minimum" if after == parabola.vertex else towards
            return self._done(outcome, reason, after, measure, noise, rate)
        if shape is Shape.BROKEN:
            finite = measure.finite_width(rate / 2)
            applied = None if math.isfinite(measure.loss(finite)) else 0.0
            return self._done("halved", shape.value, finite, measure, noise, rate, applied)
        share = self.tolerance / 2
        if not widenings and parabola.plus - parabola.zero > share:
            reason = f"{shape.value}, and rises by more than {share:g} nats a step"
            return self._done("halved", reason, rate / 2, measure, noise, rate)
        return self._done("kept", shape.value, rate, measure, noise, rate)

    def _done(
        self,
        outcome: Outcome,
        reason: str,
        after: float,
        measure: Measure,
        noise: float,
        before: float | None = None,
        applied: float | None = None,
    ) -> Probe:
        before = self.start if before is None else before
        applied = after if applied is None else applied
        return Probe(self.steps, outcome, reason, before, after, applied, tuple(measure.points), noise)


StepSize = AutomaticRate | GenRate | FixedRate


def cut_rate(step_size: StepSize, optimizer: Any, scheduler: Any, factor: float) -> float | None:
    """Divide the learning rate by ``factor``, whoever sets it, for the rest of the run.

    Returns:
        The new rate; None where the automatic one has not been found yet.
    """
    if not isinstance(step_size, FixedRate):
        return step_size.be_careful(factor)
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [rate / factor for rate in scheduler.base_lrs]
    for group in optimizer.param_groups:
        group["lr"] /= factor
        if "initial_lr" in group:
            group["initial_lr"] /= factor
    return float(optimizer.param_groups[0]["lr"])
