"""The trainer: back to better weights, and at another pace."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ngdiff.preparation.comparisons
import ngdiff.training.measurements
import ngdiff.training.trainer
from ngdiff.stopping.rule import StoppingRule
from training_runs import (
    Keeper,
    leftovers,
    make,
    script,
    weights,
)

pytestmark = pytest.mark.usefixtures("quick_runs")


def test_utility_under_the_floor_leads_back_to_the_best_weights_and_a_smaller_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper()
    monkeypatch.setattr(ngdiff.training.trainer, "batch_extraction_strength", lambda _: torch.tensor(1.0))
    settings = {"stop_at": "extraction_strength=0.1", "check_every": 3, "max_steps": 12, "probe_every": 50}
    trainer = make(tmp_path, callbacks=[keeper], **settings, keep_utility=0.95)
    script(trainer, lambda step: (0.9 - 0.01 * step, 0.5 if step in (6, 9) else 1.0), monkeypatch)
    trainer.train()
    rates = [step.learning_rate for step in trainer.record.steps]
    first = rates[0]
    assert first is not None
    assert rates == pytest.approx([first] * 6 + [first / 2] * 3 + [first / 4] * 3)
    for name, value in keeper.at[3].items():  # step 3 was the best; steps 6 and 9 were under the floor
        assert torch.equal(keeper.at[9][name], value)
    assert any(not torch.equal(keeper.at[6][name], value) for name, value in keeper.at[3].items())
    (note,) = [note for note in trainer.record.notes if "restored" in note]
    assert note.startswith("step 9:") and "the weights of step 3" in note
    assert trainer.record.stop["kept_step"] == 12


def test_a_retreat_goes_back_no_further_than_the_floor_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper()
    monkeypatch.setattr(ngdiff.training.trainer, "batch_extraction_strength", lambda _: torch.tensor(1.0))
    settings = {"stop_at": "extraction_strength=0.1", "check_every": 3, "max_steps": 9, "probe_every": 50}
    trainer = make(tmp_path, callbacks=[keeper], **settings, keep_utility=0.95)
    before: dict[str, Tensor] = {}

    def figures(step: int) -> tuple[float, float]:
        """A third of the way from step 3 to step 9 costs nothing; at step 9, half of it is too much."""
        if step < 6:
            return 0.9 - 0.01 * step, 1.0
        if step == 9 and not before:
            before.update(copy.deepcopy(weights(trainer)))
            return 0.7, 0.5
        name = next(iter(keeper.at[3]))
        way = (weights(trainer)[name] - keeper.at[3][name]).norm()
        whole = (before[name] - keeper.at[3][name]).norm() if before else way
        return 0.8 - 0.1 * float(1 - way / whole), 1.0 if way < whole / 3 else 0.5

    script(trainer, figures, monkeypatch)
    trainer.train()
    kept = weights(trainer)
    assert trainer.record.stop["kept_step"] == 9
    for name, value in keeper.at[3].items():
        torch.testing.assert_close(kept[name], value + (before[name] - value) / 4)
    assert [(check["step"], check["above_floor"]) for check in trainer.record.checks] == [
        *((0, True), (3, True), (6, False)),
        *((9, False), (9, True)),
    ]
    assert trainer.record.checks[-1]["best"] and leftovers(tmp_path) == []
    (note,) = [note for note in trainer.record.notes if note.startswith("step 9:")]
    assert "the weights of step 3 were approached by 75% of the way" in note


def test_a_floor_that_heals_within_an_interval_costs_half_the_rate_and_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper()
    monkeypatch.setattr(ngdiff.training.trainer, "batch_extraction_strength", lambda _: torch.tensor(1.0))
    settings = {"stop_at": "extraction_strength=0.1", "check_every": 3, "max_steps": 9, "probe_every": 50}
    trainer = make(tmp_path, callbacks=[keeper], **settings, keep_utility=0.95)
    script(trainer, lambda step: (0.9 - 0.01 * step, 0.5 if step == 6 else 1.0), monkeypatch)
    trainer.train()
    rates = [step.learning_rate for step in trainer.record.steps]
    first = rates[0]
    assert first is not None and rates == pytest.approx([first] * 6 + [first / 2] * 3)
    assert not any("restored" in note for note in trainer.record.notes)
    assert any(not torch.equal(keeper.at[6][name], value) for name, value in keeper.at[3].items())
    assert trainer.record.stop["kept_step"] == 9


def test_a_run_whose_utility_is_spent_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngdiff.training.trainer, "batch_extraction_strength", lambda _: torch.tensor(1.0))
    settings = {"stop_at": "extraction_strength=0.1", "check_every": 3, "max_steps": 12, "probe_every": 50}
    trainer = make(tmp_path, **settings, keep_utility=0.8)
    figures = {0: (0.9, 1.0), 3: (0.2, 0.801), 6: (0.15, 0.79), 9: (0.15, 0.79)}
    script(trainer, lambda step: figures[step], monkeypatch)
    trainer.train()
    stop = trainer.record.stop
    assert (stop["code"], stop["step"], stop["kept_step"]) == ("floor", 9, 3)
    assert "before the target" in stop["reason"] and stop["target_met"] is False


def test_a_run_that_spends_its_utility_too_fast_slows_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ngdiff.training.trainer, "batch_extraction_strength", lambda _: torch.tensor(1.0))
    settings = {"stop_at": "extraction_strength=0.1", "check_every": 3, "max_steps": 9, "probe_every": 50}
    trainer = make(tmp_path, **settings, keep_utility=0.8)
    # odds go from 9 to 3, where the target's are 1/9: a quarter of the way for 0.06 of 0.2. The rest would
    # cost 0.18, and half of 0.14 may be spent: 7/18 of the rate, and half of it is the least. Then half of
    # the way for nothing: a quarter faster again
    figures = {0: (0.9, 1.0), 3: (0.75, 0.94), 6: (0.25, 0.94), 9: (0.05, 0.87)}
    script(trainer, lambda step: figures[step], monkeypatch)
    trainer.train()
    rates = [step.learning_rate for step in trainer.record.steps]
    assert rates[:3] == [rates[0]] * 3
    assert rates[3:6] == pytest.approx([rates[0] / 2] * 3)
    assert rates[6:] == pytest.approx([1.25 / 2 * rates[0]] * 3)
    notes = [note for note in trainer.record.notes if "at the pace so far" in note]
    assert [note[:7] for note in notes] == ["step 3:", "step 6:"]
    assert trainer.record.stop["code"] == "target"


def test_the_pace_is_told_what_each_step_was_paid_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ngdiff.training.trainer, "batch_extraction_strength", lambda _: torch.tensor(1.0))
    told: list[tuple[float, dict[int, float], int]] = []

    def pace(rule: StoppingRule, rate: float, rates: dict[int, float], over: int) -> float:
        told.append((rate, rates, over))
        return 0.5

    monkeypatch.setattr(StoppingRule, "pace", pace)
    settings = {"stop_at": "extraction_strength=0.1", "check_every": 3, "max_steps": 7, "probe_every": 50}
    trainer = make(tmp_path, **settings)
    script(trainer, lambda step: (0.9 - step / 100, 1.0), monkeypatch)
    trainer.train()
    first = told[0][0]
    paid = dict.fromkeys((1, 2, 3), first)
    assert told == [(first, paid, 6), (first / 2, paid | dict.fromkeys((4, 5, 6), first / 2), 6)]


def test_near_the_target_frequent_checks_do_not_raise_the_rate_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ngdiff.training.trainer, "batch_extraction_strength", lambda _: torch.tensor(0.1))
    settings = {"stop_at": "extraction_strength=0.1", "check_every": 6, "max_steps": 20, "probe_every": 50}
    trainer = make(tmp_path, **settings)
    script(trainer, lambda step: (max(0.05, 0.9 - step / 14), 1.0), monkeypatch)
    trainer.train()
    assert [check["step"] for check in trainer.record.checks] == [0, 2, 4, 6, 8, 10, 12]
    notes = [note for note in trainer.record.notes if "would last well beyond" in note]
    assert [note[:7] for note in notes] == ["step 6:"]


def test_a_rate_that_was_given_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Keeper()
    settings = {"stop_at": "extraction_strength=0.1", "check_every": 3, "max_steps": 6, "learning_rate": 1e-3}
    trainer = make(tmp_path, callbacks=[keeper], **settings)
    script(trainer, lambda step: (0.5, 1.0 if step == 0 else 0.5), monkeypatch)
    trainer.train()
    assert {step.learning_rate for step in trainer.record.steps} == {1e-3}
    assert any(not torch.equal(value, keeper.at[2][name]) for name, value in keeper.at[3].items())
    assert not any("restored" in note for note in trainer.record.notes)
