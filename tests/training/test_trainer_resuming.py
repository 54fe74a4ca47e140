"""The trainer: a resumed run continues as it was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

import ngdiff.preparation.comparisons
import ngdiff.training.measurements
import ngdiff.training.trainer
from ngdiff.models.logprobs import LabelledTokens
from ngdiff.runs.checkpoints import MANIFEST
from ngdiff.training.run_state import STATE_FILE
from ngdiff.training.trainer import UnlearningTrainer
from tiny import tiny_llama
from training_runs import (
    OLD_NAME,
    SCRIPTED,
    UNREACHED,
    Keeper,
    assert_kept,
    assert_same_weights,
    leftovers,
    make,
    run,
    script,
    steps,
)

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        ({}, "path"),
        ({"step_size": "gen", "learning_rate": 1e-2, "probe_every": 4}, "path"),
        (UNREACHED, "latest"),
        ({"learning_rate": 1e-3}, "path"),
        ({"learning_rate": 1e-3, "rule": "pdu"}, "path"),
        ({"learning_rate": 1e-3, "rule": "rlw"}, "path"),
    ],
    ids=["auto", "gen", "stopping", "fixed", "multiplier", "draws"],
)
def test_a_resumed_run_goes_on_as_it_was(tmp_path: Path, settings: dict[str, Any], how: str) -> None:
    common = {"save_strategy": "steps", "save_steps": 7, "max_steps": 13, "probe_every": 5, **settings}
    whole = run(tmp_path, **common)
    shutil.rmtree(tmp_path / "checkpoint-13")
    second = make(tmp_path, model=tiny_llama(layers=1, hidden=16, seed=9), **common)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7") if how == "path" else True)
    assert steps(second) == steps(whole)
    assert second.record.probes == whole.record.probes
    assert len(second.record.probes) == (3 if second.args.automatic else 0)
    assert_same_weights(whole, second)
    assert whole.record.before == second.record.before
    assert whole.record.after == second.record.after
    assert whole.record.checks == second.record.checks
    assert whole.record.stop == second.record.stop
    assert any("resumed at step 7" in note for note in second.record.notes)
    assert leftovers(tmp_path) == []


def test_a_resumed_run_checks_when_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps' own figures decide when a check is worth its time: the one before the cut counts too."""

    def strength(_: LabelledTokens) -> Tensor:
        return torch.tensor(1.0 if trainer.state.global_step < 4 else 0.2)

    monkeypatch.setattr(ngdiff.training.trainer, "batch_extraction_strength", strength)
    common = {"stop_at": "extraction_strength=0.2", "check_every": 50, "learning_rate": 1e-3}
    for path in (None, str(tmp_path / "checkpoint-4")):
        trainer = make(tmp_path, save_strategy="steps", save_steps=4, **common)
        script(trainer, lambda step: (0.9, 1.0), monkeypatch)
        trainer.train(resume_from_checkpoint=path)
        assert [check["step"] for check in trainer.record.checks] == [0, 6]


@OLD_NAME
def test_a_resumed_run_with_adapters(tmp_path: Path) -> None:
    common = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "probe_every": 3}
    common |= {"step_size": "auto", "learning_rate": 1e-3}
    lora = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    whole = run(tmp_path, peft_config=LoraConfig(**lora), **common)
    second = make(tmp_path, peft_config=LoraConfig(**lora), **common)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert steps(second) == steps(whole)
    assert_same_weights(whole, second)


def test_a_checkpoint_of_another_trainer_starts_afresh(tmp_path: Path) -> None:
    common = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    run(tmp_path, **common)
    (tmp_path / "checkpoint-2" / STATE_FILE).unlink()
    (tmp_path / "checkpoint-2" / MANIFEST).unlink()
    second = make(tmp_path, **common)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [step.step for step in second.record.steps] == [3, 4]


@pytest.mark.parametrize("best", [0, 2, 4, 6])
def test_best_weights_survive_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: int) -> None:
    common = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8, **SCRIPTED}
    monkeypatch.setattr(UnlearningTrainer, "PATIENCE", 9)

    def figures(step: int) -> tuple[float, float]:
        return 1 - step / 10, 1.0 if step <= best else 0.1

    keeper = Keeper()
    for path in (None, str(tmp_path / "checkpoint-4")):
        trainer = make(tmp_path, callbacks=[keeper], **common)
        script(trainer, figures, monkeypatch)
        trainer.train(resume_from_checkpoint=path)
        assert len(trainer.record.steps) == 8
        assert_kept(trainer, keeper, best)
        assert leftovers(tmp_path) == []
