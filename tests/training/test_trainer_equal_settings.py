"""The trainer: equal settings give equal runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from training_runs import (
    FORGET,
    assert_same_steps,
    assert_same_weights,
    make,
    run,
    start,
    steps,
    weights,
)

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.mark.parametrize("rule", ["ngdiff", "constant", "pcgrad", "lossnorm", "pdu"])
def test_one_batch_of_eight_is_eight_batches_of_one(tmp_path: Path, rule: str) -> None:
    common = {"optim": "sgd", "learning_rate": 0.05, "rule": rule, "max_steps": 5}
    wide = run(tmp_path / "w", per_device_train_batch_size=8, **common)
    deep = run(tmp_path / "d", per_device_train_batch_size=1, gradient_accumulation_steps=8, **common)
    assert_same_steps(wide, deep, 1e-5)
    assert_same_weights(wide, deep, 1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(weights(wide).values(), start().values(), strict=True))


@pytest.mark.parametrize("method", ["idkdpo", "idknll", "altpo"])
def test_other_answers_are_the_same_however_a_step_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    common = {"optim": "sgd", "learning_rate": 0.05, "method": method, "max_steps": 4, "max_length": 256}
    wide = run(tmp_path / "w", per_device_train_batch_size=4, **common)
    deep = run(tmp_path / "d", per_device_train_batch_size=1, gradient_accumulation_steps=4, **common)
    assert_same_steps(wide, deep, 1e-5)
    assert_same_weights(wide, deep, 1e-5)


def test_accumulation_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    """6 examples, 2 at a time, 2 micro-batches a step: every second step is one micro-batch short."""
    trainer = run(tmp_path, forget=FORGET[:6], gradient_accumulation_steps=2, max_steps=5, learning_rate=0.01)
    assert [step.step for step in trainer.record.steps] == [1, 2, 3, 4, 5]
    assert [step.epoch for step in trainer.record.steps] == pytest.approx([2 / 3, 1, 5 / 3, 2, 8 / 3])
    assert all(math.isfinite(step.combined_norm or math.nan) for step in trainer.record.steps)


def test_same_seed_same_run(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = run(tmp_path / "a", max_steps=2)
    torch.manual_seed(2)
    second = run(tmp_path / "b", max_steps=2)
    assert steps(first) == steps(second)
    assert_same_weights(first, second)
    third = run(tmp_path / "c", max_steps=2, seed=1)
    assert steps(third) != steps(first)


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.5, "gamma": 2.0}])
def test_one_buffer_or_two(tmp_path: Path, settings: dict[str, float]) -> None:
    common = {"rule": "constant", "rule_settings": settings, "learning_rate": 0.05, "optim": "sgd"}
    one = run(tmp_path / "1", **common)
    two = make(tmp_path / "2", **common)
    two._apart = True  # as for a rule whose weights depend on the gradients
    two.train()
    assert_same_weights(one, two, 1e-6)
    for mine, other in zip(one.record.steps, two.record.steps, strict=True):
        assert mine.forget_loss == pytest.approx(other.forget_loss, rel=1e-5)
        assert mine.retain_loss == pytest.approx(other.retain_loss, rel=1e-5)
        assert mine.weights == other.weights == (settings.get("alpha", 1.0), settings.get("gamma", 1.0))
        assert (mine.forget_norm, mine.retain_norm, mine.cosine, mine.combined_norm) == (None,) * 4
        assert None not in (other.forget_norm, other.retain_norm, other.cosine, other.combined_norm)
