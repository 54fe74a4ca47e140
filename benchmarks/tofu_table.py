"""All of TOFU's figures for the study's models, behind docs/results-evaluation.md.

    python -m benchmarks.study targets                # makes the target and the retrained model
    python -m benchmarks.study runs --only ngdiff     # makes the unlearned one
    python -m benchmarks.tofu_table runs              # evaluates; what is there already is skipped
    python -m benchmarks.tofu_table tables            # figures into docs/study, and Markdown tables

The study's models learned TOFU's last 1,200 questions only, so TOFU's own retain set, mostly of other
authors, says little of what they keep. The retain set here is every second one of the 200 questions before
forget05's, theirs to keep (whose wrong answers TOFU gives in ``forget10_perturbed``); the holdout is TOFU's
first 200 questions, which no model here has seen. Forget set, real authors and world facts are TOFU's own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.evidence import STUDY, keep_figures, read_csv, read_figures, write_csv
from benchmarks.pages import page_of, put
from ngdiff.cli.app import EXIT_TARGET_MISSED
from ngdiff.data.sources import read_rows
from ngdiff.evaluation.result import EvaluationResult, Figure, read_result

MEASURED_RETAIN, HOLDOUT = "tofu:full[-400:-200]", "tofu:full[:200]"
MODELS = {"retrained": "retrained", "target": "target", "ngdiff": "runs/ngdiff"}
"""Name to where it lies in the study's folder."""
EVIDENCE = STUDY / "evaluations"

SHOWN = (
    *("forget_quality", "model_utility", "privleak"),
    *("forget.probability", "forget.rouge", "forget.extraction_strength", "forget.exact_memorisation"),
    *("forget_paraphrased.extraction_strength", "retain.probability", "retain.extraction_strength"),
    *("real_authors.extraction_strength", "world_facts.extraction_strength"),
    *("holdout.extraction_strength", "forget.membership.loss", "forget.membership.gradient_norm"),
)
"""Figures that the page shows; ``figures.csv`` has all."""


def rows(source: str) -> list[dict[str, Any]]:
    """Return the rows of one of TOFU's files."""
    return [dict(row.values) for row in read_rows(source, where=source)]


def make_folder(folder: Path) -> Path:
    """Write the files that the suite reads, in TOFU's layout."""
    known = {row["question"] for row in rows(MEASURED_RETAIN)}
    kept = [row for row in rows("tofu:forget10_perturbed") if row["question"] in known]
    if len(kept) != len(known):
        raise SystemExit(f"{len(kept)} of the {len(known)} questions to keep have wrong answers")
    parts = {
        "forget05_perturbed": rows("tofu:forget05_perturbed"),
        "retain_perturbed": kept[::2],
        "real_authors_perturbed": rows("tofu:real_authors_perturbed"),
        "world_facts_perturbed": rows("tofu:world_facts_perturbed"),
        "holdout05": rows(HOLDOUT),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in parts.items():
        text = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder


def command(*words: object) -> None:
    """Run the project's own command, as a user would; a forget target that is missed is a result, too."""
    done = subprocess.run([sys.executable, "-m", "ngdiff", *map(str, words)], check=False)
    if done.returncode not in (0, EXIT_TARGET_MISSED):
        raise SystemExit(done.returncode)


def run(study: Path, name: str) -> None:
    """Evaluate one model of the study."""
    folder, model = study / "evaluated", study / MODELS[name]
    output = folder / f"{name}.json"
    if output.exists():
        return
    options = ["--tofu-dir", make_folder(folder / "tofu"), "--output", output]
    if name != "retrained":
        options += ["--reference", folder / "retrained.json"]
    command("evaluate", model, "--suite", "tofu", "--forget", "forget05", *options)


def cell(figures: Mapping[str, Figure], key: str, digits: int = 3) -> str:
    """Return a figure with its interval."""
    found = figures.get(key)
    if found is None or found.value is None:
        return ""
    value = (
        f"{found.value:.{digits}f}" if found.value == 0 or abs(found.value) >= 1e-3 else f"{found.value:.1e}"
    )
    if found.interval is None:
        return value
    low, high = found.interval
    return f"{value} ({low:.{digits}f}–{high:.{digits}f})"


def table(models: Mapping[str, Mapping[str, Figure]], keys: list[tuple[str, str]], digits: int = 3) -> str:
    """Lay figures out, one row a figure and one column a model."""
    lines = [f"| | {' | '.join(models)} |", f"|---|{'---|' * len(models)}"]
    for title, key in keys:
        cells = [cell(figures, key, digits) for figures in models.values()]
        if any(cells):
            cells = [cell or "—" for cell in cells]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def named(key: str) -> str:
    """Return what the table calls a figure."""
    part, _, measure = key.replace("_", " ").partition(".")
    attack = measure.removeprefix("membership.")
    return f"AUC, {attack}" if attack != measure else f"{part}: {measure}" if measure else part


def seconds(results: Mapping[str, EvaluationResult]) -> Iterator[tuple[str, str, str, float]]:
    """Yield what each pass took, and each metric alone: the passes that feed it, over all sets.

    Only of the evaluations that found nothing in the cache.
    """
    for model, result in results.items():
        if any(result.provenance["cached"].values()):
            continue
        took = result.provenance["seconds"]
        for label, value in took["passes"].items():
            yield model, "pass", label.rsplit(" ", 1)[1], value
        for key, value in took["figures"].items():
            title = f"AUC, {key.rsplit('.', 1)[1]}" if ".membership." in key else key.rsplit(".", 1)[-1]
            yield model, "metric", title.replace("_", " "), value


def seconds_table(lines: Iterable[Mapping[str, str]], kind: str) -> str:
    """Lay out the seconds of one kind, summed over the sets, one column a model."""
    mine = [line for line in lines if line["kind"] == kind]
    models = dict.fromkeys(line["model"] for line in mine)
    sums: dict[str, dict[str, float]] = {}
    for line in mine:
        row = sums.setdefault(line["name"], dict.fromkeys(models, 0.0))
        row[line["model"]] += float(line["seconds"])
    head = [f"| {kind} | {' | '.join(models)} |", f"|---|{'---|' * len(models)}"]
    return "\n".join(
        [
            *head,
            *(f"| {name} | {' | '.join(f'{row[m]:.0f} s' for m in models)} |" for name, row in sums.items()),
        ]
    )


def write_tables() -> None:
    """Put the tables into the page, from the figures in docs/study."""
    put("TOFU figures", table(read_figures(EVIDENCE), [(named(key), key) for key in SHOWN]))
    if (EVIDENCE / "seconds.csv").exists():
        lines = read_csv(EVIDENCE / "seconds.csv")
        for title, kind in (("TOFU seconds", "pass"), ("TOFU seconds a metric", "metric")):
            if page_of(title) is not None:
                put(title, seconds_table(lines, kind))


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("runs", "tables"))
    parser.add_argument("--folder", type=Path, default=Path("~/.cache/ngdiff/study1200"))
    parser.add_argument("--only", nargs="*", help="names of models")
    args = parser.parse_args()
    study = args.folder.expanduser()
    if args.what == "runs":
        for name in MODELS:
            if not args.only or name in args.only:
                run(study, name)
        return
    places = {name: study / "evaluated" / f"{name}.json" for name in MODELS}
    results = {name: read_result(place) for name, place in places.items() if place.exists()}
    if results:
        keep_figures(results, EVIDENCE)
        if took := list(seconds(results)):
            write_csv(EVIDENCE / "seconds.csv", ("model", "kind", "name", "seconds"), took)
    write_tables()


if __name__ == "__main__":
    main()
