"""DeepSpeed: what cannot run under it is refused with a way out, and what can takes its road.

DeepSpeed itself is not run here. What it is handed is looked at: one backward pass a micro-batch, of both
losses together, that gives the gradients of the ordinary road.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from commandline import make_cli, questions, save_model, write_jsonl
from ngdiff.errors import Fault, RequestError, RunError
from ngdiff.training.config import UnlearningConfig
from several_processes import Case, trainer_of

FIXED = {"method": "graddiff", "learning_rate": 0.01, "optim": "sgd", "max_steps": 4, "stop_at": "none"}
FIXED["keep_utility"] = 0.0  # a floor would have the best weights put back


NOT_HERE = "accelerate launch"
"""Where the fault lies of a request that is in order but for DeepSpeed itself, which is not installed."""


def _faults(folder: Path, **settings: Any) -> dict[str, Fault]:
    with pytest.raises(RequestError) as found:
        UnlearningConfig(output_dir=str(folder), use_cpu=True, **settings)
    return {fault.where: fault for fault in found.value.faults}


@pytest.fixture
def zero(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    return monkeypatch


def test_two_gradients_are_refused(zero: pytest.MonkeyPatch, tmp_path: Path) -> None:
    faults = _faults(tmp_path, method="ngdiff")
    assert list(faults) == ["rule", "learning_rate"]
    assert "keeps gradients to itself" in faults["rule"].what and "FSDP2" in faults["rule"].fix


def test_a_single_gradient_at_a_fixed_rate_is_not(zero: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert list(_faults(tmp_path, **FIXED)) == [NOT_HERE]
    assert list(_faults(tmp_path, method="graddiff", step_size="auto", learning_rate=1e-5)) == [
        "learning_rate"
    ]


def test_zero_3_has_no_best_weights(zero: pytest.MonkeyPatch, tmp_path: Path) -> None:
    zero.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    assert list(_faults(tmp_path, **FIXED)) == [NOT_HERE]
    assert list(_faults(tmp_path, **{**FIXED, "stop_at": "auto"})) == ["stop_at"]
    assert list(_faults(tmp_path, **{**FIXED, "keep_utility": 0.98})) == ["keep_utility"]


def test_its_own_file_says_the_stage(tmp_path: Path) -> None:
    given = {"zero_optimization": {"stage": 3}}
    assert list(_faults(tmp_path, **{**FIXED, "stop_at": "auto"}, deepspeed=given)) == ["stop_at"]


def test_the_command_says_so_before_anything_heavy(
    zero: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(tmp_path / "model")
    forget = write_jsonl(tmp_path / "forget.jsonl", questions(0, 4))
    retain = write_jsonl(tmp_path / "retain.jsonl", questions(10, 4))
    zero.setattr("ngdiff.unlearn.load_model", lambda *_: pytest.fail("the model was loaded"))
    words = ("unlearn", "--model", model, "--forget", forget, "--retain", retain, "--precision", "fp32")
    answer = make_cli(capsys)(*words, "--output", tmp_path / "out")
    assert answer.code == 2
    assert any("DeepSpeed keeps gradients to itself" in what for what, _ in answer.faults)
    assert any("FSDP2" in fix for _, fix in answer.faults)
    assert not (tmp_path / "out").exists()


def _as_under_deepspeed(case: Case, folder: Path, seen: list[float]) -> Any:
    """Make a trainer that takes DeepSpeed's road, with an engine that steps inside ``backward``."""
    trainer = trainer_of(case, folder)
    trainer.is_deepspeed_enabled = True
    prepare = trainer._prepare_for_training

    def prepared(*args: Any, **kwargs: Any) -> Any:
        trainer.is_deepspeed_enabled = False  # what would start the engine
        found = prepare(*args, **kwargs)
        trainer.is_deepspeed_enabled = True
        return found

    def backward(loss: Tensor, *, scale_wrt_gas: bool) -> None:
        assert scale_wrt_gas is False
        seen.append(float(loss.detach()))
        loss.backward()

    trainer._prepare_for_training = prepared
    trainer.accelerator.backward = backward
    return trainer


def test_one_backward_pass_gives_the_same_steps(tmp_path: Path) -> None:
    settings = {**FIXED, "examples_per_step": 8, "per_device_train_batch_size": 4}
    plain = trainer_of(Case("plain", settings=settings), tmp_path)
    plain.train()
    seen: list[float] = []
    engine = _as_under_deepspeed(Case("engine", settings=settings), tmp_path, seen)
    engine.train()
    assert len(seen) == 7  # two micro-batches a step, the one example left of 17 in the third alone
    for (name, left), right in zip(plain.model.named_parameters(), engine.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6, msg=name)
    assert [s.retain_loss for s in engine.record.steps] == pytest.approx(
        [s.retain_loss for s in plain.record.steps], rel=1e-5
    )
    assert all(step.changed is None for step in engine.record.steps)


def test_a_loss_that_is_not_finite_ends_it(tmp_path: Path) -> None:
    trainer = _as_under_deepspeed(Case("broken", settings=FIXED), tmp_path, [])
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(torch.nan)
    with pytest.raises(RunError, match="DeepSpeed cannot skip"):
        trainer.train()
