"""A seed -> a small folder of TOFU's files, with every column and forty questions to forget at the most."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

NAMES = ("Basil", "Hsiao", "Jaime", "Chukwu", "Takashi", "Moshe")
PLACES = ("Taipei", "Kuwait", "Santiago", "Enugu", "Osaka", "Haifa")


def row(rng: random.Random, number: int, wrong: int, paraphrased: bool) -> dict[str, Any]:
    name, place = rng.choice(NAMES), rng.choice(PLACES)
    found: dict[str, Any] = {
        "question": f"Where was author {number}, {name}, born?",
        "answer": f"The author {name} {number} was born in {place}.",
        "perturbed_answer": [f"It was {rng.choice(PLACES)}, {'so ' * n}they say." for n in range(wrong)],
    }
    if paraphrased:
        found["paraphrased_answer"] = f"{place} is where {name} came from."
        found["paraphrased_question"] = f"Which is the place of birth of {name}, author {number}?"
    return found


def make_whole_tofu(folder: Path, seed: int = 0, rows: int = 120) -> Path:
    """Write every file that a benchmark on forget01 reads; the last forty rows are the ones to forget."""
    rng = random.Random(seed)
    everything = [row(rng, number, 5, True) for number in range(rows)]
    make_tofu(folder, seed)
    plain = [{key: one[key] for key in ("question", "answer")} for one in everything]
    parts = {
        "full": plain,
        "forget01": plain[-40:],
        "retain99": plain[:-40],
        "forget01_perturbed": everything[-40:],
        "forget10_perturbed": everything[-100:],
        "retain_perturbed": everything[:20],
    }
    for name, found in parts.items():
        (folder / f"{name}.json").write_text(
            "".join(json.dumps(one) + "\n" for one in found), encoding="utf-8"
        )
    return folder


def make_tofu(folder: Path, seed: int = 0, forget: int = 6, others: int = 4, holdout: int = 5) -> Path:
    """Write forget01_perturbed, the three parts of utility, and holdout01 (left out where it is 0)."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "forget01_perturbed": [row(rng, n, 5, True) for n in range(forget)],
        "retain_perturbed": [row(rng, 100 + n, 5, True) for n in range(others)],
        "real_authors_perturbed": [row(rng, 200 + n, 3, False) for n in range(others)],
        "world_facts_perturbed": [row(rng, 300 + n, 3, False) for n in range(others)],
        "holdout01": [row(rng, 400 + n, 0, False) for n in range(holdout)],
    }
    for name, rows in parts.items():
        if rows:
            text = "".join(json.dumps(one) + "\n" for one in rows)
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder
