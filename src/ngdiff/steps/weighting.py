"""Gramian -> two weights; one function a rule, and the table of them.

A rule sees the 2x2 Gramian of the retain and the forget gradient and, for a few, the two loss values; it sees
no model and no gradients. Those made for any number of tasks have closed forms for two
(:mod:`ngdiff.steps.two_tasks`). The one rule that no Gramian decides, SAGO, picks for every coordinate of
the parameters: its row names a function of the two gradients instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ngdiff.errors import Fault, RequestError, unknown_name
from ngdiff.steps.gradients import FORGET, RETAIN, Gramian, Weights
from ngdiff.steps.two_tasks import blur, cagrad, dualproj, hamu, imtlg, mgda, pcgrad, upgrad

_OPPOSED = 1e-12
"""1 + cosine below which two gradients are opposed: any step that helps one task harms the other."""


class Losses(NamedTuple):
    """The two losses of the step's batches."""

    retain: float
    forget: float


class Rule(Protocol):
    """Gramian, and losses where the rule asks for them -> weights."""

    def __call__(self, gramian: Gramian, losses: Losses | None = None) -> Weights:
        """Weigh the two gradients of one step."""
        ...


@runtime_checkable
class StatefulRule(Protocol):
    """A rule that remembers something from step to step; a checkpoint holds it."""

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to continue."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        ...


def normalised_difference(gramian: Gramian, losses: Losses | None = None, *, retain: float = 1.0) -> Weights:
    """Divide each gradient by its norm: ``(w/|g_R|, 1/|g_f|)``; a zero gradient gets weight 0.

    With c the cosine between the gradients, ``g_R·d = |g_R| (w + c)`` and ``g_f·d = |g_f| (1 + w c)`` are
    never negative: under plain gradient descent neither loss rises to first order. For this, w is at most
    -1/c where the gradients conflict.
    Source: Jin et al., NAACL 2025, arXiv 2410.22086, section 4, where w is 1.

    Args:
        gramian: of the two gradients.
        losses: not used.
        retain: w, weight of the unit retain gradient, relative to the unit forget gradient; 1 or more.
    """
    weights = Weights(_inverse_root(gramian, RETAIN), _inverse_root(gramian, FORGET))
    if retain == 1:
        return weights
    conflict = -float(gramian[RETAIN, FORGET]) * weights.retain * weights.forget
    most = 1 / conflict if conflict > 0 else math.inf
    return weights._replace(retain=min(retain, max(1.0, most)) * weights.retain)


def _inverse_root(gramian: Gramian, task: int) -> float:
    square = float(gramian[task, task])
    return square**-0.5 if square > 0 else 0.0


def nash_bargain(gramian: Gramian, losses: Losses | None = None) -> Weights:
    """Solve ``G·α = 1/α``, the Nash bargaining solution, in closed form for two tasks.

    From ``α_R (G α)_R = α_f (G α)_f = 1`` follows ``α_R |g_R| = α_f |g_f|``, so α is NGDiff's weights over
    ``sqrt(1 + c)``, c the cosine: the combined gradient has length sqrt(2) whatever the angle. Opposed
    gradients leave nothing to bargain over: both weights are 0.
    Source: Navon et al. 2022, "Multi-task learning as a bargaining game", arXiv 2202.01017.
    """
    inverse = normalised_difference(gramian)
    gain = 1 + float(gramian[RETAIN, FORGET]) * inverse.retain * inverse.forget
    if gain <= _OPPOSED:
        return Weights(0.0, 0.0)
    return Weights(inverse.retain / math.sqrt(gain), inverse.forget / math.sqrt(gain))


def protect_retain(gramian: Gramian, losses: Losses | None = None) -> Weights:
    """Take out of g_f what raises the retain loss: ``d = g_f - min(0, g_f·g_R) / |g_R|² g_R``.

    Of the directions that do not raise the retain loss to first order, this is the closest to g_f.
    Source: Wang et al. 2025, "GRU: Mitigating the trade-off between unlearning and retention for LLMs", arXiv
    2503.09117. OpenUnlearning's GRU smooths g_R over the steps before it projects (``gamma_gru`` 0.8); here
    it is each step's own.
    """
    square, cross = float(gramian[RETAIN, RETAIN]), float(gramian[RETAIN, FORGET])
    conflict = min(0.0, cross) / square if square > 0 else 0.0
    return Weights(-conflict, 1.0)


def loss_normalised(gramian: Gramian, losses: Losses | None = None) -> Weights:
    """Divide each gradient by the size of its loss: ``(1/|L_R|, 1/|L_f|)``; a loss of 0 gets weight 0.

    Source: Jin et al., NAACL 2025, arXiv 2410.22086.
    """
    retain, forget = _needed(losses)
    return Weights(1 / abs(retain) if retain else 0.0, 1 / abs(forget) if forget else 0.0)


def _needed(losses: Losses | None) -> Losses:
    if losses is None:
        raise ValueError(
            "this rule weighs by the losses too: call it as rule(gramian, Losses(retain, forget))"
        )
    return losses


class RandomWeights:
    """Weights of softmax(normal, normal), drawn anew each step.

    Source: Lin et al. 2022, "Reasonable effectiveness of random weighting", arXiv 2111.10603.

    Args:
        seed: of the draws.
    """

    def __init__(self, seed: float = 0) -> None:
        self._generator = torch.Generator().manual_seed(int(seed))

    def __call__(self, gramian: Gramian, losses: Losses | None = None) -> Weights:
        """Draw the step's weights."""
        drawn = torch.randn(2, generator=self._generator, dtype=torch.float64).softmax(0)
        return Weights(float(drawn[0]), float(drawn[1]))

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to continue with the same draws."""
        return {"generator": self._generator.get_state().tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        self._generator.set_state(torch.tensor(state["generator"], dtype=torch.uint8))


class PrimalDual:
    """Minimise the forget loss subject to ``L_R <= bound``, by ascent on the constraint's multiplier.

    The weights are (multiplier, 1); after each step the multiplier moves by ``rate * (L_R - bound)``, never
    below 0. It moves once per optimizer step, on the whole accumulated batch; OpenUnlearning's moves once per
    micro-batch. Source: Entesari et al. 2025, "Constrained entropic unlearning: a primal-dual framework for
    large language models", arXiv 2506.05314.

    Args:
        bound: highest retain loss allowed, in nats per token.
        rate: step of the multiplier per nat.
        start: its value at the beginning.
        warmup: optimizer steps at the beginning that leave it there. OpenUnlearning waits 5 epochs
            (``dual_warmup_epochs``); a rule knows no epochs, so give 5 times the steps of one. The default is
            0, since a run here often meets its target before its fifth epoch is over.
    """

    def __init__(self, bound: float = 0.1, rate: float = 1.0, start: float = 1.0, warmup: float = 0) -> None:
        self.bound, self.rate, self.multiplier = bound, rate, start
        self.warmup, self.steps = warmup, 0

    def __call__(self, gramian: Gramian, losses: Losses | None = None) -> Weights:
        """Weigh by the multiplier, then move it."""
        retain, _ = _needed(losses)
        weights = Weights(self.multiplier, 1.0)
        self.steps += 1
        if self.steps > self.warmup:
            self.multiplier = max(0.0, self.multiplier + self.rate * (retain - self.bound))
        return weights

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to continue."""
        return {"multiplier": self.multiplier, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        self.multiplier, self.steps = float(state["multiplier"]), int(state.get("steps", 0))


def agreeing_signs(retain: Tensor, forget: Tensor) -> Tensor:
    """Take the retain gradient where the two have opposite signs, the forget gradient elsewhere.

    A zero is in conflict with nothing, as in the authors' code (github sustech-nlp/SAGO), so the forget
    gradient is taken there too. Each coordinate of the result has the retain gradient's sign or is free of
    it, so the retain loss does not rise to first order.
    Source: SAGO, arXiv 2604.14808: sign-aligned gradients, a coordinate at a time.
    """
    return torch.where(retain.sign() * forget.sign() < 0, retain, forget)


@dataclass(frozen=True)
class RuleRow:
    """One row of the rule table.

    Args:
        name: what the command line calls it.
        make: settings -> the rule.
        summary: one line for ``ngdiff ls rules``.
        paper: where it comes from.
        settings: names and defaults of the settings that ``make`` takes.
        fixed: the weights are the same whatever the Gramian, so one gradient buffer is enough.
        conflict_free: neither loss rises to first order under plain gradient descent, for any Gramian.
        uses_losses: the rule is called with the losses, too.
        reads_gramian: the weights depend on the Gramian.
        per_coordinate: retain and forget gradient of one parameter -> the combined one; the weights that the
            rule gives are then not used.
    """

    name: str
    make: Callable[..., Rule]
    summary: str
    paper: str
    settings: Mapping[str, float] = field(default_factory=dict)
    fixed: bool = False
    conflict_free: bool = False
    uses_losses: bool = False
    reads_gramian: bool = True
    per_coordinate: Callable[[Tensor, Tensor], Tensor] | None = None


def _always(retain: float, forget: float) -> Rule:
    def rule(gramian: Gramian, losses: Losses | None = None) -> Weights:
        return Weights(retain, forget)

    return rule


def _constant(alpha: float = 1.0, gamma: float = 1.0) -> Rule:
    """Weigh the retain gradient by ``alpha`` and the forget gradient by ``gamma``."""
    return _always(alpha, gamma)


def _ngdiff(retain: float = 1.0) -> Rule:
    if not retain >= 1:
        what = f"ngdiff's retain = {retain:g} is less than 1, so that the retain loss could rise"
        raise RequestError(Fault("--rule", what, "Give 1 or more, such as 2"))
    return partial(normalised_difference, retain=retain)


def _cagrad(c: float = 0.5) -> Rule:
    if not c >= 0:
        raise RequestError(Fault("--rule", f"cagrad's c = {c:g} is negative", "Give 0 or more, such as 0.5"))
    return partial(cagrad, c=c)


def _hamu(cosine: float = 0.5) -> Rule:
    if not 0 <= cosine <= 1:
        what = f"hamu's cosine = {cosine:g} is not between 0 and 1"
        raise RequestError(Fault("--rule", what, "Give such as 0.5"))
    return partial(hamu, cosine=cosine)


RULES: dict[str, RuleRow] = {
    row.name: row
    for row in (
        RuleRow(
            "ngdiff",
            _ngdiff,
            "each gradient divided by its own norm, the retain gradient times ``retain``",
            "Jin et al. 2025, arXiv 2410.22086",
            settings={"retain": 1.0},
            conflict_free=True,
        ),
        RuleRow(
            "constant",
            _constant,
            "alpha times the retain gradient plus gamma times the forget gradient",
            "Liu et al. 2022 (GradDiff), arXiv 2203.12817",
            settings={"alpha": 1.0, "gamma": 1.0},
            fixed=True,
        ),
        RuleRow(
            "retain-only", lambda: _always(1.0, 0.0), "the retain gradient alone", "fine-tuning", fixed=True
        ),
        RuleRow(
            "forget-only",
            lambda: _always(0.0, 1.0),
            "the forget gradient alone",
            "Jang et al. 2023 (gradient ascent), arXiv 2210.01504",
            fixed=True,
        ),
        RuleRow(
            "lossnorm",
            lambda: loss_normalised,
            "each gradient divided by the size of its loss",
            "Jin et al. 2025, arXiv 2410.22086",
            uses_losses=True,
            reads_gramian=False,
        ),
        RuleRow(
            "rlw",
            RandomWeights,
            "random weights, drawn anew each step",
            "Lin et al. 2022, arXiv 2111.10603",
            settings={"seed": 0},
            reads_gramian=False,
        ),
        RuleRow(
            "pcgrad",
            lambda: pcgrad,
            "each gradient without what conflicts with the other",
            "Yu et al. 2020, arXiv 2001.06782",
            conflict_free=True,
        ),
        RuleRow(
            "mgda",
            lambda: mgda,
            "the shortest convex combination",
            "Sener & Koltun 2018, arXiv 1810.04650",
            conflict_free=True,
        ),
        RuleRow(
            "imtlg",
            lambda: imtlg,
            "equal projections on both gradients",
            "Liu et al. 2021, ICLR",
            conflict_free=True,
        ),
        RuleRow(
            "cagrad",
            _cagrad,
            "near the mean, and good for the worse-off task",
            "Liu et al. 2021, arXiv 2110.14048",
            settings={"c": 0.5},
        ),
        RuleRow(
            "upgrad",
            lambda: upgrad,
            "each gradient projected so that it harms neither task",
            "Quinton & Rey 2024, arXiv 2406.16232",
            conflict_free=True,
        ),
        RuleRow(
            "dualproj",
            lambda: dualproj,
            "the mean projected so that it harms neither task",
            "Lopez-Paz & Ranzato 2017, arXiv 1706.08840",
            conflict_free=True,
        ),
        RuleRow(
            "nashmtl",
            lambda: nash_bargain,
            "the Nash bargaining solution",
            "Navon et al. 2022, arXiv 2202.01017",
            conflict_free=True,
        ),
        RuleRow(
            "gru",
            lambda: protect_retain,
            "the forget gradient without what would raise the retain loss",
            "Wang et al. 2025, arXiv 2503.09117",
            conflict_free=True,
        ),
        RuleRow(
            "blur",
            lambda gamma: partial(blur, gamma=gamma),
            "gamma times the forget gradient plus what of the retain gradient lies across it",
            "Reisizadeh et al. 2025, arXiv 2506.08164",
            settings={"gamma": 1.0},
        ),
        RuleRow(
            "hamu",
            _hamu,
            "the best for the retain task at a given angle, or less, from the forget gradient",
            "Chen et al. 2026, arXiv 2606.02119",
            settings={"cosine": 0.5},
        ),
        RuleRow(
            "pdu",
            PrimalDual,
            "the forget gradient, and the retain gradient as far as its loss exceeds a bound",
            "Entesari et al. 2025, arXiv 2506.05314",
            settings={"bound": 0.1, "rate": 1.0, "start": 1.0, "warmup": 0},
            uses_losses=True,
            reads_gramian=False,
        ),
        RuleRow(
            "sago",
            lambda: _always(1.0, 1.0),
            "per coordinate: the retain gradient where the signs are opposite, else the forget gradient",
            "arXiv 2604.14808",
            reads_gramian=False,
            per_coordinate=agreeing_signs,
        ),
    )
}


def make_rule(name: str, settings: Mapping[str, float] | None = None) -> Rule:
    """Build a rule by name.

    Raises:
        RequestError: there is no such rule, or it has no such setting.
    """
    if name not in RULES:
        raise RequestError(unknown_name("--rule", "rule", name, RULES))
    row = RULES[name]
    unknown = sorted(set(settings or {}) - set(row.settings))
    if unknown:
        known = ", ".join(row.settings) or "none"
        what = f"the rule {name!r} has no setting called {', '.join(unknown)}"
        raise RequestError(Fault("--rule", what, f"Its settings: {known}"))
    return row.make(**{**row.settings, **(settings or {})})


class Verdict(Enum):
    """What a step's gradients are good for."""

    STEP = "step"
    STATIONARY = "stationary"
    DONE = "nothing left to do"
    NON_FINITE = "non-finite"


def judge(gramian: Gramian) -> Verdict:
    """Return whether the gradients allow a step: both zero is stationary, a NaN or infinity means skip."""
    if not bool(torch.isfinite(gramian).all()):
        return Verdict.NON_FINITE
    if float(gramian[RETAIN, RETAIN]) == 0 and float(gramian[FORGET, FORGET]) == 0:
        return Verdict.STATIONARY
    return Verdict.STEP
