"""`MUSE corpus -> rows by config and split`: from the hub, or a folder of the same layout.

Configs and splits, with their columns: ``verbmem`` forget (prompt, gt); ``knowmem`` forget_qa, forget_qa_icl,
retain_qa, retain_qa_icl (question, answer); ``privleak`` forget, retain, holdout (text); ``raw`` forget,
retain1, retain2, holdout (text); News only: ``scal`` and ``sust`` forget_1 to forget_4 (text), nested and
disjoint. Source: Shi et al. 2024, "MUSE: machine unlearning six-way evaluation for language models"
(arXiv 2407.06460); hub muse-bench/MUSE-News and muse-bench/MUSE-Books.
"""

from __future__ import annotations

from pathlib import Path

from ngdiff.data.benchmarks import MUSE, MUSE_CORPORA, Folders, files_of, muse_part, read_table
from ngdiff.data.examples import text_fault
from ngdiff.data.files import READERS, Row
from ngdiff.data.sources import capped, read_rows
from ngdiff.errors import Fault, RequestError

COLUMNS = {
    "verbmem": ("prompt", "gt"),
    "knowmem": ("question", "answer"),
    "privleak": ("text",),
    "raw": ("text",),
    "scal": ("text",),
    "sust": ("text",),
}
"""Configs to the columns their rows must have."""


def read_split(
    source: str, config: str, split: str, where: str = "--data", folders: Folders | None = None
) -> list[Row]:
    """Read one split of a MUSE corpus.

    Args:
        source: ``news``, ``books``, a data set on the hub, or a folder with CONFIG/SPLIT.jsonl (or .json,
            .csv, .parquet; CONFIG/SPLIT-*.parquet as the hub stores it; a .json may be an array of texts).
        config: one of ``COLUMNS``.
        split: such as ``forget_qa``.
        where: the setting that named the source, for faults.
        folders: folder of ``news`` and ``books``, under ``muse``; by default ``NGDIFF_MUSE_DIR``, else the
            hub.

    Returns:
        At least one row, each with the config's columns filled with text.

    Raises:
        RequestError: with every fault found: a missing file, a missing column, an empty text.
    """
    folder, given = Path(source).expanduser(), MUSE.folder(folders)
    faults: list[Fault] = []
    if source in MUSE_CORPORA and given is not None:
        rows, faults = MUSE.read_as_is(given, muse_part(source, config, split), where)
    elif folder.is_dir():
        rows, faults = _read_folder(folder, config, split, where)
    else:
        rows = read_rows(f"{MUSE_CORPORA.get(source, source)}:{config}@{split}", where=where)
    faults = faults + [fault for row in rows for fault in _row_faults(row, COLUMNS[config], where)]
    if faults:
        raise RequestError(capped(faults, where))
    return rows


def _read_folder(folder: Path, config: str, split: str, where: str) -> tuple[list[Row], list[Fault]]:
    files = files_of(folder / config / split)
    if not files:
        what = f"the MUSE folder {str(folder)!r} has no file {config}/{split}{{{','.join(READERS)}}}"
        found = (path for path in folder.glob("*/*") if path.suffix in READERS)
        there = sorted(f"{path.parent.name}/{path.name}" for path in found)
        fix = f"It has {', '.join(there) or 'none of MUSE'}; name news, books or a data set on the hub"
        return [], [Fault(where, what, fix)]
    rows: list[Row] = []
    faults: list[Fault] = []
    for file in files:
        more, wrong = read_table(file)
        rows += more
        faults += [Fault(f"{where} {config}/{fault.where}", fault.what, fault.fix) for fault in wrong]
    return [Row(row.values, f"{config}/{row.place}") for row in rows], faults


def _row_faults(row: Row, columns: tuple[str, ...], where: str) -> list[Fault]:
    at = f"{where} {row.place}"
    missing = [column for column in columns if column not in row.values]
    if missing:
        found = ", ".join(map(repr, row.values)) or "none"
        what = f"lacks the column {missing[0]!r} (found: {found})"
        return [Fault(at, what, f"Name the columns {', '.join(columns)}")]
    wrong = ((column, text_fault(row.values[column])) for column in columns)
    return [Fault(at, f"{column!r} {what}", "Give it some text") for column, what in wrong if what]
