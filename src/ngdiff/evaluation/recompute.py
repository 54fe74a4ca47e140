"""log of another evaluation -> its aggregates, computed again from its per-item values.

Each aggregate is computed twice: ``as_stated`` by the arithmetic that OpenUnlearning's code uses, which adds
1e-10 to denominators, and ``exact`` by the definition. Where a model has unlearned so far that probabilities
come near 1e-10 the two part, and the stated figure says more about the constant than about the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ngdiff.evaluation.item_scores import privleak
from ngdiff.evaluation.openunlearning import (
    ATTACKS,
    MUSE_FIGURES,
    TOFU_FIGURES,
    Log,
    Values,
    forget_truth_ratios,
    reference_of,
)
from ngdiff.evaluation.statistics import auc, harmonic_mean, ks_p_value

_GUARD = 1e-10

UTILITY_PARTS = (
    "retain_Q_A_Prob",
    "retain_Q_A_ROUGE",
    "retain_Truth_Ratio",
    "ra_Q_A_Prob_normalised",
    "ra_Q_A_ROUGE",
    "ra_Truth_Ratio",
    "wf_Q_A_Prob_normalised",
    "wf_Q_A_ROUGE",
    "wf_Truth_Ratio",
)
"""The nine parts of model utility under OpenUnlearning's names."""


@dataclass(frozen=True)
class Recomputed:
    """One aggregate of a log, three times.

    Args:
        stated: what the file states, or ``None`` where it states nothing.
        as_stated: the same figure from the per-item values, by the arithmetic of the code that wrote the log.
        exact: the same figure by its definition.
    """

    stated: float | None
    as_stated: float | None
    exact: float | None

    @property
    def agrees(self) -> bool | None:
        """Whether the stated figure follows from the items (to 1e-6); ``None`` where one is missing."""
        if self.stated is None or self.as_stated is None:
            return None
        return math.isclose(self.stated, self.as_stated, rel_tol=1e-6, abs_tol=1e-12)


Pair = tuple[float, float]


def recompute(log: Log, reference: Log | None = None) -> dict[str, Recomputed]:
    """Compute every aggregate that a log's per-item values allow.

    Args:
        log: the evaluation to check.
        reference: that of the retrained model; without it forget quality and PrivLeak are left out.

    Returns:
        Key of the figure to what is stated and what follows from the items.

    Raises:
        RequestError: where the reference lacks what is needed, or is of another split or size.
    """
    found: dict[str, Pair] = {}
    for name in log.metrics:
        if (pair := _mean_figure(log, name)) is not None:
            found[name] = pair
    found |= _truth_ratio_figures(log) | _option_probabilities(log)
    if all(part in found for part in UTILITY_PARTS):
        parts = [found[part] for part in UTILITY_PARTS]
        found["model_utility"] = (harmonic_mean([p[0] for p in parts]), harmonic_mean([p[1] for p in parts]))
    if reference is not None:
        found |= _against(log, reference, found)
    return _beside_stated(log, found)


def _beside_stated(log: Log, found: Mapping[str, Pair]) -> dict[str, Recomputed]:
    names = MUSE_FIGURES if log.suite == "muse" else TOFU_FIGURES
    result = {}
    for name, key in names.items():
        stated = log.metrics[name].stated if name in log.metrics else None
        as_stated, exact = found.get(name, (None, None))
        if stated is not None or as_stated is not None:
            result[key] = Recomputed(stated, as_stated, exact)
    return result


def _mean_figure(log: Log, name: str) -> Pair | None:
    """Return figures that are plain means over items, and AUCs; ``None`` for any other metric."""
    items = log.metrics[name].items
    if name in ATTACKS:
        if "forget" not in items or "holdout" not in items:
            return None
        # The log's scores are losses: low for what the model has seen.
        value = auc([-v for v in items["forget"].tolist()], [-v for v in items["holdout"].tolist()])
        return value, value
    if name.endswith("_ROUGE"):
        values = items.get("rougeL_f1" if log.suite == "muse" else "rougeL_recall")
    elif name.endswith("_Prob"):
        values = items.get("prob")
    elif name in ("extraction_strength", "exact_memorization"):
        values = items.get("score")
    else:
        return None
    return None if values is None else (float(values.mean()), float(values.mean()))


def _truth_ratio_figures(log: Log) -> dict[str, Pair]:
    found = {}
    for short, name in (
        ("forget", "forget_truth_ratio"),
        ("retain", "retain_Truth_Ratio"),
        ("ra", "ra_Truth_Ratio"),
        ("wf", "wf_Truth_Ratio"),
    ):
        guarded = log.values(name, "score")
        losses = _right_and_wrong(log, short)
        if losses is None:
            if guarded is not None:
                found[name] = (_aggregate(guarded, short, _GUARD), _aggregate(guarded, short, 0.0))
            continue
        right, wrong = losses
        exact = np.exp(np.clip(right - wrong, -700, 700))
        if guarded is None:
            guarded = np.exp(-wrong) / (np.exp(-right) + _GUARD)
        found[name] = (_aggregate(guarded, short, _GUARD), _aggregate(exact, short, 0.0))
    return found


def _right_and_wrong(log: Log, short: str) -> tuple[Values, Values] | None:
    """Return the losses of the right answer and of the wrong ones, as the truth ratio compares them.

    Real authors and world facts have no paraphrased answer; OpenUnlearning compares with the true one. TOFU's
    first code logs that answer under both names, from two passes that differ by rounding, and compares with
    the pass that it calls paraphrased.
    """
    right = log.values(f"{short}_Q_A_PARA_Prob", "avg_loss")
    if right is None and short in ("ra", "wf"):
        right = log.values(f"{short}_Q_A_Prob", "avg_loss")
    wrong = log.values(f"{short}_Q_A_PERT_Prob", "avg_loss")
    if right is None or wrong is None or len(right) != len(wrong):
        return None
    return right, wrong.reshape(len(wrong), -1).mean(axis=1)


def _aggregate(ratios: Values, short: str, guard: float) -> float:
    if short == "forget":
        with np.errstate(divide="ignore"):
            return float(np.minimum(ratios, 1 / (ratios + guard)).mean())
    return float(np.maximum(0, 1 - ratios).mean())


def _option_probabilities(log: Log) -> dict[str, Pair]:
    found = {}
    for short in ("ra", "wf"):
        right, wrong = (
            log.values(f"{short}_Q_A_Prob", "avg_loss"),
            log.values(f"{short}_Q_A_PERT_Prob", "avg_loss"),
        )
        name = f"{short}_Q_A_Prob_normalised"
        if right is None or wrong is None or len(right) != len(wrong):
            values = log.values(name, "prob")
            if values is not None:
                found[name] = (float(values.mean()), float(values.mean()))
            continue
        true, false = np.exp(-right), np.exp(-wrong.reshape(len(wrong), -1)).sum(axis=1)
        # As a softmax over the options, so that no underflow divides 0 by 0.
        exact = 1 / (
            1 + np.exp(np.clip(right[:, None] - wrong.reshape(len(wrong), -1), -700, 700)).sum(axis=1)
        )
        found[name] = (float((true / (true + false + _GUARD)).mean()), float(exact.mean()))
    return found


def _against(log: Log, reference: Log, found: Mapping[str, Pair]) -> dict[str, Pair]:
    """Return forget quality (TOFU) and PrivLeak against the retrained model's log."""
    retrained = reference_of(reference)
    pairs: dict[str, Pair] = {}
    if log.suite == "tofu":
        ratios = forget_truth_ratios(log)
        exact = ks_p_value(ratios.tolist(), retrained.forget_truth_ratios(len(ratios), log.split))
        scores = [part.values("forget_truth_ratio", "score") for part in (log, reference)]
        guarded = [part.tolist() for part in scores if part is not None]
        pairs["forget_quality"] = (ks_p_value(*guarded) if len(guarded) == 2 else exact, exact)
    if "mia_min_k" in found:
        of_model, of_retrained = found["mia_min_k"][1], retrained.membership_auc("min_k")
        as_stated = 100 * (of_retrained - of_model) / (1 - of_retrained + _GUARD)
        exact = privleak(of_model, of_retrained) if of_retrained < 1 else math.nan  # undefined at 1
        pairs["privleak"] = (as_stated, exact)
    return pairs
