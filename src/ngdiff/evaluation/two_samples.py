"""scores of two sets -> the AUC between them, with a bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

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
