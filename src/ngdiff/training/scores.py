"""an unlearning trainer's model and its sets of examples -> scores and mean figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ngdiff.data.encoding import EncodedExample
from ngdiff.inference.teacher_forced import AnswerScore, items_of, score_answers
from ngdiff.stopping.criterion import means
from ngdiff.system.processes import looking, process_count, shared

if TYPE_CHECKING:
    from ngdiff.training.trainer import UnlearningTrainer


class Survey:
    """What is measured of a run's sets, and how. Every row of every set is looked at.

    Args:
        trainer: whose model is measured, where it trains.
        sets: ``forget``, ``retain`` (the part held out), ``never_seen``, those of earlier requests and those
            to keep besides.
    """

    def __init__(self, trainer: UnlearningTrainer, sets: Mapping[str, Sequence[EncodedExample]]) -> None:
        self._trainer = trainer
        self._sets = dict(sets)

    def examples(self, name: str) -> Sequence[EncodedExample]:
        """Return the examples of a set."""
        return self._sets[name]

    def replace(self, name: str, examples: Sequence[EncodedExample]) -> None:
        """Measure other examples under a name from now on."""
        self._sets[name] = examples

    def scores(self, name: str, rows: Sequence[int] | None = None) -> list[AnswerScore]:
        """Return the scores of a set, or of some of its rows, under the model as it is now."""
        examples = self._sets[name]
        return self.score(examples if rows is None else [examples[row] for row in rows])

    def figures(self, name: str) -> dict[str, float]:
        """Return a set's mean figures under the model as it is now."""
        return means(self.scores(name))

    def everything(self, known: Mapping[str, Sequence[AnswerScore]] | None = None) -> dict[str, Any]:
        """Return mean figures by the name of the set, and what they are means of under ``items``.

        Args:
            known: scores of sets that the model as it is now has been asked for already.
        """
        known = known or {}
        scores = {name: known[name] if name in known else self.scores(name) for name in self._sets}
        items = {
            name: items_of(found) | {"verbatim": [score.verbatim for score in found]}
            for name, found in scores.items()
        }
        return {**{name: means(found) for name, found in scores.items()}, "items": items}

    def score(self, examples: Sequence[EncodedExample]) -> list[AnswerScore]:
        """Return the scores of any examples under the model as it is now, on every process."""
        trainer, alone = self._trainer, process_count() == 1
        with looking(trainer.model_wrapped) as model:

            def score(mine: list[EncodedExample]) -> list[AnswerScore]:
                size = 2 * trainer.args.eval_batch_size
                return score_answers(
                    model, mine, pad_id=trainer._pad_id, batch_size=size, share_prompts=alone
                )

            return shared(examples, score)
