"""One model evaluated by OpenUnlearning and by this project, figure by figure; behind docs/results.md.

python -m benchmarks.beside_openunlearning OURS/eval.json THEIRS/TOFU_EVAL.json
python -m benchmarks.beside_openunlearning      # the table once more, from docs/study/openunlearning

Both evaluations have to be of the same model, rows, chat template and float32. OpenUnlearning reads a model
file for SmolLM2 (template as text, sdpa, float32, on the CPU), its ``load_hf_dataset`` pointed at the folder
that ``ngdiff bench tofu --items 40`` wrote, all attacks switched on, and a tokenizer whose padding token is
not the end of a turn: it works the attention mask out from the padding token, so that otherwise every end of
a turn within a prompt is masked.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.study_tables import publish, put
from ngdiff.evaluation.openunlearning import TOFU_FIGURES

EVIDENCE, PAGE = Path("docs/study/openunlearning"), Path("docs/results.md")
OURS, THEIRS = EVIDENCE / "ours.json", EVIDENCE / "theirs.json"


def keep(ours: Path, theirs: Path) -> None:
    """Keep our evaluation and the aggregates of theirs, those within other metrics included."""
    EVIDENCE.mkdir(parents=True, exist_ok=True)
    publish(ours, OURS)
    log: dict[str, Any] = json.loads(theirs.read_text(encoding="utf-8"))
    stated = {
        name: metric["agg_value"] for name, metric in log.items() if metric.get("agg_value") is not None
    }
    THEIRS.write_text(json.dumps(stated, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def table() -> str:
    """Return every figure that both state."""
    figures = json.loads(OURS.read_text(encoding="utf-8"))["figures"]
    stated: dict[str, float] = json.loads(THEIRS.read_text(encoding="utf-8"))
    lines = ["| figure | OpenUnlearning's name | OpenUnlearning | ngdiff | difference |", "|" + "---|" * 5]
    for name, key in TOFU_FIGURES.items():
        ours = figures.get(key, {}).get("value")
        if ours is not None and name in stated:
            cells = [f"{value:.6g}" for value in (stated[name], ours)]
            lines.append(f"| {key} | {name} | {' | '.join(cells)} | {ours - stated[name]:+.1e} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ours", type=Path, nargs="?", help="eval.json of ngdiff evaluate")
    parser.add_argument("theirs", type=Path, nargs="?", help="TOFU_EVAL.json of OpenUnlearning")
    args = parser.parse_args()
    if args.ours is not None and args.theirs is not None:
        keep(args.ours, args.theirs)
    text = table()
    put(PAGE, "Beside OpenUnlearning", text)
    print(text)


if __name__ == "__main__":
    main()
