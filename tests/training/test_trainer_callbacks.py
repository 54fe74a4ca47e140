"""The trainer: callbacks and trackers see what happens, and may stop a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from training_runs import (
    Watcher,
    leftovers,
    make,
    run,
)

pytestmark = pytest.mark.usefixtures("quick_runs")


def test_users_callback_may_stop_the_run(tmp_path: Path) -> None:
    watcher = Watcher(stop_after=3)
    trainer = run(tmp_path, callbacks=[watcher])
    assert watcher.ended == [1, 2, 3]
    assert trainer.record.stop["code"] == "end"
    assert trainer.record.stop["step"] == trainer.record.stop["kept_step"] == 3
    assert "all" not in trainer.record.stop["reason"]


def test_what_is_logged(tmp_path: Path) -> None:
    watcher = Watcher()
    trainer = run(tmp_path, callbacks=[watcher], probe_every=3)
    logged = [log for log in watcher.logs if "loss" in log]
    assert [log["learning_rate"] for log in logged] == [step.learning_rate for step in trainer.record.steps]
    assert [log["loss"] for log in logged] == pytest.approx([s.retain_loss for s in trainer.record.steps])
    assert [log["grad_norm"] for log in logged] == [step.combined_norm for step in trainer.record.steps]


def test_logged_loss_without_a_retain_loss(tmp_path: Path) -> None:
    watcher = Watcher()
    trainer = run(tmp_path, callbacks=[watcher], method="ga", max_steps=2)
    logged = [log["loss"] for log in watcher.logs if "loss" in log]
    assert logged == pytest.approx([step.forget_loss for step in trainer.record.steps])


def test_nothing_is_left_behind_by_a_run_that_breaks(tmp_path: Path) -> None:
    trainer = make(tmp_path, callbacks=[Watcher(fail_after=2)], stop_at="nll=99", keep_utility=0.0)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert leftovers(tmp_path) == []
