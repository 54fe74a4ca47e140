"""A finished benchmark -> its figures in docs/study, and its table and pictures in the documentation.

ngdiff bench tofu ... --output FOLDER
python -m benchmarks.bench_table FOLDER --name forget01
python -m benchmarks.bench_table --name forget01      # table and front again, from those figures alone
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence import STUDY, keep_bench, read_bench
from benchmarks.pages import page_of, put, shows
from ngdiff.bench.picture import draw_front
from ngdiff.bench.summary import COMPARED, Row, mark_front, row_from_json
from ngdiff.bench.tables import (
    ablation_table,
    distance_table,
    grid_table,
    interval_cell,
    markdown_table,
    number,
    written,
)

EVIDENCE, IMAGES = STUDY / "bench", Path("docs/images")
SHOWN = {
    "forget.extraction_strength": "forget ES",
    "forget.probability": "forget P",
    "model_utility": "model utility ↑",
    "retain.probability": "retain P ↑",
    "general_nll": "general NLL ↓",
    "collateral": "neighbourhood ↑",
    "steps": "steps",
}
"""Figures that a page shows of each row, with their titles; ``results.csv`` has all."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--name", required=True, help="what the page calls it")
    parser.add_argument("--pictures", action="store_true", help="also without FOLDER: draw the front again")
    args = parser.parse_args()
    evidence = EVIDENCE / args.name
    if args.folder is not None:
        folder = args.folder.expanduser()
        keep_bench(json.loads((folder / "results.json").read_text(encoding="utf-8")), evidence)
        if shows(f"curves-{args.name}.png"):
            shutil.copyfile(folder / "curves.png", IMAGES / f"curves-{args.name}.png")
    results = read_bench(evidence)
    rows = published_rows(results)
    splits = list(dict.fromkeys(row.split for row in rows))
    if (args.folder is not None or args.pictures) and shows(f"pareto-{args.name}.png"):
        draw_front(splits, rows, IMAGES / f"pareto-{args.name}.png")

    def each_split(lay_out: Callable[[Sequence[Row]], str]) -> str:
        return "\n\n".join(lay_out([row for row in rows if row.split == split]) for split in splits)

    put(f"Bench, {args.name}", each_split(page_table))
    where_wanted = {
        "Bench tuning": lambda: page_tuning(results["tuning"]),
        "Bench grids": lambda: grid_table(results["grids"]),
        "Bench distance": lambda: each_split(distance_table),
        "Bench ablation": lambda: each_split(ablation_table),
    }
    for kind, lay_out in where_wanted.items():
        title = f"{kind}, {args.name}"
        if page_of(title) is not None:
            put(title, lay_out())


def page_table(rows: Sequence[Row]) -> str:
    """Return one split's rows with the figures that a page shows; the front in bold."""
    lines = []
    for row in rows:
        name = f"**{row.name}**" if row.on_front else row.name
        name += " (destroyed)" if row.destroyed else ""
        lines.append([name, *(interval_cell(row.cells.get(key)) for key in SHOWN)])
    return markdown_table(["method", *SHOWN.values()], lines)


def page_tuning(trials: Sequence[Mapping[str, Any]]) -> str:
    """Return what tuning tried, the chosen settings in bold."""
    titles = {
        "score": "score ↑",
        "forget_extraction_strength": "forget ES",
        "retain_probability": "retain P ↑",
    }
    titles |= {"steps": "steps", "seconds": "s ↓"}
    lines = []
    for trial in trials:
        settings = written(trial["settings"])
        figures = ["" if trial.get(key) is None else number(float(trial[key])) for key in titles]
        shown = f"**{settings}**" if trial["chosen"] else settings
        lines.append([trial["method"], shown, *figures, str(trial.get("ended", "failed"))])
    return markdown_table(["method", "settings", *titles.values(), "ended"], lines)


def published_rows(results: Mapping[str, Any]) -> list[Row]:
    """Return the rows of the published results, the front of each split marked by today's rule."""
    rows = [row_from_json(value) for value in results["rows"]]
    for split in {row.split for row in rows}:
        mark_front([row for row in rows if row.split == split and row.name not in COMPARED])
    return rows


if __name__ == "__main__":
    main()
