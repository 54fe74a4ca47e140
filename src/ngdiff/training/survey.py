"""an unlearning trainer's model and its sets of examples -> mean figures, measured alike throughout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ngdiff.data.encoding import EncodedExample
from ngdiff.evaluation.distributed import process_count
from ngdiff.evaluation.teacher_forced import AnswerScore, items_of, score_answers, summarise, unlikelihood
from ngdiff.training.parallel import looking, shared
from ngdiff.training.stopping import CERTAINTY

if TYPE_CHECKING:
    from ngdiff.training.trainer import UnlearningTrainer


class Survey:
    """What is measured of a run's sets, and how.

    Args:
        trainer: whose model is measured, where it trains.
        sets: ``forget``, ``retain`` (the part held out), ``never_seen`` and those of earlier requests.
        whole: names of sets that are measured whole; of the others ``check_size`` examples are.
    """

    def __init__(
        self,
        trainer: UnlearningTrainer,
        sets: Mapping[str, Sequence[EncodedExample]],
        whole: Sequence[str] = ("retain", "never_seen"),
    ) -> None:
        self._trainer = trainer
        self._sets = {name: found if name in whole else self._thinned(found) for name, found in sets.items()}

    def examples(self, name: str) -> Sequence[EncodedExample]:
        """Return the examples of a set that are measured."""
        return self._sets[name]

    def figures(self, name: str) -> dict[str, float]:
        """Return a set's mean figures under the model as it is now."""
        return _means(self._scores(self._sets[name]))

    def everything(self) -> dict[str, Any]:
        """Return mean figures by the name of the set, and what they are means of under ``items``."""
        scores = {name: self._scores(examples) for name, examples in self._sets.items()}
        items = {name: items_of(found) for name, found in scores.items()}
        return {**{name: _means(found) for name, found in scores.items()}, "items": items}

    def _thinned(self, examples: Sequence[EncodedExample]) -> Sequence[EncodedExample]:
        most = self._trainer.args.check_size
        return examples[:: max(1, len(examples) // most)][:most]

    def _scores(self, examples: Sequence[EncodedExample]) -> list[AnswerScore]:
        trainer, alone = self._trainer, process_count() == 1
        with looking(trainer.model_wrapped) as model:

            def score(mine: list[EncodedExample]) -> list[AnswerScore]:
                size = 2 * trainer.args.eval_batch_size
                return score_answers(
                    model, mine, pad_id=trainer._pad_id, batch_size=size, share_prompts=alone
                )

            return shared(examples, score)


def _means(scores: Sequence[AnswerScore]) -> dict[str, float]:
    return summarise(scores) | {CERTAINTY: unlikelihood(scores)}
