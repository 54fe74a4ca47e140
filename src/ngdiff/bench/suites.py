"""bench request -> what its runs learn from and what their evaluations read: a table, one row a benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngdiff.bench import data as tofu
from ngdiff.bench.trials import TUNING, BenchRequest
from ngdiff.data.muse_corpus import read_split
from ngdiff.data.sources import read_rows
from ngdiff.errors import Fault, RequestError, unknown_name
from ngdiff.system.cache import cache_key
from ngdiff.system.output import staged_folder

REQUESTS = 4
"""Sets that MUSE has for scalability, which hold one another, and for sustainability, in a row."""


@dataclass(frozen=True)
class Learned:
    """What one run forgets and keeps, by sources."""

    forget: tuple[str, ...]
    retain: tuple[str, ...]
    holdout: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Every source."""
        return (*self.forget, *self.retain, *self.holdout)


@dataclass(frozen=True)
class BenchSuite:
    """One benchmark.

    Args:
        name: of the command.
        title: of the tables.
        splits: names of its forget sets.
        steps: request and split, or the data to tune on, to the runs' requests, one after another.
        files: request and split to the files that evaluations read, by path; none where they read sources.
        asks: request, split and the folder of those files to fields of the evaluation's request.
    """

    name: str
    title: str
    splits: tuple[str, ...]
    steps: Callable[[BenchRequest, str], tuple[Learned, ...]]
    files: Callable[[BenchRequest, str], dict[str, str]]
    asks: Callable[[BenchRequest, str, Path | None], dict[str, Any]]

    def folder(self, request: BenchRequest, split: str, parent: Path | None = None) -> Path | None:
        """Return the folder of the files that evaluations read, written where it is not there.

        Args:
            request: whose evaluations these are.
            split: whose.
            parent: where it is to lie; below the request's output without one.
        """
        if self.name == "tofu":
            return tofu.evaluation_folder(request, split, parent)
        files = self.files(request, split)
        if not files:
            return None
        folder = (parent or request.output / "data") / f"{split}-{cache_key(files)[:8]}"
        if not folder.is_dir():
            with staged_folder(folder) as staged:
                for name, text in files.items():
                    (staged / name).parent.mkdir(exist_ok=True)
                    (staged / name).write_text(text, encoding="utf-8")
        return folder

    def faults(self, request: BenchRequest) -> list[Fault]:
        """Return what is wrong with the names of a request's splits."""
        asked = [("--splits", split) for split in request.splits]
        asked += [("--reference", split) for split in request.references if split]
        asked += [("--tune-on", request.tune_on)] if request.tune_on is not None else []
        return [
            unknown_name(flag, f"forget set of {self.title}", split, self.splits)
            for flag, split in asked
            if split not in self.splits
        ]


# ---- TOFU ----


def _tofu_steps(request: BenchRequest, split: str) -> tuple[Learned, ...]:
    forget, retain = tofu.sources(request, split)
    return (Learned((forget,), (retain, *request.also_retain)),)


def _tofu_asks(request: BenchRequest, split: str, folder: Path | None) -> dict[str, Any]:
    return {"suite": "tofu", "forget": (split,), "folders": {"tofu": str(folder)} if folder else {}}


# ---- MUSE ----


def _muse_splits() -> tuple[str, ...]:
    return ("forget", *(f"scal_{fold}" for fold in range(1, REQUESTS + 1)), "sust")


def _muse_parts(split: str) -> list[str]:
    """Return the parts of the corpus that a split asks to forget, one after another."""
    name = split.removeprefix(TUNING)
    if name == "sust":
        return [f"sust/forget_{fold}" for fold in range(1, REQUESTS + 1)]
    return [f"scal/forget_{name[-1]}" if name.startswith("scal_") else "forget"]


def _muse_steps(request: BenchRequest, split: str) -> tuple[Learned, ...]:
    cut = "" if request.texts is None else f"[:{request.texts}]"

    def named(given: Sequence[str], part: str) -> tuple[str, ...]:
        return tuple(given) or (f"muse:{request.corpus}/{part}{cut}",)

    retain = (*named(request.retain, "retain1"), *request.also_retain)
    holdout = named(request.holdout, "holdout")
    return tuple(
        Learned((f"muse:{request.corpus}/{part}{cut}",), retain, holdout) for part in _muse_parts(split)
    )


def _muse_files(request: BenchRequest, split: str) -> dict[str, str]:
    """Return what the suite reads: passages of what was learned alone, every set thinned evenly.

    Raises:
        RequestError: a split of the corpus is missing.
    """
    wanted = [("verbmem", "forget"), ("privleak", "forget"), ("privleak", "holdout")]
    wanted += [("knowmem", f"{part}_qa") for part in ("forget", "retain")]
    found: dict[str, list[dict[str, Any]]] = {}
    for config, name in wanted:
        found[f"{config}/{name}"] = _muse_rows(request, config, name)
    if request.texts is not None:
        learned = " ".join(str(row.values.get("text")) for row in _muse_learned(request, split))
        passages = found["verbmem/forget"]
        found["verbmem/forget"] = [row for row in passages if str(row["prompt"])[:80] in learned]
        if not found["verbmem/forget"]:
            what = f"none of the corpus's passages is from the first {request.texts} texts"
            raise RequestError(Fault("--texts", what, "Give more"))
    files = {name: tofu.thinned(rows, request.items) for name, rows in found.items()}
    files |= {
        f"knowmem/{p}_qa_icl": _muse_rows(request, "knowmem", f"{p}_qa_icl") for p in ("forget", "retain")
    }
    return {f"{name}.jsonl": "".join(json.dumps(row) + "\n" for row in rows) for name, rows in files.items()}


def _muse_learned(request: BenchRequest, split: str) -> list[Any]:
    sources = [source for step in _muse_steps(request, split) for source in step.forget]
    return [row for source in sources for row in read_rows(source, where="--corpus", folders=request.folders)]


def _muse_rows(request: BenchRequest, config: str, split: str) -> list[dict[str, Any]]:
    return [
        dict(row.values) for row in read_split(request.corpus, config, split, "--corpus", request.folders)
    ]


def _muse_asks(request: BenchRequest, split: str, folder: Path | None) -> dict[str, Any]:
    return {"suite": "muse", "data": str(folder), "folders": {}}


# ---- own data ----


def _own_steps(request: BenchRequest, split: str) -> tuple[Learned, ...]:
    return (Learned(request.forget, (*request.retain, *request.also_retain), request.holdout),)


def _own_asks(request: BenchRequest, split: str, folder: Path | None) -> dict[str, Any]:
    sets = {name: getattr(request, name) for name in ("forget", "retain", "holdout")}
    lengths = {
        name: request.settings[name] for name in ("max_length", "long_text") if name in request.settings
    }
    folders = {name: str(path) for name, path in request.folders.items() if path is not None}
    return {"suite": "own", **sets, **lengths, "folders": folders}


def _no_files(request: BenchRequest, split: str) -> dict[str, str]:
    """Return nothing: the sources themselves are evaluated."""
    return {}


SUITES: Mapping[str, BenchSuite] = {
    row.name: row
    for row in (
        BenchSuite("tofu", "TOFU", tuple(tofu.FORGET_SIZES), _tofu_steps, tofu.evaluated_files, _tofu_asks),
        BenchSuite("muse", "MUSE", _muse_splits(), _muse_steps, _muse_files, _muse_asks),
        BenchSuite("own", "your own data", ("own",), _own_steps, _no_files, _own_asks),
    )
}
"""The benchmarks that ``ngdiff bench`` runs, by name."""


def suite_of(request: BenchRequest) -> BenchSuite:
    """Return the row that a request names.

    Raises:
        RequestError: there is none.
    """
    if request.suite not in SUITES:
        raise RequestError(unknown_name("ngdiff bench", "benchmark", request.suite, SUITES))
    return SUITES[request.suite]
