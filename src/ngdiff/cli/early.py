"""settings as given -> every fault that can be found without torch, before torch is imported.

The full check (:func:`ngdiff.unlearn.prepare`) imports torch and transformers, which takes seconds. A wrong
path or a wrong number needs neither. A request is refused here only where all its settings can be
checked here, so that all faults of settings, names and rows are still reported together. The model's files
and the tokens are checked once there are no such faults.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ngdiff.cli.listing import written
from ngdiff.cli.settings import REQUEST_KEYS, SOURCE_KEYS, source_list
from ngdiff.data.benchmarks import folder_options, folders_of
from ngdiff.data.examples import Example, overlap_fault, to_examples
from ngdiff.data.overlaps import answer_fault, holdout_fault, part_fault
from ngdiff.data.sources import is_local, local_sources, path_fault, read_rows
from ngdiff.errors import Fault, RequestError, unknown_name
from ngdiff.models.model_names import folder_of, name_fault
from ngdiff.settings.values import CHECKED, kind_faults, range_faults
from ngdiff.system.output import check_output, holds_faults, same_folder

_TABLES = {"method": "methods", "rule": "rules", "forget_loss": "losses", "retain_loss": "losses"}
_REQUEST = {"model", "output", "allow_overlap", "lora", "private", "answers", *SOURCE_KEYS, *folder_options()}
_REQUEST -= {"earlier"}  # receipts of earlier runs belong to it


def refuse_early(given: Mapping[str, Any], faults: list[Fault], overwrite: bool) -> None:
    """Raise the faults of a request, where all its settings can be checked here.

    Args:
        given: settings as :func:`ngdiff.cli.settings.gather` returns them.
        faults: what is wrong with the others.
        overwrite: whether the output may exist.

    Raises:
        RequestError: with every fault; no library was needed to find them.
    """
    settings = {name: value for name, value in given.items() if name not in REQUEST_KEYS}
    if not _is_sure(given, settings):
        return
    found = [*faults, *_setting_faults(settings), *_place_faults(given, overwrite)]
    if found or any(_each_source(given, path_fault)):
        raise RequestError(list(dict.fromkeys(found + _data_faults(given))))


def _is_sure(given: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Return whether all given settings can be checked here."""
    if not set(settings) <= CHECKED or any(map(_is_endless, settings.values())):
        return False
    if "ngdiff.methods" in sys.modules and any(
        settings.get(name) not in [None, *_known(name)] for name in _TABLES
    ):
        return False  # loaded tables may have rows of the user, which the listing lacks
    if not {key for key in given if key in REQUEST_KEYS} <= _REQUEST:
        return False
    folder = folder_of(str(given["model"])) if given.get("model") else None
    if folder is not None and not (folder / "config.json").is_file():
        return False
    if given.get("output") and _is_unfinished(Path(str(given["output"]))):
        return False
    return all(_each_source(given, lambda source, _: is_local(source)))


def _is_endless(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _is_unfinished(output: Path) -> bool:
    """Return whether a run for an output may lie beside it (see :mod:`ngdiff.runs.workplace`)."""
    try:
        return (output.parent / f".{output.name}.unfinished").exists()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def _each_source(given: Mapping[str, Any], check: Callable[[str, str], Any]) -> list[Any]:
    return [check(source, f"--{key}") for key in SOURCE_KEYS for source in source_list(given.get(key, ()))]


def _setting_faults(settings: Mapping[str, Any]) -> list[Fault]:
    wrong = kind_faults(settings)
    right = {name: value for name, value in settings.items() if name not in wrong}
    faults = list(wrong.values())
    for name in _TABLES:
        if name in right and right[name] not in _known(name):
            flag, kind = f"--{name.replace('_', '-')}", name.replace("_", " ")
            faults.append(unknown_name(flag, kind, right[name], _known(name)))
    return faults + range_faults(right)


def _known(name: str) -> list[str]:
    """Return the names that a setting may have, by the written listing."""
    table, task = _TABLES[name], name.removesuffix("_loss") if _TABLES[name] == "losses" else None
    return [row[0] for row in written(table)[1] if task in (None, row[1])]


def _place_faults(given: Mapping[str, Any], overwrite: bool) -> list[Fault]:
    """List what is wrong with the names of model and output, and with the number of answers."""
    faults = []
    model, output, answers = given.get("model"), given.get("output"), given.get("answers", 0)
    if model:
        faults += [fault for fault in [name_fault(str(model))] if fault is not None]
    if output:
        path, folders = Path(str(output)), folders_of(given)
        sources = {f"--{key}": source_list(given.get(key, ())) for key in SOURCE_KEYS}
        faults += same_folder(path, str(model)) if model and folder_of(str(model)) else []
        faults += check_output(path, overwrite)
        faults += holds_faults(path, local_sources(sources, folders))
    if type(answers) is not int or answers < 0:
        faults.append(
            Fault("--set answers", f"is {answers!r}", "Give a whole number; 0 disables the answers")
        )
    return faults


def _data_faults(given: Mapping[str, Any]) -> list[Fault]:
    """Read all data, and list what is wrong with them."""
    faults: list[Fault] = []
    sets: dict[str, list[Example]] = {}
    for key in SOURCE_KEYS:
        sets[key] = []
        for source in source_list(given.get(key, ())):
            try:
                rows = read_rows(source, where=f"--{key}", folders=folders_of(given))
                sets[key] += to_examples(rows, f"--{key}")
            except RequestError as error:
                faults += error.faults
    checks = () if given.get("allow_overlap") else (overlap_fault, answer_fault, part_fault)
    found = [check(sets["forget"], sets["retain"]) for check in checks]
    found.append(holdout_fault(sets["holdout"], sets["forget"], sets["retain"]))
    return faults + [fault for fault in found if fault is not None]
