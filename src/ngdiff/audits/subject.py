"""model and data -> what audits share: fresh copies of the model, and the same measures before and after."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from ngdiff.audits.audit_request import AuditRequest
from ngdiff.data.examples import Example
from ngdiff.evaluation.reference import Reference
from ngdiff.evaluation.result import Bootstrap, Figure
from ngdiff.evaluation.suites import SuiteData
from ngdiff.evaluation.suites.measures import Measures
from ngdiff.inference.evaluator import Evaluator
from ngdiff.models.loading import ModelSource, load_model
from ngdiff.system.cache import Cache
from ngdiff.system.environment import weights_hash
from ngdiff.system.progress import working

if TYPE_CHECKING:
    from ngdiff.evaluation.result import Figure

Role = Literal["audited", "target", "reference"]
"""The model under audit; the one that knows everything; the one that never saw the forget set."""


ANSWERED = ("forget.extraction_strength", "forget.probability", "forget.rouge")
"""Figures that findings are made of where answers are scored, the one that is shown first."""


@dataclass(frozen=True)
class Outcome:
    """What a model showed under one form of an audit.

    Args:
        figures: key, such as ``forget.extraction_strength``, to figure, as in ``eval.json``; where there is a
            holdout, its figures after the same treatment, such as ``holdout.extraction_strength``, too.
        rows: name of a set to the places of the items measured, where it was not all of them.
        note: what a reader should know of it.
    """

    figures: dict[str, Figure]
    rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    note: str | None = None


@dataclass(frozen=True)
class Audit:
    """One row of the table of audits.

    Args:
        name: as in ``--audits``.
        summary: one line.
        paper: where it comes from.
        run: model and data -> form of the audit, such as ``8 bits``, to what came out.
        settings: names of the fields of :class:`~ngdiff.audits.audit_request.AuditRequest` that shape it.
        missing: says why the data does not allow it; it is then left out with a note.
        changes: whether model or questions are changed; else it looks closer at the model as it is.
        damage: whether it looks for damage, which may have spread to text never seen: it is then compared
            with another, whole model's figures alone, where there is one.
        says: what a reader is told where something was found, and where nothing was.
        headlines: keys of the figures that findings are made of, the one that is shown first.
    """

    name: str
    summary: str
    paper: str
    run: Callable[[Subject, Context], dict[str, Outcome]]
    settings: Sequence[str] = ()
    missing: Callable[[Any], str | None] = field(default=lambda data: None)
    changes: bool = True
    damage: bool = False
    says: tuple[str, str] = ("brought out", "nothing shown")
    headlines: Sequence[str] = ANSWERED


TESTED = ("forget", "holdout")
"""Sets that every audit puts to the same treatment: what was to be forgotten, and text never seen."""


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
        subjects: every model of the audit, by role.
        shadows: models that saw neither set, for membership inference.
        shadow_logits: what each makes of forget set and holdout, once known.
        aucs: role to the AUC of each attack, as far as known.
        costs: what the retrained model's states cost the target, item by item and layer by layer, once known.
        notes: every fallback taken.
    """

    request: AuditRequest
    data: SuiteData
    device: torch.device
    autocast: Callable[[], AbstractContextManager[object]]
    precision: str
    cache: Cache | None
    reference: Reference | None = None
    subjects: dict[Role, Subject] = field(default_factory=dict)
    shadows: list[Subject] = field(default_factory=list)
    shadow_logits: list[tuple[list[float], list[float]]] = field(default_factory=list)
    aucs: dict[str, dict[str, float]] = field(default_factory=dict)
    costs: list[list[float]] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def bootstrap(self) -> Bootstrap:
        """How intervals are drawn."""
        return Bootstrap(self.request.resamples, self.request.seed)

    @property
    def forget(self) -> Sequence[Example]:
        """The forget set."""
        return self.data.sets["forget"]

    @property
    def tested(self) -> dict[str, Sequence[Example]]:
        """The forget set and, where there is one, the holdout."""
        return {name: self.data.sets[name] for name in TESTED if name in self.data.sets}

    @property
    def asked(self) -> dict[str, Sequence[Example]]:
        """The tested sets whose rows have questions."""
        found = {name: rows for name, rows in self.tested.items() if all(len(e.messages) > 1 for e in rows)}
        if len(found) < len(self.tested):
            self.note("the holdout's rows are plain text, so nothing is compared where questions are changed")
        return found

    @property
    def measured(self) -> dict[str, Sequence[Example]]:
        """The tested sets, and the retain set."""
        return {**self.tested, "retain": self.data.sets["retain"]}

    def note(self, text: str) -> None:
        """Write down a fallback, once."""
        if text not in self.notes:
            self.notes.append(text)


class Subject:
    """One of the audited models.

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
        if self._evaluator is None:
            return
        self._evaluator = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure(
    evaluator: Evaluator, context: Context, sets: Mapping[str, Sequence[Example]]
) -> dict[str, Figure]:
    """Measure answers: probability, NLL, extraction strength, exact memorisation, ROUGE.

    ROUGE is left out for the retain set, and where rows have no question or no answer is to be generated.

    Args:
        evaluator: of the model in whatever state.
        context: of the audit.
        sets: name to examples.
    """
    measures = Measures(evaluator, context.bootstrap)
    figures: dict[str, Figure] = {}
    for name, examples in sets.items():
        scores = evaluator.score(f"{name} answers", examples)
        figures |= measures.answers(name, scores)
        if context.request.generate and name in TESTED and all(example.messages for example in examples):
            answers = evaluator.generate(f"{name} generation", examples, scores=scores)
            figures |= measures.rouges(name, examples, answers)
    return figures


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that vanishes, for what libraries insist on writing."""
    return tempfile.TemporaryDirectory(prefix="ngdiff-audit-")
