"""The criterion by hand: thresholds, what is left, what is whole, and samples that do not distort."""

from __future__ import annotations

import math
import random
from statistics import fmean, stdev

import numpy as np
import pytest

from ngdiff.stopping.criterion import Bound, ItemWatch, is_left, is_whole, measured_bounds
from ngdiff.stopping.rule import ForgetTarget, parse_stop_at
from scored import score

UNSEEN = [score(n / 100, 0.1 + n / 200) for n in range(40)]


def test_thresholds_are_order_statistics_and_means_have_a_margin() -> None:
    strength, odds = measured_bounds(("extraction_strength", "probability"), UNSEEN, 160, {})
    assert strength.item == pytest.approx(0.38)  # the 39th of 40: 95% of the way, rounded up
    assert odds.item == pytest.approx(0.1 + 38 / 200)
    values = [n / 100 for n in range(40)]
    margin = 1.645 * stdev(values) * math.sqrt(1 / 40 + 1 / 160)
    assert strength.mean == pytest.approx(fmean(values) + margin)
    (nll,) = measured_bounds(("nll",), UNSEEN, 160, {})
    losses = [one.mean_nll for one in UNSEEN]
    assert nll.item == pytest.approx(float(np.quantile(losses, 0.05, method="lower")))
    assert nll.mean == pytest.approx(fmean(losses))


def test_a_margin_covers_the_chance_of_two_samples_alike() -> None:
    """The share of item sets like the never-seen ones whose mean is within the bound is about 95%."""
    draw, within = random.Random(0), 0
    for _ in range(400):
        unseen, forget = ([draw.random() ** 2 for _ in range(count)] for count in (48, 40))
        bound = measured_bounds(("extraction_strength",), [score(v, 0.5) for v in unseen], 40, {})[0]
        within += fmean(forget) <= bound.mean
    assert 0.92 <= within / 400 <= 0.98


def test_guesses_raise_an_items_threshold_and_the_mean_by_their_share() -> None:
    plain = measured_bounds(("probability",), UNSEEN, 10, {})[0]
    guessed = measured_bounds(("probability",), UNSEEN, 10, {0: (0.0, 0.6), 1: (0.0, 0.01)})[0]
    mean = fmean(0.1 + n / 200 for n in range(40))
    assert guessed.mean - plain.mean == pytest.approx((0.6 - mean) / 10)
    assert guessed.of_item((0.0, 0.6)) == 0.6 and guessed.of_item((0.0, 0.01)) == guessed.item
    assert guessed.of_item(None) == plain.item


def test_a_guess_counts_with_the_error_that_never_seen_items_show() -> None:
    """Of twenty-one errors, in nats a token, the 95th percentile is the second greatest: log 1.5."""
    errors = [0.0] * 19 + [math.log(1.5), math.log(4)]
    guess = {0: (0.0, 0.4)}
    plain = measured_bounds(("probability",), UNSEEN, 10, guess)[0]
    (strength, odds) = measured_bounds(("extraction_strength", "probability"), UNSEEN, 10, guess, errors)
    assert odds.of_item((0.0, 0.4)) == pytest.approx(0.6) and odds.of_item((0.0, 0.9)) == 1.0
    assert odds.of_item((0.0, 0.01)) == odds.of_item(None) == plain.item
    assert odds.mean - plain.mean == pytest.approx((19 + 1.5 + 4) / 21 * 0.4 / 10 - 0.4 / 10)
    assert strength.error == 1.0  # errors are of probabilities
    # guesses that are too high are no reason for less
    assert measured_bounds(("probability",), UNSEEN, 10, guess, [-1.0] * 9)[0].of_item((0.0, 0.4)) == 0.4


BOUNDS = (Bound("extraction_strength", 0.3, 0.1), Bound("probability", 0.4, 0.2))


@pytest.mark.parametrize(
    ("strength", "odds", "left"),
    [(0.3, 0.4, (False, False)), (0.31, 0.4, (True, False)), (0.0, 0.41, (False, True))],
)
def test_an_item_is_left_by_either_figure(strength: float, odds: float, left: tuple[bool, bool]) -> None:
    assert tuple(is_left(score(strength, odds), BOUNDS, None).values()) == left
    assert not any(is_left(score(strength, odds), BOUNDS, (0.9, 0.9)).values())


def test_what_is_no_number_is_left() -> None:
    broken = score(0.0, 0.1)
    broken = type(broken)(math.nan, 8, math.nan, 0.0, broken.log_probs)
    assert all(is_left(broken, BOUNDS, None).values())


def test_whole_answers_count_from_four_tokens_on_and_where_they_cannot_be_guessed() -> None:
    assert is_whole(score(1.0, 0.1, tokens=5), BOUNDS, None)
    assert not is_whole(score(1.0, 0.1, tokens=4), BOUNDS, None)  # three, and the end of the turn
    assert not is_whole(score(0.99, 0.1, tokens=5), BOUNDS, None)
    assert not is_whole(score(1.0, 0.1, tokens=5), BOUNDS, (1.0, 0.1))
    assert not is_whole(score(1.0, 0.1, tokens=5), (Bound("extraction_strength", 1.0, 0.9),), None)


def watch(size: int, most: int, left: set[int]) -> ItemWatch:
    found = ItemWatch(size, most, seed=3)
    found.left = [row in left for row in range(size)]
    return found


def test_a_sample_has_what_was_left_and_is_drawn_anew_for_each_step() -> None:
    items = watch(500, 100, {7, 300, 499})
    draws = [items.draw(step) for step in (10, 20)]
    for rows in draws:
        assert len(rows) == 100 == len(set(rows)) and {7, 300, 499} <= set(rows)
        assert max(rows) == 499 and rows == sorted(rows)
    assert draws[0] != draws[1]
    assert items.draw(10) == draws[0]  # a function of seed and step
    many = watch(500, 100, set(range(400)))
    rows = many.draw(10)
    assert len(rows) == 100 and sum(row < 400 for row in rows) == 75
    assert len(watch(500, 100, set(range(490))).draw(1)) == 100
    assert watch(90, 100, set()).draw(10) == list(range(90))


def test_no_row_escapes_the_draws() -> None:
    items = watch(500, 100, {1, 2})
    seen = {row for step in range(40) for row in items.draw(step)}
    assert seen == set(range(500))


def test_samples_that_prefer_what_is_left_do_not_distort_the_estimate() -> None:
    """A tenth is left; samples of a quarter hold all of it, and still find a tenth."""
    left = set(range(0, 400, 10))
    strengths = [1.0 if row in left else 0.0 for row in range(400)]
    for step in range(5):
        items = watch(400, 100, left)
        rows = items.draw(step)
        seen = items.view(rows, [score(strengths[row], 0.1) for row in rows], BOUNDS, {})
        assert seen.shares["extraction_strength"] == pytest.approx(0.1)
        assert seen.figures["extraction_strength"] == pytest.approx(0.1)
        assert seen.figures["nll"] == pytest.approx(-math.log(0.1))
        assert not seen.complete and sorted(seen.left) == sorted(left)


def test_what_was_left_in_the_best_state_comes_back_with_it() -> None:
    items = ItemWatch(4, 4, 0)
    rows = list(range(4))
    items.view(rows, [score(0.9, 0.1)] * 2 + [score(0.0, 0.1)] * 2, BOUNDS, {})
    items.keep()
    assert items.to_push() == [0, 1]
    items.view(rows, [score(0.0, 0.1)] * 4, BOUNDS, {})
    assert items.to_push() == rows  # nothing is left: all
    again = ItemWatch(4, 4, 0)
    again.load_state_dict(items.state_dict())
    again.go_back()
    assert again.to_push() == [0, 1]


def test_forgotten_needs_items_means_and_nothing_whole() -> None:
    target = parse_stop_at("auto")
    assert target is not None
    target = target.measured(UNSEEN, 40, "text for a test", {})
    fine = score(0.05, 0.15)

    def forgotten(*others: tuple[int, object]) -> bool:
        scores = [fine] * 40
        for count, other in others:
            scores[:count] = [other] * count  # type: ignore[list-item]
        items = ItemWatch(40, 40, 0)
        seen = items.view(range(40), scores, target.bounds, target.guesses, target.whole)
        assert target.forgotten(seen) == (target.distance(seen) == 0)
        return target.forgotten(seen)

    assert forgotten()
    assert forgotten((2, score(0.5, 0.15))) and not forgotten((3, score(0.5, 0.15)))
    assert forgotten((2, score(0.05, 0.9))) and not forgotten((3, score(0.05, 0.9)))
    assert not forgotten((1, score(1.0, 0.15)))
    assert not forgotten((40, score(0.25, 0.15)))  # none above the threshold, and all above the mean
    assert "text for a test" in target.source


def test_a_value_that_was_given_is_for_items_and_the_mean() -> None:
    target = parse_stop_at("nll=3")
    assert target is not None
    assert target.bounds == (Bound("nll", 3.0, 3.0),)
    assert target.measured(UNSEEN, 9, "text", {}) is target
    items = ItemWatch(20, 20, 0)
    for low, met in ((1, True), (2, False)):
        scores = [score(0.0, math.exp(-2.9))] * low + [score(0.0, math.exp(-4))] * (20 - low)
        assert target.forgotten(items.view(range(20), scores, target.bounds, {}, False)) is met


def test_a_target_survives_its_checkpoint() -> None:
    from ngdiff.stopping.rule import Floor, StoppingRule

    target = parse_stop_at("auto")
    assert target is not None
    target = target.measured(UNSEEN, 40, "text", {3: (0.5, 0.25)})
    rule = StoppingRule(target, {"retain": Floor(0.98, 0.9, 0.882)}, 3)
    import json

    again = StoppingRule.from_state(json.loads(json.dumps(rule.state_dict())), 3)
    assert isinstance(again.target, ForgetTarget)
    assert again.target == target and again.floors == rule.floors
