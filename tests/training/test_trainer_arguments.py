"""What a trainer makes of a name, of missing settings and of sets that overlap; what it evaluates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ngdiff
from commandline import save_model
from ngdiff.errors import RequestError
from ngdiff.training.config import UnlearningConfig
from ngdiff.training.trainer import UnlearningTrainer
from tiny import tiny_llama
from training_runs import FORGET, RETAIN, UNSEEN, make

SETS: dict[str, Any] = {"forget_dataset": FORGET, "retain_dataset": RETAIN, "holdout_dataset": UNSEEN}


def test_a_name_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "target")
    trainer = UnlearningTrainer("target", **SETS)
    assert trainer.args.output_dir == "target-unlearned" and trainer.args.method == UnlearningConfig.method
    theirs = tiny_llama(seed=0).state_dict()
    ours = trainer.model.state_dict()
    assert all(torch.equal(ours[name].cpu(), value) for name, value in theirs.items())
    assert trainer.processing_class.chat_template
    trainer.model.name_or_path = "target"
    again = UnlearningTrainer(trainer.model, trainer.args, **SETS)
    assert again.processing_class.get_vocab() == trainer.processing_class.get_vocab()


def test_what_is_wrong_names_the_parameter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=r"^model: 'no such' is neither a folder"):
        UnlearningTrainer("no such", **SETS)
    with pytest.raises(RequestError, match=r"^processing_class: is missing"):
        UnlearningTrainer(tiny_llama(), UnlearningConfig(output_dir="out", use_cpu=True), **SETS)


def test_overlap_is_refused_unless_allowed(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as raised:
        make(tmp_path, retain=[*RETAIN, FORGET[1]])
    shown = str(raised.value)
    assert "retain_dataset: 1 row" in shown and "allow_overlap=True" in shown and "--" not in shown
    with pytest.raises(RequestError, match="holdout_dataset"):
        make(tmp_path, holdout=[*UNSEEN, FORGET[0]])
    make(tmp_path, retain=[*RETAIN, FORGET[1]], allow_overlap=True)


def test_every_set_is_evaluated(tmp_path: Path) -> None:
    trainer = make(tmp_path, eval_dataset=UNSEEN)
    found = trainer.evaluate()
    for name in ("forget", "retain", "never_seen", "eval"):
        assert 0 <= found[f"eval_{name}_probability"] <= 1
        assert found[f"eval_{name}_nll"] == pytest.approx(trainer.measurements.figures(name)["nll"])
    alone = trainer.evaluate(FORGET, metric_key_prefix="test")
    assert alone["test_nll"] == pytest.approx(found["eval_forget_nll"])
    assert trainer.state.log_history[-1]["test_nll"] == alone["test_nll"]


def test_evaluations_on_the_way(tmp_path: Path) -> None:
    trainer = make(tmp_path, eval_strategy="steps", eval_steps=3)
    trainer.train()
    assert [row["step"] for row in trainer.state.log_history if "eval_forget_nll" in row] == [3, 6]


def test_dir_lists_the_public_names() -> None:
    assert dir(ngdiff) == sorted(ngdiff.__all__)
