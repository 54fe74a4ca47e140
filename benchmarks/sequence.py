"""Four requests one after another, each with its receipt, behind docs/results-sequence.md.

    python -m benchmarks.sequence --people                  # a model trained from nothing on invented people
    python -m benchmarks.sequence --tofu --model TARGET     # forget01 in four parts, on a model that knows it
    python -m benchmarks.sequence --tables                  # receipts -> tables in the page

After each request all earlier forget sets are looked at again and ``ngdiff verify --chain`` checks the
whole chain with data, starting model and public key; the run stops where it finds anything. What is there
is skipped. Commands run inside the folder, so that receipts name files and no user's folders.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from benchmarks.pages import put
from benchmarks.tiny_model import save_blank_model
from ngdiff.cli.app import EXIT_TARGET_MISSED
from ngdiff.invented.people import invent_people, question_rows, write_jsonl

EVIDENCE = Path("docs/study/sequence")
REQUESTS = 4
A_REQUEST, RETAIN, HOLDOUT = 2, 16, 6
VOCABULARY, EPOCHS, RATE = 600, 60, 3e-3


def ngdiff(folder: Path, *words: object, missed: bool = False) -> None:
    """Run one of the project's commands inside a folder, as a user would."""
    command = [sys.executable, "-m", "ngdiff", *map(str, words)]
    done = subprocess.run(command, check=False, cwd=folder, env=os.environ)
    if done.returncode not in ((0, EXIT_TARGET_MISSED) if missed else (0,)):
        raise SystemExit(f"{' '.join(command[2:])} ended with {done.returncode}")


def write_people(folder: Path) -> None:
    """Invent people: two for each request, others to keep, and some whom the model never meets."""
    count = REQUESTS * A_REQUEST + RETAIN
    rows = question_rows(invent_people(count + HOLDOUT, seed=11), seed=11)
    each = len(rows) // (count + HOLDOUT)
    size = A_REQUEST * each
    parts = {f"forget{n + 1}": rows[n * size : (n + 1) * size] for n in range(REQUESTS)}
    parts["retain"] = rows[REQUESTS * size : count * each]
    parts["holdout"] = rows[count * each :]
    for name, chosen in parts.items():
        plain = [{"question": row["question"], "answer": row["answer"]} for row in chosen]
        write_jsonl(plain, folder / f"{name}.jsonl")


def write_blank_model(folder: Path) -> None:
    """Train a tokenizer on what the model will learn; write it with a Llama of random weights."""
    files = [folder / "retain.jsonl", *(folder / f"forget{n}.jsonl" for n in range(1, REQUESTS + 1))]
    rows = [json.loads(line) for file in files for line in file.open(encoding="utf-8")]
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    save_blank_model(folder / "blank", (text for row in rows for text in row.values()), VOCABULARY, config)


def run_people(folder: Path) -> None:
    """Make the model that knows everybody, then forget two people after another, four times."""
    if not (folder / "blank").exists():
        write_people(folder)
        write_blank_model(folder)
    if not (folder / "target").exists():
        data = [word for n in range(1, REQUESTS + 1) for word in ("--data", f"forget{n}.jsonl")]
        words = ("--model", "blank", *data, "--data", "retain.jsonl", "--output", "target")
        ngdiff(folder, "finetune", *words, "--epochs", EPOCHS, "--lr", RATE, "--batch-size", 16)
    run_requests(
        folder,
        "target",
        [f"forget{n}.jsonl" for n in range(1, REQUESTS + 1)],
        "retain.jsonl",
        "holdout.jsonl",
    )


def run_tofu(folder: Path, model: str, retain: str) -> None:
    """Forget TOFU's first forty questions, ten at a time."""
    parts = [f"tofu:forget01[{10 * n}:{10 * n + 10}]" for n in range(REQUESTS)]
    run_requests(folder, str(Path(model).resolve() if Path(model).exists() else model), parts, retain, None)


def run_requests(folder: Path, model: str, forget: list[str], retain: str, holdout: str | None) -> None:
    """Go through the requests, and verify the whole chain after each."""
    if not (folder / "key.pem").exists():
        ngdiff(folder, "keygen", "key.pem")
    for number, source in enumerate(forget, start=1):
        before = model if number == 1 else f"request{number - 1}"
        data = ["--forget", source, "--retain", retain, *(["--holdout", holdout] if holdout else [])]
        if not (folder / f"request{number}").exists():
            earlier = [word for each in forget[: number - 1] for word in ("--earlier", each)]
            output = ("--output", f"request{number}", "--sign", "key.pem")
            ngdiff(folder, "unlearn", "--model", before, *data, *earlier, *output, missed=True)
        trust = ("--model", before, "--public-key", "key.pub.pem", "--chain")
        ngdiff(folder, "verify", f"request{number}", *data, *trust)


def publish(folder: Path, kind: str) -> None:
    """Copy the receipts, byte for byte, to where they are published."""
    (EVIDENCE / kind).mkdir(parents=True, exist_ok=True)
    for number in range(1, REQUESTS + 1):
        shutil.copyfile(folder / f"request{number}" / "receipt.json", EVIDENCE / kind / f"{number}.json")


def figure(receipt: dict[str, Any], when: str, name: str, measure: str) -> str:
    """Return a figure with its interval; a dash where the set was not looked at."""
    found = receipt["figures"][when].get(name)
    if found is None or found[measure]["value"] is None:
        return "—"
    value, low, high = (found[measure][part] for part in ("value", "low", "high"))
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def table(receipts: list[dict[str, Any]], measure: str = "extraction_strength") -> str:
    """Lay out one row a request: every forget set so far, after it."""
    sets = [f"set {n}" for n in range(1, len(receipts) + 1)]
    titles = ["after request", "its set before", *sets, "retain, held out (probability)", "never seen"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for number, receipt in enumerate(receipts, start=1):
        cells = [figure(receipt, "before", "forget", measure)]
        for each in range(1, len(receipts) + 1):
            name = "forget" if each == number else f"earlier {each}"
            cells.append(figure(receipt, "after", name, measure))
        cells.append(figure(receipt, "after", "retain", "probability"))
        cells.append(figure(receipt, "after", "never_seen", measure))
        lines.append(f"| {number} | {' | '.join(cells)} |")
    return "\n".join(lines)


def came_back(receipts: list[dict[str, Any]]) -> str:
    """Say which sets came back, and after which request."""
    found = [
        f"set {earlier['request']} after request {number}"
        for number, receipt in enumerate(receipts, start=1)
        for earlier in receipt["earlier"]
        if earlier["came_back"]
    ]
    return f"Came back: {', '.join(found) or 'none'}."


def section(receipts: list[dict[str, Any]]) -> str:
    """Return what the page shows of a sequence."""
    return f"{table(receipts)}\n\n{came_back(receipts)}"


def write_tables() -> None:
    """Put a table for each published sequence into the page."""
    for kind in ("people", "tofu"):
        files = sorted((EVIDENCE / kind).glob("*.json"))
        if files:
            put(f"sequence {kind}", section([json.loads(file.read_bytes()) for file in files]))


def main() -> None:
    """Run a sequence, or make the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--people", action="store_true", help="invented people")
    what.add_argument("--tofu", action="store_true", help="TOFU's forget01 in four parts")
    what.add_argument("--tables", action="store_true", help="the page's tables")
    parser.add_argument("--model", help="a model that learned TOFU (--tofu)")
    parser.add_argument("--retain", default="tofu:retain99[-400:]", help="what to keep (--tofu)")
    parser.add_argument("--folder", type=Path, default=Path("~/.cache/ngdiff/sequence"))
    args = parser.parse_args()
    if args.tables:
        write_tables()
        return
    if args.tofu and not args.model:
        parser.error("--tofu needs --model")
    kind = "people" if args.people else "tofu"
    folder = args.folder.expanduser() / kind
    folder.mkdir(parents=True, exist_ok=True)
    run_people(folder) if args.people else run_tofu(folder, args.model, args.retain)
    publish(folder, kind)
    write_tables()


if __name__ == "__main__":
    main()
