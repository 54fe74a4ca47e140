"""forget and retain examples -> how predictable each token to forget is without the forget set.

Most of an answer to forget is language: in "The author's name is Hina Ameen." only the name is knowledge. A
model that never saw the answer predicts the rest equally well, from what it learned elsewhere and from the
question. This module estimates that without such a model, from counts:

- the retain set's answers, as an interpolated n-gram model of their tokens (Witten and Bell 1991);
- the question itself: where the last tokens written occur in the prompt, what follows them there is likely to
  follow again. How likely, by the length of the match, is counted on the retain set.

The larger of the two ranks the tokens. The starting model calibrates it on text that it never saw: the level
of a token is the mean probability of never-seen tokens of the same rank (isotonic regression). Such tokens
are still of two kinds, language near 1 and knowledge near 0. A loss that spares language needs the kind of
the majority, so the level's odds are squared. A loss that brings an answer to the probability of a never-seen
one needs both kinds apart (:func:`levels_by_certainty`), and the guess of a never-seen answer's probability
the geometric mean, because an answer's probability is the geometric mean of its tokens'. The forget set's
answers are not counted.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import exp, log
from operator import neg
from statistics import fmean

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ngdiff.data.encoding import IGNORE, EncodedExample

ORDER = 4
"""Tokens of the longest n-gram counted."""

LEAST = 1e-6
"""Least probability of a never-seen token in geometric means."""

NEIGHBOURS = 80
"""Tokens of about the same predictability among which the certain ones are told from the others."""

_AT_ONCE = 4096
"""Tokens whose neighbours are compared at once."""

LONGEST_MATCH = 3
"""Length of the longest match with the prompt that is distinguished from longer ones."""

MOST_COUNTED = 400_000
"""Tokens of the retain set that are counted, evenly spread over it; they take at most about 300 MB."""

Ids = tuple[int, ...]
Values = NDArray[np.float64]
Followers = dict[Ids, set[int]]
"""What follows each short piece of a prompt."""


def with_predictable(
    forget: Sequence[EncodedExample],
    retain: Sequence[EncodedExample],
    never_seen: Sequence[EncodedExample],
    probabilities: Sequence[float],
    *,
    geometric: bool = False,
) -> list[EncodedExample]:
    """Return the forget examples with ``predictable`` filled in: each labelled token's level, in [0, 1].

    Args:
        forget: what is to be forgotten.
        retain: what is to be kept, encoded with the same tokenizer.
        never_seen: text the model never saw.
        probabilities: of the labelled tokens of ``never_seen``, in reading order, under the starting model.
        geometric: take geometric means of never-seen tokens, rather than means whose odds are squared.
    """
    from sklearn.isotonic import IsotonicRegression  # its import takes a second

    counts = Counts(retain)
    scale = IsotonicRegression(y_max=0.0 if geometric else 1.0, out_of_bounds="clip")
    seen = [log(max(LEAST, one)) for one in probabilities] if geometric else probabilities
    scale.fit([score for example in never_seen for score in counts.scores(example)], seen)
    level = exp if geometric else sharpened
    return [
        replace(example, predictable=tuple(map(level, scale.predict(scores))) if scores else ())
        for example in forget
        for scores in (counts.scores(example),)
    ]


def levels_by_certainty(
    forget: Sequence[EncodedExample],
    retain: Sequence[EncodedExample],
    never_seen: Sequence[EncodedExample],
    certain: Sequence[float],
    probabilities: Sequence[float],
) -> list[tuple[float, ...]]:
    """Return the level of each labelled token to forget: a probability that never-seen tokens like it have.

    Tokens that are equally predictable from the texts to keep are language or knowledge. Of two tokens of an
    answer that it learned, the starting model is surer of language, which it knew before. So among
    neighbours in predictability the surest token has the highest probability that a never-seen one has, and
    so on down: the levels are distributed as the probabilities of never-seen tokens are. Secrets are on
    neither side, and have the level 0.

    Args:
        forget: what is to be forgotten, with ``secret`` filled in.
        retain: what is to be kept, encoded with the same tokenizer.
        never_seen: text the model never saw, with ``secret`` filled in.
        certain: log-probabilities of the labelled tokens of ``forget``, in reading order, under the starting
            model.
        probabilities: of the labelled tokens of ``never_seen``, in the same order, under the same model.
    """
    counts = Counts(retain)
    scores, open_to_all = _scores_of(counts, forget)
    theirs, not_secret = _scores_of(counts, never_seen)
    levels = np.zeros(len(scores))
    levels[open_to_all] = matched(
        scores[open_to_all],
        np.asarray(certain)[open_to_all],
        theirs[not_secret],
        np.asarray(probabilities)[not_secret],
    )
    ends = np.cumsum([len(labelled_places(example)) for example in forget])[:-1]
    return [tuple(map(float, part)) for part in np.split(levels, ends)]


def _scores_of(counts: Counts, examples: Sequence[EncodedExample]) -> tuple[Values, NDArray[np.bool_]]:
    """Return the predictability of every labelled token, and which are no secrets."""
    scores, free = list[float](), list[bool]()
    for example in examples:
        own = counts.scores(example)
        scores += own
        free += [not flag for flag in example.secret] if example.secret else [True] * len(own)
    return np.array(scores), np.array(free, dtype=bool)


def matched(scores: Values, certain: Values, their_scores: Values, theirs: Values) -> Values:
    """Return, for each value, that of the other sample which has its rank among neighbours.

    Args:
        scores: where each value stands; its :data:`NEIGHBOURS` nearest by rank are its neighbours.
        certain: the values.
        their_scores: where those of the other sample stand.
        theirs: the values of the other sample; 0 everywhere is returned if there are none.
    """
    if not len(scores) or not len(theirs):
        return np.zeros(len(scores))
    order, their_order = np.argsort(scores, kind="stable"), np.argsort(their_scores, kind="stable")
    windows = sliding_window_view(certain[order], min(NEIGHBOURS, len(scores)))
    their_windows = sliding_window_view(theirs[their_order], min(NEIGHBOURS, len(theirs)))
    places, their_places = np.arange(len(scores)), _middles(their_scores[their_order], scores[order])
    found = np.empty(len(scores))
    for start in range(0, len(scores), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        around = windows[_first(places[part], windows)]
        own = certain[order][part, None]
        rank = (around < own).sum(axis=1) + ((around == own).sum(axis=1) - 1) / 2
        share = rank / max(1, around.shape[1] - 1) if around.shape[1] > 1 else np.full(len(rank), 0.5)
        there = np.sort(their_windows[_first(their_places[part], their_windows)], axis=1)
        place = share * (there.shape[1] - 1)
        below = np.floor(place).astype(int)
        above = np.minimum(below + 1, there.shape[1] - 1)
        each = np.arange(len(place))
        found[order[part]] = there[each, below] + (place - below) * (there[each, above] - there[each, below])
    return found


def _middles(ranked: Values, values: Values) -> NDArray[np.int_]:
    """Return the middle of the places at which each value could be put into a sorted sample."""
    middles: NDArray[np.int_] = np.searchsorted(ranked, values, "left")
    return (middles + np.searchsorted(ranked, values, "right")) // 2


def _first(places: NDArray[np.int_], windows: Values) -> NDArray[np.int_]:
    """Return the window whose middle is nearest to each place."""
    first: NDArray[np.int_] = np.clip(places - windows.shape[1] // 2, 0, len(windows) - 1)
    return first


def sharpened(level: float) -> float:
    """Square the odds of a probability."""
    return float(level**2 / (level**2 + (1 - level) ** 2))


def figures_at_rest(forget: Sequence[EncodedExample]) -> dict[str, float]:
    """Return mean NLL (nats a token) and mean probability of answers whose every token is at its level.

    A forget loss that holds tokens at their levels converges to these figures, as far as the model can.
    """
    losses = [
        -fmean(log(max(level, sys.float_info.min)) for level in example.predictable)
        for example in forget
        if example.predictable
    ]
    return {"nll": fmean(losses), "probability": fmean(map(exp, map(neg, losses)))} if losses else {}


def labelled_places(example: EncodedExample) -> list[int]:
    """Return the positions of labelled tokens, except the first of the sequence."""
    return [place for place, label in enumerate(example.labels) if label != IGNORE and place > 0]


def _thinned(examples: Sequence[EncodedExample]) -> Sequence[EncodedExample]:
    total = sum(len(labelled_places(example)) for example in examples)
    return examples[:: max(1, -(-total // MOST_COUNTED))]


class Counts:
    """Predictability of tokens from the retain set's answers: the larger of two probabilities."""

    def __init__(self, retain: Sequence[EncodedExample]) -> None:
        counted = _thinned(retain)
        self._language, self._copying = _NGrams(counted), _Copying(counted)

    def scores(self, example: EncodedExample) -> list[float]:
        """Return a number in [0, 1) for each labelled token; their order matters more than their size."""
        return [max(both) for both in self.parts(example)]

    def parts(self, example: EncodedExample) -> list[tuple[float, float]]:
        """Return two probabilities for each labelled token: by the n-grams and by the prompt."""
        follows, ids = _followers(example), example.input_ids
        return [
            (self._language.probability(ids, place), self._copying.probability(follows, ids, place))
            for place in labelled_places(example)
        ]


class _NGrams:
    """Witten-Bell: P_n(w | c) = (count(c w) + types(c) P_{n-1}(w | c')) / (count(c) + types(c))."""

    def __init__(self, examples: Sequence[EncodedExample]) -> None:
        self._counts: Counter[Ids] = Counter()
        self._totals: Counter[Ids] = Counter()
        self._types: Counter[Ids] = Counter()
        vocabulary: set[int] = set()
        for example in examples:
            ids = example.input_ids
            vocabulary.update(ids)
            for place in labelled_places(example):
                for context in _contexts(ids, place):
                    gram = (*context, ids[place])
                    self._types[context] += self._counts[gram] == 0
                    self._counts[gram] += 1
                    self._totals[context] += 1
        self._floor = 1 / (len(vocabulary) + 1)

    def probability(self, ids: Ids, place: int) -> float:
        """Return the probability of the token at a position, given the tokens before it."""
        found = self._floor
        for context in _contexts(ids, place):
            total, types = self._totals[context], self._types[context]
            if total == 0:
                break
            gram = (*context, ids[place])
            found = (self._counts[gram] + types * found) / (total + types)
        return found


def _contexts(ids: Ids, place: int) -> Iterator[Ids]:
    """Yield the contexts before a position, shortest first."""
    for length in range(min(ORDER, place + 1)):
        yield ids[place - length : place]


class _Copying:
    """How often an answer continues as the prompt does, where its last tokens occur in the prompt."""

    def __init__(self, examples: Sequence[EncodedExample]) -> None:
        hits, chances = Counter[int](), Counter[int]()
        for example in examples:
            follows = _followers(example)
            for place in labelled_places(example):
                length = _longest_match(follows, example.input_ids, place)
                chances[length] += 1
                hits[length] += _goes_on(follows, example.input_ids, place, length)
        self._rates = {length: hits[length] / (chances[length] + 1) for length in chances}

    def probability(self, follows: Followers, ids: Ids, place: int) -> float:
        """Return how likely the token at a position is, where the prompt continues with it, else 0."""
        length = _longest_match(follows, ids, place)
        return self._rates.get(length, 0.0) if _goes_on(follows, ids, place, length) else 0.0


def _followers(example: EncodedExample) -> Followers:
    """Return what follows each short piece of the prompt."""
    start = next((place for place, label in enumerate(example.labels) if label != IGNORE), 0)
    found: defaultdict[Ids, set[int]] = defaultdict(set)
    for end in range(1, start):
        for length in range(1, min(LONGEST_MATCH, end) + 1):
            found[example.input_ids[end - length : end]].add(example.input_ids[end])
    return found


def _longest_match(follows: Followers, ids: Ids, place: int) -> int:
    lengths = range(min(LONGEST_MATCH, place), 0, -1)
    return next((length for length in lengths if ids[place - length : place] in follows), 0)


def _goes_on(follows: Followers, ids: Ids, place: int, length: int) -> bool:
    return length > 0 and ids[place] in follows[ids[place - length : place]]
