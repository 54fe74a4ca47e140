"""method name -> forget loss x retain loss x weighting rule x step size; the table of named recipes.

A method is four choices and nothing more; each can be overridden by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ngdiff.errors import RequestError, unknown_name
from ngdiff.losses import LOSSES
from ngdiff.steps.weighting import RULES

StepSizeName = Literal["auto", "gen", "fixed"]
STEP_SIZES: dict[StepSizeName, str] = {
    "auto": "NGDiff's own, after Bu & Xu 2025, arXiv 2407.02772",
    "gen": "Bu & Xu 2025, arXiv 2407.02772, as in gen-optim 0.1.1",
    "fixed": "given, or the method's usual rate",
}
"""Step sizes, and where each comes from."""
RUN: Mapping[str, Any] = {
    "stop_at": "auto",
    "keep_utility": 0.98,
    "num_train_epochs": 20.0,
    "hold_general": False,
    "sam_radius": 0.0,
}
"""How a run goes and ends, where neither the user nor the method says otherwise."""


@dataclass(frozen=True)
class Method:
    """One row of the method table.

    Args:
        name: what the command line calls it.
        forget_loss: name in :data:`ngdiff.losses.LOSSES`.
        retain_loss: name in :data:`ngdiff.losses.LOSSES`.
        rule: name in :data:`ngdiff.steps.weighting.RULES`.
        step_size: ``auto`` (probes find the rate, :class:`ngdiff.steps.stepsize.AutomaticRate`), ``gen``
            (:class:`ngdiff.steps.gen.GenRate`) or ``fixed``.
        summary: one line for ``ngdiff ls methods``.
        paper: where it comes from.
        learning_rate: the usual fixed rate, per optimizer step; ``gen``, if asked for, begins there.
        rule_settings: settings of the rule that differ from its defaults.
        run: settings of the run that differ from :data:`RUN`.
        search: values worth trying when the method is tuned, by setting: ``learning_rate``, or a setting of
            ``rule_settings``, ``forget_loss_settings`` or ``retain_loss_settings``, with a dot between.
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
    run: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


TOFU_EPOCHS = 5.0
"""Passes over the forget set in TOFU's own unlearning runs (locuslab/tofu, ``config/forget.yaml``)."""
RATES = (1e-5, 2e-5, 5e-5)
WEIGHTS = (1.0, 2.0, 5.0)
"""Learning rates and weights of the retain loss that OpenUnlearning's paper (Dorna et al. 2025, arXiv
2506.12618) tries for NPO and most others."""


def _with_rule(rule: str, summary: str, **search: tuple[float, ...]) -> Method:
    """Return gradient ascent and descent under a rule of the same name."""
    return Method(
        rule,
        "negated-nll",
        "nll",
        rule,
        "fixed",
        summary,
        RULES[rule].paper,
        learning_rate=1e-5,
        search={
            "learning_rate": RATES,
            **{f"rule_settings.{name}": values for name, values in search.items()},
        },
    )


def _with_loss(
    loss: str,
    summary: str,
    *,
    retain: str | None = "nll",
    learning_rate: float = 1e-5,
    gamma: float = 1.0,
    rates: tuple[float, ...] = RATES,
    weights: Mapping[str, tuple[float, ...]] | None = None,
    **search: tuple[float, ...],
) -> Method:
    """Return a forget loss of the same name beside a retain loss at constant weights, or by itself."""
    rule, settings = ("constant", {"gamma": gamma}) if retain else ("forget-only", {})
    weights = ({"alpha": WEIGHTS} if retain else {}) if weights is None else weights
    return Method(
        loss,
        loss,
        retain or "nll",
        rule,
        "fixed",
        summary,
        LOSSES[loss].paper,
        learning_rate=learning_rate,
        rule_settings=settings,
        search={
            "learning_rate": rates,
            **{f"rule_settings.{name}": values for name, values in weights.items()},
            **{f"forget_loss_settings.{name}": values for name, values in search.items()},
        },
    )


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "ngdiff",
            "negated-nll",
            "nll",
            "ngdiff",
            "gen",
            "the paper's method, nothing added: normalised gradient difference at GeN's learning rate",
            "Jin et al. 2025, arXiv 2410.22086",
            run={"stop_at": "none", "keep_utility": 0.0, "num_train_epochs": TOFU_EPOCHS},
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
            "ngdiff-selective",
            "selective-unlikelihood",
            "nll",
            "ngdiff",
            "auto",
            "NGDiff that pushes knowledge and leaves language as it is",
            "Jin et al. 2025, arXiv 2410.22086; forget loss after Wan et al. 2025, arXiv 2506.00876",
        ),
        Method(
            "ngdiff-kl",
            "unlikelihood",
            "kl",
            "ngdiff",
            "auto",
            "ngdiff-unlikelihood, held by the divergence from the starting model on the retain set",
            "Jin et al. 2025, arXiv 2410.22086; forget loss: Welleck et al. 2020, arXiv 1908.04319; "
            "retain loss: Maini et al. 2024, arXiv 2401.06121",
        ),
        Method(
            "ngdiff-selective-kl",
            "selective-unlikelihood",
            "kl",
            "ngdiff",
            "auto",
            "ngdiff-selective, held by the divergence from the starting model on the retain set",
            "Jin et al. 2025, arXiv 2410.22086; forget loss after Wan et al. 2025, arXiv 2506.00876; "
            "retain loss: Maini et al. 2024, arXiv 2401.06121",
        ),
        Method(
            "ngdiff-counterfactual",
            "counterfactual",
            "kl",
            "ngdiff",
            "auto",
            "NGDiff that makes the model answer as if it had never met the subject",
            "Jin et al. 2025, arXiv 2410.22086; forget loss after Liu et al. 2024, arXiv 2407.16997; "
            "retain loss: Maini et al. 2024, arXiv 2401.06121",
            rule_settings={"retain": 4.0},
            run={"hold_general": True},
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
            search={"learning_rate": (1e-5, 2e-5, 3e-5, 4e-5, 5e-5), "rule_settings.alpha": (1, 2, 5, 10)},
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
            search={"learning_rate": RATES},
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
            search={"learning_rate": RATES},
        ),
        Method(
            "kl",
            "negated-nll",
            "kl",
            "constant",
            "fixed",
            "gradient ascent, held by the divergence from the starting model on the retain set",
            "Maini et al. 2024, arXiv 2401.06121",
            learning_rate=1e-5,
            search={"learning_rate": RATES, "rule_settings.alpha": WEIGHTS},
        ),
        _with_rule("lossnorm", "gradients divided by the size of their losses"),
        _with_rule("rlw", "random weights each step"),
        _with_rule("pcgrad", "gradients projected off each other's conflict"),
        _with_rule("mgda", "the shortest convex combination of the gradients"),
        _with_rule("imtlg", "equal projections on both gradients"),
        _with_rule("cagrad", "conflict-averse gradient descent", c=(0.2, 0.5, 0.8)),
        _with_rule("nashmtl", "the gradients' Nash bargaining solution"),
        _with_rule("upgrad", "both gradients projected onto the cone that harms neither task"),
        _with_rule("dualproj", "the mean gradient projected onto the cone that harms neither task"),
        _with_rule("gru", "the forget gradient without what would raise the retain loss"),
        _with_rule("sago", "gradient signs decide, coordinate by coordinate"),
        _with_rule(
            "hamu",
            "a given progress in forgetting at the least cost to the retain task",
            cosine=(0.25, 0.5, 0.75),
        ),
        Method(
            "blur",
            "npo",
            "nll",
            "blur",
            "fixed",
            "NPO first, and of the retain gradient what does not touch it",
            RULES["blur"].paper,
            learning_rate=2e-5,
            search={"learning_rate": RATES, "rule_settings.gamma": (0.5, 1.0, 2.0)},
        ),
        _with_loss(
            "npo", "negative preference optimisation against the starting model", beta=(0.05, 0.1, 0.5)
        ),
        _with_loss(
            "simnpo",
            "negative preference optimisation without reference model",
            gamma=0.125,
            weights={"gamma": (0.125, 0.25)},
            beta=(3.5, 4.5),
            delta=(0.0, 1.0),
        ),
        Method(
            "npo-sam",
            "npo",
            "nll",
            "constant",
            "fixed",
            "NPO whose loss is kept low around the weights as well, against relearning",
            "Fan et al. 2025, arXiv 2502.05374",
            learning_rate=1e-5,
            rule_settings={"gamma": 1.0},
            run={"sam_radius": 0.01},
            search={
                "learning_rate": RATES,
                "rule_settings.alpha": WEIGHTS,
                "forget_loss_settings.beta": (0.05, 0.1, 0.5),
            },
        ),
        _with_loss("dpo", "preference of given answers over the true ones", beta=(0.05, 0.1, 0.5)),
        _with_loss("idkdpo", "preference of refusals over the true answers", beta=(0.05, 0.1, 0.5)),
        _with_loss("idknll", "training on refusals in place of the true answers"),
        _with_loss(
            "altpo", "preference of answers that the model makes up over the true ones", beta=(0.05, 0.1, 0.5)
        ),
        _with_loss("wga", "gradient ascent weighted by p^beta", beta=(0.5, 1.0, 2.0)),
        _with_loss(
            "satimp",
            "gradient ascent weighted by saturation and importance",
            gamma=0.1,
            weights={"gamma": (0.1, 1.0)},
            beta1=(5.0, 6.0),
            beta2=(0.1, 0.5, 1.0),
        ),
        _with_loss(
            "undial",
            "self-distillation with the true tokens pushed down",
            retain=None,
            learning_rate=1e-4,
            rates=(1e-5, 1e-4, 3e-4),
            beta=(3.0, 10.0, 30.0),
        ),
        _with_loss("ceu", "cross-entropy to the prediction without the true token", retain=None),
        _with_loss(
            "jensun",
            "bounded divergence to refusals, held by the same divergence from the starting model",
            retain="jsd",
        ),
        _with_loss(
            "flat", "refusals against true answers by a divergence, without a retain loss", retain=None
        ),
        _with_loss(
            "adaptive-rmu",
            "RMU whose length follows the starting model's activations",
            retain="embedding-difference",
            scale=(3.0, 5.0, 10.0),
        ),
        _with_loss(
            "rmu",
            "steers one layer's activations away, holds those of the retain set",
            retain="embedding-difference",
            coefficient=(1.0, 10.0, 100.0),
        ),
        Method(
            "pdu",
            "logit-margin",
            "nll",
            "pdu",
            "fixed",
            "flattens predictions on the forget set, subject to a bound on the retain loss",
            RULES["pdu"].paper,
            learning_rate=1e-5,
            search={"learning_rate": RATES, "rule_settings.bound": (0.1, 0.3, 1.0)},
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


def find_method(name: str) -> Method:
    """Look a method up by name.

    Raises:
        RequestError: there is no such method; the nearest names are given.
    """
    if name not in METHODS:
        raise RequestError(unknown_name("--method", "method", name, METHODS))
    return METHODS[name]
