"""Forget questions of a benchmark, evenly spread, and what each model answers -> a table in the results.

python -m benchmarks.answers_beside BENCHMARK/trials/forget05 \\
    ngdiff-unlikelihood ngdiff-selective --title "Answers, forget05"
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.pages import put
from ngdiff.evaluation.result import read_result
from ngdiff.system.untrusted import markdown_cell

MOST = 160


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trials", type=Path, help="folder of a split's trials")
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--every", type=int, default=7, help="question; the first is in the middle of these")
    parser.add_argument("--title", help="of the table in the documentation; only printed without")
    args = parser.parse_args()
    said = {
        name: read_result(args.trials / name / "seed-0" / "evaluation.json").texts for name in args.methods
    }
    texts = {name: content["forget"] for name, content in said.items()}
    lines = [f"| question | true answer | {' | '.join(args.methods)} |", "|---" * (len(texts) + 2) + "|"]
    first = texts[args.methods[0]]
    for place in range(args.every // 2, len(first), args.every):
        cells = [first[place]["question"], first[place]["truth"]]
        cells += [texts[name][place]["answer"] for name in args.methods]
        lines.append(f"| {' | '.join(markdown_cell(shortened(cell)) for cell in cells)} |")
    text = "\n".join(lines)
    print(text)
    if args.title:
        put(args.title, text)


def shortened(text: str) -> str:
    """Put a text on one line, and cut it where it is long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= MOST else f"{flat[:MOST]}…"


if __name__ == "__main__":
    main()
