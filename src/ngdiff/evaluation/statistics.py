"""per-item values -> intervals, distances of two samples, harmonic means, areas under ROC curves."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ngdiff.evaluation.result import Bootstrap


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
    from scipy.stats import bootstrap  # its import takes a second

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
    from scipy.stats import ks_2samp

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
    from sklearn.metrics import roc_auc_score

    mine, theirs = _finite(members), _finite(others)
    truth = np.concatenate([np.ones(len(mine)), np.zeros(len(theirs))])
    return float(roc_auc_score(truth, np.concatenate([mine, theirs])))


# ---- scores of two sets -> the AUC between them, with a bootstrap interval ----


Samples = NDArray[np.float64]


def wins(members: Sequence[float], others: Sequence[float]) -> Samples:
    """Return 1, 1/2 or 0 for each pair: member above other, tied, below; shape (members, others)."""
    left, right = np.asarray(members, dtype=np.float64)[:, None], np.asarray(others, dtype=np.float64)[None]
    if not (left.size and right.size):
        raise ValueError("an AUC needs items on both sides")
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise ValueError("an AUC needs finite scores")
    result: Samples = (left > right) + 0.5 * (left == right)
    return result


def auc_resamples(
    members: Sequence[float], others: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> Samples:
    """Return the AUCs of bootstrap samples, in which both sets are drawn anew; shape (resamples,).

    A resample's AUC is the mean of the pairs' wins under the items' multiplicities, so all of them cost one
    matrix product. Source: Efron & Tibshirani 1993, "An introduction to the bootstrap", section 8.3.
    """
    pairs = wins(members, others)
    rng = np.random.default_rng(seed)
    left, right = (
        rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count for count in pairs.shape
    )
    result: Samples = ((left @ pairs) * right).sum(axis=1).clip(0, 1)  # sums round
    return result


def percentiles(values: Sequence[float] | Samples, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def auc_interval(
    members: Sequence[float],
    others: Sequence[float],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, tuple[float, float]]:
    """Return the AUC (higher scores mean members) and its percentile bootstrap interval."""
    value = float(wins(members, others).mean())
    return value, percentiles(auc_resamples(members, others, resamples=resamples, seed=seed), level)


# ---- items of several sets -> bootstrap intervals of aggregates that are not plain means ----


Items = NDArray[np.float64]

MOST_TEST_RESAMPLES = 200
"""A Kolmogorov-Smirnov test takes milliseconds, so no more resamples than these are tested."""


def harmonic_mean_interval(
    parts: Mapping[str, Sequence[Sequence[float]]], bootstrap: Bootstrap
) -> tuple[float, tuple[float, float]]:
    """Return the harmonic mean of the means of several measures of several sets, with its interval.

    Items are drawn anew in each set, all measures of an item together, since they are of one question.

    Args:
        parts: name of a set to its measures, each with one value an item.
        bootstrap: how many resamples, from which seed.
    """
    rng = np.random.default_rng(bootstrap.seed)
    means, draws = [], []
    for measures in parts.values():
        items = np.asarray(measures, dtype=np.float64)
        count = items.shape[1]
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=bootstrap.resamples)
        means += items.mean(axis=1).tolist()
        draws.append(drawn @ items.T / count)
    resampled = np.concatenate(draws, axis=1)
    positive = (resampled > 0).all(axis=1)
    safe = np.where(resampled > 0, resampled, 1.0)
    values = np.where(positive, resampled.shape[1] / (1 / safe).sum(axis=1), 0.0)
    return harmonic_mean(means), percentiles(values)


def two_sample_interval(
    statistic: Callable[[Sequence[float], Sequence[float]], float],
    left: Sequence[float],
    right: Sequence[float],
    bootstrap: Bootstrap,
) -> tuple[float, tuple[float, float]]:
    """Return a statistic of two samples with its interval; both are drawn anew, independently."""
    rng = np.random.default_rng(bootstrap.seed)
    first, second = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    values = []
    for _ in range(min(bootstrap.resamples, MOST_TEST_RESAMPLES)):
        drawn = (sample[rng.integers(len(sample), size=len(sample))].tolist() for sample in (first, second))
        values.append(statistic(*drawn))
    return statistic(left, right), percentiles(values)
