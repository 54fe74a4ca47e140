"""scores of items -> mean figures with 95% bootstrap intervals.

The items of a run's first and last check are in ``record.json`` (``before.items`` and ``after.items``), so
that anyone with the record can recompute the receipt's figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ngdiff.evaluation.result import Bootstrap
from ngdiff.evaluation.statistics import percentiles
from ngdiff.inference.teacher_forced import ITEM_COLUMNS

MEASURES = ("probability", "extraction_strength", "exact_memorisation", "nll")
Items = Mapping[str, Sequence[float]]


def figures_of(items: Items, bootstrap: Bootstrap | None = None) -> dict[str, dict[str, float | None]]:
    """Return value, low and high of each of :data:`MEASURES`.

    Items are resampled with replacement, with the same draws for all measures; percentiles 2.5 and 97.5. The
    NLL is that of all tokens together, in nats per token. A measure with an item that is NaN has no
    value.

    Raises:
        ValueError: a column is missing, or the columns are not equally long and at least 1 long.
    """
    settings = bootstrap or Bootstrap()
    try:
        nll, tokens, strength, exact = (np.asarray(items[name], dtype=np.float64) for name in ITEM_COLUMNS)
    except (KeyError, TypeError) as error:
        raise ValueError(f"no items: {error}") from error
    count = len(nll)
    if count == 0 or any(column.shape != (count,) for column in (nll, tokens, strength, exact)):
        raise ValueError("the columns of the items are not equally long")
    with np.errstate(all="ignore"):
        each = {
            "probability": (np.exp(-nll / tokens), np.ones(count)),
            "extraction_strength": (strength, np.ones(count)),
            "exact_memorisation": (exact, np.ones(count)),
            "nll": (nll, tokens),
        }
    rng = np.random.default_rng(settings.seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=settings.resamples).astype(np.float64)
    found: dict[str, dict[str, float | None]] = {}
    for measure, (above, below) in each.items():
        if not (np.isfinite(above).all() and np.isfinite(below).all()):
            found[measure] = {"value": None, "low": None, "high": None}
            continue
        low, high = percentiles((drawn @ above) / (drawn @ below))
        value = math.fsum(above.tolist()) / math.fsum(below.tolist())
        found[measure] = {"value": value, "low": low, "high": high}
    return found


def figures_of_sets(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of every set in a record's ``before`` or ``after``.

    Where the record keeps no items (see :mod:`ngdiff.receipts.data_key`), they are its means, without
    intervals.
    """
    items = part.get("items")
    if items is None:
        return {name: _without_interval(means) for name, means in part.items()}
    if not isinstance(items, Mapping):
        return {}
    return {name: figures_of(columns) for name, columns in items.items()}


def _without_interval(means: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: means[name] for name in MEASURES if name in means}
    return {name: {"value": value, "low": None, "high": None} for name, value in known.items()}
