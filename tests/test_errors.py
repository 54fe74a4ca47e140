"""Faults of one request are collected, and raised together."""

from __future__ import annotations

import pytest

from ngdiff.errors import Fault, Faults, RequestError

ONE, TWO = Fault("--a", "is wrong", "Give 1"), Fault("--b", "is wrong, too", "Give 2")


def _raise(*faults: Fault) -> int:
    raise RequestError(faults)


def test_faults_of_a_block_are_kept_and_what_follows_runs() -> None:
    faults = Faults()
    with faults.collecting():
        _raise(ONE)
    with faults.collecting():
        _raise(TWO)
    assert faults == [ONE, TWO]
    with pytest.raises(RequestError) as error:
        faults.raise_any()
    assert error.value.faults == (ONE, TWO)


def test_an_attempt_returns_its_outcome_or_what_is_there_without_one() -> None:
    faults = Faults([TWO])
    assert faults.attempt(lambda: 3, 4) == 3 and faults == [TWO]
    assert faults.attempt(lambda: _raise(ONE), 4) == 4 and faults == [TWO, ONE]


def test_other_errors_are_not_collected() -> None:
    faults = Faults()
    with pytest.raises(KeyError), faults.collecting():
        raise KeyError("x")
    faults.raise_any()  # nothing was found
