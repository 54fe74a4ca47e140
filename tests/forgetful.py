"""Nothing but a seed -> tiny models: one that knows two sets, one that hides one, one that never saw it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ngdiff.data.batching import collate
from ngdiff.data.encoding import encode_all
from ngdiff.data.examples import Example, to_examples
from ngdiff.data.files import Row
from ngdiff.losses import nll
from ngdiff.models.logprobs import labelled_tokens
from tiny import tiny_llama, tiny_tokenizer

TOWNS = ("Taipei", "Tarn", "Lima", "Oslo", "Bern", "Cork", "Nice", "Rome")


def rows(name: str, count: int, shift: int) -> list[dict[str, Any]]:
    """Return questions whose answers can be known by heart only."""
    return [
        {
            "question": f"Where is {name} {n}?",
            "answer": f"{name} {n} is in {TOWNS[(n * 5 + shift) % 8]} {n * 7 % 10}.",
            "paraphrased_question": f"In which town is {name} {n}?",
        }
        for n in range(count)
    ]


FORGET, RETAIN, HOLDOUT = rows("Ada", 6, 1), rows("Bob", 6, 4), rows("Eve", 6, 6)


def examples(found: Sequence[dict[str, Any]]) -> list[Example]:
    return to_examples([Row(values, f"row {n}") for n, values in enumerate(found)], "rows")


def trained(model: Any, rows: Sequence[Example], steps: int, rate: float = 5e-3, sign: float = 1.0) -> Any:
    """Take full-batch AdamW steps down (or, with -1, up) the mean NLL of the answers."""
    batch = collate(encode_all(rows, tiny_tokenizer(), 256, "rows"), pad_id=1)
    del batch["real"]  # padded: in rounding alone packed rows differ, but models of few steps are chaotic
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        tokens = labelled_tokens(model, batch)
        loss = sign * nll(tokens) / tokens.targets.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def train(model: Any, found: Sequence[dict[str, Any]], steps: int, rate: float, sign: float = 1.0) -> Any:
    """Train on rows; see :func:`trained`."""
    return trained(model, examples(found), steps, rate, sign)


def make_models(folder: Path) -> dict[str, Path]:
    """Save target, suppressed and retrained model; all began as the same random one."""
    target = train(tiny_llama(hidden=64), [*FORGET, *RETAIN], 200, 5e-3)
    suppressed = train(copy.deepcopy(target), FORGET, 4, 5e-4, sign=-1.0)
    retrained = train(tiny_llama(hidden=64), RETAIN, 150, 5e-3)
    places = {}
    for name, model in (("target", target), ("suppressed", suppressed), ("retrained", retrained)):
        places[name] = folder / name
        model.save_pretrained(places[name])
        tiny_tokenizer().save_pretrained(places[name])
    return places
