"""One line that says what a run came to, for every way a run can end, and what to do next."""

from __future__ import annotations

from typing import Any

import pytest

from ngdiff.outcome import NEXT, verdict

BOUNDS = [
    {"measure": "extraction_strength", "item": 0.1, "mean": 0.04},
    {"measure": "probability", "item": 0.3, "mean": 0.2},
]
STOP: dict[str, Any] = {
    "code": "end",
    "reason": "all 80 steps are done",
    "target_met": False,
    "kept_step": 80,
    "target": {"measure": "extraction_strength", "value": 0.04, "bounds": BOUNDS},
    "left": [{"row": n} for n in range(7)],
    "looked_at": {"rows": 30, "of": 30},
}
AFTER = {"extraction_strength": 0.31, "probability": 0.15, "nll": 2.0}


def test_a_missed_target_names_the_figure_that_missed_it_and_the_items() -> None:
    said = verdict(STOP, AFTER)
    assert said.line == "NOT FORGOTTEN (extraction strength 0.310, target 0.040; 7 of 30 items left)"
    assert said.advice == NEXT["end"]


def test_where_the_means_are_met_the_items_that_are_left_decide() -> None:
    said = verdict(STOP, AFTER | {"extraction_strength": 0.03})
    assert said.line == "NOT FORGOTTEN (7 of 30 items left)"


def test_a_met_target_shows_all_that_decides() -> None:
    said = verdict(
        STOP | {"target_met": True, "code": "target", "left": []}, AFTER | {"extraction_strength": 0.03}
    )
    figures = "extraction strength 0.030, target 0.040; probability 0.150, target 0.200; 0 of 30 items left"
    assert said.line == f"FORGOTTEN ({figures})" and said.advice == NEXT["forgotten"]


def test_a_model_that_did_not_know_the_data_has_not_forgotten_it() -> None:
    said = verdict(STOP | {"target_met": True, "code": "target", "kept_step": 0, "left": []}, AFTER)
    assert said.line == "NOTHING CHANGED (the model did not know this)"
    assert said.outcome == "nothing changed" and said.advice == NEXT["nothing changed"]


def test_without_a_target_nothing_is_claimed() -> None:
    said = verdict(STOP | {"target_met": None, "target": None}, AFTER)
    assert said.line == "NO TARGET" and said.advice == NEXT["no target"]


@pytest.mark.parametrize("code", ["floor", "stationary", "non-finite"])
def test_the_advice_goes_by_why_the_run_ended(code: str) -> None:
    assert verdict(STOP | {"code": code}, AFTER).advice == NEXT[code]


def test_a_run_that_was_stopped_is_continued() -> None:
    said = verdict(STOP | {"reason": "stopped from outside after step 3"}, AFTER)
    assert said.advice == NEXT["stopped"]


def test_a_loss_misses_its_target_from_below() -> None:
    bounds = [{"measure": "nll", "item": 2.0, "mean": 3.5}]
    said = verdict(STOP | {"target": {"measure": "nll", "value": 3.5, "bounds": bounds}, "left": None}, AFTER)
    assert said.line == "NOT FORGOTTEN (NLL 2.000, target 3.500)"


def test_what_is_hidden_under_a_key_is_not_in_the_line() -> None:
    assert verdict(STOP, {}).line == "NOT FORGOTTEN (7 of 30 items left)"


@pytest.mark.parametrize("wrong", [None, 3, "x", [1], [None], {"a": 1}, float("nan")])
def test_a_record_of_any_form_gives_a_line(wrong: Any) -> None:
    for name in ("target", "left", "looked_at", "code", "reason", "kept_step"):
        assert verdict(STOP | {name: wrong}, AFTER).line.startswith("NOT FORGOTTEN")
    assert verdict(STOP | {"target": {"bounds": wrong}}, {"probability": wrong}).line
