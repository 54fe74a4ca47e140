"""audit request -> audit.json."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from ngdiff.audits import audits as table
from ngdiff.audits.findings import Finding, find
from ngdiff.audits.request import AuditRequest
from ngdiff.audits.result import AuditResult, is_audit, write_audit
from ngdiff.audits.row import Audit, Outcome, Role
from ngdiff.audits.subject import Context, Subject, measure
from ngdiff.data.encoding import encode_all
from ngdiff.data.examples import data_hash
from ngdiff.data.long_text import counted_texts, in_pieces, long_text_fault
from ngdiff.errors import Fault, RequestError, unknown_name
from ngdiff.evaluation.cache import Cache, default_folder
from ngdiff.evaluation.evaluate import check_output_file
from ngdiff.evaluation.request import EvaluateRequest
from ngdiff.evaluation.suites import SuiteData, suites
from ngdiff.evaluation.suites.measures import ASKED_OTHERWISE, has_column, measure_reference, with_question
from ngdiff.models.loading import (
    ModelSource,
    autocast_bf16,
    check_causal,
    check_precision,
    load_tokenizer,
    resolve_model,
)
from ngdiff.settings.config import positive_fault, seed_fault
from ngdiff.system.environment import machine, versions

SUITES = ("own", "tofu")


@dataclass(frozen=True)
class Prepared:
    """A request that was found good.

    Args:
        sources: role to model, in the order in which they are audited.
        tokenizers: role to tokenizer.
        data: what to measure on.
        chosen: the audits asked for.
        skipped: name of an audit to why the data does not allow it.
    """

    sources: Mapping[Role, ModelSource]
    tokenizers: Mapping[Role, Any]
    data: SuiteData
    chosen: tuple[Audit, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)


def prepare(request: AuditRequest) -> Prepared:
    """Check a request without loading weights.

    Raises:
        RequestError: with every fault of settings, files, output, models and data.
    """
    faults = _setting_faults(request)
    faults += check_output_file(request.output, request.overwrite, ours=is_audit, example="audit.json")
    sources: dict[Role, ModelSource] = {}
    named: tuple[tuple[Role, str | None], ...] = (
        ("reference", request.reference),
        ("target", request.target),
        ("audited", request.model),
    )
    for role, name in named:
        if name is not None:
            where = "--model" if role == "audited" else f"--{role}"
            try:
                sources[role] = resolve_model(name, where)
                faults += check_causal(sources[role], where)
            except RequestError as error:
                faults += error.faults
    data = None
    try:
        data = read_data(request)
    except RequestError as error:
        faults += error.faults
    chosen = [table()[name] for name in request.audits or table() if name in table()]
    skipped = {} if data is None else {a.name: why for a in chosen if (why := a.missing(data)) is not None}
    faults += [
        Fault("--audits", f"{name} cannot be made: {why}", "Leave it out, or give what it needs")
        for name, why in skipped.items()
        if name in request.audits
    ]
    if faults:
        raise RequestError(list(dict.fromkeys(faults)))
    assert data is not None
    tokenizers = {role: load_tokenizer(source) for role, source in sources.items()}
    data = _in_pieces(data, tokenizers["audited"], request)
    possible = tuple(audit for audit in chosen if audit.name not in skipped)
    for tokenizer in tokenizers.values():
        _check_lengths(request, data, possible, tokenizer)
    return Prepared(sources, tokenizers, data, possible, skipped)


def _in_pieces(data: SuiteData, tokenizer: Any, request: AuditRequest) -> SuiteData:
    """Split long texts by the audited model's tokens; a piece is the same text for every model."""
    window = request.max_length if request.long_text == "split" else None
    found = {name: in_pieces(part, tokenizer, window, f"--{name}") for name, part in data.sets.items()}
    notes = [note for name, part in found.items() for note in part.notes(f"--{name}", request.max_length)]
    sets = {name: part.examples for name, part in found.items()}
    return replace(data, sets=sets, notes=(*data.notes, *notes))


def _setting_faults(request: AuditRequest) -> list[Fault]:
    faults = [
        unknown_name("--audits", "audit", name, table()) for name in request.audits if name not in table()
    ]
    if request.suite not in SUITES:
        faults.append(unknown_name("--suite", "suite of audits", request.suite, SUITES))
    try:
        check_precision(request.precision)
    except RequestError as error:
        faults += error.faults
    counts = ("batch_size", "max_length", "max_new_tokens", "resamples", "relearn_batch_size")
    faults += [
        Fault(f"--{name.replace('_', '-')}", f"is {getattr(request, name)}", "Give a number of at least 1")
        for name in counts
        if getattr(request, name) < 1
    ]
    found = (
        positive_fault("--relearn-lr", request.relearn_lr, "such as 2e-5"),
        positive_fault("--relearn-epochs", request.relearn_epochs, "such as 1"),
        seed_fault(request.seed),
        long_text_fault(request.long_text),
    )
    faults += [fault for fault in found if fault is not None]
    if not request.bits or set(request.bits) - {8, 4}:
        faults.append(Fault("--bits", f"is {list(request.bits)}", "Give 8, 4, or both with a comma"))
    if not request.prefix.strip():
        faults.append(Fault("--prefix", "is empty", "Give the words that an answer is made to begin with"))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        mend = "Start ngdiff audit without torchrun, one model at a time"
        faults.append(Fault("ngdiff audit", "runs in one process", mend))
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
        faults.append(Fault("--retain", "does not go with the suite tofu", "Leave it out: TOFU has its own"))
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


def _check_lengths(request: AuditRequest, data: SuiteData, chosen: tuple[Audit, ...], tokenizer: Any) -> None:
    """Encode all that will be asked, so that no prompt is found too long after hours.

    Raises:
        RequestError: a prompt leaves no room for its answer.
    """
    names = {audit.name for audit in chosen}
    forget = data.sets["forget"]
    asked = {f"--{name}": data.sets[name] for name in ("forget", "retain", "holdout") if name in data.sets}
    if "prefix" in names:
        asked["--prefix"] = [replace(example, opening=request.prefix) for example in forget]
    if "paraphrase" in names and has_column(forget, ASKED_OTHERWISE):
        asked[ASKED_OTHERWISE] = [with_question(e, str(e.extra[ASKED_OTHERWISE])) for e in forget]
    for where, examples in asked.items():
        encode_all(examples, tokenizer, request.max_length, where)


def audit(request: AuditRequest) -> AuditResult:
    """Put a model, and those given beside it, to the audits, and write what came out.

    Models are loaded one at a time and changed in memory only; nothing of theirs on disk is written to.

    Raises:
        RequestError: something in the request is wrong; nothing was written.
        EvaluationError: a model gives an item no finite likelihood, or cannot be quantised; likewise.
    """
    started = time.perf_counter()
    ready = prepare(request)
    context = _context(request, ready)
    for name, why in ready.skipped.items():
        context.note(f"{name} is left out: {why}")
    subjects: dict[Role, Subject] = {}
    outcomes: dict[str, dict[Role, dict[str, Outcome]]] = {audit.name: {} for audit in ready.chosen}
    for role, source in ready.sources.items():
        subject = subjects[role] = Subject(role, source, ready.tokenizers[role], context)
        subject.before = measure(subject.evaluator(), context)
        if role == "reference" and "holdout" in ready.data.sets:
            context.reference = measure_reference(subject.evaluator(), ready.data, source.name, request.suite)
        for row in ready.chosen:
            began = time.perf_counter()
            outcomes[row.name][role] = row.run(subject, context)
            subject.seconds[row.name] = time.perf_counter() - began
        subject.release()
    before = {role: subject.before for role, subject in subjects.items()}
    findings: list[Finding] = []
    for row in ready.chosen:
        findings += find(row, outcomes[row.name], before, context.bootstrap)
    result = AuditResult(request.suite, before, outcomes, findings, {}, context.notes, ready.data.split)
    result.provenance |= _provenance(request, ready, subjects, time.perf_counter() - started)
    if context.cache is not None:
        context.notes += context.cache.notes
        context.cache.close()
    write_audit(result, request.output)
    return result


def _context(request: AuditRequest, ready: Prepared) -> Context:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16, why = autocast_bf16(request.precision)
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    if bf16:
        autocast = partial(torch.autocast, device.type, dtype=torch.bfloat16)
    cache = Cache(request.cache_dir or default_folder()) if request.cache else None
    context = Context(request, ready.data, device, autocast, "bf16" if bf16 else "fp32", cache)
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
