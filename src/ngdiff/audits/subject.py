"""model and data -> what audits share: fresh copies of the model, and the same measures before and after."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from ngdiff.audits.request import AuditRequest
from ngdiff.audits.row import Role
from ngdiff.data.examples import Example
from ngdiff.evaluation.cache import Cache
from ngdiff.evaluation.evaluator import Evaluator
from ngdiff.evaluation.reference import Reference
from ngdiff.evaluation.result import Bootstrap, Figure
from ngdiff.evaluation.suites import SuiteData
from ngdiff.evaluation.suites.measures import Measures
from ngdiff.models.loading import ModelSource, load_model
from ngdiff.system.environment import weights_hash
from ngdiff.system.progress import working


@dataclass
class Context:
    """What an audit needs besides the model.

    Args:
        request: with the settings of every audit.
        data: sets ``forget``, ``retain`` and, where there is one, ``holdout``.
        device: where models run.
        autocast: opens the context in which they run.
        precision: its name.
        cache: of item results, or ``None``.
        reference: what the retrained model gives for membership inference, where there is one.
        notes: every fallback taken.
    """

    request: AuditRequest
    data: SuiteData
    device: torch.device
    autocast: Callable[[], AbstractContextManager[object]]
    precision: str
    cache: Cache | None
    reference: Reference | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def bootstrap(self) -> Bootstrap:
        """How intervals are drawn."""
        return Bootstrap(self.request.resamples, self.request.seed)

    @property
    def forget(self) -> Sequence[Example]:
        """The forget set."""
        return self.data.sets["forget"]

    def note(self, text: str) -> None:
        """Write down a fallback, once."""
        if text not in self.notes:
            self.notes.append(text)


class Subject:
    """One of the models that are put to the audits.

    Args:
        role: audited, target or reference.
        source: where its files are; they are only read.
        tokenizer: its tokenizer.
        context: shared by all.
    """

    def __init__(self, role: Role, source: ModelSource, tokenizer: Any, context: Context) -> None:
        self.role, self.source, self.tokenizer, self.context = role, source, tokenizer, context
        self.sha256 = ""
        self.before: dict[str, Figure] = {}
        self.seconds: dict[str, float] = {}
        self._evaluator: Evaluator | None = None

    def fresh_model(self) -> Any:
        """Load the model as it is on disk, in float32."""
        with working(f"Loading {self.source.name} ({self.role})"):
            return load_model(self.source).to(self.context.device)

    def evaluator(self) -> Evaluator:
        """Return the evaluator of the untouched model."""
        if self._evaluator is None:
            model = self.fresh_model()
            self.sha256 = self.sha256 or weights_hash(model)
            self._evaluator = self.evaluator_of(model, self.sha256)
        return self._evaluator

    def evaluator_of(self, model: Any, model_hash: str) -> Evaluator:
        """Return the evaluator of a changed copy, whose hash must tell it from any other model."""
        request = self.context.request
        return Evaluator(
            model.eval(),
            self.tokenizer,
            model_hash=model_hash,
            cache=self.context.cache,
            batch_size=request.batch_size,
            max_length=request.max_length,
            max_new_tokens=request.max_new_tokens,
            autocast=self.context.autocast,
            precision=self.context.precision,
        )

    def release(self) -> None:
        """Give the untouched model's memory back; the next use loads it again."""
        self._evaluator = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure(
    evaluator: Evaluator, context: Context, forget: Sequence[Example] | None = None, retain: bool = True
) -> dict[str, Figure]:
    """Measure forget and retain set: probability, NLL, extraction strength, exact memorisation, ROUGE.

    ROUGE is of the forget set alone, where its rows are questions and answers are to be generated.

    Args:
        evaluator: of the model in whatever state.
        context: of the audit.
        forget: the forget set's examples, where they are not the context's own.
        retain: whether to measure the retain set.
    """
    measures = Measures(evaluator, context.bootstrap)
    asked = context.forget if forget is None else forget
    scores = evaluator.score("forget answers", asked)
    figures = measures.answers("forget", scores)
    if context.request.generate and all(example.messages for example in asked):
        answers = evaluator.generate("forget generation", asked, scores=scores)
        figures |= measures.rouges("forget", asked, answers)
    if retain:
        kept = context.data.sets["retain"]
        figures |= measures.answers("retain", evaluator.score("retain answers", kept))
    return figures


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that vanishes, for what libraries insist on writing."""
    return tempfile.TemporaryDirectory(prefix="ngdiff-audit-")
