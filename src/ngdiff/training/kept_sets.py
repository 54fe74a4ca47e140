"""an unlearning trainer -> the figures of what must be kept, and the floors under them.

=================  ==============================================================================
floor              figure
=================  ==============================================================================
retain             mean answer probability of the part of the retain set that is held out
general.facts      40 facts that ship with the project: p(true answer) / (p(true) + p(wrong ones))
general.answers    share of these facts whose true answer is more probable than every wrong one; one that
                   was right is lost only beyond a near tie
general.text       mean answer probability of 48 questions and instructions that ship as well
language           mean probability of the tokens of the forget answers that need no knowledge
a set of --keep    mean answer probability
=================  ==============================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ngdiff.data.batching import permutation
from ngdiff.data.encoding import EncodedExample, encode_all
from ngdiff.data.examples import to_examples
from ngdiff.data.sources import Row, general_split
from ngdiff.errors import Fault, RequestError, unknown_name
from ngdiff.inference.teacher_forced import AnswerScore
from ngdiff.invented.people import general_knowledge_rows
from ngdiff.stopping.rule import FLOORS, Floor, floor_title

if TYPE_CHECKING:
    from ngdiff.training.config import UnlearningConfig
    from ngdiff.training.trainer import UnlearningTrainer

ROOM = 512
"""Most tokens of a shipped example, whatever the limit of the user's own text."""
MORE_THAN_GUESSED = 0.375
"""Share of correct facts that guessing, one in four, reaches in one case of twenty."""
KNOWN = 0.01
"""Answer probability of a set below which a model knows almost nothing of it."""
TIE = 0.1
"""Nats per token by which a wrong answer must lead before a fact that was right counts as lost."""
NO_KNOWLEDGE = 0.5
"""Level from which a token of a forget answer needs no knowledge."""


def floor_shares(args: UnlearningConfig, kept: Sequence[str]) -> dict[str, float]:
    """Return the share of its start that each figure must keep; 0 for no floor.

    Args:
        args: ``keep_utility`` is every floor's share, ``floors`` overrides some by name; ``general`` names
            all three of its floors at once.
        kept: names of the sets of ``--keep``.

    Raises:
        RequestError: ``floors`` names one that does not exist.
    """
    names = [*FLOORS, *kept]
    groups = {"general": [name for name in FLOORS if name.startswith("general.")]}
    faults = [
        unknown_name("--set floors", "floor", str(name), [*names, *groups])
        for name in args.floors
        if name not in names and name not in groups
    ]
    if faults:
        raise RequestError(faults)
    shares = dict.fromkeys(names, args.keep_utility)
    for name, share in sorted(args.floors.items(), key=lambda item: item[0] not in groups):
        shares.update(dict.fromkeys(groups.get(name, [name]), share))
    return shares


def reserved_faults(names: Sequence[str]) -> list[Fault]:
    """Return a fault for each set to keep whose name is reserved."""
    taken = {*FLOORS, "general", "forget", "never_seen", "items"}
    return [
        Fault("--keep", f"the name {name!r} is reserved", "Rename the file")
        for name in names
        if name in taken or name.startswith("earlier ")
    ]


class KeptSets:
    """The figures that must be kept, measured the same way at the start and at every check.

    Args:
        trainer: whose model is measured.
        kept: sets of ``--keep``, by name. Where one has more than the trainer's ``CHECK_SIZE`` examples, a
            sample of that size is drawn once, by the seed, and measured.
    """

    def __init__(self, trainer: UnlearningTrainer, kept: Mapping[str, Sequence[EncodedExample]]) -> None:
        args, tokenizer = trainer.args, trainer.processing_class
        self._trainer = trainer
        self.shares = floor_shares(args, list(kept))
        self._kept = {
            name: _sample(examples, trainer.CHECK_SIZE, args.seed)
            for name, examples in kept.items()
            if self.shares[name] > 0
        }
        self._right: list[bool] | None = None
        self._facts: list[list[EncodedExample]] = []
        if self.shares["general.facts"] > 0 or self.shares["general.answers"] > 0:
            self._facts = _facts(tokenizer, args.max_length)
        self._text: list[EncodedExample] = []
        if self.shares["general.text"] > 0:
            self._text = _encoded(general_split()[1], tokenizer, args.max_length)

    def start(
        self, rows: Sequence[int], forget: Sequence[AnswerScore], retain: Sequence[AnswerScore]
    ) -> dict[str, float]:
        """Measure before the first step: see :meth:`measure`."""
        self._right = None
        return self.measure(rows, forget, retain)

    def measure(
        self, rows: Sequence[int], forget: Sequence[AnswerScore], retain: Sequence[AnswerScore]
    ) -> dict[str, float]:
        """Return the figure of every active floor.

        Args:
            rows: rows of the forget set that were measured.
            forget: their scores.
            retain: scores of the retain set's held-out part.
        """
        found: dict[str, float] = {}
        if self.shares["retain"] > 0:
            found["retain"] = fmean(score.probability for score in retain)
        score = self._trainer.measurements.score
        if self._facts:
            found |= self._of_the_facts(score([one for fact in self._facts for one in fact]))
        if self._text:
            found["general.text"] = fmean(one.probability for one in score(self._text))
        for name, examples in self._kept.items():
            found[name] = fmean(one.probability for one in score(examples))
        language = self._language(rows, forget) if self.shares["language"] > 0 else None
        return found if language is None else found | {"language": language}

    def _of_the_facts(self, scores: Sequence[AnswerScore]) -> dict[str, float]:
        """Return the figures of the facts; the first call remembers which are right.

        A fact that was right counts as lost where a wrong answer is ahead by more than :data:`TIE`, one that
        was wrong as gained where it leads by as much: near ties change sides with every step.
        """
        losses, place = [], 0
        for fact in self._facts:
            losses.append([score.mean_nll for score in scores[place : place + len(fact)]])
            place += len(fact)
        leads = [_lead(one) for one in losses]
        if self._right is None:
            self._right = [lead > 0 for lead in leads]
        right = [lead > (-TIE if was else TIE) for lead, was in zip(leads, self._right, strict=True)]
        return {
            "general.facts": fmean(_probability(one) for one in losses),
            "general.answers": sum(right) / len(self._facts),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"right": self._right}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self._right = state["right"]

    def _language(self, rows: Sequence[int], scores: Sequence[AnswerScore]) -> float | None:
        """Return the mean probability of tokens that need no knowledge; None where none are known.

        The measured rows stand for all: their mean is scaled by their predictability relative to all rows.
        """
        expected = self.expected_language()
        if expected is None:
            return None
        there, level = 0.0, 0.0
        for row, score in zip(rows, scores, strict=True):
            example = self._trainer.forget_set[row]
            levels = example.predictable or ()
            for p, b in zip(score.log_probs[-len(levels) :] if levels else (), levels, strict=True):
                if b >= NO_KNOWLEDGE:
                    there, level = there + math.exp(p), level + b
        return expected * there / level if level > 0 else expected

    def expected_language(self) -> float | None:
        """Return the mean level of the tokens that need no knowledge; None where no levels are known."""
        levels = [
            level
            for example in self._trainer.forget_set
            for level in example.predictable or ()
            if level >= NO_KNOWLEDGE
        ]
        return fmean(levels) if levels else None

    def floors(self, start: Mapping[str, float]) -> dict[str, Floor]:
        """Return the floors that follow from the figures before the first step; note which have none."""
        found, note = {}, self._trainer.record.note
        for name, value in start.items():
            why = _no_floor(name, start)
            if why is not None:
                note(f"{floor_title(name)} has no floor: {why}")
                continue
            found[name] = Floor(self.shares[name], value, self._least(name, value))
        if self.shares["language"] > 0 and "language" not in start and self._levels_wanted:
            note("the forget answers' language has no floor: no token of them is known to need no knowledge")
        return found

    @property
    def _levels_wanted(self) -> bool:
        return bool(self._trainer.losses["forget"].levels)

    def _least(self, name: str, start: float) -> float:
        share = self.shares[name]
        if name == "general.answers":  # one fact may be lost, two may not
            return min(share * start, start - 1.5 / len(self._facts))
        if name == "language":
            expected = self.expected_language()
            return share * min(start, start if expected is None else expected)
        return share * start


def _no_floor(name: str, start: Mapping[str, float]) -> str | None:
    """Return why a figure has no floor, where the model never knew what it measures."""
    if name in ("general.facts", "general.answers") and start["general.answers"] < MORE_THAN_GUESSED:
        return f"the starting model answers {start['general.answers']:.0%} of them, no better than guessing"
    if name not in ("general.facts", "general.answers") and start[name] < KNOWN:
        return f"the starting model knows almost nothing of it ({start[name]:.4f})"
    return None


def _sample(examples: Sequence[EncodedExample], most: int, seed: int) -> list[EncodedExample]:
    rows = permutation(len(examples), seed + 7, 0)[:most]
    return [examples[row] for row in sorted(rows)]


def _encoded(rows: Sequence[Mapping[str, Any]], tokenizer: Any, max_length: int) -> list[EncodedExample]:
    numbered = [Row(dict(row), f"general row {number}") for number, row in enumerate(rows, start=1)]
    return encode_all(to_examples(numbered, "general"), tokenizer, max(max_length, ROOM), "general")


def _facts(tokenizer: Any, max_length: int) -> list[list[EncodedExample]]:
    """Return each fact's true answer, followed by the wrong ones."""
    found = []
    for row in general_knowledge_rows():
        answers = [row["answer"], *row["perturbed_answer"]]  # type: ignore[misc]
        rows = [{"question": row["question"], "answer": answer} for answer in answers]
        found.append(_encoded(rows, tokenizer, max_length))
    return found


def _probability(losses: Sequence[float]) -> float:
    """Return p(true) / (p(true) + p(wrong)) of one fact, from NLL per token, the true answer's first."""
    # differences of logarithms, so that no underflow divides 0 by 0
    return 1 / math.fsum(math.exp(min(losses[0] - loss, 700.0)) for loss in losses)


def _lead(losses: Sequence[float]) -> float:
    """Return by how many nats per token the true answer is ahead of the best wrong one."""
    return min(losses[1:]) - losses[0]
