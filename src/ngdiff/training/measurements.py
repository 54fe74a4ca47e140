"""a trainer at some step -> its retain loss on fresh examples, and the scores of its sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ngdiff.data.batching import ABSENT, Batch, Stream, collate_for_loss, even_parts, little_padding
from ngdiff.data.encoding import EncodedExample
from ngdiff.inference.teacher_forced import AnswerScore, items_of, score_answers
from ngdiff.losses import LOSSES, Loss
from ngdiff.losses.loss import look
from ngdiff.stopping.criterion import means
from ngdiff.system.processes import looking, process_count, process_rank, shared, summed

if TYPE_CHECKING:
    from ngdiff.training.trainer import UnlearningTrainer


def informative_at_start(loss: Loss) -> Loss:
    """Return a retain loss that is also informative where the model is still the starting model.

    A divergence from the starting model has neither value nor gradient there, so the NLL takes its place.
    """
    return LOSSES["nll"] if loss.compares == "predictions" else loss


class ProbeLoss:
    """The retain loss on fresh examples, the same at every call.

    For a loss that compares with the starting model's predictions it is the NLL. A divergence has its exact
    minimum at the starting model: under bf16 the shortest step away raises it by more than a probe may cost.

    Args:
        trainer: whose retain set, model and loss to use; examples of its current step are left out.
        size: examples to look at, over all processes.
    """

    def __init__(self, trainer: UnlearningTrainer, size: int) -> None:
        self.trainer, self.size = trainer, size
        self._batches: list[Batch] | None = None

    def _draw(self) -> list[Batch]:
        trainer = self.trainer
        stream = Stream(trainer.own_retain, trainer.args.seed + 2)
        position = trainer.state.global_step * self.size
        used = trainer.run.step.retain_rows
        rows: list[int] = []
        for offset in range(2 * trainer.own_retain):
            row = stream[position + offset]
            if row not in used and row not in rows:
                rows.append(row)
            if len(rows) == self.size:
                break
        if not rows:
            trainer.record.note("the retain set is so small that probes reuse the step's own examples")
            rows = sorted(used)[: self.size]
        chosen = [trainer.retain_set[row] for row in rows]
        if process_count() == 1:
            parts = little_padding(chosen, trainer.args.train_batch_size)
        else:
            parts = even_parts(chosen, trainer.args.train_batch_size, process_count())
            parts = parts[process_rank() :: process_count()]
        # a process that gets an empty part takes part all the same: a sharded model needs everybody
        batches = []
        for part in parts:
            batch = collate_for_loss(part or chosen[:1], trainer.pad_id)
            batches.append(batch if part else {**batch, ABSENT: torch.ones(1)})
        return batches

    @torch.no_grad()
    def __call__(self) -> float:
        """Return the mean retain loss, in eval mode, all micro-batches at the same weights."""
        trainer = self.trainer
        if self._batches is None:
            self._batches = self._draw()
        loss = informative_at_start(trainer.losses["retain"])
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


# ---- an unlearning trainer's model and its sets of examples -> scores and mean figures ----


class Measurements:
    """Measures every row of the sets of a run.

    Args:
        trainer: whose model is measured, where it trains.
        sets: ``forget``, ``retain`` (the part held out), ``never_seen``, those of earlier requests and
            further sets to keep.
    """

    def __init__(self, trainer: UnlearningTrainer, sets: Mapping[str, Sequence[EncodedExample]]) -> None:
        self._trainer = trainer
        self._sets = dict(sets)

    def examples(self, name: str) -> Sequence[EncodedExample]:
        """Return the examples of a set."""
        return self._sets[name]

    def replace(self, name: str, examples: Sequence[EncodedExample]) -> None:
        """Replace the examples of a set."""
        self._sets[name] = examples

    def scores(self, name: str, rows: Sequence[int] | None = None) -> list[AnswerScore]:
        """Return the scores of a set, or of some of its rows, under the current model."""
        examples = self._sets[name]
        return self.score(examples if rows is None else [examples[row] for row in rows])

    def figures(self, name: str) -> dict[str, float]:
        """Return a set's mean figures under the current model."""
        return means(self.scores(name))

    def everything(self, known: Mapping[str, Sequence[AnswerScore]] | None = None) -> dict[str, Any]:
        """Return mean figures by the name of the set, and the values of single items under ``items``.

        Args:
            known: scores of sets that are already known for the current model.
        """
        known = known or {}
        scores = {name: known[name] if name in known else self.scores(name) for name in self._sets}
        items = {
            name: items_of(found) | {"verbatim": [score.verbatim for score in found]}
            for name, found in scores.items()
        }
        return {**{name: means(found) for name, found in scores.items()}, "items": items}

    def score(self, examples: Sequence[EncodedExample]) -> list[AnswerScore]:
        """Return the scores of any examples under the current model, on every process."""
        trainer, alone = self._trainer, process_count() == 1
        with looking(trainer.model_wrapped) as model:

            def score(mine: list[EncodedExample]) -> list[AnswerScore]:
                size = 2 * trainer.args.eval_batch_size
                return score_answers(model, mine, pad_id=trainer.pad_id, batch_size=size, share_prompts=alone)

            return shared(examples, score)
