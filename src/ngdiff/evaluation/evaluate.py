"""evaluation request -> eval.json."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from ngdiff.data.examples import data_hash
from ngdiff.data.long_text import counted_texts
from ngdiff.errors import EvaluationError, Fault, Faults, RequestError, unknown_name
from ngdiff.evaluation.metrics import metric_named
from ngdiff.evaluation.openunlearning import write_log
from ngdiff.evaluation.reference import Reference, truth_ratio_from_log
from ngdiff.evaluation.reference_source import ReferenceSource, resolve_reference
from ngdiff.evaluation.request import EvaluateRequest
from ngdiff.evaluation.result import (
    Bootstrap,
    EvaluationResult,
    Figure,
    check_results,
    seconds_by_figure,
    write_result,
)
from ngdiff.evaluation.suites import Suite, SuiteData, suites
from ngdiff.evaluation.suites.measures import ASKED_OTHERWISE, PARAPHRASED, PERTURBED
from ngdiff.inference.evaluator import Evaluator
from ngdiff.models.loading import (
    ModelSource,
    autocast_in,
    load_model,
)
from ngdiff.requested import encode_sets, find_model, shared_setting_faults
from ngdiff.system.cache import Cache, default_folder
from ngdiff.system.environment import machine, versions, weights_hash
from ngdiff.system.output import check_output, holds_faults, unless_in_the_way
from ngdiff.system.processes import is_main, process_count
from ngdiff.system.progress import console, working

REQUIRABLE = ("forget_quality", "privleak", "membership")
"""Figures that a request may insist on."""


@dataclass(frozen=True)
class Prepared:
    """A request found to be in order; no weights are loaded.

    Args:
        source: the model.
        tokenizer: its tokenizer.
        suite: what to run.
        data: what to run it on.
        reference: what to compare with, if anything.
        max_length: longest sequence in tokens.
    """

    source: ModelSource
    tokenizer: Any
    suite: Suite
    data: SuiteData
    reference: ReferenceSource | None
    max_length: int


def prepare(request: EvaluateRequest) -> Prepared:
    """Check a request without loading weights.

    Raises:
        RequestError: with every fault of settings, files, output, model and reference.
    """
    counts = ("batch_size", "max_new_tokens", "resamples", "max_length")
    faults = Faults(shared_setting_faults(request, counts))
    faults += check_results(request.output, request.overwrite) + _log_folder_faults(request)
    trusted = request.trust_remote_code
    model = find_model(request.model, faults, trust_remote_code=trusted)
    suite = faults.attempt(lambda: _suite(request), None)
    data = None if suite is None else faults.attempt(lambda: suite.read(request), None)
    reference = None
    if request.reference is not None and suite is not None and "reference" in suite.takes:
        name = request.reference
        reference = faults.attempt(lambda: resolve_reference(name, suite.name, data, trusted), None)
        faults += holds_faults(request.output, [("--reference", name)])
    if suite is not None:
        faults += _require_faults(request, reference, data)
    faults.raise_any()
    assert model is not None and suite is not None and data is not None
    max_length = request.max_length or suite.max_length
    long_text = request.long_text if suite.splits else "cut"
    also = (PERTURBED, PARAPHRASED, ASKED_OTHERWISE)
    encoded, notes = encode_sets(data.sets, model, max_length, faults, long_text, also)
    faults.raise_any()
    if suite.splits:
        sets = {name: [piece.example for piece in pieces] for name, pieces in encoded.items()}
        data = replace(data, sets=sets, notes=(*data.notes, *notes))
    return Prepared(*model, suite, data, reference, max_length)


def _log_folder_faults(request: EvaluateRequest) -> list[Fault]:
    where, folder = "--openunlearning", request.openunlearning
    if folder is None:
        return []
    if request.suite not in ("tofu", "muse"):
        fix = "Omit it, or run the suite tofu or muse"
        return [Fault(where, f"OpenUnlearning has no layout for the suite {request.suite}", fix)]
    return check_output(folder, False, where=where)


def _suite(request: EvaluateRequest) -> Suite:
    table = suites()
    if request.suite not in table:
        raise RequestError(unknown_name("--suite", "suite", request.suite, table))
    suite = table[request.suite]
    named = ("forget", "retain", "holdout", "data", "tasks", "reference", "limit")
    given = [name for name in named if getattr(request, name) not in (None, ())]
    given += [f"{name}_dir" for name in request.folders]
    missing = [name for name in suite.needs if name not in given]
    extra = [name for name in given if name not in suite.needs + suite.takes]
    faults = [
        Fault(f"--{name}", "is missing", f"The suite {suite.name} needs it; see ngdiff evaluate --help")
        for name in missing
    ]
    options = ", ".join(f"--{name.replace('_', '-')}" for name in suite.needs + suite.takes)
    faults += [
        Fault(
            f"--{name.replace('_', '-')}",
            f"is not supported by the suite {suite.name}",
            f"It takes {options}",
        )
        for name in extra
    ]
    if faults:
        raise RequestError(faults)
    return suite


def _require_faults(
    request: EvaluateRequest, reference: ReferenceSource | None, data: SuiteData | None
) -> list[Fault]:
    faults = [
        unknown_name("--require", "figure to insist on", name, REQUIRABLE)
        for name in request.require
        if name not in REQUIRABLE
    ]
    compared = [name for name in ("forget_quality", "privleak") if name in request.require]
    if compared and request.reference is None:
        what = f"is missing, and {' and '.join(compared)} compare with a model that never saw the forget set"
        fix = "Give the retrained model, its eval.json, or its log (TOFU_EVAL.json)"
        faults.append(Fault("--reference", what, fix))
    held_out = [name for name in ("privleak", "membership") if name in request.require]
    no_holdout = data is not None and not {"holdout", "holdout_texts"} & set(data.sets)
    if held_out and no_holdout:
        what = f"is missing, and {' and '.join(held_out)} compare the forget set with text never seen"
        faults.append(Fault("--holdout", what, "Give text of the forget set's kind that the model never saw"))
    read = reference.read if reference is not None else None
    if read is not None and "privleak" in request.require and "min_k" not in read.membership:
        what = f"{read.name} has no AUC of the membership attack min_k, from which PrivLeak is computed"
        faults.append(Fault("--reference", what, "Evaluate the retrained model with the same holdout"))
    return faults


def evaluate(
    request: EvaluateRequest, tell: Callable[[EvaluationResult], None] | None = None
) -> EvaluationResult:
    """Evaluate a model and write the result.

    Started by ``torchrun``, all processes share the rows, and the first one writes.

    Args:
        request: what to evaluate.
        tell: called with the result in the first process before anything is written, so that the figures are
            known although the disk may be full.

    Raises:
        RequestError: something in the request is wrong; nothing was written.
        EvaluationError: the model gives an item no finite likelihood; nothing was written.
        RunError: something appeared in the result's place meanwhile; the result lies beside it.
    """
    with _processes() as device:
        started = time.perf_counter()
        ready = prepare(request)
        for note in ready.data.notes if is_main() else ():
            console.print(f"Note: {note}.", highlight=False, markup=False, soft_wrap=True)
        cache = Cache(request.cache_dir or default_folder()) if request.cache else None
        autocast, precision, why = autocast_in(request.precision, device)
        open_evaluator = partial(_evaluator, request, ready, cache, device, autocast, precision)
        reference, reference_hash = _reference(ready, open_evaluator)
        evaluator, model_hash = open_evaluator(ready.source, ready.tokenizer)
        bootstrap = Bootstrap(request.resamples, request.seed)
        figures = ready.suite.run(evaluator, ready.data, reference, bootstrap)
        _check_required(request, figures)
        result = EvaluationResult(
            suite=ready.suite.name,
            figures=figures,
            provenance=_provenance(request, ready, evaluator, (model_hash, reference_hash), figures),
            places={name: [e.place for e in examples] for name, examples in ready.data.sets.items()},
            split=ready.data.split,
            texts=evaluator.said,
            notes=[*ready.data.notes, *(cache.notes if cache else []), f"precision: {why}"],
        )
        total = time.perf_counter() - started
        result.provenance["seconds"]["total"] = total
        if cache is not None:
            cache.close()
        if is_main():
            if tell is not None:
                tell(result)
            look = partial(check_results, overwrite=request.overwrite)
            unless_in_the_way(request.output, look, partial(write_result, result))
            if request.openunlearning is not None:
                write_log(request.openunlearning, result.suite, figures, _truth_ratios(figures))
    return result


def _truth_ratios(figures: dict[str, Figure]) -> dict[str, list[float]]:
    ending = ".log_truth_ratio"
    return {
        key.removesuffix(ending): [truth_ratio_from_log(item) for item in found.items if item is not None]
        for key, found in figures.items()
        if key.endswith(ending)
    }


@contextmanager
def _processes() -> Iterator[torch.device]:
    """Join the other processes where torchrun started several; yields this one's device."""
    cuda = torch.cuda.is_available()
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    # a configuration for FSDP2 may leave all but the first without weights; here each has them all
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    ours = several and not dist.is_initialized()
    if ours:
        dist.init_process_group("gloo")  # results are small objects on the host
    try:
        yield device
    finally:
        if ours:
            dist.destroy_process_group()


def _evaluator(
    request: EvaluateRequest,
    ready: Prepared,
    cache: Cache | None,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
    precision: str,
    source: ModelSource,
    tokenizer: Any,
) -> tuple[Evaluator, str]:
    with working(f"Loading {source.name}") if is_main() else nullcontext():
        model = load_model(source).to(device)
        model_hash = weights_hash(model)
    evaluator = Evaluator(
        model.eval(),
        tokenizer,
        model_hash=model_hash,
        cache=cache,
        batch_size=request.batch_size,
        max_length=ready.max_length,
        max_new_tokens=request.max_new_tokens,
        autocast=autocast,
        precision=precision,
    )
    return evaluator, model_hash


def _reference(ready: Prepared, open_evaluator: Any) -> tuple[Reference | None, str | None]:
    """Return the reference's evaluation, made first where a model was given, and its hash."""
    found = ready.reference
    if found is None or found.model is None:
        return (None if found is None else found.read), None
    assert ready.suite.refer is not None
    evaluator, model_hash = open_evaluator(*found.model)
    return ready.suite.refer(evaluator, ready.data, found.model[0].name), model_hash


def _check_required(request: EvaluateRequest, figures: dict[str, Figure]) -> None:
    for name in request.require:
        keys = ["forget.membership.min_k"] if name == "membership" else [name]
        found = [figures[key] for key in keys if key in figures]
        if not found or found[0].value is None:
            why = found[0].note if found and found[0].note else "the suite does not have it"
            raise EvaluationError(f"{name}, which --require asks for, could not be computed: {why}")


def _provenance(
    request: EvaluateRequest,
    ready: Prepared,
    evaluator: Evaluator,
    hashes: tuple[str, str | None],
    figures: dict[str, Figure],
) -> dict[str, Any]:
    data = {
        name: {**counted_texts(examples), "sha256": data_hash(examples)}
        for name, examples in ready.data.sets.items()
    }
    used = [metric_named(name) for name in sorted({found.metric for found in figures.values()})]
    reference = None if request.reference is None else {"name": request.reference, "sha256": hashes[1]}
    return {
        "model": {"name": request.model, "sha256": hashes[0]},
        "reference": reference,
        "data": data,
        "settings": {
            "forget": list(request.forget),
            "retain": list(request.retain),
            "holdout": list(request.holdout),
            "data": request.data,
            "batch_size": request.batch_size,
            "max_length": ready.max_length,
            **({"long_text": request.long_text} if ready.suite.splits else {}),
            "max_new_tokens": request.max_new_tokens,
            "precision": evaluator.precision,
            "trust_remote_code": request.trust_remote_code,
            "resamples": request.resamples,
            "interval_level": 0.95,
            "processes": process_count(),
            **(ready.data.settings or {}),
        },
        "seed": request.seed,
        "metrics": {row.name: {"version": row.version, "summary": row.summary} for row in used},
        "versions": versions(),
        "machine": machine(),
        "seconds": {
            "passes": dict(evaluator.seconds),
            "figures": seconds_by_figure(figures, evaluator.seconds),
        },
        "cached": dict(evaluator.cached),
    }
