"""One model evaluated by OpenUnlearning and by this project, figure by figure (docs/results-evaluation.md).

python -m benchmarks.beside_openunlearning OURS/eval.json THEIRS/TOFU_EVAL.json PADDED/TOFU_EVAL.json
python -m benchmarks.beside_openunlearning      # the table again, from docs/study/openunlearning
python -m benchmarks.beside_openunlearning --first-item MODEL DATA/forget05_perturbed.json

Both evaluations have to be of the same model, rows, chat template and float32. OpenUnlearning reads a model
file for SmolLM2 (template as text, sdpa, float32, on the CPU), its ``load_hf_dataset`` pointed at the folder
that ``ngdiff bench tofu --items 40`` wrote, all attacks switched on, and a tokenizer whose padding token is
not the end of a turn: it works the attention mask out from the padding token, so that otherwise every end of
a turn within a prompt is masked. PADDED is its evaluation with a tokenizer that pads so.

``--first-item`` works out the mean NLL of the first answer as OpenUnlearning does, as we do, and in double
precision.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.evidence import STUDY, read_csv, write_csv
from benchmarks.pages import put
from ngdiff.evaluation.openunlearning import TOFU_FIGURES

FIGURES = STUDY / "openunlearning" / "figures.csv"
OTHER_SETS = ("retain.", "real_authors.", "world_facts.")
THEIRS, OURS, PADDED = "openunlearning", "ngdiff", "openunlearning_padded"


def stated(log: Path) -> dict[str, float]:
    """Return the aggregates of one of their evaluations, those within other metrics included."""
    metrics: dict[str, Any] = json.loads(log.read_text(encoding="utf-8"))
    return {
        name: metric["agg_value"] for name, metric in metrics.items() if metric.get("agg_value") is not None
    }


def keep(ours: Path, theirs: Path, padded: Path) -> None:
    """Write every figure that both state into docs/study."""
    figures = json.loads(ours.read_text(encoding="utf-8"))["figures"]
    plain, other = stated(theirs), stated(padded)
    lines = [
        (key, name, plain[name], figures[key]["value"], other[name])
        for name, key in TOFU_FIGURES.items()
        if name in plain and figures.get(key, {}).get("value") is not None
    ]
    write_csv(FIGURES, ("figure", "name", THEIRS, OURS, PADDED), lines)


def table() -> str:
    """Return the figures of the forget set and the sums that both state; the file has the other sets' too."""
    head = ["figure", "OpenUnlearning", "ngdiff", "difference", "OpenUnlearning, pad = end"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for line in read_csv(FIGURES):
        if line["figure"].startswith(OTHER_SETS):
            continue
        theirs, ours, padded = (float(line[name]) for name in (THEIRS, OURS, PADDED))
        cells = [line["figure"], f"{theirs:.6g}", f"{ours:.6g}", f"{ours - theirs:+.1e}"]
        lines.append(f"| {' | '.join([*cells, f'{padded:.6g}'])} |")
    return "\n".join(lines)


def first_item(model: str, data: Path) -> dict[str, float]:
    """Return the mean NLL of the first row's answer, in nats per token, by three ways to sum."""
    import torch

    from ngdiff.data.batching import collate
    from ngdiff.data.datasets import as_encoded
    from ngdiff.inference.teacher_forced import score_tokens
    from ngdiff.models.loading import load_model, load_tokenizer, resolve_model
    from ngdiff.models.logprobs import labelled_tokens

    source = resolve_model(model)
    tokenizer, loaded = load_tokenizer(source), load_model(source)
    row = json.loads(data.read_text(encoding="utf-8").splitlines()[0])
    encoded = as_encoded([{name: row[name] for name in ("question", "answer")}], tokenizer, 512, str(data))
    with torch.no_grad():
        tokens = labelled_tokens(loaded, collate(encoded, 0))
    # as their evaluate_probability: the vocabulary is the second of three dimensions
    transposed = tokens.logits[None].transpose(-1, -2), tokens.targets[None]
    theirs = torch.nn.CrossEntropyLoss(reduction="none")(*transposed)
    double = tokens.logits.double().log_softmax(-1).gather(1, tokens.targets[:, None])
    return {
        "OpenUnlearning's cross-entropy": float(theirs.mean()),
        "ngdiff": score_tokens(tokens)[0].mean_nll,
        "double precision": -float(double.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ours", type=Path, nargs="?", help="eval.json of ngdiff evaluate")
    parser.add_argument("theirs", type=Path, nargs="?", help="TOFU_EVAL.json of OpenUnlearning")
    parser.add_argument("padded", type=Path, nargs="?", help="likewise, padded with the end of a turn")
    parser.add_argument("--first-item", nargs=2, metavar=("MODEL", "DATA"))
    args = parser.parse_args()
    if args.first_item is not None:
        model, data = args.first_item
        print(json.dumps(first_item(model, Path(data).expanduser()), indent=1))
        return
    if args.padded is not None:
        keep(args.ours, args.theirs, args.padded)
    text = table()
    put("Beside OpenUnlearning", text)
    print(text)


if __name__ == "__main__":
    main()
