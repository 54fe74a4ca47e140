"""What a record and a receipt under a data key tell somebody who guesses rows: no more than chance."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from commandline import Cli, questions, save_model, write_jsonl
from ngdiff.data.datasets import as_encoded
from ngdiff.inference.teacher_forced import score_answers

GUESSES = [f"{pin:03d}" for pin in range(1000)]
SHORT = (
    "--stop-at",
    "none",
    "--set",
    "max_steps=3",
    "--lr",
    "1e-3",
    "--max-length",
    "64",
    "--set",
    "answers=0",
)
SHORT += ("--precision", "fp32")  # where the attack is at its sharpest, on every machine


def row(person: int, pin: str) -> dict[str, Any]:
    return {"question": f"What is the PIN of person {person}?", "answer": pin}


def pin_of(person: int) -> str:
    return GUESSES[(137 * person + 71) % 1000]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that learned the PINs of forty people."""
    from ngdiff.finetune import FinetuneRequest, finetune

    folder = tmp_path_factory.mktemp("pins")
    save_model(folder / "blank")
    rows = [row(person, pin_of(person)) for person in range(40)]
    data = write_jsonl(folder / "all.jsonl", rows)
    finetune(FinetuneRequest(str(folder / "blank"), (str(data),), folder / "target", lr=3e-3, epochs=20))
    return folder / "target"


def published(folder: Path) -> set[float]:
    """Every number in what is handed on beside the model, but those of the clock and of memory.

    These tell nothing of the data, and would give each run other ranks.
    """

    def numbers(value: Any) -> Iterator[float]:
        if isinstance(value, float):
            yield value
        elif isinstance(value, (dict, list)):
            named = value.items() if isinstance(value, dict) else (("", part) for part in value)
            for name, part in named:
                if name not in ("seconds", "peak_memory_gib"):
                    yield from numbers(part)

    found = {
        n
        for name in ("record", "receipt")
        for n in numbers(json.loads((folder / f"{name}.json").read_bytes()))
    }
    card = re.sub(r"[\d.]+ ?(s|GiB)\b", "", (folder / "README.md").read_text(encoding="utf-8"))
    words = card.replace("|", " ").split()
    return found | {float(word) for word in words if word.replace(".", "", 1).isdigit() and "." in word}


def rank(folder: Path, person: int) -> int:
    """Rank the true PIN among all by how near its figures under the model come to a published number."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = as_encoded([row(person, guess) for guess in GUESSES], tokenizer, 64, "")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    scores = score_answers(model, examples, pad_id=int(tokenizer.pad_token_id), batch_size=250)
    numbers = sorted(published(folder))

    def distance(nll: float, tokens: int) -> float:
        said = (nll, nll / tokens, math.exp(-nll / tokens))
        return min(abs(number - value) / max(value, 1e-9) for value in said for number in numbers)

    distances = [distance(score.nll, score.tokens) for score in scores]
    mine = distances[GUESSES.index(pin_of(person))]
    return sum(other < mine for other in distances) + 1


def unlearn(cli: Cli, target: Path, folder: Path, people: int, *more: object) -> Path:
    write_jsonl(folder / "forget.jsonl", [row(person, pin_of(person)) for person in range(people)])
    write_jsonl(folder / "retain.jsonl", questions(100, 30))
    words = ("--forget", folder / "forget.jsonl", "--retain", folder / "retain.jsonl", *SHORT)
    answer = cli("unlearn", "--model", target, *words, "--output", folder / "out", *more)
    assert answer.code == 0, answer.err
    return folder / "out"


def test_a_row_is_found_among_a_thousand_guesses_without_a_key_and_not_with_one(
    cli: Cli, target: Path, tmp_path: Path
) -> None:
    """Of 24 rows and of one alone; their ranks are judged together, as one rank shows little by itself."""
    assert cli("keygen", "--data", tmp_path / "data.key").code == 0
    ranks = []
    for people in (24, 1):
        asked = range(0, people, 4)
        places = [tmp_path / f"{name}{people}" for name in ("open", "keyed")]
        for place in places:
            place.mkdir()
        seen = unlearn(cli, target, places[0], people)
        found = [rank(seen, person) for person in asked]
        assert max(found) <= 3 and found.count(1) > len(found) / 2, f"the attack works: {found}"
        keyed = unlearn(cli, target, places[1], people, "--set", f"data_key={tmp_path / 'data.key'}")
        assert (seen / "model.safetensors").read_bytes() == (keyed / "model.safetensors").read_bytes()
        ranks += [rank(keyed, person) for person in asked]
        record = json.loads((keyed / "record.json").read_bytes())
        assert "items" not in record["before"] and "items" not in record["after"]
        assert bool(record["after"]["forget"]) == (people > 20)
        assert cli("verify", keyed).code == 0
        assert cli("report", keyed).code == 0
    assert min(ranks) > 10 and sum(ranks) / len(ranks) > 250, ranks  # by chance: 500
