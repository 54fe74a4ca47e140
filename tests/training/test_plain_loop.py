"""The plain loop of ``examples/plain_loop.py``: it runs, and it is the trainer's loop to the last bit."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import ngdiff.training.measurements
import ngdiff.training.trainer
from ngdiff.training.config import UnlearningConfig
from ngdiff.training.trainer import UnlearningTrainer
from tiny import tiny_llama, tiny_tokenizer

torch.set_num_threads(1)
EXAMPLE = Path(__file__).parents[2] / "examples" / "plain_loop.py"
FORGET = [{"prompt": f"F{n}:", "completion": " " + "abcdefgh"[n] * (3 + n)} for n in range(8)]
RETAIN = [{"prompt": f"R{n}:", "completion": " " + "ijklm"[n % 5] * (2 + n % 7)} for n in range(20)]
STEPS = 12


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain_loop", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_runs_and_unlearns(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    example.main()
    lines = capsys.readouterr().out.splitlines()
    figures = [[float(number) for number in re.findall(r"-?\d+\.\d+", line)] for line in lines]
    assert len(lines) == 6
    assert figures[-1][0] < -10  # in nats: what was to be forgotten is far from known
    assert figures[-1][1] < 0.5  # what was to be kept is known


@pytest.mark.parametrize("accumulation", [1, 2])
def test_same_trajectory_as_the_trainer(
    tmp_path: Path, example: ModuleType, monkeypatch: pytest.MonkeyPatch, accumulation: int
) -> None:
    tokenizer = tiny_tokenizer(None)
    model = tiny_llama(layers=1, hidden=16)
    config = UnlearningConfig(
        output_dir=str(tmp_path),
        max_steps=STEPS,
        method="ngdiff",
        step_size="gen",
        learning_rate=example.RATE,
        probe_every=10,
        optim="adamw_torch",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulation,
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        report_to="none",
    )
    trainer = UnlearningTrainer(
        model,
        config,
        forget_dataset=FORGET,
        retain_dataset=RETAIN,
        holdout_dataset=FORGET[:1],
        allow_overlap=True,
        processing_class=tokenizer,
    )
    taken, probed = watch(trainer, monkeypatch)
    trainer.train()
    assert list(probed) == [9]
    assert [len(batches) for batches in taken] == [accumulation] * STEPS

    plain = tiny_llama(layers=1, hidden=16)
    history: list[tuple[int, float, float, float]] = []
    example.unlearn(
        plain,
        iter([[batch["forget"] for batch in batches] for batches in taken]),
        iter([[batch["retain"] for batch in batches] for batches in taken]),
        iter([probed.get(step, []) for step in range(STEPS)]),
        STEPS,
        report=lambda *figures: history.append(figures),
    )
    steps = trainer.record.steps
    assert history == [(s.step, s.forget_loss, s.retain_loss, s.learning_rate) for s in steps]
    assert len({step.learning_rate for step in steps}) == 2
    trained = model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in plain.state_dict().items())


def watch(
    trainer: UnlearningTrainer, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[list[dict[str, Any]]], dict[int, list[Any]]]:
    """Collect what the trainer takes: each step's micro-batches, and each probe's by the step before it."""
    taken: list[list[dict[str, Any]]] = []
    probed: dict[int, list[Any]] = {}
    take, draw = trainer.get_batch_samples, ngdiff.training.measurements.ProbeLoss._draw

    def taking(*args: Any) -> Any:
        batches, count = take(*args)
        taken.append(batches)
        return batches, count

    def drawing(loss: Any) -> Any:
        probed[trainer.state.global_step] = batches = draw(loss)
        return batches

    monkeypatch.setattr(trainer, "get_batch_samples", taking)
    monkeypatch.setattr(ngdiff.training.measurements.ProbeLoss, "_draw", drawing)
    return taken, probed
