"""per-item values -> intervals, distances between two samples, harmonic means, areas under ROC curves."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, ks_2samp
from sklearn.metrics import roc_auc_score


def _finite(values: Sequence[float], least: int = 1) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < least:
        raise ValueError(f"{least} or more values are needed, got {len(array)}")
    if not np.isfinite(array).all():
        raise ValueError(f"value {int(np.flatnonzero(~np.isfinite(array))[0])} is not finite")
    return array


def interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over items.

    Source: Efron & Tibshirani, "An introduction to the bootstrap", 1993, section 13.3.

    Args:
        values: one finite number an item; a single one gives an interval of width 0.
        level: coverage, between 0 and 1.
        resamples: number of resamples.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    array = _finite(values)
    if len(array) == 1 or bool((array == array[0]).all()):
        return float(array[0]), float(array[0])
    found = bootstrap(
        (array,),
        np.mean,
        confidence_level=level,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
        batch=max(1, 4_000_000 // len(array)),
    ).confidence_interval
    return float(found.low), float(found.high)


def ks_distance(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the largest gap between two empirical distribution functions, in [0, 1]."""
    return float(_ks(left, right).statistic)


def ks_p_value(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the p-value of the two-sample, two-sided Kolmogorov-Smirnov test: TOFU's forget quality.

    Source: Maini et al. 2024, arXiv 2401.06121, section 2.2.2.
    """
    return float(_ks(left, right).pvalue)


def _ks(left: Sequence[float], right: Sequence[float]) -> Any:
    with warnings.catch_warnings():
        # small samples with many ties: scipy takes the asymptotic p-value instead, and says so
        warnings.filterwarnings("ignore", "ks_2samp: Exact calculation unsuccessful", RuntimeWarning)
        return ks_2samp(_finite(left), _finite(right))


def harmonic_mean(values: Sequence[float]) -> float:
    """Return the harmonic mean; 0 where a value is 0.

    Raises:
        ValueError: a value is negative or not finite, or there are none.
    """
    array = _finite(values)
    if bool((array < 0).any()):
        raise ValueError("a harmonic mean needs values of 0 or more")
    if bool((array == 0).any()):
        return 0.0
    return len(array) / math.fsum(1 / float(value) for value in array)


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """Return the chance that a member scores above another item, ties counted half: the area under the ROC.

    Args:
        members: scores of the items that were trained on; higher must mean more likely a member.
        others: scores of items that were not.
    """
    mine, theirs = _finite(members), _finite(others)
    truth = np.concatenate([np.ones(len(mine)), np.zeros(len(theirs))])
    return float(roc_auc_score(truth, np.concatenate([mine, theirs])))
