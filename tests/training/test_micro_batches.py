"""Micro-batches that do not fit: the same step in smaller ones, and words that help where nothing does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from loss_examples import EXAMPLES, complete
from ngdiff.data.batching import collate_for_loss
from ngdiff.errors import RunError
from ngdiff.losses import LOSSES
from ngdiff.losses.loss import look
from ngdiff.models.logprobs import LabelledTokens, count_labelled
from ngdiff.training import launch
from ngdiff.training.micro_batches import MicroBatches, parts_of, rows_between, try_largest
from tiny import tiny_llama
from training_runs import make, run

WORDS = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB"


@pytest.mark.parametrize("name", ["counterfactual", "npo", "dpo", "kl", "nll"])
def test_parts_of_a_batch_have_the_losses_of_their_rows(name: str) -> None:
    """What is cut out of a batch, tokens' own columns and other answers too, adds up to the whole."""
    model, batch = tiny_llama(vocab_size=40), complete(name)
    start = tiny_llama(vocab_size=40, seed=3).lm_head
    row = LOSSES[name].complete({}, {})

    def loss(of: Any) -> float:
        with torch.no_grad():
            return float(row.function(look(row, model, of, lambda states: start(states).float())))

    parts = [rows_between(batch, first, last) for first, last in ((0, 3), (3, 4), (4, 8))]
    assert [len(part["labels"]) for part in parts] == [3, 1, 4]
    assert sum(map(count_labelled, parts)) == count_labelled(batch)
    assert sum(map(loss, parts)) == pytest.approx(loss(batch), rel=1e-5)
    alone = collate_for_loss(EXAMPLES[3:4], pad_id=1)
    assert parts[1]["labels"][0, : alone["labels"].shape[1]].tolist() == alone["labels"][0].tolist()
    assert parts[1]["labelled"].tolist() == alone["labelled"].tolist()


def test_parts_are_of_nearly_one_size() -> None:
    pairs = {task: complete("nll") for task in ("forget", "retain")}
    sizes = [len(part["retain"]["labels"]) for part in parts_of(pairs, 3)]
    assert sizes == [2, 3, 3]
    assert [part is pairs for part in parts_of(pairs, 8)] == [True]


def memory_for(most: int, seen: list[int]) -> Any:
    """A loss that runs out of memory where it is given more rows, after the gradients of the other task."""
    plain = LOSSES["nll"].function

    def function(tokens: LabelledTokens, **settings: Any) -> Tensor:
        seen.append(tokens.row_count)
        if tokens.row_count > most:
            raise torch.OutOfMemoryError(WORDS)
        return plain(tokens, **settings)

    return function


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_that_does_not_fit_is_taken_in_smaller_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulation: int
) -> None:
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulation}
    settings |= {"learning_rate": 1e-3, "max_steps": 3}
    whole = run(tmp_path / "whole", **settings)
    seen: list[int] = []
    monkeypatch.setitem(LOSSES, "nll", replace(LOSSES["nll"], function=memory_for(1, seen)))
    small = run(tmp_path / "small", **settings)
    assert small.micro_batches.most == 1 and seen[:3] == [4, 2, 1]
    assert sum(count > 1 for count in seen) == 2, "what was learned holds for the steps to come"
    for mine, other in zip(small.record.steps, whole.record.steps, strict=True):
        assert mine.forget_loss == pytest.approx(other.forget_loss, rel=1e-5)
        assert mine.retain_loss == pytest.approx(other.retain_loss, rel=1e-5)
        assert mine.cosine == pytest.approx(other.cosine, abs=1e-5)
        assert mine.forget_extraction_strength == pytest.approx(other.forget_extraction_strength)
    assert "2.50 GiB more did not fit with 4 examples of each task at once: 2 from then on" in (
        small.record.notes
    )


def test_memory_that_ends_in_the_second_micro_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one's gradients are there already: they are dropped and worked out again."""
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    settings |= {"learning_rate": 1e-3, "max_steps": 2}
    whole = run(tmp_path / "whole", **settings)
    calls: list[int] = []
    plain = LOSSES["nll"].function

    def function(tokens: LabelledTokens) -> Tensor:
        calls.append(tokens.row_count)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return plain(tokens)

    monkeypatch.setitem(LOSSES, "nll", replace(LOSSES["nll"], function=function))
    small = run(tmp_path / "small", **settings)
    assert calls[:6] == [4, 4, 2, 2, 2, 2]
    for mine, other in zip(small.record.steps, whole.record.steps, strict=True):
        assert mine.retain_norm == pytest.approx(other.retain_norm, rel=1e-4)
        assert mine.forget_norm == pytest.approx(other.forget_norm, rel=1e-4)
        assert mine.retain_loss == pytest.approx(other.retain_loss, rel=1e-5)


def test_what_is_said_where_a_single_example_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES, "nll", replace(LOSSES["nll"], function=memory_for(0, [])))
    with pytest.raises(RunError) as error:
        run(tmp_path, learning_rate=1e-3)
    said = str(error.value)
    for words in (
        "1 example of each task",
        "tokens long",
        "2.50 GiB",
        "--gradient-checkpointing",
        "--resume",
    ):
        assert words in said


def test_the_largest_micro_batch_is_tried_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On this machine's CPU, which is asked to behave like a device that says what it lacks."""
    seen: list[int] = []
    monkeypatch.setitem(LOSSES, "nll", replace(LOSSES["nll"], function=memory_for(2, seen)))
    trainer = make(tmp_path, per_device_train_batch_size=8, learning_rate=1e-3, max_steps=1)
    tried: list[tuple[int, int]] = []

    class Try:
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            state = torch.get_rng_state()
            try_largest(trainer)
            assert torch.equal(torch.get_rng_state(), state)
            tried.append((trainer.micro_batches.most or 0, max(seen)))
            assert trainer.pair is not None
            assert all(g is None for g in trainer.pair.gradient("retain"))

    from transformers import TrainerCallback

    trainer.add_callback(type("Tried", (Try, TrainerCallback), {}))
    trainer.train()
    assert tried == [(2, 8)]
    assert seen[0] == 8 and max(seen[3:]) == 2
    assert "2 examples of each task go through the model at once" in trainer.record.notes


def test_on_a_gpu_a_micro_batch_is_as_large_as_a_step_where_nobody_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def shares(device: str, found: bool) -> int:
        args = SimpleNamespace(
            n_gpu=1,
            world_size=2,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=1,
            examples_per_step=32,
            batch_is_found=found,
            device=torch.device(device),
        )
        return launch.share_steps(args).micro_batch

    assert (shares("cuda", True), shares("cuda", False), shares("cpu", True)) == (16, 8, 8)


def test_a_micro_batch_that_fits_runs_once() -> None:
    notes: list[str] = []
    micro, ran = MicroBatches(notes.append), []
    pairs = {task: complete("nll") for task in ("forget", "retain")}
    micro.begin_step()
    micro.take(pairs, ran.append, lambda: None)
    assert ran == [pairs] and notes == []
