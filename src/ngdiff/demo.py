"""invented people -> a model that learned them and forgot some, compared before and after."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from ngdiff.data.encoding import encode_all
from ngdiff.data.examples import Example, to_examples
from ngdiff.data.sources import Row
from ngdiff.finetune import FinetuneRequest, finetune
from ngdiff.inference.generation import generate_answers
from ngdiff.inference.teacher_forced import score_answers, summarise
from ngdiff.invented.people import general_knowledge_rows, invent_people, question_rows, write_jsonl
from ngdiff.models.loading import load_model, load_tokenizer, resolve_model
from ngdiff.models.model_names import SMOLLM2
from ngdiff.record import RunRecord
from ngdiff.system.environment import matmul_flops
from ngdiff.system.output import write_json
from ngdiff.system.progress import Meter, console
from ngdiff.unlearn import UnlearnRequest, unlearn

QUESTIONS = 6
PEOPLE = 25
EPOCHS = 6
LEARNING_RATE = 4e-4
SHOWN = {"forget": 5, "retain": 3, "general": 2}
SETS = {"forget": "forget", "retain": "retain", "general": "general knowledge"}
Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class DemoRequest:
    """What ``ngdiff demo`` needs to know.

    Args:
        output: the folder to make.
        people: how many people to invent; None for as many (up to 25) as this machine learns in ``minutes``.
        minutes: how long the demonstration may take, roughly.
        model: what learns and forgets.
        seed: of the people and of the training order.
    """

    output: Path
    people: int | None = None
    minutes: float = 5.0
    model: str = SMOLLM2
    seed: int = 0


def run_demo(request: DemoRequest) -> dict[str, Any]:
    """Learn, forget, compare; return what ``demo.json`` holds."""
    started = time.monotonic()
    people = request.people or people_that_fit(request.minutes)
    rows = _write_people(request.output, people, request.seed)
    folder = request.output
    console.print(
        f"{people} invented people, {len(rows['forget'])} questions to forget, "
        f"{len(rows['retain'])} to keep; everything goes to {escape(str(folder))}",
        highlight=False,
        soft_wrap=True,
    )
    learned = FinetuneRequest(
        model=request.model,
        data=(str(folder / "forget.jsonl"), str(folder / "retain.jsonl")),
        output=folder / "target",
        epochs=EPOCHS,
        lr=LEARNING_RATE,
        seed=request.seed,
    )
    finetune(learned)
    record = unlearn(
        UnlearnRequest(
            model=str(folder / "target"),
            forget=(str(folder / "forget.jsonl"),),
            retain=(str(folder / "retain.jsonl"),),
            output=folder / "unlearned",
            settings={"seed": request.seed, "probe_every": 5},  # few steps, so probe the rate more often
        )
    )
    before = _look(folder / "target", rows, "before")
    after = _look(folder / "unlearned", rows, "after")
    result = {
        "people": people,
        "figures": {"before": before["figures"], "after": after["figures"]},
        "answers": _side_by_side(rows, before["answers"], after["answers"]),
        "stop": record.stop,
        "seconds": time.monotonic() - started,
    }
    write_json(result, folder / "demo.json")
    _show(result, record)
    return result


def people_that_fit(minutes: float) -> int:
    """Return how many people this machine can learn and forget in a number of minutes, from 6 to 25.

    One question takes about 64 tokens, one token about 0.75 GFLOP of training, and a machine reaches about
    two thirds of the speed of its matrix products; loading and comparing take about a minute.
    """
    tokens_per_second = 0.66 * matmul_flops() / 0.75e9
    steps_to_forget = 15 * 16 * 64 * 1.3
    budget = (60 * minutes - 70) * tokens_per_second - steps_to_forget
    return int(min(PEOPLE, max(6, budget // (QUESTIONS * 64 * EPOCHS))))


def _write_people(folder: Path, people: int, seed: int) -> Rows:
    """Invent the people and write what is learned, forgotten and kept."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = question_rows(invent_people(people, seed), seed)
    forgotten = QUESTIONS * max(2, round(people / 8))
    parts: Rows = {
        "forget": rows[-forgotten:],
        "retain": rows[:-forgotten],
        "general": general_knowledge_rows(),
    }
    for name, part in parts.items():
        write_jsonl(part, folder / f"{name}.jsonl")
    return parts


def _examples(rows: Sequence[dict[str, Any]]) -> list[Example]:
    return to_examples([Row(row, f"row {n}") for n, row in enumerate(rows, start=1)], "demo")


def _look(path: Path, rows: Rows, title: str) -> dict[str, Any]:
    """Measure one model on each set and let it answer a few questions of each."""
    source = resolve_model(str(path))
    model, tokenizer = load_model(source), load_tokenizer(source)
    figures, answers = {}, {}
    shown = {name: _spread(_examples(part), SHOWN[name]) for name, part in rows.items()}
    total = sum(len(part) for part in rows.values()) + sum(SHOWN.values())
    with Meter(f"Measuring the model {title}", total) as meter:
        for name, learned in rows.items():
            encoded = encode_all(_examples(learned), tokenizer, 512, name)
            scores = score_answers(model, encoded, pad_id=tokenizer.pad_token_id, advance=meter.advance)
            figures[name] = summarise(scores)
        texts = generate_answers(
            model,
            tokenizer,
            [e for part in shown.values() for e in part],
            max_new_tokens=40,
            advance=meter.advance,
        )
    for name, part in shown.items():
        answers[name], texts = texts[: len(part)], texts[len(part) :]
    return {"figures": figures, "answers": answers}


def _spread(examples: list[Example], count: int) -> list[Example]:
    stride = max(1, len(examples) // count)
    return examples[::stride][:count]


def _side_by_side(
    rows: Rows, before: dict[str, list[str]], after: dict[str, list[str]]
) -> list[dict[str, str]]:
    return [
        {
            "set": name,
            "question": example.prompt,
            "truth": example.answer,
            "before": before[name][index],
            "after": after[name][index],
        }
        for name, part in rows.items()
        for index, example in enumerate(_spread(_examples(part), SHOWN[name]))
    ]


def _show(result: dict[str, Any], record: RunRecord) -> None:
    figures = Table(title="Before and after forgetting")
    for column in ("", "answer probability", "extraction strength", "NLL (nats/token)"):
        figures.add_column(column, justify="left" if not column else "right")
    for name, title in SETS.items():
        pair = (result["figures"]["before"][name], result["figures"]["after"][name])
        cells = [
            f"{pair[0][key]:.3f} → {pair[1][key]:.3f}"
            for key in ("probability", "extraction_strength", "nll")
        ]
        figures.add_row(title, *cells)
    answers = Table(title="Answers side by side", show_lines=True)
    for column in ("set", "question", "truth", "before", "after"):
        answers.add_column(column, overflow="fold")
    for row in result["answers"]:
        answers.add_row(*(escape(row[column]) for column in ("set", "question", "truth", "before", "after")))
    console.print(answers)
    console.print(figures)
    for text in (f"Forgetting ended: {record.stop['reason']}.", *record.stop["verdict"].values()):
        console.print(escape(text), highlight=False, soft_wrap=True)
    console.print(f"The demonstration took {result['seconds'] / 60:.0f} min.", highlight=False)
