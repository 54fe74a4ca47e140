"""bench request -> the files of TOFU that its evaluations read, and the sources its runs learn from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ngdiff.bench.trials import TUNING, BenchRequest
from ngdiff.data.sources import read_rows
from ngdiff.system.cache import cache_key
from ngdiff.system.output import staged_folder

TOFU_SIZE = 4000
"""Questions of TOFU in all."""
FORGET_SIZES = {"forget01": 40, "forget05": 200, "forget10": 400}
"""Questions of each forget set: TOFU's last so many, so that each set holds the smaller ones."""
RETAIN_OF = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
MOST_RETAIN = 400
"""As many questions as TOFU's own file of retain questions with wrong answers has."""


def sources(request: BenchRequest, split: str) -> tuple[str, str]:
    """Return what to forget and what to keep, on a split or for tuning.

    The questions to tune on are those right before the largest reported split, and what is kept there comes
    before them: no tuning trial sees an author that any reported split has.
    """
    begin = "" if request.learned is None else f"-{request.learned}"
    if split.startswith(TUNING):
        last = max(FORGET_SIZES[reported] for reported in request.splits)
        first = tuning_reach(request, split)
        return f"tofu:full[-{first}:-{last}]", f"tofu:full[{begin}:-{first}]"
    if request.learned is None:
        return f"tofu:{split}", f"tofu:{RETAIN_OF[split]}"
    return f"tofu:{split}", f"tofu:full[{begin}:-{FORGET_SIZES[split]}]"


def tuning_reach(request: BenchRequest, split: str) -> int:
    """Return how many of TOFU's last questions the reported splits and the questions to tune on take."""
    return max(FORGET_SIZES[name] for name in request.splits) + FORGET_SIZES[split.removeprefix(TUNING)]


def evaluation_folder(request: BenchRequest, split: str, parent: Path | None = None) -> Path | None:
    """Return a folder in TOFU's layout for the suite to read; None where TOFU's own files serve as they are.

    It is named after what is in it, and written where it is not there.

    Where the target learned TOFU's last questions only, its retain questions are those of TOFU's perturbed
    files that it learned and is not to forget (where there are none, plain ones, which have no wrong answers
    and so no truth ratio), and the holdout is TOFU's first questions, which it never saw.
    With ``items`` every set is thinned evenly.

    Args:
        request: whose evaluations these are.
        split: of TOFU.
        parent: where the folder is to lie; below the request's output without one.

    Raises:
        RequestError: a file of TOFU cannot be read.
    """
    if request.learned is None and request.items is None:
        return request.folders.get("tofu")
    files = evaluated_files(request, split)
    named = f"{split}-{request.learned or 'all'}-{request.items or 'all'}-{cache_key(files)[:8]}"
    folder = (parent or request.output / "data") / named
    if not folder.is_dir():
        with staged_folder(folder) as staged:
            for name, text in files.items():
                (staged / name).write_text(text, encoding="utf-8")
    return folder


def evaluated_files(request: BenchRequest, split: str) -> dict[str, str]:
    """Return the content of every file that the evaluations of a split read, by its name.

    Raises:
        RequestError: a file of TOFU cannot be read.
    """
    parts = {
        name: _rows(f"tofu:{name}", request)
        for name in (f"{split}_perturbed", "real_authors_perturbed", "world_facts_perturbed")
    }
    parts["retain_perturbed"] = _retain(request, split)
    holdout = _holdout(request, split)
    if holdout:
        parts[split.replace("forget", "holdout")] = holdout
    return {
        f"{name}.json": "".join(json.dumps(row) + "\n" for row in thinned(rows, request.items))
        for name, rows in parts.items()
    }


def thinned(rows: list[dict[str, Any]], most: int | None) -> list[dict[str, Any]]:
    """Return at most so many rows, evenly spread."""
    if most is None or len(rows) <= most:
        return rows
    return [rows[place * len(rows) // most] for place in range(most)]


def _rows(source: str, request: BenchRequest) -> list[dict[str, Any]]:
    return [dict(row.values) for row in read_rows(source, where="--tofu-dir", folders=request.folders)]


def _retain(request: BenchRequest, split: str) -> list[dict[str, Any]]:
    own = _rows("tofu:retain_perturbed", request)
    if request.learned is None:
        return own
    _, source = sources(request, split)
    known = {row["question"] for row in _rows(source, request)}
    found = {
        row["question"]: row
        for row in [*own, *_rows("tofu:forget10_perturbed", request)]
        if row["question"] in known
    }
    kept = list(found.values()) or _rows(source, request)
    return thinned(kept, MOST_RETAIN)


def _holdout(request: BenchRequest, split: str) -> list[dict[str, Any]]:
    """Return questions that no model here saw: TOFU's first ones, or the file made for it, where it is."""
    if request.learned is not None:
        return _rows(f"tofu:full[:{FORGET_SIZES[split]}]", request)
    from ngdiff.errors import RequestError

    try:
        return _rows(f"tofu:{split.replace('forget', 'holdout')}", request)
    except RequestError:
        return []
