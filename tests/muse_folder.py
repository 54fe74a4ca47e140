"""A seed -> a small folder in MUSE's layout, and ways to write it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "author",
    "wrote",
    "book",
    "in",
    "Taipei",
    "with",
    "help",
    "from",
    "system",
    "user",
    "name",
    "full",
    "born",
]


def sentence(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def muse_rows(
    seed: int = 0, items: int = 4, shots: int = 2, folds: int = 3
) -> dict[str, list[dict[str, Any]]]:
    """CONFIG/SPLIT to rows, every config and split of MUSE-News."""
    rng = random.Random(seed)

    def texts(count: int) -> list[dict[str, Any]]:
        return [{"text": sentence(rng, rng.randint(8, 20))} for _ in range(count)]

    def questions(count: int) -> list[dict[str, Any]]:
        return [{"question": f"Who {sentence(rng, 4)}?", "answer": sentence(rng, 2)} for _ in range(count)]

    rows = {
        "verbmem/forget": [
            {"prompt": sentence(rng, 8), "gt": sentence(rng, rng.randint(3, 9))} for _ in range(items)
        ]
    }
    for part in ("forget", "retain"):
        rows[f"knowmem/{part}_qa"], rows[f"knowmem/{part}_qa_icl"] = questions(items), questions(shots)
    for split in ("forget", "retain", "holdout"):
        rows[f"privleak/{split}"] = texts(items + (split == "holdout"))
    for split in ("forget", "retain1", "retain2", "holdout"):
        rows[f"raw/{split}"] = texts(items)
    for fold in range(1, folds + 1):
        rows[f"sust/forget_{fold}"] = texts(fold)
        rows[f"scal/forget_{fold}"] = texts(2 * fold)
    return rows


def write_muse(folder: Path, rows: dict[str, list[dict[str, Any]]], form: str = "jsonl") -> Path:
    """Write CONFIG/SPLIT.FORM; ``hub`` means Parquet shards, ``texts`` JSON arrays as in MUSE's own code."""
    for place, items in rows.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if form == "hub":
            _write_shards(path, items)
        elif form == "texts":
            bare = [item["text"] for item in items] if "text" in items[0] else items
            path.with_name(f"{path.name}.json").write_text(json.dumps(bare))
        else:
            lines = "\n".join(json.dumps(item) for item in items)
            path.with_name(f"{path.name}.jsonl").write_text(lines)
    return folder


def _write_shards(path: Path, items: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    half = (len(items) + 1) // 2
    shards = [part for part in (items[:half], items[half:]) if part]
    for number, part in enumerate(shards):
        name = f"{path.name}-{number:05}-of-{len(shards):05}.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), path.with_name(name))
