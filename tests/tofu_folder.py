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
