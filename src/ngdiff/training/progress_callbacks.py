"""A Trainer's steps -> a progress bar, and events where those were asked for.

Apart from :mod:`ngdiff.system.progress`: commands that train nothing do not wait for ``transformers``.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ngdiff.system.environment import peak_memory_gib
from ngdiff.system.events import log
from ngdiff.system.progress import Meter, Part
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
        stopping = self.trainer._stopping
        return Meter(self.title, state.max_steps, stopping is not None and stopping.target is not None)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar; what a checkpoint brought along has been told before."""
        for name, entries in self._lists().items():
            self._seen[name] = 0 if state.global_step == 0 else len(entries)
        super().on_train_begin(args, state, control)
        self.catch_up()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count one optimizer step, show it, and write what is new in the record."""
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
        record, stopping = self.trainer.record, self.trainer._stopping
        checks = [] if stopping is None else stopping.checks
        return {
            "step": record.steps,
            "probe": record.probes,
            "check": list(checks),
            "evaluation": record.evaluations,
        }

    def _figures(self) -> list[Part]:
        record = self.trainer.record
        if not record.steps:
            return []
        step = record.steps[-1]
        memory = peak_memory_gib()
        return [
            Part(_loss("forget", step.forget_loss), 2),
            Part(_loss("retain", step.retain_loss), 1),
            Part(self._measure(step.forget_extraction_strength), 0),
            Part(f"lr {step.learning_rate:.1e}", 3),
            Part(f"{memory.get('accelerator', memory['process']):.1f} GiB", 4),
        ]

    def _measure(self, strength: float | None) -> str:
        """Name the forget target's measure, as last seen, beside the value it is to reach."""
        stopping = self.trainer._stopping
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
