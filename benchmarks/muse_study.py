"""MUSE-News for real: a target that continues the texts, the retrained model, and the methods beside them.

    NGDIFF_MUSE_DIR=FOLDER python -m benchmarks.muse_study --output DIR [--texts 89] [--epochs 12]
        [--retain muse:news/privleak/retain] [--holdout muse:news/privleak/holdout]

Learns a target (texts to forget and to keep) and a retrained model (texts to keep alone), then runs
``ngdiff bench muse`` on one request and on four in a row. What is done already is not done again. A tenth of
the articles (``--texts 89``) is meant for two cores; on a GPU leave ``--texts`` out. The authors' repository
has no ``raw/retain1`` and ``raw/holdout`` for download everywhere; where they are missing, give
``privleak/retain`` and ``privleak/holdout``, and say so.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

METHODS = "ngdiff-counterfactual,ngdiff,graddiff,npo,simnpo"


def run(*words: object) -> None:
    """Run one command of ngdiff, shown as it is."""
    command = [sys.executable, "-m", "ngdiff", *map(str, words)]
    print("$", shlex.join(["ngdiff", *command[3:]]), flush=True)
    subprocess.run(command, check=True)


def learned(model: str, output: Path, sources: list[str], args: argparse.Namespace) -> Path:
    """Fine-tune a model, unless it is there."""
    if not (output / "record.json").is_file():
        data = [word for source in sources for word in ("--data", source)]
        settings = ("--epochs", args.epochs, "--lr", args.lr, "--max-length", args.max_length)
        run("finetune", "--model", model, *data, "--output", output, *settings)
    return output


def verbatim(file: Path) -> float:
    """Return the verbatim memorisation that an evaluation found."""
    figures = json.loads(file.read_text(encoding="utf-8"))["figures"]
    return float(figures["forget.verbatim"]["value"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--texts", type=int)
    parser.add_argument("--retain", default="muse:news/privleak/retain")
    parser.add_argument("--holdout", default="muse:news/privleak/holdout")
    parser.add_argument("--epochs", type=float, default=12)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--splits", default="forget,sust")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("more", nargs="*", help="further words of 'ngdiff bench muse', behind --")
    args = parser.parse_args()
    cut = "" if args.texts is None else f"[:{args.texts}]"
    forget = [f"muse:news/sust/forget_{n}{cut}" for n in range(1, 5 if "sust" in args.splits else 2)]
    retrained = learned(args.model, args.output / "retrained", [args.retain], args)
    target = learned(args.model, args.output / "target", [*forget, args.retain], args)
    words: list[object] = ["--model", target, "--reference", retrained, "--output", args.output / "bench"]
    words += ["--splits", args.splits, "--methods", args.methods, "--retain", args.retain]
    words += ["--holdout", args.holdout, "--seeds", args.seeds, "--trials", args.trials]
    words += [] if args.texts is None else ["--texts", args.texts]
    run("bench", "muse", *words, "--set", f"max_length={args.max_length}", *args.more)
    first = args.splits.split(",")[0]
    files = [args.output / "bench" / "models" / first / name for name in ("target", "retrained")]
    knows, unseen = (verbatim(folder / "evaluation.json") for folder in files)
    print(f"verbatim memorisation: target {knows:.3f}, retrained {unseen:.3f}, {knows / unseen:.1f} times")


if __name__ == "__main__":
    main()
