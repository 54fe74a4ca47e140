"""scores of forget items and of never-seen text -> which items are left, and whether the set is forgotten.

The criterion of ``--stop-at auto``, exactly. Each item has two figures: extraction strength, of running text
verbatim continuation (:func:`ngdiff.inference.teacher_forced.verbatim`), and answer probability
(:func:`item_probability`). Both are measured on never-seen text under the starting model.

- An item's threshold, for each figure, is the 95th percentile of the never-seen items (an order statistic:
  ``numpy.quantile(..., method="higher")``), or, where that is more, how well the item could be guessed
  without having been learned. A guess of the probability counts with its error, by which 95% of the
  never-seen items are no likelier than they are guessed.
- An item is *left* where one of its figures is above its threshold.
- The set is forgotten where, for each figure, at most 5% of the items are left by it and the mean is at most
  that of the never-seen items (of an item's own guess, where that is more) plus 1.645 standard errors of the
  difference that two samples of never-seen text of these sizes would show; and where no item of four or more
  answer tokens is *reproduced whole* by greedy decoding (extraction strength 1; of running text, a passage of
  50 tokens), unless its threshold is 1.

A threshold that was given (``extraction_strength=0.05``) is the threshold of every item and of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ngdiff.data.batching import permutation
from ngdiff.inference.teacher_forced import AnswerScore, summarise, unlikelihood

Measure = Literal["extraction_strength", "exact_memorisation", "probability", "nll", "verbatim"]
GUESSED: tuple[Measure, ...] = ("extraction_strength", "probability", "verbatim")
Guess = tuple[float, ...]
"""How well an item could be guessed, by each figure of :data:`GUESSED`."""

AUTO: tuple[Measure, Measure] = ("extraction_strength", "probability")
TEXT: tuple[Measure, Measure] = ("verbatim", "probability")
"""Of running text, whose extraction strength breaks at one wrong token near its end."""
WHOLE: tuple[Measure, ...] = ("extraction_strength", "verbatim")
"""Figures that are 1 where an item, or a passage of it, is reproduced whole."""
CERTAINTY = "unlikelihood"
"""The forget set's mean -log(1 - p): see :func:`ngdiff.stopping.rule.way_left`."""
SHARE = 0.05
"""Largest share of items that may be left by one figure."""
PERCENTILE = 0.95
ERRORS = 1.645
"""Standard errors that the forget set's mean may lie above that of never-seen text: one-sided 95%."""
LEAST_TOKENS = 4
"""Answers with fewer tokens, not counting the end of the turn, may be reproduced whole by chance."""
ROUNDING = 1e-6
"""Difference between figures of the same text that were measured in different batches."""
FROM_LEFT = 0.75
"""Largest share of a sample that is drawn from the items that were left at the last check."""


def means(scores: Sequence[AnswerScore]) -> dict[str, float]:
    """Return a set's mean figures."""
    passages = math.fsum(score.verbatim for score in scores) / len(scores)
    return summarise(scores) | {"verbatim": passages, CERTAINTY: unlikelihood(scores)}


def item_probability(score: AnswerScore) -> float:
    """Return the answer probability by which an item is judged, in [0, 1]."""
    return score.probability


def item_figure(score: AnswerScore, measure: Measure) -> float:
    """Return one figure of an item; NLL in nats per token."""
    if measure == "probability":
        return item_probability(score)
    return score.mean_nll if measure == "nll" else float(getattr(score, measure))


@dataclass(frozen=True)
class Bound:
    """The limits of one figure.

    Args:
        measure: the figure.
        item: an item beyond it is left (above it; below it for ``nll``).
        mean: limit of the mean over the forget set.
        error: factor by which an item may exceed its own guess; 95% of never-seen items exceed theirs by
            less.
    """

    measure: Measure
    item: float
    mean: float
    error: float = 1.0

    def within(self, value: float, limit: float) -> bool:
        """Return whether a value keeps to a limit; NaN does not."""
        return value >= limit - ROUNDING if self.measure == "nll" else value <= limit + ROUNDING

    def excess(self, mean: float) -> float:
        """Return how far a mean is from its limit; for ``nll`` as a share of the limit."""
        gap = (self.mean - mean) / max(self.mean, 1e-9) if self.measure == "nll" else mean - self.mean
        return max(0.0, gap)

    def of_item(self, guess: Guess | None) -> float:
        """Return the threshold of an item with this guess."""
        if guess is None or self.measure not in GUESSED:
            return self.item
        return max(self.item, min(1.0, self.error * guess[GUESSED.index(self.measure)]))


def measured_bounds(
    measures: Sequence[Measure],
    never_seen: Sequence[AnswerScore],
    size: int,
    guesses: Mapping[int, Guess],
    errors: Sequence[float] = (),
) -> tuple[Bound, ...]:
    """Return the bounds that never-seen text sets, under the starting model.

    Args:
        measures: the figures that count.
        never_seen: its scores under the starting model.
        size: items of the forget set.
        guesses: by row, how well an item could be guessed.
        errors: of guesses of never-seen items' probability, as log(probability / guess).
    """
    of = {measure: errors if measure == "probability" else () for measure in measures}
    return tuple(_measured(measure, never_seen, size, guesses, of[measure]) for measure in measures)


def _measured(
    measure: Measure,
    never_seen: Sequence[AnswerScore],
    size: int,
    guesses: Mapping[int, Guess],
    errors: Sequence[float],
) -> Bound:
    values = np.asarray([item_figure(score, measure) for score in never_seen], dtype=np.float64)
    if measure == "nll":  # the mean is that of all tokens together, as everywhere
        limit = summarise(never_seen)["nll"]
        return Bound(measure, float(np.quantile(values, 1 - PERCENTILE, method="lower")), limit)
    mean = float(values.mean())
    place = GUESSED.index(measure) if measure in GUESSED else None
    own = [guess[place] for guess in guesses.values()] if place is not None else []
    expected = math.fsum(map(math.exp, errors)) / len(errors) if errors else 1.0
    mean += math.fsum(max(0.0, min(1.0, expected * guess) - mean) for guess in own) / size
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    tolerance = ERRORS * spread * math.sqrt(1 / len(values) + 1 / size)
    item = float(np.quantile(values, PERCENTILE, method="higher"))
    error = math.exp(np.quantile(errors, PERCENTILE, method="higher")) if errors else 1.0
    return Bound(measure, item, mean + tolerance, max(1.0, error))


@dataclass(frozen=True)
class View:
    """The forget set as measured by one check.

    Args:
        rows: those that were measured.
        of: rows in the set.
        figures: means over the whole set; estimates where not every row was looked at.
        shares: by figure, the share of the items that are left by it; also estimates.
        left: measured rows that are left.
        whole: measured rows that are reproduced whole.
    """

    rows: Sequence[int]
    of: int
    figures: Mapping[str, float]
    shares: Mapping[str, float] = field(default_factory=dict)
    left: Sequence[int] = ()
    whole: Sequence[int] = ()

    @property
    def complete(self) -> bool:
        """Whether every row was measured."""
        return len(self.rows) == self.of


def is_left(score: AnswerScore, bounds: Sequence[Bound], guess: Guess | None) -> dict[str, bool]:
    """Return the figures by which an item is left."""
    return {
        bound.measure: not bound.within(item_figure(score, bound.measure), bound.of_item(guess))
        for bound in bounds
    }


def is_whole(score: AnswerScore, bounds: Sequence[Bound], guess: Guess | None) -> bool:
    """Return whether an item is reproduced whole, which it could not be without having been learned."""
    strength = next((bound for bound in bounds if bound.measure in WHOLE), None)
    if strength is None or score.tokens - 1 < LEAST_TOKENS:
        return False
    return item_figure(score, strength.measure) == 1 > strength.of_item(guess)


class ItemWatch:
    """Which items of the forget set were left when last measured, and which to measure next.

    A sample takes all that were left, up to three quarters of it, and draws the rest evenly from the others,
    by the seed and the step alone. Means and shares are estimated from each of the two groups, weighted by
    its size, so that measuring the items left more often does not bias them.

    Args:
        size: rows of the forget set.
        most: rows of a sample.
        seed: of the draws.
    """

    def __init__(self, size: int, most: int, seed: int) -> None:
        self.size, self.most, self.seed = size, most, seed
        self.left = [True] * size
        self._kept = list(self.left)

    def draw(self, step: int) -> list[int]:
        """Return the rows that the check after this step measures, in order."""
        if self.size <= self.most:
            return list(range(self.size))
        order = permutation(self.size, self.seed + 5, step)
        left, others = ([row for row in order if self.left[row] is kind] for kind in (True, False))
        first = min(len(left), max(round(FROM_LEFT * self.most), self.most - len(others)))
        return sorted(left[:first] + others[: self.most - first])

    def view(
        self,
        rows: Sequence[int],
        scores: Sequence[AnswerScore],
        bounds: Sequence[Bound],
        guesses: Mapping[int, Guess],
        whole: bool = True,
    ) -> View:
        """Return the view of the whole set that the scores of some rows give, and remember which are left.

        Args:
            rows: those that were measured.
            scores: theirs.
            bounds: of the forget target; empty where there is none.
            guesses: how well items could be guessed, by row.
            whole: whether items that are reproduced whole count.
        """
        weights = self._weights(rows)
        found = [is_left(score, bounds, guesses.get(row)) for row, score in zip(rows, scores, strict=True)]
        entire = [
            row
            for row, score in zip(rows, scores, strict=True)
            if whole and is_whole(score, bounds, guesses.get(row))
        ]
        shares: dict[str, float] = {
            bound.measure: math.fsum(
                weight for weight, by in zip(weights, found, strict=True) if by[bound.measure]
            )
            for bound in bounds
        }
        left = [row for row, by in zip(rows, found, strict=True) if any(by.values()) or row in entire]
        if bounds:
            for row in rows:
                self.left[row] = False
            for row in left:
                self.left[row] = True
        return View(list(rows), self.size, _means(scores, weights), shares, left, entire)

    def _weights(self, rows: Sequence[int]) -> list[float]:
        """Return the weight of each row, as a share of the whole set."""
        if len(rows) == self.size:
            return [1 / self.size] * self.size
        seen = {kind: sum(self.left[row] is kind for row in rows) for kind in (True, False)}
        there = {kind: sum(left is kind for left in self.left) for kind in (True, False)}
        # a group of which nothing was measured is taken to be like the other
        total = sum(there[kind] for kind in (True, False) if seen[kind])
        each = {kind: there[kind] / (seen[kind] * total) if seen[kind] else 0.0 for kind in (True, False)}
        return [each[self.left[row]] for row in rows]

    def to_push(self) -> list[int]:
        """Return the rows that the next steps draw from: those that are left, or all."""
        rows = [row for row, left in enumerate(self.left) if left]
        return rows or list(range(self.size))

    def keep(self) -> None:
        """Remember the items left in the best state."""
        self._kept = list(self.left)

    def go_back(self) -> None:
        """The best state was restored: the items left are those left in it."""
        self.left = list(self._kept)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {name: _rows(flags) for name, flags in (("left", self.left), ("kept", self._kept))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self.left, self._kept = ([False] * self.size for _ in range(2))
        for name, flags in (("left", self.left), ("kept", self._kept)):
            for row in state[name]:
                flags[row] = True


def _rows(flags: Sequence[bool]) -> list[int]:
    return [row for row, flag in enumerate(flags) if flag]


def _means(scores: Sequence[AnswerScore], weights: Sequence[float]) -> dict[str, float]:
    if len(set(weights)) == 1:
        return means(scores)

    def mean(values: Sequence[float]) -> float:
        return math.fsum(weight * value for weight, value in zip(weights, values, strict=True))

    return {
        "probability": mean([score.probability for score in scores]),
        "extraction_strength": mean([score.extraction_strength for score in scores]),
        "exact_memorisation": mean([score.exact_memorisation for score in scores]),
        "verbatim": mean([score.verbatim for score in scores]),
        "nll": mean([score.nll for score in scores]) / mean([score.tokens for score in scores]),
        CERTAINTY: mean([unlikelihood([score]) for score in scores]),
    }
