"""Small unlearning runs, and what tests compare of them."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ngdiff.data.batching import collate
from ngdiff.data.datasets import as_encoded
from ngdiff.inference.teacher_forced import AnswerScore
from ngdiff.losses import LOSSES, nll
from ngdiff.models.logprobs import LabelledTokens, labelled_tokens
from ngdiff.system.environment import versions
from ngdiff.training.config import UnlearningConfig
from ngdiff.training.trainer import UnlearningTrainer
from tiny import tiny_llama, tiny_tokenizer

torch.set_num_threads(1)


# peft asks transformers for the old name of a property
OLD_NAME = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


TOKENIZER = tiny_tokenizer(None)


VERSIONS = versions()


def rows(letter: str, count: int, answer: Callable[[int], str]) -> list[dict[str, str]]:
    return [{"prompt": f"{letter}{n:02}:", "completion": f" {answer(n)}"} for n in range(count)]


def _word(n: int) -> str:
    return "".join(random.Random(n).choices("abcdefghij", k=4 + n % 7))


FORGET = rows("F", 8, _word)


RETAIN = rows("R", 20, lambda n: "abcdefghij"[n % 10] * (3 + n % 5))


UNSEEN = rows("U", 4, lambda n: _word(n + 50))


def make(
    folder: Path,
    *,
    model: nn.Module | None = None,
    forget: Any = FORGET,
    retain: Any = RETAIN,
    holdout: Any = UNSEEN,
    callbacks: Any = None,
    peft_config: Any = None,
    eval_dataset: Any = None,
    allow_overlap: bool = False,
    **settings: Any,
) -> UnlearningTrainer:
    quiet = {"use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False, "report_to": "none"}
    small: dict[str, Any] = {"stop_at": "none", "max_length": 64}
    small |= {"per_device_train_batch_size": 2, "max_steps": 6}
    small["keep_utility"] = 0.0  # these models know nothing at first, so there is nothing to keep
    small["floors"] = {"general": 0.0} if settings.get("keep_utility") else {}
    if "method" not in settings:
        small["method"] = "ngdiff"  # an untrained model finds every token improbable: a bound leaves nothing
        if "learning_rate" not in settings:
            small["step_size"] = "auto"
    return UnlearningTrainer(
        tiny_llama(layers=1, hidden=16) if model is None else model,
        UnlearningConfig(output_dir=str(folder), **{**quiet, **small, **settings}),
        forget_dataset=forget,
        retain_dataset=retain,
        holdout_dataset=holdout,
        processing_class=TOKENIZER,
        callbacks=callbacks,
        peft_config=peft_config,
        eval_dataset=eval_dataset,
        allow_overlap=allow_overlap,
    )


def run(folder: Path, **settings: Any) -> UnlearningTrainer:
    trainer = make(folder, **settings)
    trainer.train()
    return trainer


def weights(trainer: UnlearningTrainer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def assert_same_weights(left: UnlearningTrainer, right: UnlearningTrainer, tolerance: float = 0.0) -> None:
    there = weights(right)
    for name, value in weights(left).items():
        torch.testing.assert_close(
            value, there[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def steps(trainer: UnlearningTrainer) -> list[dict[str, Any]]:
    """The record's steps without their times."""
    return [asdict(replace(step, seconds=0.0)) for step in trainer.record.steps]


def assert_same_steps(left: UnlearningTrainer, right: UnlearningTrainer, tolerance: float) -> None:
    assert len(left.record.steps) == len(right.record.steps)
    for mine, other in zip(steps(left), steps(right), strict=True):
        for key, value in mine.items():
            if value is None or isinstance(value, str):
                assert other[key] == value
            else:
                # a parameter whose gradient is next to nothing moves in the one rounding and not in the other
                close = max(tolerance, 1e-3) if key == "changed" else tolerance
                assert other[key] == pytest.approx(value, rel=close, abs=close), (mine["step"], key)


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(".best-*"))


def start() -> dict[str, Tensor]:
    return tiny_llama(layers=1, hidden=16).state_dict()


class Watcher(TrainerCallback):  # type: ignore[misc]
    """A user's callback: counts steps, keeps what is logged, and may stop or fail."""

    def __init__(self, stop_after: int | None = None, fail_after: int | None = None) -> None:
        self.stop_after, self.fail_after = stop_after, fail_after
        self.ended: list[int] = []
        self.logs: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ended.append(state.global_step)
        if state.global_step == self.fail_after:
            raise KeyboardInterrupt
        if state.global_step == self.stop_after:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logs.append(dict(logs))


UNREACHED = {"stop_at": "nll=1e6", "keep_utility": 0.0, "check_every": 3}


Figures = Callable[[int], tuple[float, float]]


def script(trainer: UnlearningTrainer, figures: Figures, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every check find what ``figures`` says of a step: extraction strength (nll likewise), utility."""
    sure = math.log(-math.expm1(-7.0))  # of a token whose unlikelihood is 7

    def scripted(name: str, rows: Sequence[int] | None = None) -> list[AnswerScore]:
        strength, utility = figures(trainer.state.global_step)
        nll = {"forget": 100 * (1 - strength), "never_seen": 9.0}.get(name, -math.log(utility))
        count = len(trainer.measurements.examples(name)) if rows is None else len(rows)
        return [AnswerScore(2 * nll, 2, strength, 0.5, (sure, 0.0))] * count

    monkeypatch.setattr(trainer.measurements, "scores", scripted)


class Keeper(TrainerCallback):  # type: ignore[misc]
    """Keeps the weights after every step."""

    def __init__(self) -> None:
        self.at: dict[int, dict[str, Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.at[state.global_step] = copy.deepcopy(model.state_dict())


def assert_kept(trainer: UnlearningTrainer, keeper: Keeper, step: int) -> None:
    assert trainer.record.stop["kept_step"] == step
    kept = start() if step == 0 else keeper.at[step]
    assert all(torch.equal(value, kept[name]) for name, value in weights(trainer).items())


# far from what the steps' own losses say, so that checks come when they are due and not before
SCRIPTED = {"stop_at": "nll=99", "keep_utility": 0.9, "check_every": 2, "learning_rate": 0.01}


def taught(model: nn.Module, data: list[dict[str, str]], count: int) -> nn.Module:
    """Train a model for so many steps, until it knows all answers by heart."""
    batch = collate(as_encoded(data, TOKENIZER, 64, "x"), TOKENIZER.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(count):
        optimizer.zero_grad()
        (nll(labelled_tokens(model, batch)) / 100).backward()
        optimizer.step()
    return model


def breaks_at(monkeypatch: pytest.MonkeyPatch, name: str, calls: Callable[[int], bool], bad: float) -> None:
    """Let a loss come out as ``bad`` at some of its calls, counted from 1; gradients follow it."""
    whole, calls_so_far = LOSSES[name].function, iter(range(1, 10_000))

    def broken(tokens: LabelledTokens) -> Tensor:
        loss = whole(tokens)
        return loss * bad if torch.is_grad_enabled() and calls(next(calls_so_far)) else loss

    monkeypatch.setitem(LOSSES, name, replace(LOSSES[name], function=broken))


def told(letter: str, count: int, seed: int) -> list[dict[str, str]]:
    """Answers that are one sentence for their greater part, and a secret."""
    rng = random.Random(seed)
    return rows(letter, count, lambda _: f"so the word was {''.join(rng.choices('ghjkqxz', k=4))} at last")
