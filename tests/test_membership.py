"""Membership attacks by hand, and what an attack's score must do when a text is better known."""

from __future__ import annotations

import math
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngdiff.evaluation.item_scores import ATTACKS, lowest_mean, privleak
from ngdiff.inference.teacher_forced import AnswerScore


def score(log_probs: list[float], z_scores: list[float] | None = None) -> AnswerScore:
    return AnswerScore(
        -sum(log_probs), len(log_probs), 0.0, 0.0, tuple(log_probs), tuple(z_scores or [0.0] * len(log_probs))
    )


def test_by_hand() -> None:
    one = score([-1.0, -4.0, -2.0, -3.0, -0.5], [0.5, -2.0, 0.0, -1.0, 1.0])
    text = "a text that is compressed " * 3
    assert ATTACKS["loss"](one, text) == pytest.approx(-10.5 / 5)
    assert ATTACKS["zlib"](one, text) == pytest.approx(-2.1 / len(zlib.compress(text.encode())))
    assert ATTACKS["min_k"](one, text) == -4  # 40% of four tokens are one: the last is left out
    assert ATTACKS["min_k_plus_plus"](one, text) == -2
    longer = score([-1.0, -4.0, -2.0, -3.0, -0.5, -9.0], [0.5, -2.0, 0.0, -1.0, 1.0, -9.0])
    assert ATTACKS["min_k"](longer, text) == pytest.approx((-4 - 3) / 2)
    assert ATTACKS["min_k_plus_plus"](longer, text) == pytest.approx((-2 - 1) / 2)
    assert ATTACKS["min_k"](score([-3.0]), text) == -3


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 1), (4, 1), (5, 2), (7, 2), (8, 3), (10, 4)])
def test_how_many_tokens_min_k_keeps(count: int, kept: int) -> None:
    values = [float(n) for n in range(count)]
    assert lowest_mean(values) == pytest.approx(sum(range(kept)) / kept)


def test_min_k_needs_tokens() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        lowest_mean([])


LOG_PROBS = st.lists(st.floats(-20, 0), min_size=1, max_size=12)


@given(LOG_PROBS, st.floats(0.01, 5), st.text(min_size=1))
def test_a_better_known_text_scores_higher(values: list[float], more: float, text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    for name in ("loss", "zlib", "min_k"):
        known, unknown = score([v + more for v in values]), score(values)
        assert ATTACKS[name](known, text) > ATTACKS[name](unknown, text)


@given(LOG_PROBS)
def test_min_k_lies_between_the_lowest_and_the_mean(values: list[float]) -> None:
    assert min(values) - 1e-9 <= lowest_mean(values) <= math.fsum(values) / len(values) + 1e-9


def test_privleak_by_hand() -> None:
    assert privleak(0.75, 0.5) == pytest.approx(-50)
    assert privleak(0.5, 0.5) == 0
    assert privleak(0.25, 0.5) == pytest.approx(50)


@pytest.mark.parametrize("pair", [(1.1, 0.5), (0.5, -0.1), (0.5, 1.0)])
def test_privleak_out_of_range(pair: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"AUC|area"):
        privleak(*pair)
