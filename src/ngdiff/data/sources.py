"""`source string -> rows`: files, folders, hub data sets, benchmarks and shipped text, or a slice of them.

A source is one string:

- ``forget.jsonl``: a .jsonl, .json, .csv or .parquet file, or a folder of them (read sorted by name);
- ``org/name``, ``org/name:config``, ``org/name:config@split``: a dataset on the hub;
- ``tofu:forget10``, ``muse:news/forget``: a part of a benchmark (:mod:`ngdiff.data.benchmarks`), from a local
  folder if there is one, else from the hub;
- ``ngdiff:general``: plain questions and instructions of every kind, which ship with NGDiff.

Each may end in a slice with Python's meaning, such as ``tofu:full[-1200:]``. Before it, column names can
be given in braces: ``forget.jsonl{question=instruction,answer=output}`` (:mod:`ngdiff.data.layouts`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from ngdiff.data.benchmarks import BENCHMARKS, Benchmark, Folders
from ngdiff.data.files import ARCHIVES, READERS, Row, read_data_file
from ngdiff.data.layouts import Mapped, parse_columns, renamed, written_columns
from ngdiff.errors import Fault, RequestError, nearest_names, unknown_name
from ngdiff.invented.people import general_knowledge_rows
from ngdiff.system.untrusted import first_line

__all__ = ["SHIPPED", "Row", "read_rows"]

SHIPPED: Mapping[str, str] = {"general": "plain questions and instructions of every kind, to keep besides"}
"""The data sets that ship with NGDiff, ``ngdiff:NAME``, each with a summary."""

_MOST_FAULTS = 20
_SLICE = re.compile(r"^(?P<source>.+)\[(?P<start>-?\d+)?:(?P<stop>-?\d+)?\]$", re.DOTALL)
_COLUMNS = re.compile(r"^(?P<source>.+)\{(?P<columns>[^{}]*)\}$", re.DOTALL)
_HUB = re.compile(r"^(?P<name>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[\w.-]+))?(@(?P<split>[\w.-]+))?$")


def read_rows(source: str, *, where: str, folders: Folders | None = None) -> list[Row]:
    """Read all rows of a source.

    Args:
        source: a file, a folder, a hub data set, ``tofu:NAME``, ``muse:NAME`` or ``ngdiff:NAME``, with an
            optional ``[start:stop]``.
        where: the setting that named the source, such as ``--forget``, for faults.
        folders: benchmarks to folders that hold their data; by default those of ``NGDIFF_TOFU_DIR`` and so
            on, else the hub.

    Returns:
        At least one row, in the source's order.

    Raises:
        RequestError: with every fault found in the source (the first 20 and a count of the rest).
    """
    named, span = _split_slice(source, where)
    bare, mapped = _split_columns(named, where)
    rows, faults = _read(bare, where, folders)
    if mapped and not faults:
        rows, faults = renamed(rows, mapped, where)
    if faults:
        raise RequestError(capped(faults, where))
    chosen = rows[span]
    if not chosen:
        what = f"the slice of {source!r} leaves none of {len(rows)} rows"
        raise RequestError(Fault(where, what, "Choose a slice inside the data"))
    return chosen


def source_path(source: str) -> str | None:
    """Return the file or folder that a source names, without slice and columns; None for none."""
    names = [source]
    for pattern in (_SLICE, _COLUMNS):
        if found := pattern.match(names[-1]):
            names.append(found["source"])
    return next((name for name in names if name.strip() and _exists(Path(name).expanduser())), None)


def is_local(source: str) -> bool:
    """Return whether a source is read from this machine, or can only be a missing file."""
    try:
        bare, _ = _split_columns(_split_slice(source, "")[0], "")
    except RequestError:
        return True
    name, colon, _ = bare.partition(":")
    if colon and name in BENCHMARKS:
        return False
    path = Path(bare).expanduser()
    return (
        _exists(path)
        or bare.startswith("ngdiff:")
        or not (_HUB.match(bare) and path.suffix.lower() not in READERS)
    )


def path_fault(source: str, where: str) -> Fault | None:
    """Return a fault where a slice is not valid or a file does not exist; nothing is read."""
    try:
        bare, _ = _split_columns(_split_slice(source, where)[0], where)
    except RequestError as error:
        return error.faults[0]
    path = Path(bare).expanduser()
    return (
        None if not is_local(bare) or bare.startswith("ngdiff:") or _exists(path) else _missing(path, where)
    )


def capped(faults: list[Fault], where: str) -> list[Fault]:
    """Return at most 20 faults, the rest as a count."""
    if len(faults) <= _MOST_FAULTS:
        return faults
    rest = Fault(
        where, f"has {len(faults) - _MOST_FAULTS} more errors", "Fix the errors above, and run again"
    )
    return [*faults[:_MOST_FAULTS], rest]


def _split_slice(source: str, where: str) -> tuple[str, slice]:
    if not source.strip():
        raise RequestError(Fault(where, "is empty", "Give a file, a folder, a hub data set or tofu:NAME"))
    if _exists(Path(source).expanduser()):  # a file whose own name ends in brackets
        return source, slice(None)
    if found := _SLICE.match(source):
        start, stop = (None if found[part] is None else int(found[part]) for part in ("start", "stop"))
        return found["source"], slice(start, stop)
    if source.endswith("]"):
        bare, _, inside = source.rpartition("[")
        fix = f"Write a slice as {bare}[start:stop], for instance {bare}[-100:]"
        raise RequestError(Fault(where, f"[{inside} is not a valid slice", fix))
    return source, slice(None)


def _split_columns(source: str, where: str) -> tuple[str, Mapped]:
    found = None if _exists(Path(source).expanduser()) else _COLUMNS.match(source)
    return (source, {}) if found is None else (found["source"], parse_columns(found["columns"], where))


def with_columns(source: str, mapped: Mapping[str, str]) -> str:
    """Return a source with a mapping of columns added, unless it has one or needs none."""
    name, colon, _ = source.partition(":")
    if colon and (name in BENCHMARKS or name == "ngdiff"):
        return source
    whole = _exists(Path(source).expanduser())  # a file whose own name ends in brackets
    found = None if whole else _SLICE.match(source)
    bare = source if found is None else found["source"]
    if not whole and _COLUMNS.match(bare) and not _exists(Path(bare).expanduser()):
        return source
    return f"{bare}{{{written_columns(mapped)}}}{source[len(bare) :]}"


def _read(source: str, where: str, folders: Folders | None) -> tuple[list[Row], list[Fault]]:
    name, colon, part = source.partition(":")
    if colon and name in BENCHMARKS:
        return _read_benchmark(BENCHMARKS[name], part, where, folders)
    if source.startswith("ngdiff:"):
        return _read_shipped(source.removeprefix("ngdiff:"), where)
    path = Path(source).expanduser()
    if _exists(path):
        return _read_path(path, where)
    hub = _HUB.match(source)
    if hub and path.suffix.lower() not in READERS:
        return _read_hub(hub["name"], hub["config"], hub["split"], where)
    return [], [_missing(path, where)]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a NUL: no such file
        return False


def _missing(path: Path, where: str) -> Fault:
    parent = path.parent
    try:
        if path.is_symlink():
            return Fault(where, f"{str(path)!r} is a broken link", "Fix the link")
        shown = [p for p in parent.iterdir() if p.name[0] != "."]
        files = sorted(p.name for p in shown if p.suffix.lower() in READERS)
        names = files + [p.name for p in shown if p.is_dir()]
    except (OSError, ValueError):
        what = f"there is no file {str(path)!r}, nor a folder {str(parent)!r}"
        return Fault(where, what, "Check the path; a hub dataset is written org/name:config@split")
    near = nearest_names(path.name, names)
    fix = (
        f"Did you mean {' or '.join(str(parent / name) for name in near)}?"
        if near
        else (f"Data files in {str(parent)!r}: {', '.join(files[:10]) or 'none'}")
    )
    return Fault(where, f"there is no file or folder {str(path)!r}", fix)


def _read_path(path: Path, where: str) -> tuple[list[Row], list[Fault]]:
    files = [path]
    if path.is_dir():
        try:
            listed = sorted(path.iterdir(), key=lambda p: p.name)
        except OSError as error:
            what = f"the folder {str(path)!r} cannot be read: {error.strerror}"
            return [], [Fault(where, what, "Check its permissions")]
        files = [p for p in listed if _is_data(p)]
        if not files:
            what = f"the folder {str(path)!r} has no data files"
            return [], [Fault(where, what, f"Put files in it that end in {', '.join(READERS)}")]
    rows: list[Row] = []
    faults: list[Fault] = []
    for file in files:
        more, wrong = read_data_file(file)
        rows += more
        faults += [replace(fault, where=f"{where} {fault.where}") for fault in wrong]
    return rows, faults


def _is_data(path: Path) -> bool:
    """Return whether a folder's entry is data; packed data and dead links count, to be reported."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = len(suffixes) > 1 and suffixes[-1] in ARCHIVES and suffixes[-2] in READERS
    return not path.name.startswith(".") and (packed or path.suffix.lower() in READERS)


def _read_benchmark(
    benchmark: Benchmark, part: str, where: str, folders: Folders | None
) -> tuple[list[Row], list[Fault]]:
    if part not in benchmark.parts:
        return [], [unknown_name(where, f"part of {benchmark.title}", part, benchmark.parts)]
    folder = benchmark.folder(folders)
    if folder is not None:
        return benchmark.read(folder, part, where)
    hub = _HUB.match(benchmark.hub(part))
    assert hub is not None
    rows, faults = _read_hub(hub["name"], hub["config"], hub["split"], where)
    return benchmark.published(rows, part), faults


def _read_shipped(name: str, where: str) -> tuple[list[Row], list[Fault]]:
    if name not in SHIPPED:
        return [], [unknown_name(where, "data set of NGDiff", name, SHIPPED)]
    text = resources.files("ngdiff.data").joinpath(f"{name}.jsonl").read_text(encoding="utf-8")
    lines = text.rstrip("\n").split("\n")
    return [Row(json.loads(line), f"ngdiff:{name}, row {number}") for number, line in enumerate(lines, 1)], []


def _read_hub(name: str, config: str | None, split: str | None, where: str) -> tuple[list[Row], list[Fault]]:
    import datasets

    source = name + (f":{config}" if config else "")
    try:
        loaded = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the HTTP client, the hub and the data set's builder raise different errors
        what = f"{source!r} is not a file here and could not be loaded as a hub dataset ({first_line(error)})"
        fix = "Check the name (org/name:config@split) and the connection, or give a file"
        return [], [Fault(where, what, fix)]
    if split is None:
        splits: Mapping[str, object] = loaded
        split = "train" if "train" in splits else next(iter(splits), None)
        if split is None or (split != "train" and len(splits) > 1):
            what = f"{source!r} has the splits {', '.join(splits) or '(none)'} and none was chosen"
            return [], [Fault(where, what, f"Write {source}@SPLIT")]
        loaded = loaded[split]
    rows = [Row(dict(row), f"{source}@{split}, row {number}") for number, row in enumerate(loaded, 1)]
    if not rows:
        return [], [Fault(where, f"{source}@{split} is empty", "Choose another split")]
    return rows, []


def local_sources(named: Mapping[str, Sequence[str]], folders: Folders) -> list[tuple[str, str]]:
    """Return the setting and the path of each file and folder that is read."""
    found = [(flag, source_path(source)) for flag, sources in named.items() for source in sources]
    given = [(f"{name}_dir", str(path)) for name, path in folders.items() if path is not None]
    return [(flag, path) for flag, path in found if path is not None] + given


# ---- `-> the rows that ship with the project`, split into those to train on and those to measure on ----


EVERY = 5
"""One row in five is held out: 48 of 240."""


def general_split() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the general text that runs may train on, and the text that is only measured.

    The rows of ``ngdiff:general``, of which every fifth is held out, the same in every run, and facts about
    well-known people, places and things to train on. None of these is among the measured facts
    (:func:`ngdiff.invented.people.general_knowledge_rows`), nor do they share their most frequent forms.
    """
    rows = _shipped("general.jsonl")
    train = [row for place, row in enumerate(rows) if place % EVERY != EVERY - 1]
    return [*train, *_shipped("general_facts.jsonl")], rows[EVERY - 1 :: EVERY]


def _shipped(name: str) -> list[dict[str, Any]]:
    text = resources.files("ngdiff.data").joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def general_texts() -> list[str]:
    """Return all questions and answers that ship with the project: plain language, well-known names."""
    rows = [*(row for part in general_split() for row in part), *general_knowledge_rows()]
    return [f"{row['question']} {row['answer']}" for row in rows]
