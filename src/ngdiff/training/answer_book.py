"""a trainer before its first step and after its last -> the model's answers: answers.json.

The items are those that decide when a run stops: the forget set and the retain examples held out from
training. Of running text they are passages: the beginning of a piece stands for the question, and what
follows it for the answer. All of them are scored, and some are also answered: most at even distances, the
rest those that were forgotten least.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ngdiff.data.broken import what_is_broken
from ngdiff.data.examples import Example
from ngdiff.data.long_text import passages
from ngdiff.errors import EvaluationError
from ngdiff.inference.evaluator import Evaluator
from ngdiff.inference.teacher_forced import AnswerScore
from ngdiff.system.output import staged_file
from ngdiff.system.processes import is_main
from ngdiff.training.trainer import UnlearningTrainer

KIND, FORMAT = "answers", 1
BEFORE = "answers_before.json"
NEW_TOKENS = 64
"""Longest recorded answer, in tokens."""

NAMED = 5
"""Most broken answers that the note names."""

ROOM = 8
"""Tokens by which an answer may exceed the longest true one."""


class AnswerBook(TrainerCallback):  # type: ignore[misc]
    """Asks the same questions before and after unlearning; draws no random numbers, changes no weights.

    Args:
        trainer: whose model is asked about its sets; the book adds itself to its callbacks.
        asked: number of questions from the forget set, and two thirds as many from the retain set; 0 for
            none.
    """

    def __init__(self, trainer: UnlearningTrainer, asked: int) -> None:
        self.trainer = trainer
        forget = [encoded.example for encoded in trainer.measurements.examples("forget")]
        self.sets: dict[str, list[Example]] = {
            name: passages(examples, trainer.processing_class, NEW_TOKENS)
            for name, examples in (("forget", forget), ("retain", trainer.held_out_examples))
        }
        self.asked = {"forget": asked, "retain": math.ceil(asked * 2 / 3)}
        self._before: dict[str, _Look] = {}
        if asked:
            trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask the untouched model; a run that resumes from a checkpoint reads the answers given then."""
        file = Path(args.output_dir) / BEFORE
        if state.global_step > 0:
            self._before = self._found(file)
            return
        self._before = self._look(None)
        if self._before and is_main():
            with staged_file(file) as staging:
                staging.write_text(json.dumps({name: look.as_json() for name, look in self._before.items()}))

    def _found(self, file: Path) -> dict[str, _Look]:
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            return {name: _Look.from_json(look) for name, look in kept.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            text = f"the earlier answers could not be read ({type(error).__name__})"
            self.trainer.record.note(text)
            return {}

    def compare(self) -> dict[str, Any] | None:
        """Ask the current model, and return the content of ``answers.json``; None without questions."""
        if not any(self.asked.values()):
            return None
        after = self._look(self._before)
        if not after or not is_main():
            return None
        items = [
            _item(name, example, self._before.get(name), after[name], place)
            for name, examples in self.sets.items()
            for place, example in enumerate(examples)
        ]
        note = broken_answers(items)
        if note is not None:
            self.trainer.record.note(note)
        of = {"forget": len(self.trainer.forget_set), "retain": len(self.sets["retain"])}
        return {"kind": KIND, "format": FORMAT, "asked": self.asked, "of": of, "items": items}

    def _look(self, before: dict[str, _Look] | None) -> dict[str, _Look]:
        note = self.trainer.record.note
        if getattr(self.trainer, "is_fsdp_enabled", False):
            note("no answers were recorded: the model is sharded, and answers are decoded on one device")
            return {}
        try:
            return {
                name: self._ask(name, examples, None if before is None else before.get(name))
                for name, examples in self.sets.items()
            }
        except EvaluationError as error:
            note(f"no answers were recorded: {error}")
            return {}

    def _ask(self, name: str, examples: Sequence[Example], before: _Look | None) -> _Look:
        evaluator = self._evaluator()
        scores = evaluator.score(f"{name} answers", examples)
        longest = max((score.tokens for score in scores), default=0)
        most = min(NEW_TOKENS, longest + ROOM)
        if before is None:
            rows = set(_spread(len(examples), self.asked[name] - self.asked[name] // 3))
            # these follow from the scores: nothing has to be decoded for them but, perhaps, their end
            rows |= {r for r, s in enumerate(scores) if s.extraction_strength == 1 and s.tokens <= most}
        else:
            rows = _after(scores, before, self.asked[name])
        chosen = [row for row in sorted(rows) if examples[row].messages]  # a short text has no beginning
        texts = evaluator.generate(
            f"{name} generation",
            [examples[row] for row in chosen],
            max_new_tokens=most,
            scores=[scores[row] for row in chosen],
        )
        return _Look(scores, dict(zip(chosen, texts, strict=True)))

    def _evaluator(self) -> Evaluator:
        args = self.trainer.args
        bf16 = partial(torch.autocast, args.device.type, dtype=torch.bfloat16)
        return Evaluator(
            self.trainer.accelerator.unwrap_model(self.trainer.model),
            self.trainer.processing_class,
            batch_size=args.per_device_eval_batch_size,
            max_length=args.max_length,
            autocast=bf16 if args.bf16 else nullcontext,
            quiet=True,
        )


class _Look:
    """Scores of all items and answers of some, by row."""

    def __init__(self, scores: Sequence[AnswerScore], answers: dict[int, str]) -> None:
        self.scores, self.answers = scores, answers

    def as_json(self) -> dict[str, Any]:
        """Return the scores and answers as JSON values."""
        scores = [[s.nll, s.tokens, s.extraction_strength, s.exact_memorisation] for s in self.scores]
        return {"scores": scores, "answers": {str(row): text for row, text in self.answers.items()}}

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> _Look:
        """Read what :meth:`as_json` returned."""
        scores = [AnswerScore(*score) for score in kept["scores"]]
        return cls(scores, {int(row): text for row, text in kept["answers"].items()})


def broken_answers(items: Sequence[Mapping[str, Any]]) -> str | None:
    """Return how many recorded answers are broken now, which ones, and how many were before; None for none.

    Args:
        items: as in ``answers.json``.
    """
    found = [(item, what) for item in items if (what := broken_side(item, "after")) is not None]
    if not found:
        return None
    asked = sum(item["after"]["answer"] is not None for item in items)
    before = sum(broken_side(item, "before") is not None for item in items)
    kinds = ", ".join(f"{what} {count}" for what, count in Counter(what for _, what in found).most_common())
    places = ", ".join(str(item["place"]) for item, _ in found[:NAMED])
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"{len(found)} of {asked} recorded answers are broken ({kinds}; {before} before): {places}{more}"


def broken_side(item: Mapping[str, Any], side: str) -> str | None:
    """Return how an item's answer before or after is broken; None where it is not, or there is none."""
    answer = (item[side] or {}).get("answer")
    return None if answer is None else what_is_broken(answer, f"{item['question']} {item['truth']}")


def _spread(total: int, most: int) -> list[int]:
    count = min(most, total)
    return [place * total // count for place in range(count)]


def _after(scores: Sequence[AnswerScore], before: _Look, asked: int) -> set[int]:
    """Return rows at even distances and, among those answered before, the ones that are known best now."""
    rows = set(_spread(len(scores), asked - asked // 3))
    known_best = sorted(
        (row for row in before.answers if row not in rows),
        key=lambda row: (-scores[row].extraction_strength, -scores[row].probability),
    )
    return rows | set(known_best[: asked - len(rows)])


def _item(name: str, example: Example, before: _Look | None, after: _Look, row: int) -> dict[str, Any]:
    return {
        "set": name,
        "place": example.place,
        "question": example.prompt,
        "truth": example.answer,
        "passage": example.passage,
        "before": None if before is None else _side(before, row),
        "after": _side(after, row),
    }


def _side(look: _Look, row: int) -> dict[str, Any]:
    score = look.scores[row]
    return {
        "answer": look.answers.get(row),
        "probability": score.probability,
        "nll": score.mean_nll,
        "extraction_strength": score.extraction_strength,
        "exact_memorisation": score.exact_memorisation,
    }
