"""micro-batches of one optimizer step -> the figures of the step, and its record."""

from __future__ import annotations

import math
import time
from typing import Literal

import torch
from torch import Tensor

from ngdiff.record import StepRecord
from ngdiff.steps.gradients import FORGET, RETAIN, Gramian, Task, Weights, cosine
from ngdiff.steps.line import Probe
from ngdiff.steps.weighting import Verdict
from ngdiff.system.processes import summed
from ngdiff.training.launch import Weighted, weighted_mean

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
