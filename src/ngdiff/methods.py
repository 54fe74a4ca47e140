"""method name -> forget loss x retain loss x weighting rule x step size; the table of named recipes.

A method is four choices and nothing more; each can be overridden by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ngdiff.errors import RequestError, unknown_name
from ngdiff.losses import LOSSES
from ngdiff.weighting import RULES

StepSizeName = Literal["auto", "fixed"]


@dataclass(frozen=True)
class Method:
    """One row of the method table.

    Args:
        name: what the command line calls it.
        forget_loss: name in :data:`ngdiff.losses.LOSSES`.
        retain_loss: name in :data:`ngdiff.losses.LOSSES`.
        rule: name in :data:`ngdiff.weighting.RULES`.
        step_size: ``auto``, or ``fixed`` with the rate in ``learning_rate``.
        summary: one line for ``ngdiff ls methods``.
        paper: where it comes from.
        learning_rate: the usual fixed rate, per optimizer step.
        rule_settings: settings of the rule that differ from its defaults.
    """

    name: str
    forget_loss: str
    retain_loss: str
    rule: str
    step_size: StepSizeName
    summary: str
    paper: str
    learning_rate: float | None = None
    rule_settings: Mapping[str, float] = field(default_factory=dict)


def _with_rule(rule: str, summary: str) -> Method:
    """Return gradient ascent and descent under a rule of the same name."""
    return Method(rule, "negated-nll", "nll", rule, "fixed", summary, RULES[rule].paper, learning_rate=1e-5)


def _with_loss(loss: str, summary: str, gamma: float = 1.0, retain: bool = True) -> Method:
    """Return a forget loss of the same name beside the retain set's NLL, at constant weights."""
    rule, settings = ("constant", {"gamma": gamma}) if retain else ("forget-only", {})
    paper = LOSSES[loss].paper
    return Method(
        loss, loss, "nll", rule, "fixed", summary, paper, learning_rate=1e-5, rule_settings=settings
    )


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "ngdiff",
            "negated-nll",
            "nll",
            "ngdiff",
            "auto",
            "normalised gradient difference, learning rate from a parabola",
            "Jin et al. 2025, arXiv 2410.22086",
        ),
        Method(
            "ngdiff-unlikelihood",
            "unlikelihood",
            "nll",
            "ngdiff",
            "auto",
            "NGDiff that pushes what is still known and leaves alone what is forgotten",
            "Jin et al. 2025, arXiv 2410.22086; forget loss: Welleck et al. 2020, arXiv 1908.04319",
        ),
        Method(
            "ngdiff-bounded",
            "bounded-nll",
            "nll",
            "ngdiff",
            "auto",
            "NGDiff that leaves a token alone once it is as improbable as never-seen text",
            "Jin et al. 2025, arXiv 2410.22086, with a bounded forget loss",
        ),
        Method(
            "graddiff",
            "negated-nll",
            "nll",
            "constant",
            "fixed",
            "gradient difference: constant weights, fixed learning rate",
            "Liu et al. 2022, arXiv 2203.12817; Maini et al. 2024, arXiv 2401.06121",
            learning_rate=1e-5,
        ),
        Method(
            "ga",
            "negated-nll",
            "nll",
            "forget-only",
            "fixed",
            "gradient ascent on the forget set alone",
            "Jang et al. 2023, arXiv 2210.01504",
            learning_rate=1e-5,
        ),
        Method(
            "finetune-retain",
            "negated-nll",
            "nll",
            "retain-only",
            "fixed",
            "more training on the retain set alone, hoping that the rest fades",
            "baseline of Maini et al. 2024, arXiv 2401.06121",
            learning_rate=1e-5,
        ),
        *(
            _with_rule(rule, summary)
            for rule, summary in (
                ("lossnorm", "gradients divided by the size of their losses"),
                ("rlw", "random weights each step"),
                ("pcgrad", "gradients projected off each other's conflict"),
                ("mgda", "the shortest convex combination of the gradients"),
                ("imtlg", "equal projections on both gradients"),
                ("cagrad", "conflict-averse gradient descent"),
                ("nashmtl", "the gradients' Nash bargaining solution"),
                ("upgrad", "both gradients projected onto the cone that harms neither task"),
                ("dualproj", "the mean gradient projected onto the cone that harms neither task"),
                ("gru", "the forget gradient without what would raise the retain loss"),
                ("sago", "gradient signs decide, coordinate by coordinate"),
            )
        ),
        _with_loss("npo", "negative preference optimisation against the starting model"),
        _with_loss("simnpo", "negative preference optimisation without reference model", gamma=0.125),
        _with_loss("wga", "gradient ascent weighted by p^beta"),
        _with_loss("satimp", "gradient ascent weighted by saturation and importance", gamma=0.1),
        _with_loss("ceu", "cross-entropy to the prediction without the true token", retain=False),
        Method(
            "pdu",
            "logit-margin",
            "nll",
            "pdu",
            "fixed",
            "flattens predictions on the forget set, subject to a bound on the retain loss",
            RULES["pdu"].paper,
            learning_rate=1e-5,
        ),
        Method(
            "ngdiff-npo",
            "npo",
            "nll",
            "ngdiff",
            "auto",
            "NGDiff with NPO's forget loss",
            f"Jin et al. 2025, arXiv 2410.22086; forget loss: {LOSSES['npo'].paper}",
        ),
        Method(
            "ngdiff-simnpo",
            "simnpo",
            "nll",
            "ngdiff",
            "auto",
            "NGDiff with SimNPO's forget loss",
            f"Jin et al. 2025, arXiv 2410.22086; forget loss: {LOSSES['simnpo'].paper}",
        ),
    )
}


DEFAULT_METHOD = "ngdiff-unlikelihood"
"""NGDiff with the forget loss that over-forgot least; docs/results.md has the comparison."""


def find_method(name: str) -> Method:
    """Look a method up by name.

    Raises:
        RequestError: there is no such method; the nearest names are given.
    """
    if name not in METHODS:
        raise RequestError(unknown_name("--method", "method", name, METHODS))
    return METHODS[name]
