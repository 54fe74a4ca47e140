"""bench request -> what is wrong with it, before anything long begins."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ngdiff.bench.data import FORGET_SIZES, TOFU_SIZE, tuning_reach
from ngdiff.bench.grid import candidates, nested
from ngdiff.bench.suites import suite_of
from ngdiff.bench.trials import TRIALS, BenchRequest, tuning
from ngdiff.bench.variants import Variant, find_variant
from ngdiff.bench.worker import EVALUATION
from ngdiff.data.benchmarks import folders_of
from ngdiff.data.sources import read_rows
from ngdiff.errors import Fault, Faults, RequestError, unknown_name
from ngdiff.evaluation.reference_source import resolve_reference
from ngdiff.evaluation.request import EvaluateRequest
from ngdiff.evaluation.suites import SuiteData, suites
from ngdiff.methods import METHODS
from ngdiff.requested import find_model, shared_setting_faults
from ngdiff.settings.values import SettingError
from ngdiff.system.output import check_output, same_folder
from ngdiff.system.untrusted import first_line
from ngdiff.training.config import UnlearningConfig

RESULTS = ("results.md", "results.csv", "results.json", "pareto.png", "curves.png")
"""What a benchmark writes into its folder beside trials and models."""


def check(request: BenchRequest) -> None:
    """Find every fault of a request before anything long begins.

    Raises:
        RequestError: with all of them.
    """
    faults = Faults(_name_faults(request) + _number_faults(request))
    # the folder itself may have content: the benchmark resumes there
    faults += check_output(request.output / ".trial", False) or _foreign_faults(request.output)
    faults += _model_faults(request) + _data_faults(request)
    known = _with_known_names(request)
    faults += _tuning_faults(known) + _setting_faults(known) + _config_faults(known)
    faults.raise_any()


def _foreign_faults(output: Path) -> list[Fault]:
    """Refuse a folder with files of the results' names that no benchmark wrote."""
    there = [name for name in RESULTS if (output / name).exists() or (output / name).is_symlink()]
    if not there or (output / TRIALS).is_dir():
        return []
    what = f"{output} contains {there[0]} but no trials: it is not a benchmark, and the file would be lost"
    return [Fault("--output", what, "Move it, or choose another folder")]


def _with_known_names(request: BenchRequest) -> BenchRequest:
    """Return the request without names that are faults by themselves."""
    return replace(
        request,
        methods=tuple(name for name in request.methods if name in METHODS),
        splits=tuple(split for split in request.splits if split in suite_of(request).splits),
        tune_on=request.tune_on if request.tune_on in suite_of(request).splits else None,
        trials=max(1, request.trials),
    )


def _variants(request: BenchRequest) -> list[Variant]:
    return [find_variant(name) for name in request.variants]


def _name_faults(request: BenchRequest) -> list[Fault]:
    faults = Faults()
    for name in request.methods:
        if name not in METHODS:
            faults.append(unknown_name("--methods", "method", name, METHODS))
        elif name == "dpo" and request.suite != "own":
            fix = "Use idkdpo or altpo, which need no such column"
            title = suite_of(request).title
            faults.append(Fault("--methods", f"{title} has no preferred answers for 'dpo'", fix))
    faults += suite_of(request).faults(request)
    for flag, given in (("--methods", request.methods), ("--splits", request.splits)):
        if not given:
            faults.append(Fault(flag, "is empty", "Name at least one"))
    return faults


def _number_faults(request: BenchRequest) -> list[Fault]:
    faults = shared_setting_faults(request, ("seeds", "trials", "batch_size"))
    sizes = [FORGET_SIZES[split] for split in request.splits if split in FORGET_SIZES]
    if request.learned is not None and sizes:
        least, most = max(sizes) + 1, TOFU_SIZE - max(sizes)
        if not least <= request.learned <= most:
            what = f"{request.learned} leaves nothing to keep, or nothing that was never seen"
            faults.append(Fault("--learned", what, f"Give {least} to {most}, or omit it for all"))
    return faults


def _model_faults(request: BenchRequest) -> list[Fault]:
    faults = Faults()
    models = [("--model", request.model)]
    models += [("--reference", path) for path in request.references.values() if not path.endswith(".json")]
    for where, model in models:
        found = find_model(model, faults, where, request.trust_remote_code)
        faults += [] if found is None else same_folder(request.output, found[0].location)
    return faults


def _data_faults(request: BenchRequest) -> list[Fault]:
    faults = Faults()
    for beside in request.also_retain:
        with faults.collecting():
            read_rows(beside, where="--also-retain", folders=request.folders)
    for split in _with_known_names(request).splits:
        data = None
        faults += _source_faults(request, split, "--splits") if request.suite != "tofu" else []
        try:
            data = _evaluated_data(request, split)
        except RequestError as error:
            faults += [
                replace(fault, where="--splits") if fault.where == "--forget" else fault
                for fault in error.faults
            ]
        reference = request.reference(split)
        with faults.collecting():
            if reference is not None and reference.endswith(".json"):
                resolve_reference(reference, request.suite, data)
    return faults


def _tuning_faults(request: BenchRequest) -> list[Fault]:
    """Find questions to tune on that are not there, or that the target did not learn."""
    faults = Faults()
    for split in dict.fromkeys(trial.split for trial in tuning(request)):
        reach = tuning_reach(request, split) if request.suite == "tofu" else 0
        if request.learned is not None and request.learned <= reach:
            what = f"{request.learned} leaves nothing to keep: the last {reach} are reported or tuned on"
            faults.append(Fault("--learned", what, f"Give more than {reach}, or --trials 1 for no tuning"))
            continue
        faults += _source_faults(request, split, "--trials")
    return faults


def _source_faults(request: BenchRequest, split: str, where: str) -> list[Fault]:
    """Find sources of runs that cannot be read."""
    faults = Faults()
    for source in {source for step in suite_of(request).steps(request, split) for source in step.all}:
        with faults.collecting():
            read_rows(source, where=where, folders=request.folders)
    return faults


def _evaluated_data(request: BenchRequest, split: str) -> SuiteData:
    """Read what the evaluations of a split will read."""
    suite = suite_of(request)
    with tempfile.TemporaryDirectory() as scratch:
        asked = suite.asks(request, split, suite.folder(request, split, Path(scratch)))
        asked["folders"] = folders_of({f"{name}_dir": path for name, path in asked["folders"].items()})
        needed = EvaluateRequest(request.model, output=request.output / EVALUATION, **asked)
        return suites()[suite.name].read(needed)


DECIDED = {"seed": "--seeds", "method": "--methods", "num_train_epochs": "--epochs"}
"""Settings that the benchmark decides, and the flags that they come from."""


def _setting_faults(request: BenchRequest) -> list[Fault]:
    """Find settings of all trials that collide with what the benchmark decides for each."""
    decided = dict(DECIDED)
    if "none" in request.stopping:
        decided["stop_at"] = "--stopping"
    faults = [
        Fault(f"--set {name}", "is decided by the benchmark", f"Give {flag}, or omit it")
        for name, flag in decided.items()
        if name in request.settings and (name != "num_train_epochs" or request.epochs is not None)
    ]
    searched_by = {
        group: variant.method.name
        for variant in _variants(request)
        for group in {setting.partition(".")[0] for setting in variant.method.search}
    }
    faults += [
        Fault(f"--set {group}", f"{name!r} takes it from its range to search", "Omit it")
        for group, name in searched_by.items()
        if group in request.settings
    ]
    changed_by = {name: variant.method.name for variant in _variants(request) for name in variant.settings}
    faults += [
        Fault(f"--set {setting}", f"{name!r} decides it", "Omit one of the two")
        for setting, name in changed_by.items()
        if setting in request.settings and setting not in searched_by
    ]
    return faults


def _config_faults(request: BenchRequest) -> list[Fault]:
    """Put together the settings of every run that may be made, as the runs will."""
    try:
        common: dict[str, Any] = {"output_dir": str(request.output), "use_cpu": True, **request.settings}
        if request.epochs is not None:
            common["num_train_epochs"] = request.epochs
        for variant in _variants(request):
            for tried in candidates(variant.method, request.trials):
                own = {**variant.settings, **nested(tried, variant.method), "method": variant.row}
                UnlearningConfig(**{**common, **own})
    except SettingError as error:
        return list(error.flags)
    except RequestError as error:
        return list(error.faults)
    except (TypeError, ValueError, AttributeError, LookupError, OSError, ImportError, RuntimeError) as error:
        return [Fault("--set", first_line(error), "See ngdiff unlearn --help")]
    return []
