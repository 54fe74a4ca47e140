"""A finished benchmark -> its table in docs/results.md, and its evidence in docs/study.

ngdiff bench tofu ... --output FOLDER
python -m benchmarks.bench_table FOLDER --name forget01
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from benchmarks.study_tables import publish, put

PAGE, EVIDENCE, IMAGES = Path("docs/results.md"), Path("docs/study/bench"), Path("docs/images")
FILES = ("record.json", "evaluation.json", "general.json", "trial.json", "results.json")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True, help="what the page calls it")
    args = parser.parse_args()
    folder = args.folder.expanduser()
    for found in sorted(folder.rglob("*.json")):
        if found.name in FILES and "data" not in found.relative_to(folder).parts:
            place = EVIDENCE / args.name / found.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            publish(found, place)
    shutil.copyfile(folder / "results.csv", EVIDENCE / args.name / "results.csv")
    for picture in ("pareto", "curves"):
        shutil.copyfile(folder / f"{picture}.png", IMAGES / f"{picture}-{args.name}.png")
    tables = re.findall(
        r"^\|.*?\n\n", (folder / "results.md").read_text(encoding="utf-8") + "\n", re.M | re.S
    )
    put(PAGE, f"Bench, {args.name}", "\n".join(table.rstrip() for table in tables))


if __name__ == "__main__":
    main()
