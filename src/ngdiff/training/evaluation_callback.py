"""a run in progress -> the figures of the suite ``own`` every so many steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from ngdiff.data.examples import Example
from ngdiff.evaluation.result import Bootstrap, Figure
from ngdiff.evaluation.suites.own import own_data, run_own
from ngdiff.inference.evaluator import Evaluator

if TYPE_CHECKING:
    from ngdiff.training.trainer import UnlearningTrainer

FEW_RESAMPLES = 500


@dataclass(frozen=True)
class EvaluationPlan:
    """When to evaluate, and on how much.

    Args:
        every: optimizer steps between two evaluations; the untouched model and the last step count too.
        items: most items of each set, taken at even distances.
        max_new_tokens: longest answer that is generated, in tokens.
        batch_size: sequences a forward pass.

    Raises:
        ValueError: one of them is below 1.
    """

    every: int
    items: int = 64
    max_new_tokens: int = 64
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} is {value}, and must be at least 1")


class EvaluationCallback(TrainerCallback):  # type: ignore[misc]
    """Evaluates an :class:`~ngdiff.training.trainer.UnlearningTrainer`'s model while it is being trained.

    On the forget set, on the part of the retain set that is held out from training and, where the trainer was
    given one, on the holdout. The run goes on as if nothing had happened: weights, gradients, random
    numbers and mode are left alone. Results go to the record's ``evaluations`` and, as ``eval/NAME``, to
    trackers::

        trainer.add_callback(EvaluationCallback(trainer, EvaluationPlan(every=5)))

    Args:
        trainer: whose sets, tokenizer and record to use.
        plan: when and on how much.
    """

    def __init__(self, trainer: UnlearningTrainer, plan: EvaluationPlan) -> None:
        self.trainer, self.plan = trainer, plan
        sets = {"forget": trainer.forget_examples, "retain": trainer.held_out_examples}
        if trainer.holdout_examples:
            sets["holdout"] = trainer.holdout_examples
        spread = {name: _spread(examples, plan.items) for name, examples in sets.items() if examples}
        self.data = own_data(spread, gradient_norms=False)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate the model as it was given."""
        if state.global_step == 0:
            self._evaluate(0, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate where it is time, or where the run ends."""
        if state.global_step % self.plan.every == 0 or control.should_training_stop:
            self._evaluate(state.global_step, control)

    def _evaluate(self, step: int, control: Any) -> None:
        done = self.trainer.record.evaluations
        if done and done[-1]["step"] == step:
            return
        started = time.monotonic()
        devices = list(range(torch.cuda.device_count()))
        with torch.random.fork_rng(devices=devices):
            figures = run_own(self._evaluator(), self.data, None, Bootstrap(FEW_RESAMPLES))
        found = {key: figure for key, figure in figures.items() if figure.value is not None}
        seconds = time.monotonic() - started
        done.append({"step": step, "seconds": seconds, "figures": {k: _entry(f) for k, f in found.items()}})
        due = control.should_log  # logging clears it, but the step itself is still to be logged
        self.trainer.log({f"eval/{key}": float(figure.value or 0.0) for key, figure in found.items()})
        control.should_log = due

    def _evaluator(self) -> Evaluator:
        trainer, plan = self.trainer, self.plan
        device = trainer.args.device.type
        autocast: Any = partial(_autocast, device) if trainer.args.bf16 else nullcontext
        return Evaluator(
            trainer.accelerator.unwrap_model(trainer.model),
            trainer.processing_class,
            batch_size=plan.batch_size,
            max_length=trainer.args.max_length,
            max_new_tokens=plan.max_new_tokens,
            autocast=autocast,
            quiet=True,
        )


def _autocast(device: str) -> AbstractContextManager[object]:
    return torch.autocast(device, dtype=torch.bfloat16)


def _spread(examples: Sequence[Example], most: int) -> list[Example]:
    """Take items at even distances, so that a part of a set is like the whole."""
    count = min(most, len(examples))
    return [examples[place * len(examples) // count] for place in range(count)]


def _entry(figure: Figure) -> dict[str, Any]:
    return {"value": figure.value, "interval": None if figure.interval is None else list(figure.interval)}
