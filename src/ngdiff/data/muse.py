"""`MUSE corpus -> rows by config and split`: from the hub, or a folder that is laid out likewise.

Configs and splits, with their columns: ``verbmem`` forget (prompt, gt); ``knowmem`` forget_qa, forget_qa_icl,
retain_qa, retain_qa_icl (question, answer); ``privleak`` forget, retain, holdout (text); ``raw`` forget,
retain1, retain2, holdout (text); News only: ``scal`` and ``sust`` forget_1 to forget_4 (text), nested and
disjoint. Source: Shi et al. 2024, "MUSE: machine unlearning six-way evaluation for language models"
(arXiv 2407.06460); hub muse-bench/MUSE-News and muse-bench/MUSE-Books.
"""

from __future__ import annotations

from pathlib import Path

from ngdiff.data.examples import text_fault
from ngdiff.data.files import READERS, Row, read_data_file
from ngdiff.data.sources import capped, read_rows
from ngdiff.errors import Fault, RequestError
from ngdiff.system.outside import MOST_DATA, Unreadable, load_json, read_within

CORPORA = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
"""Short names of the two corpora to data sets on the hub."""

COLUMNS = {
    "verbmem": ("prompt", "gt"),
    "knowmem": ("question", "answer"),
    "privleak": ("text",),
    "raw": ("text",),
    "scal": ("text",),
    "sust": ("text",),
}
"""Configs to the columns their rows must have."""


def read_split(source: str, config: str, split: str, where: str = "--data") -> list[Row]:
    """Read one split of a MUSE corpus.

    Args:
        source: ``news``, ``books``, a data set on the hub, or a folder with CONFIG/SPLIT.jsonl (or .json,
            .csv, .parquet; CONFIG/SPLIT-*.parquet as the hub stores it; a .json may be an array of texts).
        config: one of ``COLUMNS``.
        split: such as ``forget_qa``.
        where: the setting that named the source, for faults.

    Returns:
        At least one row, each with the config's columns filled with text.

    Raises:
        RequestError: with every fault found: a missing file, a missing column, an empty text.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        rows, faults = _read_folder(folder, config, split, where)
    else:
        rows, faults = read_rows(f"{CORPORA.get(source, source)}:{config}@{split}", where=where), []
    faults = faults + [fault for row in rows for fault in _row_faults(row, COLUMNS[config], where)]
    if faults:
        raise RequestError(capped(faults, where))
    return rows


def _read_folder(folder: Path, config: str, split: str, where: str) -> tuple[list[Row], list[Fault]]:
    place = folder / config
    files = [place / f"{split}{ending}" for ending in READERS if (place / f"{split}{ending}").is_file()]
    if not files:
        files = sorted(place.glob(f"{split}-[0-9]*-of-[0-9]*.parquet"))
    if not files:
        what = f"the MUSE folder {str(folder)!r} has no file {config}/{split}{{{','.join(READERS)}}}"
        return [], [Fault(where, what, "Put it there, or name news, books or a data set on the hub")]
    rows: list[Row] = []
    faults: list[Fault] = []
    for file in files:
        more, wrong = ([], []) if (texts := _array_of_texts(file)) else read_data_file(file)
        rows += texts or more
        faults += [Fault(f"{where} {config}/{fault.where}", fault.what, fault.mend) for fault in wrong]
    return [Row(row.values, f"{config}/{row.place}") for row in rows], faults


def _array_of_texts(file: Path) -> list[Row]:
    """Return the rows of a JSON array of strings, as MUSE's own code writes texts; else nothing."""
    if file.suffix != ".json":
        return []
    try:
        texts = load_json(read_within(file, MOST_DATA))
    except Unreadable:
        return []  # the ordinary reader says what is wrong
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return []
    return [Row({"text": text}, f"{file.name}, item {number}") for number, text in enumerate(texts, 1)]


def _row_faults(row: Row, columns: tuple[str, ...], where: str) -> list[Fault]:
    at = f"{where} {row.place}"
    missing = [column for column in columns if column not in row.values]
    if missing:
        found = ", ".join(map(repr, row.values)) or "none"
        what = f"lacks the column {missing[0]!r} (found: {found})"
        return [Fault(at, what, f"Name the columns {', '.join(columns)}")]
    wrong = ((column, text_fault(row.values[column])) for column in columns)
    return [Fault(at, f"{column!r} {what}", "Give it some text") for column, what in wrong if what]
