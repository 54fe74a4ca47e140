"""Gramian -> two weights; one function a rule, and the table of them.

A rule sees the 2x2 Gramian of the retain and the forget gradient and nothing else: no model, no gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import torch

from ngdiff.errors import Fault, RequestError, unknown_name
from ngdiff.gradients import FORGET, RETAIN, Gramian, Weights

Rule = Callable[[Gramian], Weights]


def normalised_difference(gramian: Gramian) -> Weights:
    """Divide each gradient by its norm: ``(1/|g_R|, 1/|g_f|)``; a zero gradient gets weight 0.

    With c the cosine between the gradients, ``g_R·d = |g_R| (1 + c)`` and ``g_f·d = |g_f| (1 + c)`` are never
    negative: under plain gradient descent neither loss rises to first order.
    Source: Jin et al., NAACL 2025, arXiv 2410.22086, section 4.
    """
    return Weights(_inverse_root(gramian, RETAIN), _inverse_root(gramian, FORGET))


def _inverse_root(gramian: Gramian, task: int) -> float:
    square = float(gramian[task, task])
    return square**-0.5 if square > 0 else 0.0


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
    """

    name: str
    make: Callable[..., Rule]
    summary: str
    paper: str
    settings: Mapping[str, float] = field(default_factory=dict)
    fixed: bool = False
    conflict_free: bool = False


def _always(retain: float, forget: float) -> Rule:
    def rule(_: Gramian) -> Weights:
        return Weights(retain, forget)

    return rule


def _constant(alpha: float = 1.0, gamma: float = 1.0) -> Rule:
    """Weigh the retain gradient by ``alpha`` and the forget gradient by ``gamma``."""
    return _always(alpha, gamma)


RULES: dict[str, RuleRow] = {
    row.name: row
    for row in (
        RuleRow(
            "ngdiff",
            lambda: normalised_difference,
            "each gradient divided by its own norm",
            "Jin et al. 2025, arXiv 2410.22086",
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
    """Say whether the gradients allow a step: both zero is stationary, a NaN or infinity means skip."""
    if not bool(torch.isfinite(gramian).all()):
        return Verdict.NON_FINITE
    if float(gramian[RETAIN, RETAIN]) == 0 and float(gramian[FORGET, FORGET]) == 0:
        return Verdict.STATIONARY
    return Verdict.STEP
