"""steps of a Trainer -> a progress bar, events, and figures of the suite ``own`` every so many steps.

Separate from :mod:`ngdiff.system.progress`, so that commands without training need not import
``transformers``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from ngdiff.data.examples import Example
from ngdiff.evaluation.result import Bootstrap, Figure
from ngdiff.evaluation.suites.own import own_data, run_own
from ngdiff.inference.evaluator import Evaluator
from ngdiff.system.environment import peak_memory_gib
from ngdiff.system.events import log
from ngdiff.system.progress import Meter
from ngdiff.system.terminal import console

if TYPE_CHECKING:
    from ngdiff.training.trainer import UnlearningTrainer

SHORT = {
    "extraction_strength": "extraction",
    "exact_memorisation": "memorised",
    "verbatim": "verbatim",
    "nll": "forget NLL",
}


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """Shows a Trainer's steps; a trainer may leave a ``progress_note`` to show beside the bar."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._meter: Meter | None = None

    def _open(self, state: Any) -> Meter:
        return Meter(self.title, state.max_steps)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar."""
        if state.is_world_process_zero:
            self._meter = self._open(state)
            self._meter.done = state.global_step
            self._meter.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count one optimizer step."""
        if self._meter is not None:
            self._meter.advance(1, getattr(state, "progress_note", None))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        if self._meter is not None:
            self._meter.__exit__()
            self._meter = None


class UnlearningProgress(ProgressCallback):
    """Shows losses, forget measure, rate and memory of each step, and writes the record's entries as events.

    Args:
        trainer: whose record to follow; it has to be added to that trainer after its own callbacks::

            trainer.add_callback(UnlearningProgress(trainer))
    """

    def __init__(self, trainer: UnlearningTrainer, title: str = "Unlearning") -> None:
        super().__init__(title)
        self.trainer = trainer
        self._seen: dict[str, int] = {}

    def _open(self, state: Any) -> Meter:
        stopping = self.trainer.run.stopping
        return Meter(self.title, state.max_steps, stopping is not None and stopping.target is not None)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar; entries restored from a checkpoint have been written before."""
        for name, entries in self._lists().items():
            self._seen[name] = 0 if state.global_step == 0 else len(entries)
        super().on_train_begin(args, state, control)
        self.catch_up()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count one optimizer step, show it, and write the record's new entries."""
        if self._meter is not None:
            self._meter.advance(1, figures=self._figures())
            for text in self.trainer.record.notes:
                if text.startswith(f"step {state.global_step}:"):  # told now, and once more at the end
                    console.print(f"{text}.", markup=False, highlight=False, soft_wrap=True)
            self.catch_up()

    def catch_up(self) -> None:
        """Write an event for each entry of the record that has not been written yet."""
        if not self.trainer.is_world_process_zero():
            return
        for name, entries in self._lists().items():
            for entry in entries[self._seen.get(name, 0) :]:
                log.write(name, **(entry if isinstance(entry, dict) else asdict(entry)))
            self._seen[name] = len(entries)
        for text in self.trainer.record.notes:
            log.note(text)

    def _lists(self) -> dict[str, list[Any]]:
        record, stopping = self.trainer.record, self.trainer.run.stopping
        checks = [] if stopping is None else stopping.checks
        return {
            "step": record.steps,
            "probe": record.probes,
            "check": list(checks),
            "evaluation": record.evaluations,
        }

    def _figures(self) -> list[str]:
        """Return what to show of the last step, the most important first."""
        record = self.trainer.record
        if not record.steps:
            return []
        step = record.steps[-1]
        memory = peak_memory_gib()
        return [
            self._measure(step.forget_extraction_strength),
            _loss("retain", step.retain_loss),
            _loss("forget", step.forget_loss),
            f"lr {step.learning_rate:.1e}",
            f"{memory.get('accelerator', memory['process']):.1f} GiB",
        ]

    def _measure(self, strength: float | None) -> str:
        """Return the forget target's measure at the last check, and the value that it must reach."""
        stopping = self.trainer.run.stopping
        target = None if stopping is None else stopping.target
        if stopping is None or target is None or target.value is None:
            return "" if strength is None else f"extraction {strength:.2f}"
        value = stopping.checks[-1].forget[target.measure] if stopping.checks else None
        if target.measure == "extraction_strength" and strength is not None:
            value = strength
        name = SHORT.get(target.measure, target.measure)
        last = stopping.checks[-1] if stopping.checks else None
        left = "" if last is None or last.left is None else f", {last.left:.0f} of {last.of} left"
        return "" if value is None else f"{name} {value:.2f}, target {target.value:.2f}{left}"


def _loss(task: str, value: float | None) -> str:
    return "" if value is None else f"{task} {value:.3f}"


# ---- a run in progress -> the figures of the suite ``own`` every so many steps ----


FEW_RESAMPLES = 500


@dataclass(frozen=True)
class EvaluationPlan:
    """When to evaluate, and on how much.

    Args:
        every: optimizer steps between two evaluations; also the untouched model and the last step.
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
    given one, on the holdout. The run is not affected: weights, gradients, random numbers and mode
    stay as they are. Results go to the record's ``evaluations`` and, as ``eval/NAME``, to
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
        """Evaluate the untouched model."""
        if state.global_step == 0:
            self._evaluate(0, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate when it is due, and when the run ends."""
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
