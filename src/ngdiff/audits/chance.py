"""items of two sets, or of two models -> how likely such a difference is where there is none.

All tests are permutation tests: where forget set and never-seen text are alike to a model that saw neither,
every way of dealing the items to the two sets is equally likely. With few items nothing can be shown, and the
tests say so: of 3 and 3 items no p-value is below 0.05.

Source: Good 2005, "Permutation, parametric and bootstrap tests of hypotheses", chapters 3 and 5; for two ROC
curves Venkatraman & Begg 1996, Biometrika 83(4); for many tests at once Holm 1979, Scand. J. Statist. 6(2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import permutation_test, rankdata

Side = Literal["greater", "two-sided"]

LEVEL = 0.025
"""Chance of one or more false findings in a whole audit of a model that never saw the forget set.

As of a 95% interval that lies above 0.
"""

PERMUTATIONS = 9_999
"""Drawn where there are more than can be counted out."""

_AT_ONCE = 4_000_000


def permuted(left: Sequence[float], right: Sequence[float], side: Side = "greater", seed: int = 0) -> float:
    """Return the p-value of mean(left) - mean(right), items being dealt to the two sets at random.

    Args:
        left: one number an item.
        right: those of the other set.
        side: ``greater`` asks whether the left mean is the greater one.
        seed: of the permutations drawn, where there are too many.
    """
    return _tested((left, right), _difference, "independent", side, seed)


def flipped(differences: Sequence[float], side: Side = "greater", seed: int = 0) -> float:
    """Return the p-value of the mean of paired differences, their signs being dealt at random."""
    return _tested((differences,), _mean, "samples", side, seed)


def ranks_apart(mine: Sequence[float], theirs: Sequence[float], members: int, seed: int = 0) -> float:
    """Return the two-sided p-value of a difference between two models' AUCs on the same items.

    An AUC is linear in the members' ranks, so exchanging the two models' ranks of an item flips the sign of
    its share in the difference.

    Args:
        mine: scores of one model, those of the members first.
        theirs: scores of the other, in the same order.
        members: how many are members.
        seed: of the signs drawn, where there are too many.
    """
    apart = rankdata(mine) - rankdata(theirs)
    others = len(apart) - members
    return flipped([*(apart[:members] / members), *(-apart[members:] / others)], "two-sided", seed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number: at most 1, in the order given."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted = [0.0] * len(p_values)
    reached = 0.0
    for passed, place in enumerate(order):
        reached = max(reached, min(1.0, (len(p_values) - passed) * p_values[place]))
        adjusted[place] = reached
    return adjusted


def _tested(
    samples: tuple[Sequence[float], ...], statistic: object, kind: str, side: Side, seed: int
) -> float:
    arrays = tuple(np.asarray(sample, dtype=np.float64) for sample in samples)
    size = sum(map(len, arrays))
    if all(bool((array == arrays[0][0]).all()) for array in arrays) and (
        len(arrays) > 1 or not arrays[0].any()
    ):
        return 1.0
    found = permutation_test(
        arrays,
        statistic,
        permutation_type=kind,
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=max(1, _AT_ONCE // size),
        alternative=side,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _difference(left: NDArray[np.float64], right: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.mean(left, axis=axis) - np.mean(right, axis=axis)
    return found


def _mean(values: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.mean(values, axis=axis)
    return found
