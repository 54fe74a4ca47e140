"""settings as given -> every fault that can be found without torch, before torch is imported.

The full check (:func:`ngdiff.unlearn.prepare`) imports torch and transformers, which takes seconds. A wrong
path or a wrong number needs neither. A request is refused here only where all its settings can be
checked here, so that all faults of settings, names and rows are still reported together. The model's files
and the tokens are checked once there are no such faults.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from ngdiff.cli.listing import written
from ngdiff.cli.settings import REQUEST_KEYS, SOURCE_KEYS, source_list
from ngdiff.data.benchmarks import Folders, folder_options, folders_of
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


Look = Callable[[Any], Iterable[Fault | None]]
"""What a parameter was given -> what is wrong with it."""
_HARMLESS = frozenset({"quiet", "log_format", "question", "cache_dir"})


class NotSure(Exception):
    """A value that only the full check can judge."""


def refuse_names(
    context: typer.Context,
    looks: Mapping[str, Look],
    sources: Mapping[str, str] | None = None,
    folders: Folders | None = None,
) -> None:
    """Raise what is wrong with the running command's names and paths, where all else it was given is right.

    Args:
        context: of the command.
        looks: by parameter, what looks at its value.
        sources: flags of the parameters that are sources of data.
        folders: benchmarks to folders that hold their data.

    Raises:
        RequestError: with every fault; no library was needed to find them.
    """
    named = sources or {}
    given = {
        name
        for name in context.params
        if getattr(context.get_parameter_source(name), "name", "") != "DEFAULT"
    }
    unknown = given - looks.keys() - named.keys() - _HARMLESS - {f"{name}_dir" for name in folders or {}}
    if any(not isinstance(context.params[name], bool) for name in unknown):
        return
    read = [(source, flag) for name, flag in named.items() for source in context.params.get(name) or ()]
    values = {name: value for name, value in context.params.items() if name in looks and value is not None}
    if not all(is_local(source) for source, _ in read):
        return
    try:
        found = [fault for name, value in values.items() for fault in looks[name](value) if fault is not None]
    except NotSure:
        return
    if found or any(path_fault(source, flag) for source, flag in read):
        found += [fault for source, flag in read for fault in _read_faults(source, flag, folders)]
        raise RequestError(list(dict.fromkeys(found)))


def model_named(where: str = "--model", output: Path | None = None) -> Look:
    """Look at the name of a model, and whether an output would lie in its place."""

    def look(name: str) -> list[Fault | None]:
        folder = folder_of(name)
        if folder is None:
            return [name_fault(name, where)]
        if not (folder / "config.json").is_file():
            raise NotSure
        return [] if output is None else list(same_folder(output, str(folder)))

    return look


def rows_named(where: str, kind: str, table: str) -> Look:
    """Look for names, separated by commas, in a table of ``ngdiff ls``."""

    def look(text: str) -> list[Fault]:
        known = [row[0] for row in written(table)[1]]
        if table == "methods" and "ngdiff.methods" in sys.modules:  # which may have rows of the user's own
            known = list(sys.modules["ngdiff.methods"].METHODS)
        names = dict.fromkeys(name.strip() for name in text.split(",") if name.strip())
        return [unknown_name(where, kind, name, known) for name in names if name not in known]

    return look


def right(holds: Callable[[Any], bool]) -> Look:
    """Look at a value that is either right or left to the full check."""

    def look(value: Any) -> list[Fault]:
        if not holds(value):
            raise NotSure
        return []

    return look


def exists(name: str) -> bool:
    """Say whether there is a file or a folder of a name."""
    try:
        return Path(name).expanduser().exists()
    except (OSError, ValueError):
        return False


POSITIVE = right(lambda value: value > 0)
NUMBERS: Mapping[str, Look] = {
    **dict.fromkeys(("batch_size", "max_length", "max_new_tokens", "resamples", "limit"), POSITIVE),
    **dict.fromkeys(("epochs", "lr", "seeds", "trials", "samples"), POSITIVE),
    "seed": right(lambda value: 0 <= value < 2**32),
    "precision": right(lambda value: value in ("auto", "bf16", "fp32")),
    "long_text": right(lambda value: value in ("split", "cut")),
}
"""Settings that the full check judges where they are not plainly right."""


def new_folder(
    overwrite: bool = False, reads: Mapping[str, Sequence[str]] | None = None, folders: Folders | None = None
) -> Look:
    """Look at the folder that a command makes, which must not replace what the command reads.

    Args:
        overwrite: whether an earlier result may be replaced.
        reads: flag to the sources that it gave.
        folders: benchmarks to folders that hold their data.
    """

    def look(path: Path) -> list[Fault]:
        if _is_unfinished(path):
            raise NotSure
        return check_output(path, overwrite) + holds_faults(path, local_sources(reads or {}, folders or {}))

    return look


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
            faults += _read_faults(source, f"--{key}", folders_of(given), sets[key])
    checks = () if given.get("allow_overlap") else (overlap_fault, answer_fault, part_fault)
    found = [check(sets["forget"], sets["retain"]) for check in checks]
    found.append(holdout_fault(sets["holdout"], sets["forget"], sets["retain"]))
    return faults + [fault for fault in found if fault is not None]


def _read_faults(
    source: str, where: str, folders: Folders | None, into: list[Example] | None = None
) -> Sequence[Fault]:
    """Read a source, and list what is wrong with it; its examples are added to a list, where one is given."""
    try:
        found = to_examples(read_rows(source, where=where, folders=folders), where)
    except RequestError as error:
        return error.faults
    if into is not None:
        into += found
    return []
