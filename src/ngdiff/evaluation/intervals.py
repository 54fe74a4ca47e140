"""items of several sets -> bootstrap intervals of aggregates that are no plain means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ngdiff.evaluation.result import Bootstrap
from ngdiff.evaluation.statistics import harmonic_mean
from ngdiff.evaluation.two_samples import percentiles

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
