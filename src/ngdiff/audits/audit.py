"""audit request -> audit.json."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ngdiff.audits import audits as table
from ngdiff.audits.audit_request import AuditRequest
from ngdiff.audits.audit_result import AuditResult, write_audit
from ngdiff.audits.findings import find
from ngdiff.audits.subject import TESTED, Audit, Context, Outcome, Role, Subject, measure
from ngdiff.data.datasets import SPLIT, for_auditing
from ngdiff.data.examples import Example, data_hash
from ngdiff.data.long_text import counted_texts
from ngdiff.errors import Fault, Faults, RequestError, unknown_name
from ngdiff.evaluation.request import EvaluateRequest
from ngdiff.evaluation.result import check_output_file
from ngdiff.evaluation.suites import SuiteData, suites
from ngdiff.evaluation.suites.measures import ASKED_OTHERWISE, has_column, measure_reference, with_question
from ngdiff.models.loading import (
    ModelSource,
    autocast_in,
)
from ngdiff.report.run_files import is_audit
from ngdiff.requested import FoundModel, encode_sets, find_model, shared_setting_faults
from ngdiff.settings.faults import positive_fault
from ngdiff.system.cache import Cache, default_folder
from ngdiff.system.environment import machine, versions
from ngdiff.system.output import RECORD, unless_in_the_way
from ngdiff.system.untrusted import MOST_JSON, Unreadable, load_json, read_within

SUITES = ("own", "tofu")
Outcomes = dict[str, dict[Role, dict[str, Outcome]]]


@dataclass(frozen=True)
class Prepared:
    """A request that was found good.

    Args:
        models: role to model and tokenizer, in the order in which they are audited.
        data: what to measure on.
        chosen: the requested audits.
        skipped: name of an audit to why the data does not allow it.
        shadows: shadow models and their tokenizers.
    """

    models: Mapping[Role, FoundModel]
    data: SuiteData
    chosen: tuple[Audit, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    shadows: tuple[FoundModel, ...] = ()


def prepare(request: AuditRequest) -> Prepared:
    """Check a request without loading weights.

    Raises:
        RequestError: with every fault of settings, files, output, models and data.
    """
    faults = Faults(_setting_faults(request))
    faults += _look(request.output, request.overwrite)
    named: dict[Role, str | None] = {"reference": request.reference, "target": request.target}
    found = {role: find_model(name, faults, f"--{role}") for role, name in named.items() if name is not None}
    found["audited"] = audited = find_model(request.model, faults)
    shadows = [find_model(name, faults, "--shadow") for name in request.shadows]
    data = faults.attempt(lambda: read_data(request), None)
    if data is not None and audited is not None:
        data = _unused(data, audited[0])
    chosen = [table()[name] for name in request.audits or table() if name in table()]
    skipped = {} if data is None else {a.name: why for a in chosen if (why := a.missing(data)) is not None}
    faults += [
        Fault("--audits", f"{name} cannot run: {why}", "Omit it, or give what it needs")
        for name, why in skipped.items()
        if name in request.audits
    ]
    faults.raise_any()
    assert data is not None and audited is not None
    # long texts are split by the audited model's tokens: a piece is the same text for every model
    encoded, notes = encode_sets(data.sets, audited, request.max_length, faults, request.long_text)
    faults.raise_any()
    sets = {name: [piece.example for piece in pieces] for name, pieces in encoded.items()}
    data = replace(data, sets=sets, notes=(*data.notes, *notes))
    possible = tuple(audit for audit in chosen if audit.name not in skipped)
    asked = _asked(request, data, possible)
    models = {role: model for role, model in found.items() if model is not None}
    others = tuple(model for model in shadows if model is not None)
    flags = ["--model" if role == "audited" else f"--{role}" for role in models]
    flags += ["--shadow"] * len(others)
    for where, model in zip(flags, (*models.values(), *others), strict=True):
        encode_sets(asked, model, request.max_length, faults, where=where)
    faults.raise_any()
    return Prepared(models, data, possible, skipped, others)


def _look(path: Path, overwrite: bool) -> list[Fault]:
    return check_output_file(path, overwrite, ours=is_audit, example="audit.json")


def _setting_faults(request: AuditRequest) -> list[Fault]:
    faults = [
        unknown_name("--audits", "audit", name, table()) for name in request.audits if name not in table()
    ]
    if request.suite not in SUITES:
        faults.append(unknown_name("--suite", "suite of audits", request.suite, SUITES))
    counts = ("batch_size", "max_length", "max_new_tokens", "resamples", "relearn_batch_size", "samples")
    faults += shared_setting_faults(request, counts)
    found = (
        positive_fault("--relearn-lr", request.relearn_lr, "such as 2e-5"),
        positive_fault("--relearn-epochs", request.relearn_epochs, "such as 1"),
    )
    faults += [fault for fault in found if fault is not None]
    if not request.bits or set(request.bits) - {8, 4}:
        faults.append(Fault("--bits", f"is {list(request.bits)}", "Give 8, 4, or both with a comma"))
    if not request.prefix.strip():
        faults.append(Fault("--prefix", "is empty", "Give the words that an answer is made to begin with"))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fix = "Start ngdiff audit without torchrun, one model at a time"
        faults.append(Fault("ngdiff audit", "supports only one process", fix))
    return faults


def read_data(request: AuditRequest) -> SuiteData:
    """Read forget set, retain set and holdout as the suite does.

    Raises:
        RequestError: with every fault of all of them.
    """
    if request.suite not in SUITES:
        raise RequestError(unknown_name("--suite", "suite of audits", request.suite, SUITES))
    needed = ("forget", "retain") if request.suite == "own" else ("forget",)
    faults = [
        Fault(f"--{name}", "is missing", "Give the data that the model was made to forget and to keep")
        for name in needed
        if not getattr(request, name)
    ]
    if request.suite == "tofu" and request.retain:
        faults.append(Fault("--retain", "is not supported by the suite tofu", "Omit it: TOFU has its own"))
    if faults:
        raise RequestError(faults)
    asked = EvaluateRequest(
        request.model,
        request.suite,
        request.output,
        forget=request.forget,
        retain=request.retain,
        holdout=request.holdout,
        folders=request.folders,
        gradient_norms=request.gradient_norms,
    )
    return suites()[request.suite].read(asked)


def _unused(data: SuiteData, source: ModelSource) -> SuiteData:
    """Leave out the rows of the holdout that set the model's stopping target, where its record says so."""
    holdout = data.sets.get("holdout")
    path = Path(source.location) / RECORD
    if not holdout or not path.is_file():
        return data
    try:
        record = load_json(read_within(path, MOST_JSON))
        stated = record["data"]["holdout"].get("sha256")
        notes = [str(note) for note in record["notes"]]
    except (Unreadable, LookupError, TypeError, AttributeError):  # no record of a run with a holdout
        return data
    split = any(note.startswith(SPLIT) for note in notes)
    kept, note = for_auditing(holdout, split, stated == data_hash(holdout))
    sets = {name: rows for name, rows in data.sets.items() if name != "holdout"}
    sets |= {"holdout": kept} if kept else {}
    return replace(data, sets=sets, notes=(*data.notes, *([note] if note else [])))


def _asked(request: AuditRequest, data: SuiteData, chosen: tuple[Audit, ...]) -> dict[str, Sequence[Example]]:
    """Return all that will be asked, so that no prompt is found too long after hours."""
    names = {audit.name for audit in chosen}
    asked = {name: data.sets[name] for name in ("forget", "retain", "holdout") if name in data.sets}
    for name in TESTED:
        rows = data.sets.get(name, ())
        if not rows or any(len(example.messages) < 2 for example in rows):
            continue
        if "prefix" in names:
            asked[f"prefix, {name}"] = [replace(example, opening=request.prefix) for example in rows]
        if "paraphrase" in names and has_column(rows, ASKED_OTHERWISE):
            asked[f"{name} {ASKED_OTHERWISE}"] = [
                with_question(e, str(e.extra[ASKED_OTHERWISE])) for e in rows
            ]
    return asked


def audit(request: AuditRequest) -> AuditResult:
    """Put a model, and those given beside it, to the audits, and write what came out.

    Models are loaded one at a time and changed in memory only; nothing of theirs on disk is written to.

    Raises:
        RequestError: something in the request is wrong; nothing was written.
        EvaluationError: a model gives an item no finite likelihood; nothing was written.
    """
    return audit_several([request])[0]


def audit_several(requests: Sequence[AuditRequest]) -> list[AuditResult]:
    """Audit models of requests that differ in ``model`` and ``output`` alone.

    The target and the retrained model are audited once, as long as the data stay the same: a model's own
    record can take rows of the holdout away.

    Raises:
        RequestError: something in one of the requests is wrong; nothing was written.
        EvaluationError: as :func:`audit`; the results before it are written.
    """
    ready = [prepare(request) for request in requests]
    beside: _Beside | None = None
    results = []
    for request, found in zip(requests, ready, strict=True):
        if beside is None or not beside.fits(found):
            beside = _Beside(request, found)
        results.append(beside.audit(request, found))
    return results


class _Beside:
    """The target and the retrained model, audited, and what they tell the audits of other models."""

    def __init__(self, request: AuditRequest, ready: Prepared) -> None:
        self.ready, self.started = ready, time.perf_counter()
        self.context = context = _context(request, ready)
        for name, why in ready.skipped.items():
            context.note(f"{name} is left out: {why}")
        context.shadows = [Subject("reference", *shadow, context) for shadow in ready.shadows]
        for role, model in ready.models.items():
            context.subjects[role] = Subject(role, *model, context)
        self.outcomes: Outcomes = {audit.name: {} for audit in ready.chosen}
        for role, subject in context.subjects.items():
            if role != "audited":
                _put_to_all(subject, context, ready, self.outcomes)

    def fits(self, ready: Prepared) -> bool:
        """Return whether another request has the same data and audits."""
        return (ready.chosen, ready.data.sets) == (self.ready.chosen, self.ready.data.sets)

    def audit(self, request: AuditRequest, ready: Prepared) -> AuditResult:
        """Audit one model, and write the result."""
        context = replace(self.context, request=request, notes=list(self.context.notes))
        context.cache = Cache(request.cache_dir or default_folder()) if request.cache else None
        outcomes = {name: dict(roles) for name, roles in self.outcomes.items()}
        subject = Subject("audited", *ready.models["audited"], context)
        context.subjects = {**self.context.subjects, "audited": subject}
        context.aucs = dict(context.aucs)
        _put_to_all(subject, context, ready, outcomes)
        before = {role: one.before for role, one in context.subjects.items()}
        findings = find(ready.chosen, outcomes, before, context.bootstrap)
        if context.cache is not None:
            context.notes += context.cache.notes
            context.cache.close()
        seconds = time.perf_counter() - self.started
        provenance = _provenance(request, ready, context.subjects, seconds)
        result = AuditResult(
            request.suite, before, outcomes, findings, provenance, context.notes, ready.data.split
        )
        look = partial(_look, overwrite=request.overwrite)
        unless_in_the_way(request.output, look, partial(write_audit, result))
        return result


def _put_to_all(subject: Subject, context: Context, ready: Prepared, outcomes: Outcomes) -> None:
    """Measure one model as it is, put it to every audit, and note the outcomes."""
    subject.before = measure(subject.evaluator(), context, context.measured)
    if subject.role == "reference" and "holdout" in ready.data.sets:
        name, suite = subject.source.name, context.request.suite
        context.reference = measure_reference(subject.evaluator(), ready.data, name, suite)
    for row in ready.chosen:
        began = time.perf_counter()
        outcomes[row.name][subject.role] = row.run(subject, context)
        subject.seconds[row.name] = time.perf_counter() - began
    subject.release()


def _context(request: AuditRequest, ready: Prepared) -> Context:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autocast, precision, why = autocast_in(request.precision, device)
    cache = Cache(request.cache_dir or default_folder()) if request.cache else None
    context = Context(request, ready.data, device, autocast, precision, cache)
    context.notes += [*ready.data.notes, f"precision: {why}"]
    return context


def _provenance(
    request: AuditRequest, ready: Prepared, subjects: Mapping[Role, Subject], seconds: float
) -> dict[str, Any]:
    settings = {name: getattr(request, name) for row in ready.chosen for name in row.settings}
    shared = ("max_length", "long_text", "max_new_tokens", "batch_size", "resamples", "generate")
    return {
        "models": {role: {"name": s.source.name, "sha256": s.sha256} for role, s in subjects.items()},
        "data": {
            name: {**counted_texts(examples), "sha256": data_hash(examples)}
            for name, examples in ready.data.sets.items()
        },
        "settings": {**settings, **{name: getattr(request, name) for name in shared}},
        "sources": {name: list(getattr(request, name)) for name in ("forget", "retain", "holdout")},
        "seed": request.seed,
        "versions": versions(),
        "machine": machine(),
        "seconds": {"total": seconds, **{role: s.seconds for role, s in subjects.items()}},
    }
