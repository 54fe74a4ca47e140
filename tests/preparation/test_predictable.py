"""How predictable a token to forget is: counts by hand and by a slow oracle, and what they may not use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ngdiff.data.batching import collate
from ngdiff.data.encoding import EncodedExample
from ngdiff.data.examples import Example
from ngdiff.models.logprobs import predicting_positions
from ngdiff.preparation.predictable import (
    ORDER,
    _Copying,
    _followers,
    _NGrams,
    figures_at_rest,
    labelled_places,
    levels_by_certainty,
    matched,
    sharpened,
    with_predictable,
)


def example(prompt: Sequence[int], answer: Sequence[int]) -> EncodedExample:
    ids = (*prompt, *answer)
    labels = (*[-100] * len(prompt), *answer)
    return EncodedExample(ids, labels, Example((), "", "text", "a, line 1"), False)


def witten_bell(examples: Sequence[EncodedExample], context: tuple[int, ...], word: int) -> float:
    """Go through all examples anew for every number."""
    if context == ("floor",):
        return 1 / (len({token for one in examples for token in one.input_ids}) + 1)
    followed = [
        one.input_ids[place]
        for one in examples
        for place in labelled_places(one)
        if place >= len(context) and one.input_ids[place - len(context) : place] == context
    ]
    shorter = witten_bell(examples, context[1:] if context else ("floor",), word)  # type: ignore[arg-type]
    if not followed:
        return shorter
    types = len(set(followed))
    return (followed.count(word) + types * shorter) / (len(followed) + types)


EXAMPLES = st.lists(
    st.tuples(st.lists(st.integers(0, 4), max_size=4), st.lists(st.integers(0, 4), min_size=1, max_size=8)),
    min_size=1,
    max_size=5,
).map(lambda rows: [example(*row) for row in rows])


@settings(deadline=None, max_examples=60)
@given(EXAMPLES, EXAMPLES)
def test_ngrams_agree_with_a_slow_oracle(retain: list[EncodedExample], forget: list[EncodedExample]) -> None:
    counted = _NGrams(retain)
    for one in forget:
        for place in labelled_places(one):
            context = one.input_ids[max(0, place - ORDER + 1) : place]
            expected = witten_bell(retain, context, one.input_ids[place])
            assert counted.probability(one.input_ids, place) == pytest.approx(expected, rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(EXAMPLES, st.lists(st.integers(0, 4), max_size=5))
def test_ngram_probabilities_of_all_tokens_add_up_to_less_than_one(
    retain: list[EncodedExample], before: list[int]
) -> None:
    counted = _NGrams(retain)
    known = {token for one in retain for token in one.input_ids}
    total = sum(counted.probability((*before, token), len(before)) for token in known)
    assert 0 < total < 1  # something is left for tokens that the retain set lacks


def test_ngrams_by_hand() -> None:
    retain = [example([9], [1, 2, 1, 2, 1, 3])]
    counted = _NGrams(retain)
    # four kinds of tokens and one for all others; of 6 tokens 3 are 1, and there are 3 types
    empty = (3 + 3 / 5) / (6 + 3)
    after_2 = (2 + 1 * empty) / (2 + 1)  # 2 is followed by 1, twice
    assert counted.probability((2, 1), 1) == pytest.approx(after_2)
    assert counted.probability((8, 1), 1) == pytest.approx(
        empty
    )  # 8 is unknown: back to what needs no context


def test_copying_by_hand() -> None:
    # 5 stands in the prompt and 6 follows: the first answer goes on so, the second does not
    retain = [example([5, 6, 7], [5, 6]), example([5, 6, 7], [5, 8])]
    copying = _Copying(retain)
    asked = example([5, 6, 7], [5, 6, 1])
    follows = _followers(asked)
    found = [copying.probability(follows, asked.input_ids, place) for place in labelled_places(asked)]
    # 5: behind 7, which nothing follows in the prompt; 6: behind 5, in one of two cases, and one more unseen
    assert found == [0.0, pytest.approx(1 / 3), 0.0]


@pytest.mark.parametrize(
    ("level", "expected"), [(0.0, 0.0), (0.25, 0.1), (0.5, 0.5), (0.75, 0.9), (1.0, 1.0)]
)
def test_odds_are_squared(level: float, expected: float) -> None:
    assert sharpened(level) == pytest.approx(expected)


def never_seen() -> tuple[list[EncodedExample], list[float]]:
    examples = [example([9], [1, 2, 4]), example([9], [1, 7, 8])]
    return examples, [0.9, 0.8, 0.1, 0.9, 0.2, 0.0]


def test_levels_rise_with_what_the_counts_say_and_stay_within_what_was_seen() -> None:
    retain = [example([9], [1, 2, 3]) for _ in range(5)]
    (found,) = with_predictable([example([9], [1, 2, 8])], retain, *never_seen())
    assert found.predictable is not None and len(found.predictable) == 3
    known, unknown = found.predictable[:2], found.predictable[2]
    assert all(0.0 <= unknown < level <= sharpened(0.9) for level in known)


def test_geometric_levels_by_hand() -> None:
    """Never-seen tokens alike in counts share one level: the geometric mean of their probabilities."""
    retain, forget = [example([9], [1, 2])], [example([9], [1]), example([9], [7])]
    unseen = [example([9], [7]), example([9], [6]), example([9], [1])]
    known, unknown = with_predictable(forget, retain, unseen, [0.1, 0.4, 0.5], geometric=True)
    assert known.predictable == pytest.approx((0.5,)) and unknown.predictable == pytest.approx((0.2,))
    _, unknown = with_predictable(forget, retain, unseen, [0.01, 0.0, 0.5], geometric=True)
    assert unknown.predictable == pytest.approx((1e-4,))  # one certain "never" does not decide alone


def slowly_matched(
    scores: list[float], certain: list[float], their_scores: list[float], theirs: list[float], many: int
) -> list[float]:
    """Go through the neighbours of each value one by one."""

    def neighbours(count: int, middle: int) -> range:
        size = min(many, count)
        first = min(max(middle - size // 2, 0), count - size)
        return range(first, first + size)

    order = sorted(range(len(scores)), key=lambda one: scores[one])
    their_order = sorted(range(len(theirs)), key=lambda one: their_scores[one])
    found = [0.0] * len(scores)
    for place, one in enumerate(order):
        around = [certain[order[other]] for other in neighbours(len(scores), place)]
        less, same = (sum(map(test, around)) for test in (certain[one].__gt__, certain[one].__eq__))
        share = (less + (same - 1) / 2) / (len(around) - 1) if len(around) > 1 else 0.5
        lower = sum(score < scores[one] for score in their_scores)
        middle = (lower + lower + their_scores.count(scores[one])) // 2
        there = sorted(theirs[their_order[other]] for other in neighbours(len(theirs), middle))
        below = int(share * (len(there) - 1))
        above = min(below + 1, len(there) - 1)
        found[one] = there[below] + (share * (len(there) - 1) - below) * (there[above] - there[below])
    return found


POINTS = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5]), st.floats(0, 1)), min_size=1, max_size=12)


@given(ours=POINTS, theirs=POINTS, many=st.integers(1, 12))
def test_ranks_are_matched_among_neighbours(
    ours: list[tuple[float, float]], theirs: list[tuple[float, float]], many: int
) -> None:
    columns = [list(column) for column in (*zip(*ours, strict=True), *zip(*theirs, strict=True))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ngdiff.preparation.predictable.NEIGHBOURS", many)
        patch.setattr("ngdiff.preparation.predictable._AT_ONCE", 3)
        found = matched(*map(np.array, columns))
    np.testing.assert_allclose(found, slowly_matched(*columns, many), atol=1e-12)
    values = [value for _, value in theirs]
    assert min(values) - 1e-12 <= found.min() and found.max() <= max(values) + 1e-12


@given(st.permutations(range(9)), st.lists(st.floats(0, 1), min_size=9, max_size=9))
def test_levels_have_the_distribution_of_never_seen_tokens(order: list[int], values: list[float]) -> None:
    """Among tokens alike in counts, the surest has the highest probability, and so on down."""
    found = matched(np.zeros(9), np.array(order, dtype=float), np.zeros(9), np.array(values))
    np.testing.assert_allclose(found, np.sort(values)[order], atol=1e-12)


def test_levels_by_certainty_by_hand() -> None:
    retain = [example([9], [1, 2])]
    forget = [replace(example([9], [7, 6]), secret=(False, True)), example([9], [5, 4])]
    unseen = [replace(example([9], [8, 8, 8]), secret=(False, True, False)), example([9], [8])]
    # of 7, 5 and 4 the model is surest of 4; never-seen tokens that are no secrets have .1, .3 and .9
    found = levels_by_certainty(forget, retain, unseen, [-3.0, -0.1, -4.0, -1.0], [0.3, 1.0, 0.1, 0.9])
    assert found[0] == pytest.approx((0.3, 0.0)) and found[1] == pytest.approx((0.1, 0.9))
    assert levels_by_certainty(forget, retain, [], [-3.0, -0.1, -4.0, -1.0], []) == [(0.0, 0.0), (0.0, 0.0)]


def test_nothing_of_the_forget_set_is_counted() -> None:
    retain = [example([9], [1, 2, 3]), example([9, 4], [4, 3, 1])]
    one, other = example([9], [7, 7, 7]), example([9], [1, 7, 7])
    alone = with_predictable([one], retain, *never_seen())
    together = with_predictable([one, other, other], retain, *never_seen())
    assert alone[0].predictable == together[0].predictable
    later = with_predictable([example([9], [7, 7, 1])], retain, *never_seen())
    assert later[0].predictable is not None and alone[0].predictable is not None
    assert later[0].predictable[:2] == alone[0].predictable[:2]


def test_levels_lie_beside_their_tokens_in_a_batch() -> None:
    retain = [example([9], [1, 2, 3])]
    forget = with_predictable(
        [example([9, 9], [1, 2]), example([], [5, 1, 2]), example([9], [3])], retain, *never_seen()
    )
    batch = collate(forget, pad_id=0)
    rows, columns = predicting_positions(batch["labels"]).nonzero(as_tuple=True)
    tokens = batch["labels"][rows, columns + 1].tolist()
    assert tokens == [1, 2, 1, 2, 3]  # the first token of a text has nothing before it
    levels = [level for one in forget for level in one.predictable or ()]
    assert batch["predictable"].tolist() == pytest.approx(levels) and len(levels) == 5
    assert "predictable" not in collate([forget[0], retain[0]], pad_id=0)
    assert batch["predictable"].dtype == torch.float32


def test_figures_where_every_token_is_at_its_level() -> None:
    half = replace(example([9], [1, 2]), predictable=(0.5, 0.125))  # 1 and 3 bits: 2 bits a token
    whole = replace(example([9], [3]), predictable=(1.0,))
    found = figures_at_rest([half, whole, example([9], [4])])
    assert found == pytest.approx({"nll": log(2), "probability": (0.25 + 1) / 2})
    assert figures_at_rest([example([9], [4])]) == {}
