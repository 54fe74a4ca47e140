"""How well an item could be guessed by somebody who never met its subject."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from ngdiff.data.datasets import as_encoded
from ngdiff.inference.teacher_forced import AnswerScore
from ngdiff.stopping.never_seen import LEAST, guess_errors, guesses, secret_level
from tiny import tiny_tokenizer

EXAMPLE = as_encoded([{"question": "Who?", "answer": "the cat"}], tiny_tokenizer(), 64, "rows")[0]


def item(probs: list[list[float]] | None, secret: tuple[bool, ...] | None) -> Any:
    table = None if probs is None else torch.tensor(probs)
    return replace(EXAMPLE, expected_probs=table, secret=secret)


def score(*log_probs: float) -> AnswerScore:
    return AnswerScore(-sum(log_probs), len(log_probs), 0.0, 0.0, tuple(log_probs))


def test_the_level_of_secrets_is_that_of_never_seen_secrets() -> None:
    """The second greatest of twenty means is their 95th percentile from above: the greatest here."""
    unseen = [item(None, (False, True, True))] * 20
    scores = [score(-0.1, -float(n), -float(n + 2)) for n in range(20)]
    assert secret_level(unseen, scores) == pytest.approx(-1.0)
    # without any secret token, that of all of them
    assert secret_level([item(None, (False, False))], [score(-1.0, -3.0)]) == pytest.approx(-2.0)


def test_a_guess_by_hand() -> None:
    """Language at its expectation, the secret at the level of never-seen secrets, the end left out of ES."""
    forget = [item([[0.5, 0.4], [0.0, 0.9], [0.8, 0.1], [1.0, 0.0]], (False, True, False, False))]
    unseen = [item(None, (True,))]
    found = guesses(forget, unseen, [score(-4.0)])
    strength, probability, passage = found[0]
    assert strength == pytest.approx(1 / 3)  # of three tokens the last alone follows, behind the secret
    assert passage == pytest.approx(1 / 3)  # a run of one
    assert probability == pytest.approx(math.exp((math.log(0.5) - 4.0 + math.log(0.8)) / 4), rel=1e-5)


def test_a_guess_is_made_of_typical_levels_where_they_are_known() -> None:
    """Its error was measured with these levels, not with the expectation of each token."""
    known = replace(item([[0.9, 0.05], [0.6, 0.3], [1.0, 0.0]], None), typical=(0.5, 0.1, 1.0))
    (found,) = guesses([known], [item(None, None)], [score(-1.0)]).values()
    # of the second token .9 is left, three quarters of it another token's, as three of four were expected
    assert found == (0.0, pytest.approx((0.5 * 0.1) ** (1 / 3), rel=1e-5), 0.5)


def test_a_yes_is_guessed_at_its_expectation_and_nothing_is_below_the_least() -> None:
    forget = [item([[0.6, 0.4], [1.0, 0.0]], (False, False)), item([[0.0, 1.0], [1.0, 0.0]], None)]
    found = guesses(forget, [item(None, None)], [score(-1.0)])
    assert found[0] == (1.0, pytest.approx(math.sqrt(0.6), rel=1e-5), 1.0)
    assert found[1] == (0.0, pytest.approx(math.sqrt(LEAST), rel=1e-5), 0.0)


def test_without_expectations_nothing_is_guessed() -> None:
    assert guesses([item(None, None)], [item(None, None)], [score(-1.0)]) == {}


def test_errors_of_guesses_by_hand() -> None:
    """Levels .5 and .2, the latter a secret, whose level is that of the greatest of two: -1 nat."""
    one = replace(item(None, (False, True)), predictable=(0.5, 0.2))
    other = replace(item(None, (False, True)), predictable=(1.0, 0.9))
    unknown = item(None, (False, False))
    found = guess_errors([one, other, unknown], [score(-2.0, -1.0), score(-0.5, -3.0), score(-1.0, -1.0)])
    assert found == pytest.approx([(-3.0 - (math.log(0.5) - 1.0)) / 2, (-3.5 - (0.0 - 1.0)) / 2], rel=1e-5)
