"""Truth ratios by hand, and both conventions; ROUGE and PrivLeak by hand."""

from __future__ import annotations

import math

import pytest

from ngdiff.evaluation.item_scores import (
    forget_truth_ratio,
    guarded_forget_truth_ratio,
    guarded_log_ratio,
    option_probability,
    privleak,
    rouge,
    truth_ratio,
    truth_share,
    utility_truth_ratio,
)
from ngdiff.inference.teacher_forced import AnswerScore


def answer(*probabilities: float) -> AnswerScore:
    return AnswerScore(-sum(math.log(p) for p in probabilities), len(probabilities), 0.0, 0.0)


def test_ratio_is_of_geometric_means() -> None:
    right, wrong = answer(0.5, 0.5), [answer(0.25), answer(1.0, 1.0, 1.0)]
    # p(right) = 0.5; p(wrong) = sqrt(0.25 * 1) = 0.5
    assert truth_ratio(right, wrong) == pytest.approx(1.0)
    assert truth_ratio(answer(0.5), [answer(0.125)]) == pytest.approx(0.25)
    assert truth_ratio(answer(0.125), [answer(0.5)]) == pytest.approx(4.0)


def test_a_ratio_may_overflow_and_needs_a_wrong_answer() -> None:
    lost = AnswerScore(800.0, 1, 0.0, 0.0)
    assert truth_ratio(lost, [answer(0.5)]) == math.inf
    assert forget_truth_ratio(math.inf) == utility_truth_ratio(math.inf) == truth_share(math.inf) == 0.0
    with pytest.raises(ValueError, match="wrong answer"):
        truth_ratio(lost, [])


@pytest.mark.parametrize(
    ("ratio", "forget", "utility", "share"),
    [(0.25, 0.25, 0.75, 0.8), (4.0, 0.25, 0.0, 0.2), (1.0, 1.0, 0.0, 0.5), (0.0, 0.0, 1.0, 1.0)],
)
def test_aggregated_values(ratio: float, forget: float, utility: float, share: float) -> None:
    assert forget_truth_ratio(ratio) == pytest.approx(forget)
    assert utility_truth_ratio(ratio) == pytest.approx(utility)
    assert truth_share(ratio) == pytest.approx(share)


def test_probability_among_options() -> None:
    assert option_probability(answer(0.5), [answer(0.25), answer(0.25)]) == pytest.approx(0.5)
    hopeless = AnswerScore(2000.0, 2, 0.0, 0.0)
    assert option_probability(hopeless, [hopeless, hopeless, hopeless]) == pytest.approx(0.25)


def test_rouge_by_hand() -> None:
    found = rouge("The cats sat on the mats", "A cat on a mat sat")  # stems: cat, sat, on, mat
    assert found.rouge1_recall == pytest.approx(4 / 6)
    assert found.rougeL_recall == pytest.approx(3 / 6)  # cat on mat
    assert found.rougeL_f1 == pytest.approx(2 * (3 / 6) * (3 / 6) / (3 / 6 + 3 / 6))
    same = rouge("Ada Blue.", "ada blue")
    assert (same.rouge1_recall, same.rougeL_recall, same.rougeL_f1) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("empty", ["", "  ", "..."])
def test_an_empty_answer_has_no_rouge(empty: str) -> None:
    found = rouge("Ada Blue", empty)
    assert (found.rouge1_recall, found.rougeL_recall, found.rougeL_f1) == (0.0, 0.0, 0.0)


def test_privleak_by_hand() -> None:
    assert privleak(0.5, 0.5) == 0.0
    assert privleak(1.0, 0.5) == -100.0
    assert privleak(0.2, 0.6) == pytest.approx(100 * (0.8 - 0.4) / 0.4)
    with pytest.raises(ValueError, match="undefined"):
        privleak(0.5, 1.0)
    with pytest.raises(ValueError, match="must lie in"):
        privleak(1.2, 0.5)


@pytest.mark.parametrize(
    ("right", "wrong"), [(1.0, 0.5), (5.0, 9.0), (22.0, 23.0), (40.0, 39.0), (2.0, 60.0)]
)
def test_openunlearnings_ratio_is_its_own_arithmetic(right: float, wrong: float) -> None:
    slow = math.exp(-wrong) / (math.exp(-right) + 1e-10)
    assert math.exp(guarded_log_ratio(right, wrong)) == pytest.approx(slow, rel=1e-9)
    assert guarded_forget_truth_ratio(slow) == min(slow, 1 / (slow + 1e-10))


def test_the_two_conventions_part_on_a_destroyed_model() -> None:
    exact, guarded = math.exp(900.0 - 899.5), math.exp(guarded_log_ratio(900.0, 899.5))
    assert forget_truth_ratio(exact) == pytest.approx(math.exp(-0.5))
    assert guarded == 0.0 and guarded_forget_truth_ratio(guarded) == 0.0
    assert guarded_log_ratio(900.0, 899.5) == pytest.approx(-899.5 + 10 * math.log(10))
