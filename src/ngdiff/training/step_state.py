"""micro-batches of one optimizer step -> what is known of the step, and its record."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from ngdiff.evaluation.distributed import process_count
from ngdiff.record import StepRecord
from ngdiff.steps.gradients import FORGET, RETAIN, Gramian, Task, Weights, cosine
from ngdiff.steps.line import Probe
from ngdiff.steps.weighting import Verdict
from ngdiff.training.distribution import Weighted, completed, weighted_mean


class StepState:
    """What one optimizer step gathers over its micro-batches."""

    def __init__(self, counts: dict[Task, int], retain_rows: set[int]) -> None:
        self.counts, self.retain_rows = counts, retain_rows
        self.losses: dict[Task, float] = {}
        self.extraction_strength: Weighted = []
        self.forget_nll: Weighted = []
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

    def complete(self, device: torch.device) -> None:
        """Complete over all processes what each gathered over its micro-batches."""
        if process_count() > 1:
            means = [self.extraction_strength, self.forget_nll]
            self.extraction_strength, self.forget_nll = completed(self.losses, means, device)

    def as_record(self, step: int, epoch: float) -> StepRecord:
        """Return what the record keeps of the self."""
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


def combined_norm(gramian: Gramian, weights: Weights) -> float:
    """|d| from the Gramian: sqrt(w^T G w)."""
    vector = torch.tensor(weights, dtype=torch.float64)
    return math.sqrt(max(0.0, float(vector @ gramian @ vector)))
