"""state of a run between two steps <-> the checkpoint that keeps it.

transformers.Trainer saves weights, optimizer, scheduler and random states; they are not repeated here.
The order of examples is a function of the seed, the position and the rows that the epoch draws from, which
are kept.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ngdiff.models.parameters import BestWeights
from ngdiff.record import RunRecord, StepRecord
from ngdiff.steps.gradients import FORGET, RETAIN, Gramian, Task, Weights, cosine
from ngdiff.steps.line import Probe
from ngdiff.steps.stepsize import FixedRate, StepSize
from ngdiff.steps.weighting import Rule, StatefulRule, Verdict
from ngdiff.stopping.criterion import ItemWatch
from ngdiff.stopping.never_seen import NeverSeen
from ngdiff.stopping.rule import Decision, StoppingRule
from ngdiff.system.environment import peak_memory_gib
from ngdiff.system.processes import summed
from ngdiff.training.launch import Weighted, weighted_mean

if TYPE_CHECKING:
    from ngdiff.training.trainer import UnlearningTrainer

STATE_FILE = "unlearning_state.json"


@dataclass
class RunState:
    """The state of a run between two steps, apart from model, optimizer and data.

    Args:
        items: which items of the forget set were left when they were last looked at.
        best: a copy of the best weights so far.
        rule: weighs the two gradients; it may remember earlier steps.
        step_size: finds the learning rate.
        step: figures of the step in progress, or of the last one.
        stopping: the stopping rule with all checks so far; None before the starting point is measured.
        decision: why the run ends, once that is decided.
        skipped_in_a_row: steps since the last one whose gradients were finite.
        last_check: step of the last check.
        last_strength: mean extraction strength over the last step's own batch.
        epoch_rows: the epoch in progress, and the forget rows that it draws from.
        started: when the run began, on the monotonic clock, less the time that a resumed run took before.
        peak_before: peak memory before the checkpoint that the run was resumed from, in GiB.
    """

    items: ItemWatch
    best: BestWeights
    rule: Rule
    step_size: StepSize = field(default_factory=FixedRate)
    step: StepState = field(default_factory=lambda: StepState({"forget": 0, "retain": 0}, set()))
    stopping: StoppingRule | None = None
    decision: Decision | None = None
    skipped_in_a_row: int = 0
    last_check: int = 0
    last_strength: float | None = None
    epoch_rows: tuple[int, list[int]] | None = None
    started: float = 0.0
    peak_before: dict[str, float] = field(default_factory=dict)

    def begin(self, best: BestWeights) -> None:
        """Forget an earlier run of the same trainer, and start the clock."""
        self.best, self.started, self.peak_before = best, time.monotonic(), {}
        self.stopping, self.decision, self.epoch_rows = None, None, None
        self.skipped_in_a_row, self.last_check = 0, 0

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run so far, in s, including the time before it was resumed."""
        return time.monotonic() - self.started

    @property
    def peak_memory(self) -> dict[str, float]:
        """Peak memory of the run so far, by place, in GiB."""
        mine = peak_memory_gib()
        return {name: max(peak, self.peak_before.get(name, 0.0)) for name, peak in mine.items()}

    def is_best(self, step: int) -> bool:
        """Return whether the weights of a step are those of the best check."""
        best = None if self.stopping is None else self.stopping.best
        return best is not None and best.step == step

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds as JSON; the best weights are a file of their own."""
        rate, rule = self.step_size, self.rule
        return {
            "step_size": None if isinstance(rate, FixedRate) else rate.state_dict(),
            "stopping": None if self.stopping is None else self.stopping.state_dict(),
            "items": self.items.state_dict(),
            "epoch_rows": self.epoch_rows,
            "last_check": self.last_check,
            "last_strength": self.last_strength,
            "skipped_in_a_row": self.skipped_in_a_row,
            "decision": None if self.decision is None else asdict(self.decision),
            "seconds": self.seconds,
            "peak_memory_gib": self.peak_memory,
            "rule": rule.state_dict() if isinstance(rule, StatefulRule) else None,
        }

    def load_state_dict(self, state: Mapping[str, Any], patience: int) -> None:
        """Continue from a saved state; the clock has been started.

        Args:
            state: what :meth:`state_dict` returned.
            patience: checks in a row under a floor before the run is given up.
        """
        if state["step_size"] is not None and not isinstance(self.step_size, FixedRate):
            self.step_size.load_state_dict(state["step_size"])
        if state["stopping"] is not None:
            self.stopping = StoppingRule.from_state(state["stopping"], patience)
            self.items.load_state_dict(state["items"])
        if state["epoch_rows"] is not None:
            self.epoch_rows = (int(state["epoch_rows"][0]), list(state["epoch_rows"][1]))
        self.last_check, self.last_strength = state["last_check"], state["last_strength"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        if isinstance(self.rule, StatefulRule):
            self.rule.load_state_dict(state["rule"])
        self.decision = None if state["decision"] is None else Decision(**state["decision"])
        self.started -= state["seconds"]
        self.peak_before = state["peak_memory_gib"]


def save(trainer: UnlearningTrainer, folder: Path) -> None:
    """Add this trainer's own state to a checkpoint; one process writes it."""
    if not trainer.args.should_save:
        return
    state = trainer.run.state_dict() | {
        "kept": trainer.kept.state_dict(),
        "level_source": trainer.level_source,
        "record": trainer.record.state_dict(),
        "compared": None
        if trainer.comparisons is None
        else trainer.comparisons.save(folder, trainer.forget_set),
    }
    # NaN and infinities of skipped steps and broken probes come back as they were
    (folder / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
    if not trainer.run.is_best(trainer.state.global_step):
        trainer.run.best.copy_to(folder)


def read(folder: Path) -> dict[str, Any] | None:
    """Return the state in a checkpoint's folder; None where another trainer wrote it."""
    file = folder / STATE_FILE
    if not file.is_file():
        return None
    state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return state


def restore(trainer: UnlearningTrainer, folder: Path, state: dict[str, Any]) -> None:
    """Restore a trainer that is about to begin to the state of a checkpoint."""
    trainer.run.load_state_dict(state, trainer.PATIENCE)
    if state["stopping"] is not None:
        trainer.kept.load_state_dict(state["kept"])
        if trainer.run.is_best(trainer.state.global_step):
            trainer.run.best.save()
        else:
            trainer.run.best.take(folder)
    if state.get("level_source", trainer.level_source) != trainer.level_source:
        # the part of the retain set that the starting model did not know
        trainer.measure_level_on(NeverSeen(trainer.held_out_set, state["level_source"], []))
    _restore_record(trainer.record, state["record"])
    trainer.complete_losses()
    assert trainer.comparisons is not None
    trainer.comparisons.restore(folder, state["compared"], trainer.training_sets, trainer.args.device)
    trainer.record.note(f"resumed at step {trainer.state.global_step}")


def _restore_record(record: RunRecord, state: dict[str, Any]) -> None:
    """Continue the record so far, and note where versions or machine have changed."""
    now = {**record.versions, **{name: str(value) for name, value in record.machine.items()}}
    record.load_state_dict(state)
    then = {**record.versions, **{name: str(value) for name, value in record.machine.items()}}
    for name in sorted({*now, *then}):
        if now.get(name) != then.get(name):
            text = f"resumed with another {name}: {then.get(name)} before, {now.get(name)} after"
            record.note(f"{text}; the result may differ by rounding from that of an uninterrupted run")


# ---- one step ----


Watched = Literal["strength", "nll"]


class StepState:
    """What one optimizer step gathers over its micro-batches.

    Its figures stay on the device until all are there, and are copied to the host together: reading each one
    would make the host wait for the device.
    """

    def __init__(self, counts: dict[Task, int], retain_rows: set[int]) -> None:
        self.counts, self.retain_rows = counts, retain_rows
        self.losses: dict[Task, float] = {}
        self.extraction_strength: Weighted = []
        self.forget_nll: Weighted = []
        self._losses: dict[Task, list[Tensor]] = {}
        self._watched: dict[Watched, list[tuple[Tensor, int]]] = {"strength": [], "nll": []}
        self._sent = torch.zeros(0)
        self.absent = False
        self.reported = torch.zeros(())
        self.gramian: Gramian | None = None
        self.weights = Weights(0.0, 0.0)
        self.combined_norm: float | None = None
        self.verdict = Verdict.STEP
        self.probe: Probe | None = None
        self.sampled: dict[Task, list[Tensor]] = {}
        self.descent: dict[Task, float] = {}
        self.changed: float | None = None
        self.rate = 0.0
        self.started = time.monotonic()

    def add_loss(self, task: Task, loss: Tensor) -> None:
        """Add one micro-batch's share of a task's loss."""
        self._losses.setdefault(task, []).append(loss.detach())
        self.reported = self._losses[task][-1]

    def watch(self, what: Watched, mean: Tensor, items: int) -> None:
        """Add the mean over some items of one micro-batch."""
        self._watched[what].append((mean.detach(), items))

    def send(self, device: torch.device) -> None:
        """Combine the step's figures over all processes, and start copying them to the host."""
        zero = torch.zeros((), dtype=torch.float64, device=device)
        sums = [sum((loss.double() for loss in losses), zero) for losses in self._losses.values()]
        for means in self._watched.values():
            sums.append(sum((mean.double() * items for mean, items in means), zero))
            sums.append(zero + sum(items for _, items in means))
        self._sent = _on_its_way(summed(torch.stack(sums)))

    def receive(self, arrived: bool) -> None:
        """Read the copied figures.

        Args:
            arrived: whether the host has waited for the device since.
        """
        if self._sent.is_pinned() and not arrived:
            torch.cuda.current_stream().synchronize()
        values = iter(self._sent.tolist())
        self.losses = {task: next(values) for task in self._losses}
        self.extraction_strength, self.forget_nll = (
            [(total / weight, weight)] if weight > 0 else []
            for total, weight in ((next(values), next(values)) for _ in self._watched)
        )

    def as_record(self, step: int, epoch: float) -> StepRecord:
        """Return the step's entry in the record."""
        gramian = self.gramian
        return StepRecord(
            step=step,
            epoch=epoch,
            forget_loss=self.losses.get("forget"),
            retain_loss=self.losses.get("retain"),
            forget_norm=None if gramian is None else math.sqrt(float(gramian[FORGET, FORGET])),
            retain_norm=None if gramian is None else math.sqrt(float(gramian[RETAIN, RETAIN])),
            cosine=None if gramian is None else cosine(gramian),
            weights=(self.weights.retain, self.weights.forget),
            combined_norm=self.combined_norm,
            learning_rate=self.rate,
            retain_descent=self.descent.get("retain"),
            forget_descent=self.descent.get("forget"),
            changed=self.changed,
            forget_extraction_strength=weighted_mean(self.extraction_strength),
            seconds=time.monotonic() - self.started,
            skipped=None if self.verdict is Verdict.STEP else self.verdict.value,
        )

    def named(self, task: Task) -> str:
        """Return a task's loss for the progress bar."""
        loss = self.losses.get(task)
        return f"{task} {loss:.3f}" if loss is not None else f"{task} -"


def _on_its_way(tensor: Tensor) -> Tensor:
    """Return a copy on the host, complete once the host has waited for the device."""
    if not tensor.is_cuda:
        return tensor.cpu()
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)


def combined_norm(gramian: Gramian, weights: Weights) -> float:
    """|d| from the Gramian: sqrt(w^T G w)."""
    vector = torch.tensor(weights, dtype=torch.float64)
    return math.sqrt(max(0.0, float(vector @ gramian @ vector)))
