"""The trainer: every way to end."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ngdiff.losses import LOSSES, nll
from ngdiff.models.logprobs import LabelledTokens
from tiny import tiny_llama
from training_runs import (
    SCRIPTED,
    Keeper,
    Watcher,
    assert_kept,
    breaks_at,
    leftovers,
    make,
    run,
    script,
    start,
    weights,
)

pytestmark = pytest.mark.usefixtures("quick_runs")


def test_best_state_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Keeper()
    trainer = make(tmp_path, callbacks=[keeper], max_steps=20, **SCRIPTED)
    found = {0: (0.9, 1.0), 2: (0.5, 0.95), 4: (0.6, 0.95), 6: (0.3, 0.5), 8: (0.0, 0.5), 10: (0.0, 0.5)}
    script(trainer, lambda step: found.get(step, (0.0, 0.5)), monkeypatch)
    trainer.train()
    assert trainer.record.stop["code"] == "floor"
    assert trainer.record.stop["step"] == 10
    assert [check["step"] for check in trainer.record.checks] == [0, 2, 4, 6, 8, 10]
    assert_kept(trainer, keeper, 2)
    assert leftovers(tmp_path) == []


def test_the_last_state_is_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends between two checks: what is kept has been seen to be above the floor."""
    for last, code, kept in (((0.0, 0.1), "end", 2), ((0.5, 1.0), "end", 3), ((0.0, 1.0), "target", 3)):
        keeper = Keeper()
        trainer = make(tmp_path, callbacks=[keeper], max_steps=3, **SCRIPTED)
        script(trainer, {0: (1.0, 1.0), 2: (0.9, 1.0), 3: last}.__getitem__, monkeypatch)
        trainer.train()
        assert trainer.record.stop["code"] == code
        assert [check["step"] for check in trainer.record.checks] == [0, 2, 3]
        assert_kept(trainer, keeper, kept)


def test_a_run_stopped_from_outside_keeps_what_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper()
    trainer = make(tmp_path, callbacks=[keeper, Watcher(stop_after=5)], max_steps=9, **SCRIPTED)
    script(trainer, lambda step: (1 - step / 10, 1.0 if step < 5 else 0.1), monkeypatch)
    trainer.train()
    assert_kept(trainer, keeper, 4)


def test_a_run_that_is_too_slow_says_so_early_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(tmp_path, max_steps=8, **SCRIPTED | {"stop_at": "extraction_strength=0.05"})
    script(trainer, lambda step: (0.9 - step / 20, 1.0), monkeypatch)
    trainer.train()
    notes = [note for note in trainer.record.notes if "out of reach at this pace" in note]
    assert len(notes) == 1 and notes[0].startswith("step 4: ") and "--epochs" in notes[0], (
        trainer.record.notes
    )
    found = trainer.record.stop["forecast"]
    assert found["steps_left"] == 0 and found["steps_needed"] > 0
    assert "--epochs" in found["advice"] and found["advice"] in trainer.record.stop["verdict"]["advice"]


def test_a_run_that_is_fast_enough_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(tmp_path, max_steps=8, **SCRIPTED | {"stop_at": "extraction_strength=0.05"})
    script(trainer, lambda step: (max(0.0, 0.9 - step / 5), 1.0), monkeypatch)
    trainer.train()
    assert not any("out of reach" in note for note in trainer.record.notes)
    assert trainer.record.stop["code"] == "target" and trainer.record.stop["forecast"] is None


def test_target_met_at_the_start(tmp_path: Path) -> None:
    trainer = run(tmp_path, stop_at="probability=1", learning_rate=0.1)
    assert trainer.record.stop["code"] == "target"
    assert trainer.record.stop["target_met"]
    assert trainer.record.stop["kept_step"] == 0
    assert all(torch.equal(value, start()[name]) for name, value in weights(trainer).items())
    assert len(trainer.record.steps) <= 1
    assert leftovers(tmp_path) == []


def test_forgets_to_the_target_and_keeps_the_rest(tmp_path: Path, memorised: nn.Module) -> None:
    trainer = run(
        tmp_path,
        model=copy.deepcopy(memorised),
        per_device_train_batch_size=8,
        stop_at="extraction_strength=0.5",
        keep_utility=0.8,
        max_steps=80,
        check_every=4,
    )
    record = trainer.record
    assert record.before["forget"]["extraction_strength"] > 0.9
    assert record.before["retain"]["probability"] > 0.9
    assert record.stop["code"] == "target"
    assert record.stop["step"] == record.stop["kept_step"] < 80
    assert record.after["forget"]["extraction_strength"] <= 0.5
    assert max(record.after["items"]["forget"]["extraction_strength"]) <= 0.5  # and so is every item
    assert record.after["retain"]["probability"] >= record.stop["utility_floor"]
    assert record.stop["left"] == []
    assert record.stop["utility_floor"] == pytest.approx(0.8 * record.before["retain"]["probability"])
    assert trainer.measurements.figures("retain") == record.after["retain"]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("method", ["ngdiff", "ngdiff-unlikelihood", "ngdiff-selective"])
@pytest.mark.parametrize("target", ["nll=1.5", "probability=0.25"])
def test_the_end_is_seen_coming_whatever_the_forget_loss(
    tmp_path: Path, memorised: nn.Module, method: str, target: str
) -> None:
    settings = {"check_every": 1000, "keep_utility": 0.0, "learning_rate": 3e-3, "max_steps": 60}
    trainer = run(tmp_path, model=copy.deepcopy(memorised), method=method, stop_at=target, **settings)
    assert trainer.record.stop["code"] == "target"
    assert trainer.record.stop["step"] < 60


def test_automatic_target_is_the_level_of_unseen_text(tmp_path: Path, memorised: nn.Module) -> None:
    trainer = run(tmp_path, model=copy.deepcopy(memorised), stop_at="auto", max_steps=1)
    items = trainer.record.before["items"]["never_seen"]
    strengths = items["extraction_strength"]
    odds = [math.exp(-nll / tokens) for nll, tokens in zip(items["nll"], items["tokens"], strict=True)]
    bounds = {bound["measure"]: bound for bound in trainer.record.stop["target"]["bounds"]}
    for measure, values in (("extraction_strength", strengths), ("probability", odds)):
        mean = sum(values) / 4
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 3)
        assert bounds[measure]["item"] == pytest.approx(max(values))  # the 95th percentile of four
        assert bounds[measure]["mean"] == pytest.approx(mean + 1.645 * spread * math.sqrt(1 / 4 + 1 / 8))
    target = trainer.record.stop["target"]
    assert (target["measure"], target["value"]) == (
        "extraction_strength",
        bounds["extraction_strength"]["mean"],
    )
    assert "never saw" in trainer.record.stop["target_source"]
    assert "the holdout that was given" in trainer.record.stop["level_source"]


def test_a_floor_that_cannot_hold(tmp_path: Path, memorised: nn.Module) -> None:
    keeper = Keeper()
    trainer = run(
        tmp_path,
        model=copy.deepcopy(memorised),
        method="ga",
        learning_rate=0.02,
        stop_at="nll=1000",
        keep_utility=0.99,
        check_every=1,
        max_steps=40,
        callbacks=[keeper],
    )
    record = trainer.record
    assert record.stop["code"] == "floor"
    assert record.stop["target_met"] is False
    assert record.checks[-1]["utility"]["probability"] < record.stop["utility_floor"]
    assert record.after["retain"]["probability"] >= record.stop["utility_floor"]
    kept = record.stop["kept_step"]
    state = memorised.state_dict() if kept == 0 else keeper.at[kept]
    assert all(torch.equal(value, state[name]) for name, value in weights(trainer).items())
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("rule", "name", "bad"),
    [
        ("ngdiff", "nll", math.nan),
        ("ngdiff", "negated-nll", math.inf),
        ("constant", "nll", math.inf),
        ("constant", "negated-nll", math.nan),
    ],
)
def test_a_step_that_is_not_finite_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rule: str, bad: float
) -> None:
    breaks_at(monkeypatch, name, lambda call: call == 3, bad)
    keeper = Keeper()
    trainer = run(tmp_path, rule=rule, learning_rate=1e-3, callbacks=[keeper], max_steps=5)
    assert [step.skipped for step in trainer.record.steps] == [None, None, "non-finite", None, None]
    same = [all(torch.equal(keeper.at[n][k], keeper.at[n + 1][k]) for k in start()) for n in range(1, 5)]
    assert same == [False, True, False, False]
    assert all(bool(value.isfinite().all()) for value in weights(trainer).values())
    assert trainer.record.stop["code"] == "end"
    assert trainer.record.steps[2].learning_rate == 0.0


def test_a_gradient_that_is_not_finite_under_fixed_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is finite, its gradient is not: with one buffer there is no Gramian to show it."""

    def rooted(tokens: LabelledTokens) -> Tensor:
        loss = nll(tokens)
        return loss + (loss - loss.detach()).sqrt()  # sqrt(0) has an infinite slope

    monkeypatch.setitem(LOSSES, "nll", replace(LOSSES["nll"], function=rooted))
    trainer = run(tmp_path, rule="constant", learning_rate=1e-3)
    assert {step.skipped for step in trainer.record.steps} == {"non-finite"}
    assert trainer.record.stop["code"] == "non-finite"
    assert all(torch.equal(value, start()[name]) for name, value in weights(trainer).items())


@pytest.mark.parametrize("first", [1, 3])
def test_automatic_rate_survives_a_skipped_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    breaks_at(monkeypatch, "negated-nll", lambda call: call == first, math.nan)
    trainer = run(tmp_path, probe_every=2)
    skipped = [step.step for step in trainer.record.steps if step.skipped]
    assert skipped == [first]
    assert trainer.record.probes[0].step == 1
    rates = [step.learning_rate for step in trainer.record.steps if not step.skipped]
    assert all(0 < rate < math.inf for rate in rates)
    assert all(bool(value.isfinite().all()) for value in weights(trainer).values())


def test_five_in_a_row_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks_at(monkeypatch, "nll", lambda call: call == 2 or call > 4, math.nan)
    trainer = run(tmp_path, learning_rate=1e-3, max_steps=30)
    assert trainer.record.stop["code"] == "non-finite"
    assert len(trainer.record.steps) == 9
    assert sum(step.skipped == "non-finite" for step in trainer.record.steps) == 6


def test_a_run_ended_by_nan_keeps_what_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks_at(monkeypatch, "nll", lambda call: call > 3, math.nan)
    keeper = Keeper()
    trainer = make(tmp_path, callbacks=[keeper], max_steps=30, **{**SCRIPTED, "check_every": 20})
    script(trainer, lambda step: (0.5, 1.0 if step == 0 else 0.1), monkeypatch)
    trainer.train()
    assert trainer.record.stop["code"] == "non-finite"
    assert_kept(trainer, keeper, 0)


@pytest.mark.usefixtures("flat")
@pytest.mark.parametrize(
    "settings", [{}, {"learning_rate": 0.1, "weight_decay": 0.5}, {"method": "graddiff"}, {"method": "ga"}]
)
def test_nothing_left_to_change(tmp_path: Path, settings: dict[str, Any]) -> None:
    trainer = run(tmp_path, **settings)
    assert trainer.record.stop["code"] == "stationary"
    assert [step.skipped for step in trainer.record.steps] == ["stationary"]
    assert all(torch.equal(value, start()[name]) for name, value in weights(trainer).items())


def test_one_task_without_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    still = replace(LOSSES["negated-nll"], function=lambda tokens: tokens.log_probs().sum() * 0.0)
    monkeypatch.setitem(LOSSES, "negated-nll", still)
    trainer = run(tmp_path, learning_rate=1e-3, max_steps=3)
    for step in trainer.record.steps:
        assert step.weights[1] == 0.0
        assert step.combined_norm == pytest.approx(1.0)
        assert step.skipped is None


def test_a_second_run_with_the_same_trainer(tmp_path: Path) -> None:
    trainer = run(tmp_path, learning_rate=1e-3, max_steps=2)
    first = weights(trainer)
    trainer.train()
    assert trainer.record.stop["code"] == "end"
    assert any(not torch.equal(value, first[name]) for name, value in weights(trainer).items())
    assert all(step.skipped is None for step in trainer.record.steps)


def test_updates_that_vanish_are_noted(tmp_path: Path) -> None:
    low = tiny_llama(layers=1, hidden=16).to(torch.bfloat16)
    trainer = run(tmp_path, model=low, learning_rate=1e-6, max_steps=2)
    assert any("rounded away" in note for note in trainer.record.notes)
    whole = run(tmp_path, learning_rate=1e-6, max_steps=2)
    assert whole.record.notes == []
