"""A trainer whose model is said to know each example as well as a function has it, whatever its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import ngdiff.training.measurements
from ngdiff.data.encoding import EncodedExample
from ngdiff.data.examples import Example
from ngdiff.inference.teacher_forced import AnswerScore
from ngdiff.training.config import UnlearningConfig
from ngdiff.training.trainer import UnlearningTrainer
from tiny import tiny_llama, tiny_tokenizer

TOKENS = 8
"""Labelled tokens of every answer, the end of the turn included."""
Known = Callable[[Example, int], tuple[float, float]]
"""Example and step -> extraction strength and answer probability."""


def score(strength: float, probability: float, tokens: int = TOKENS) -> AnswerScore:
    log_prob = math.log(probability) if probability > 0 else -1e9
    return AnswerScore(-tokens * log_prob, tokens, strength, strength, (log_prob,) * tokens)


def trainer_that_knows(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    known: Known,
    *,
    forget: Sequence[Any],
    retain: Sequence[Any],
    holdout: Sequence[Any] | None,
    callbacks: Any = None,
    keep: Any = None,
    **settings: Any,
) -> UnlearningTrainer:
    """Make a trainer; what it learns on is a tiny model, what it finds out of it is ``known``."""
    usual = {"use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False, "report_to": "none"}
    usual |= {"method": "ngdiff", "learning_rate": 1e-3, "max_steps": 2, "check_every": 1, "max_length": 96}
    usual |= {"stop_at": "auto", "keep_utility": 0.0, "per_device_train_batch_size": 4}
    trainer = UnlearningTrainer(
        tiny_llama(layers=1, hidden=16),
        UnlearningConfig(output_dir=str(folder), **{**usual, **settings}),
        forget_dataset=list(forget),
        retain_dataset=list(retain),
        holdout_dataset=None if holdout is None else list(holdout),
        keep_datasets=keep,
        processing_class=tiny_tokenizer(None),
        callbacks=callbacks,
    )

    def scores(_: Any, examples: Sequence[EncodedExample], **__: Any) -> list[AnswerScore]:
        step = trainer.state.global_step
        return [score(*known(encoded.example, step)) for encoded in examples]

    monkeypatch.setattr(ngdiff.training.measurements, "score_answers", scores)
    return trainer


def rows(letter: str, count: int) -> list[dict[str, str]]:
    return [{"prompt": f"{letter}{n:03}:", "completion": f" {letter} is {n}"} for n in range(count)]


def number(example: Example) -> tuple[str, int]:
    """Letter and number of one of these rows."""
    return example.prompt[0], int(example.prompt[1:4])
