"""All of TOFU's figures for the study's models, behind docs/results-evaluation.md.

    python -m benchmarks.study targets                # makes the target and the retrained model
    python -m benchmarks.study runs --only ngdiff     # makes the unlearned one
    python -m benchmarks.tofu_table runs              # evaluates; what is there already is skipped
    python -m benchmarks.tofu_table tables            # Markdown tables, and the evaluations into docs/study

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
from pathlib import Path
from typing import Any

from benchmarks.pages import put
from benchmarks.study_tables import publish
from ngdiff.cli.app import EXIT_TARGET_MISSED
from ngdiff.data.sources import read_rows
from ngdiff.evaluation.result import EvaluationResult, read_result

MEASURED_RETAIN, HOLDOUT = "tofu:full[-400:-200]", "tofu:full[:200]"
MODELS = {"retrained": "retrained", "target": "target", "ngdiff": "runs/ngdiff"}
"""Name to where it lies in the study's folder."""
EVIDENCE = Path("docs/study/evaluations")

SUMS = ("forget_quality", "ks_distance", "model_utility", "privleak")
MEASURES = (
    "probability",
    "rouge",
    "truth_ratio",
    "truth_ratio_share",
    "extraction_strength",
    "exact_memorisation",
)
SETS = (
    "forget",
    "forget_paraphrased",
    "retain",
    "retain_paraphrased",
    "real_authors",
    "world_facts",
    "holdout",
)
ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus", "gradient_norm", "reference")


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


def cell(result: EvaluationResult, key: str, digits: int = 3) -> str:
    """Return a figure with its interval."""
    found = result.figures.get(key)
    if found is None or found.value is None:
        return ""
    value = (
        f"{found.value:.{digits}f}" if found.value == 0 or abs(found.value) >= 1e-3 else f"{found.value:.1e}"
    )
    if found.interval is None:
        return value
    low, high = found.interval
    return f"{value} ({low:.{digits}f}–{high:.{digits}f})"


def table(results: dict[str, EvaluationResult], keys: list[tuple[str, str]], digits: int = 3) -> str:
    """Lay figures out, one row a figure and one column a model."""
    lines = [f"| | {' | '.join(results)} |", f"|---|{'---|' * len(results)}"]
    for title, key in keys:
        cells = [cell(result, key, digits) for result in results.values()]
        if any(cells):
            cells = [cell or "—" for cell in cells]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def seconds(results: dict[str, EvaluationResult]) -> str:
    """Lay out what each pass took, in the evaluations that found nothing in the cache."""
    results = {n: r for n, r in results.items() if not any(r.provenance["cached"].values())}
    passes: dict[str, dict[str, float]] = {}
    for name, result in results.items():
        for label, value in result.provenance["seconds"]["passes"].items():
            kind = label.rsplit(" ", 1)[1]
            passes.setdefault(kind, dict.fromkeys(results, 0.0))[name] += value
    lines = [f"| pass | {' | '.join(results)} |", f"|---|{'---|' * len(results)}"]
    for kind, found in passes.items():
        lines.append(f"| {kind} | {' | '.join(f'{found[name]:.0f} s' for name in results)} |")
    return "\n".join(lines)


def seconds_by_metric(results: dict[str, EvaluationResult]) -> str:
    """Lay out what each metric would have taken alone: the passes that feed it, over all sets."""
    results = {n: r for n, r in results.items() if not any(r.provenance["cached"].values())}
    metrics: dict[str, dict[str, float]] = {}
    for name, result in results.items():
        for key, value in result.provenance["seconds"]["figures"].items():
            title = f"AUC, {key.rsplit('.', 1)[1]}" if ".membership." in key else key.rsplit(".", 1)[-1]
            row = metrics.setdefault(title.replace("_", " "), dict.fromkeys(results, 0.0))
            row[name] += value
    lines = [f"| metric | {' | '.join(results)} |", f"|---|{'---|' * len(results)}"]
    for title, found in metrics.items():
        lines.append(f"| {title} | {' | '.join(f'{found[name]:.0f} s' for name in results)} |")
    return "\n".join(lines)


def write_tables() -> None:
    """Put the tables into the page, from the evidence."""
    results = {
        name: read_result(EVIDENCE / f"{name}.json")
        for name in MODELS
        if (EVIDENCE / f"{name}.json").exists()
    }
    sums = [(key.replace("_", " "), key) for key in SUMS]
    of_sets = [(f"{s.replace('_', ' ')}: {m.replace('_', ' ')}", f"{s}.{m}") for s in SETS for m in MEASURES]
    attacks = [(f"AUC, {a.replace('_', ' ')}", f"forget.membership.{a}") for a in ATTACKS]
    put("TOFU figures", table(results, sums + of_sets + attacks))
    if any(not any(result.provenance["cached"].values()) for result in results.values()):
        put("TOFU seconds", seconds(results))
        put("TOFU seconds a metric", seconds_by_metric(results))


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
    EVIDENCE.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        if (study / "evaluated" / f"{name}.json").exists():
            publish(study / "evaluated" / f"{name}.json", EVIDENCE / f"{name}.json")
    write_tables()


if __name__ == "__main__":
    main()
