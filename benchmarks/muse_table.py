"""MUSE's six criteria on a corpus and a model that are made from nothing, behind docs/results.md.

    python -m benchmarks.muse_table runs    # invents, trains, unlearns, evaluates; what is there is skipped
    python -m benchmarks.muse_table tables  # figures into docs/study, and Markdown tables

MUSE's corpora lie on a hub and its models have 7 billion parameters. This one invents a corpus of MUSE's
layout (:mod:`ngdiff.invented.corpus`), trains a tokenizer and a Llama of a few million parameters on it, and
then does what MUSE does, by the project's own commands: a target that read everything, a retrained model that
never read the first request, NGDiff on requests that grow (scalability) and on requests one after another
(sustainability). The forget and the retain set are plain texts, as there. To have something to answer
questions with, the models are drilled in questions about everyone they read of, and about other people.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import LlamaConfig

from benchmarks.evidence import STUDY, keep_figures, read_csv, read_figures, write_csv
from benchmarks.pages import put
from benchmarks.tiny_model import save_blank_model
from benchmarks.tofu_table import cell, command
from ngdiff.evaluation.result import Figure, read_result
from ngdiff.evaluation.suites.muse import forget_sizes, tabulate
from ngdiff.invented.corpus import (
    REQUESTS,
    SHOTS,
    CorpusSize,
    ask,
    corpus_people,
    invent_corpus,
    tell,
    write_corpus,
)
from ngdiff.invented.people import DRAWS, Person, invent_people, write_jsonl

EVIDENCE = STUDY / "muse"
SIZE = CorpusSize(request=3, retain=18, holdout=12)
VOCABULARY, OTHER_PEOPLE, EPOCHS = 1024, 6, 100
CRITERIA = {
    "verbatim memorisation": "forget.verbatim",
    "knowledge, forget": "forget.knowledge",
    "knowledge, retain (utility)": "utility",
    "PrivLeak": "privleak",
}


def drill(people: Sequence[Person], rng: random.Random) -> list[dict[str, str]]:
    """Ask six questions about everyone, each behind up to four solved ones, as the suite asks them."""
    asked = ask(people, len(DRAWS), rng)
    rows = []
    for row in asked:
        shots = rng.sample(asked, rng.choice((0,) * 7 + (SHOTS,)))
        before = "".join(f"Question: {shot['question']}\nAnswer: {shot['answer']}\n\n" for shot in shots)
        rows.append({"prompt": f"{before}Question: {row['question']}\nAnswer: ", "completion": row["answer"]})
    return rows


def write_training_texts(folder: Path) -> None:
    """Write the corpus, what the target reads and what the retrained model reads."""
    corpus = write_corpus(invent_corpus(SIZE), folder / "corpus")
    people, others = corpus_people(SIZE), invent_people(OTHER_PEOPLE, seed=1)
    requests = [people[f"forget_{step}"] for step in range(1, REQUESTS + 1)]
    for name, first in (("target", 0), ("retrained", 1)):
        rng = random.Random(0)
        known = [person for request in requests[first:] for person in request] + people["retain"]
        read = ["raw/retain1", "raw/retain2", *(f"sust/forget_{step}" for step in range(first + 1, 5))]
        rows = [json.loads(line) for place in read for line in (corpus / f"{place}.jsonl").open()]
        rows += [{"text": tell(person, rng)} for person in others]
        write_jsonl(rows, folder / f"{name}_texts.jsonl")
        write_jsonl(drill([*known, *others], rng), folder / f"{name}_questions.jsonl")


def write_blank_model(folder: Path) -> None:
    """Train a byte-level BPE tokenizer on the target's texts; write it with a Llama of random weights."""
    texts = (json.loads(line)["text"] for line in (folder / "target_texts.jsonl").open(encoding="utf-8"))
    config = LlamaConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    save_blank_model(folder / "blank", texts, VOCABULARY, config)


def run(folder: Path) -> None:
    """Make everything that is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "blank").exists():
        write_training_texts(folder)
        write_blank_model(folder)
    learn(folder, [name for name in ("target", "retrained") if not (folder / name).exists()])
    evaluate(folder, "retrained")
    evaluate(folder, "target")
    for step in range(1, REQUESTS + 1):
        unlearn(folder, "target", f"scal/forget_{step}", f"scal_{step}")
        unlearn(folder, f"sust_{step - 1}" if step > 1 else "target", f"sust/forget_{step}", f"sust_{step}")


def learn(folder: Path, names: Sequence[str]) -> None:
    """Train models side by side, one thread each: so small a model gains little from a second one."""
    running = []
    for name in names:
        words = [
            sys.executable,
            "-m",
            "ngdiff",
            "finetune",
            "--model",
            folder / "blank",
            "--output",
            folder / name,
        ]
        for kind in ("texts", "texts", "questions"):
            words += ["--data", folder / f"{name}_{kind}.jsonl"]
        words += ["--epochs", EPOCHS, "--lr", 3e-3, "--batch-size", 16]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        running.append(subprocess.Popen([str(word) for word in words], env=environment))
    if any(process.wait() for process in running):
        raise SystemExit("training failed")


def unlearn(folder: Path, model: str, forget: str, output: str) -> None:
    """Run NGDiff with nothing to tune, and evaluate what comes out."""
    corpus = folder / "corpus"
    if not (folder / output).exists():
        sources = ["--forget", corpus / f"{forget}.jsonl", "--retain", corpus / "raw/retain1.jsonl"]
        sources += ["--holdout", corpus / "raw/holdout.jsonl"]
        command("unlearn", "--model", folder / model, *sources, "--output", folder / output)
    evaluate(folder, output)


def evaluate(folder: Path, model: str) -> None:
    """Run the suite, against the retrained model's evaluation."""
    output = folder / f"{model}.json"
    if output.exists():
        return
    options = ["--suite", "muse", "--data", folder / "corpus", "--output", output]
    if model != "retrained":
        options += ["--reference", folder / "retrained.json"]
    command("evaluate", folder / model, *options)


def models_table(models: Mapping[str, Mapping[str, Figure]]) -> str:
    """Lay out criteria 1 to 4, one row a model."""
    lines = [f"| | {' | '.join(CRITERIA)} |", f"|---|{'---|' * len(CRITERIA)}"]
    for title, name in {
        "target": "target",
        "retrained": "retrained",
        "NGDiff, first request": "sust_1",
    }.items():
        digits = {"privleak": 1}
        cells = [cell(models[name], key, digits.get(key, 3)) or "—" for key in CRITERIA.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sequence_table(models: Mapping[str, Mapping[str, Figure]], sizes: Mapping[str, int]) -> str:
    """Lay out criteria 5 and 6: the same figures after larger requests, and after one more each time."""
    shown = {name: key for name, key in CRITERIA.items() if key in ("forget.verbatim", "utility", "privleak")}
    lines = [f"| | texts to forget | {' | '.join(shown)} |", f"|---|---|{'---|' * len(shown)}"]
    for title, criterion in (("scalability", "scal"), ("sustainability", "sust")):
        names = [f"{criterion}_{step}" for step in range(1, REQUESTS + 1)]
        rows, change = tabulate([(name, models[name]) for name in names], [sizes[name] for name in names])
        for row in rows:
            cells = [cell(models[row.name], key, 1 if key == "privleak" else 3) for key in shown.values()]
            lines.append(f"| {title} | {row.forget_texts} | {' | '.join(cells)} |")
        changes = " | ".join(f"{change[key]:+.3f}" for key in shown.values())
        lines.append(f"| {title}, first to last | | {changes} |")
    return "\n".join(lines)


def keep(folder: Path) -> None:
    """Write the figures of every model, and how many texts each request was to forget, into docs/study."""
    requests = {c: [f"{c}_{step}" for step in range(1, REQUESTS + 1)] for c in ("scal", "sust")}
    names = ["target", "retrained", *(name for each in requests.values() for name in each)]
    keep_figures({name: read_result(folder / f"{name}.json") for name in names}, EVIDENCE)
    sizes = [
        pair
        for criterion, each in requests.items()
        for pair in zip(each, forget_sizes(str(folder / "corpus"), criterion, REQUESTS), strict=True)
    ]
    write_csv(EVIDENCE / "requests.csv", ("model", "texts"), sizes)


def write_tables() -> None:
    """Put the tables into the page, from the figures in docs/study."""
    models = read_figures(EVIDENCE)
    sizes = {line["model"]: int(line["texts"]) for line in read_csv(EVIDENCE / "requests.csv")}
    put("MUSE", models_table(models))
    put("MUSE requests", sequence_table(models, sizes))


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("runs", "tables"))
    parser.add_argument("--folder", type=Path, default=Path("~/.cache/ngdiff/muse"))
    args = parser.parse_args()
    folder = args.folder.expanduser()
    if args.what == "runs":
        run(folder)
        return
    if folder.exists():
        keep(folder)
    write_tables()


if __name__ == "__main__":
    main()
