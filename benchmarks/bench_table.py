"""A finished benchmark -> its evidence in docs/study, and its table and pictures in the documentation.

ngdiff bench tofu ... --output FOLDER
python -m benchmarks.bench_table FOLDER --name forget01
python -m benchmarks.bench_table --name forget01      # table and front once more, from the evidence alone
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import page_of, put
from benchmarks.study_tables import publish
from ngdiff.bench.comparison_tables import ablation_table, distance_table
from ngdiff.bench.picture import draw_front
from ngdiff.bench.summary import Row, mark_front, row_from_json
from ngdiff.bench.tables import as_csv, table
from ngdiff.bench.trials import TUNING
from ngdiff.bench.tuning_tables import grid_table, tuning_table

EVIDENCE, IMAGES = Path("docs/study/bench"), Path("docs/images")
FILES = ("record.json", "evaluation.json", "general.json", "trial.json", "results.json")


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
        keep_evidence(args.folder.expanduser(), evidence)
        shutil.copyfile(args.folder.expanduser() / "curves.png", IMAGES / f"curves-{args.name}.png")
    results = json.loads((evidence / "results.json").read_text(encoding="utf-8"))
    rows = published_rows(results)
    splits = list(dict.fromkeys(row.split for row in rows))
    if args.folder is not None or args.pictures:
        draw_front(splits, rows, IMAGES / f"pareto-{args.name}.png")
    (evidence / "results.csv").write_text(as_csv(rows), encoding="utf-8")

    def each_split(lay_out: Callable[[Sequence[Row]], str]) -> str:
        return "\n\n".join(lay_out([row for row in rows if row.split == split]) for split in splits)

    put(f"Bench, {args.name}", each_split(table))
    where_wanted = {
        "Bench tuning": lambda: tuning_table(results["tuning"]),
        "Bench grids": lambda: grid_table(results["grids"]),
        "Bench distance": lambda: each_split(distance_table),
        "Bench ablation": lambda: each_split(ablation_table),
    }
    for kind, lay_out in where_wanted.items():
        title = f"{kind}, {args.name}"
        if page_of(title) is not None:
            put(title, lay_out())


def keep_evidence(folder: Path, evidence: Path) -> None:
    """Copy record and evaluation of every run on the splits of the folder's table."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    splits = {row["split"] for row in results["rows"]}
    for found in sorted(folder.rglob("*.json")):
        kind, split = (*found.relative_to(folder).parts, "")[:2]
        if found.name in FILES and (
            found.parent == folder or (kind != "data" and split.removeprefix(TUNING) in splits)
        ):
            place = evidence / found.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            publish(found, place)


def published_rows(results: Mapping[str, Any]) -> list[Row]:
    """Return the rows of the published results, the front of each split marked by today's rule."""
    rows = [row_from_json(value) for value in results["rows"]]
    for split in {row.split for row in rows}:
        mark_front([row for row in rows if row.split == split and row.name not in ("target", "retrained")])
    return rows


if __name__ == "__main__":
    main()
