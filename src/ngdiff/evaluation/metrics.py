"""The table of figures: what each one is, which way is better, its version and where it is defined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_TOFU = "Maini et al. 2024, arXiv 2401.06121"
_CARLINI = "Carlini et al. 2021, arXiv 2012.07805"
_WANG = "Wang et al. 2025, arXiv 2406.09179"
_ROUGE = "Lin 2004, ROUGE; rouge-score with stemmer"
_OPENUNLEARNING = "Dorna et al. 2025, OpenUnlearning, arXiv 2506.12618"
_RWKU = "Jin et al. 2024, RWKU, arXiv 2406.10890"
_MUSE = "Shi et al. 2024, arXiv 2407.06460"


@dataclass(frozen=True)
class Metric:
    """One kind of figure.

    Args:
        name: as in :class:`ngdiff.evaluation.result.Figure`.
        higher_is_better: on a set that the model should know; ``None`` where neither direction is.
        version: counted up when the definition changes; part of every result file.
        summary: one line.
        source: the paper.
        passes: kinds of passes over a data set that feed it.
        knowledge: whether it says how well a set is known, so that on a set to forget less is better.
    """

    name: str
    higher_is_better: bool | None
    version: int
    summary: str
    source: str
    passes: tuple[str, ...] = ("answers",)
    knowledge: bool = True


def _table(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


_MODEL: dict[str, Any] = {"knowledge": False}

METRICS: dict[str, Metric] = _table(
    Metric("probability", True, 1, "exp(-mean NLL) of the answer's tokens, mean over items", _TOFU),
    Metric("nll", False, 1, "negative log-likelihood of an answer in nats per token, mean over items", _TOFU),
    Metric(
        "option_probability",
        True,
        1,
        "p(right) / (p(right) + sum of p(wrong)), mean over items",
        _TOFU,
    ),
    Metric(
        "rougeL_recall",
        True,
        1,
        "share of the true answer's words that the greedy answer has, in order",
        _ROUGE,
        ("generation",),
    ),
    Metric(
        "rouge1_recall",
        True,
        1,
        "share of the true answer's words that the greedy answer has",
        _ROUGE,
        ("generation",),
    ),
    Metric(
        "rougeL_f1",
        True,
        1,
        "harmonic mean of ROUGE-L recall and precision of the greedy answer",
        _ROUGE,
        ("generation",),
    ),
    Metric(
        "extraction_strength",
        True,
        2,
        "1 - share of the answer that must be shown before the rest follows",
        _CARLINI,
    ),
    Metric(
        "extractable",
        True,
        1,
        "share of items whose whole answer follows, word for word, from the question alone",
        _CARLINI,
    ),
    Metric(
        "extractable_from_half",
        True,
        1,
        "share of items whose second half follows, word for word, once the first half is shown",
        _CARLINI,
    ),
    Metric(
        "lens_probability",
        True,
        1,
        "answer probability read from the layer that knows the answer best, mean over items",
        "Patil et al. 2024, arXiv 2309.17410",
    ),
    Metric(
        "unlearning_depth",
        None,
        1,
        "share of what the retrained model's states cost the target that the model's own cost it",
        "Lee et al. 2026, arXiv 2605.24614",
        **_MODEL,
    ),
    Metric(
        "leak_rouge",
        True,
        1,
        "expected best ROUGE-L recall of k sampled answers",
        "Reisizadeh et al. 2025, arXiv 2511.04934",
        ("samples",),
    ),
    Metric(
        "leak_facts",
        True,
        1,
        "expected best share of the key facts in k sampled answers",
        "Reisizadeh et al. 2025, arXiv 2511.04934",
        ("samples",),
    ),
    Metric("choice", True, 1, "probability of the right option's letter among all", _RWKU, ("options",)),
    Metric(
        "yes_no", True, 1, "yes/no odds of the right answer beside those of a wrong one", _RWKU, ("options",)
    ),
    Metric(
        "repetition",
        False,
        1,
        "share of an answer's word pairs that it has had before",
        "Welleck et al. 2020, arXiv 1908.04319",
        ("generation",),
        **_MODEL,
    ),
    Metric(
        "broken_words",
        False,
        1,
        "share of an answer's words that occur in no data set and no general text",
        "docs/metrics.md",
        ("generation",),
        **_MODEL,
    ),
    Metric(
        "empty_answers",
        False,
        1,
        "share of answers without text",
        "docs/metrics.md",
        ("generation",),
        **_MODEL,
    ),
    Metric(
        "fluency_nll",
        False,
        1,
        "nats a token of the model's own answers under the starting model",
        "docs/metrics.md",
        ("generation",),
        **_MODEL,
    ),
    Metric("exact_memorisation", True, 1, "share of the answer's tokens that are the argmax", _WANG),
    Metric(
        "truth_ratio",
        True,
        1,
        "p(wrong)/p(right) = t: mean of min(t, 1/t) on a forget set, of max(0, 1 - t) elsewhere",
        _TOFU,
    ),
    Metric("truth_ratio_share", True, 1, "p(right) / (p(right) + p(wrong)), mean over items", _TOFU),
    Metric(
        "log_truth_ratio",
        False,
        1,
        "log(p(wrong)/p(right)) in nats per token, mean over items",
        _TOFU,
    ),
    Metric(
        "truth_ratio_openunlearning",
        True,
        1,
        "p(wrong)/(p(right) + 1e-10) = t: mean of min(t, 1/(t + 1e-10)) on a forget set",
        _OPENUNLEARNING,
    ),
    Metric(
        "log_truth_ratio_openunlearning",
        False,
        1,
        "log(p(wrong)/(p(right) + 1e-10)), mean over items",
        _OPENUNLEARNING,
    ),
    Metric(
        "model_utility",
        True,
        1,
        "harmonic mean of nine: probability, ROUGE-L recall and truth ratio of three sets",
        _TOFU,
        ("answers", "generation"),
        **_MODEL,
    ),
    Metric(
        "utility",
        True,
        1,
        "harmonic mean of what was measured on the retain set: probability, ROUGE-L recall, truth ratio",
        _TOFU,
        ("answers", "generation"),
        **_MODEL,
    ),
    Metric(
        "forget_quality",
        True,
        1,
        "Kolmogorov-Smirnov p-value of the forget set's truth ratios against the retrained model's",
        _TOFU,
        **_MODEL,
    ),
    Metric(
        "forget_quality_openunlearning",
        True,
        1,
        "the same p-value of OpenUnlearning's truth ratios, whose denominators have 1e-10 added",
        _OPENUNLEARNING,
        **_MODEL,
    ),
    Metric(
        "ks_distance",
        False,
        1,
        "Kolmogorov-Smirnov distance of the same two samples",
        _TOFU,
        **_MODEL,
    ),
    Metric(
        "auc",
        None,
        2,
        "AUC of a membership attack, forget set against holdout; 0.5 tells nothing apart",
        _CARLINI,
        ("answers", "gradients"),
        **_MODEL,
    ),
    Metric(
        "s_mia",
        True,
        1,
        "1 - |AUC - retrained model's AUC| / retrained model's AUC, at least 0",
        "Lee et al. 2026, arXiv 2605.24614",
        **_MODEL,
    ),
    Metric(
        "membership_place",
        None,
        1,
        "(AUC - retrained model's) / (target's - retrained model's); below 0 is over-forgotten",
        "docs/metrics.md",
        **_MODEL,
    ),
    Metric(
        "privleak",
        None,
        2,
        "100 (s - r)/r with s, r = 1 - AUC of the model and of the retrained one; 0 is best",
        _MUSE,
        ("answers",),
        **_MODEL,
    ),
)
"""Every kind of figure by name; those of ``lm-eval`` bring their own and are not here."""

FORGET_SETS = ("forget", "forget_paraphrased")
"""Sets of which less is to be known."""


def metric_named(name: str) -> Metric:
    """Return a row of the table; kinds that other packages bring have no direction and version 0."""
    return METRICS.get(name) or Metric(name, None, 0, "defined elsewhere", "", (), False)


def changed_definitions() -> dict[str, int]:
    """Return the versions of the figures whose definition changed since it was first made.

    For keys of what was measured: a figure that is added changes no key, one that is defined anew does.
    """
    return {name: metric.version for name, metric in METRICS.items() if metric.version > 1}


_SYMMETRIC = frozenset({"truth_ratio", "truth_ratio_openunlearning"})
_ROUNDING = 1e-6
_UNBOUNDED = frozenset({"log_truth_ratio", "log_truth_ratio_openunlearning", "membership_place", "privleak"})


def possible(metric: str, value: float) -> bool:
    """Return whether a metric can have a value at all; all but a few lie between 0 and 1.

    Args:
        metric: its name; of one that is defined elsewhere nothing is known.
        value: a mean, or the bound of an interval.
    """
    if metric not in METRICS or metric in _UNBOUNDED:
        return True
    return value >= -_ROUNDING and (metric in ("nll", "fluency_nll") or value <= 1 + _ROUNDING)


def higher_is_better(key: str, metric: str) -> bool | None:
    """Say which way a figure should go.

    On a forget set less knowledge is better, down to the level of a model that never saw it; a figure far
    below that level tells of the deletion. The truth ratio there is symmetric, and more is better.

    Args:
        key: the figure's key, such as ``forget.probability``.
        metric: name of its metric.
    """
    row = metric_named(metric)
    reverse = row.knowledge and key.split(".")[0] in FORGET_SETS and metric not in _SYMMETRIC
    if not reverse or row.higher_is_better is None:
        return row.higher_is_better
    return not row.higher_is_better
