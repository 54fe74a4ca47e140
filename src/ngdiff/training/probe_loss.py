"""trainer at some step -> its retain loss, on examples that had no part in the step's gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ngdiff.data.batching import ABSENT, Batch, Stream, collate_for_loss, even_parts, little_padding
from ngdiff.losses import LOSSES, Loss
from ngdiff.losses.forward import look
from ngdiff.system.processes import looking, process_count, process_rank, summed

if TYPE_CHECKING:
    from ngdiff.training.trainer import UnlearningTrainer


def where_it_began(loss: Loss) -> Loss:
    """Return a retain loss that also tells where the model is still the starting model.

    A divergence from that one has neither value nor gradient there: the NLL takes its place.
    """
    return LOSSES["nll"] if loss.compares == "predictions" else loss


class ProbeLoss:
    """The retain loss on fresh examples, the same ones at every call.

    For a loss that compares with the starting model's predictions it is the NLL. A divergence has its
    minimum where the model began, to the last rounding: under bf16 the shortest step away makes it jump, by
    more than a probe may cost.

    Args:
        trainer: whose retain set, model and loss; examples of its present step are left out.
        size: examples to look at, over all processes.
    """

    def __init__(self, trainer: UnlearningTrainer, size: int) -> None:
        self.trainer, self.size = trainer, size
        self._batches: list[Batch] | None = None

    def _draw(self) -> list[Batch]:
        trainer = self.trainer
        stream = Stream(trainer._own, trainer.args.seed + 2)
        position = trainer.state.global_step * self.size
        used = trainer._step.retain_rows
        rows: list[int] = []
        for offset in range(2 * trainer._own):
            row = stream[position + offset]
            if row not in used and row not in rows:
                rows.append(row)
            if len(rows) == self.size:
                break
        if not rows:
            trainer.record.note("the retain set is so small that probes reuse the step's own examples")
            rows = sorted(used)[: self.size]
        chosen = [trainer._retain[row] for row in rows]
        if process_count() == 1:
            parts = little_padding(chosen, trainer.args.train_batch_size)
        else:
            parts = even_parts(chosen, trainer.args.train_batch_size, process_count())
            parts = parts[process_rank() :: process_count()]
        # a process that gets an empty part takes part all the same: a sharded model needs everybody
        batches = []
        for part in parts:
            batch = collate_for_loss(part or chosen[:1], trainer._pad_id)
            batches.append(batch if part else {**batch, ABSENT: torch.ones(1)})
        return batches

    @torch.no_grad()
    def __call__(self) -> float:
        """Return the mean retain loss, in eval mode, all micro-batches at the same weights."""
        trainer = self.trainer
        if self._batches is None:
            self._batches = self._draw()
        loss = where_it_began(trainer._losses["retain"])
        total = torch.zeros(2, dtype=torch.float64, device=trainer.args.device)
        with looking(trainer.model_wrapped) as model:
            was_training = model.training
            model.eval()
            try:
                for batch in self._batches:
                    prepared = trainer._prepare_inputs(batch)
                    value = loss.function(look(loss, model, prepared)).double()
                    if ABSENT not in batch:
                        total[0] += value
                        total[1] += loss.count(prepared)
            finally:
                model.train(was_training)
        value, count = summed(total).tolist()
        return float(value / count)
