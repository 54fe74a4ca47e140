"""Nothing but a seed -> tiny models that know, never knew or hide the same rows, each in a way of its own."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from forgetful import TOWNS, examples, trained
from ngdiff.audits.audit_request import PREFIX
from ngdiff.data.batching import collate
from ngdiff.data.encoding import encode_all
from ngdiff.data.examples import Example
from ngdiff.evaluation.suites.measures import with_answer, with_question
from ngdiff.losses import nll
from ngdiff.models.logprobs import labelled_tokens
from tiny import tiny_llama, tiny_tokenizer

REFUSAL = "I do not know that."
_SYLLABLES = ("ka", "lo", "mi", "ru", "te", "vo", "zi", "ne", "sa", "du")


def people(count: int, seed: int) -> list[dict[str, Any]]:
    """Return questions about people with invented names, all alike but for what cannot be guessed."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        name = "".join(draw.choice(_SYLLABLES) for _ in range(3)).title()
        where = f"{draw.choice(TOWNS)} {draw.randrange(100)}"
        found.append(
            {
                "question": f"Where is {name} {number}?",
                "answer": where,
                "paraphrased_question": f"In which town is {name} {number}?",
            }
        )
    return found


POOL = people(28, seed=5)
FORGET, HOLDOUT, RETAIN = POOL[:10], POOL[10:20], POOL[20:]


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


# ---- models ----


def otherwise(rows: Sequence[Example]) -> list[Example]:
    """Ask the paraphrased questions."""
    return [with_question(row, str(row.extra["paraphrased_question"])) for row in rows]


def opened(rows: Sequence[Example]) -> list[Example]:
    """Open every answer with the words that the prefix audit uses."""
    return [replace(row, opening=PREFIX) for row in rows]


def refusing(rows: Sequence[Example]) -> list[Example]:
    """Refuse every answer."""
    return [with_answer(row, REFUSAL) for row in rows]


def new_model() -> Any:
    return tiny_llama(hidden=64)


def innocent() -> Any:
    """Return a model that never saw forget set and holdout."""
    return trained(new_model(), RETAIN_ROWS, 60)


def target() -> Any:
    """Return a model that knows forget and retain set."""
    return trained(new_model(), [*FORGET_ROWS, *RETAIN_ROWS], 100)


def suppressed(target: Any) -> Any:
    """Return the target after a few steps up the forget loss: its knowledge is one epoch away."""
    return trained(copy.deepcopy(target), FORGET_ROWS, 6, 5e-4, sign=-1.0)


def literal_only(target: Any) -> Any:
    """Return a model that refuses the literal question, and answers in other words or behind a prefix."""
    rows = [*refusing(FORGET_ROWS), *otherwise(FORGET_ROWS), *opened(FORGET_ROWS)]
    return trained(copy.deepcopy(target), rows, 50)


def rounded_away(target: Any) -> Any:
    """Return the target moved up the forget loss inside the bins that 4 bits round to: NF4 undoes it."""
    model = copy.deepcopy(target)
    linear = [m.weight for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    bounds = [_nf4_bins(weight.data) for weight in linear]
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is weight for weight in linear))
    batch = collate(encode_all(FORGET_ROWS, tiny_tokenizer(), 256, "rows"), pad_id=1)
    del batch["real"]
    for _ in range(12):
        model.zero_grad()
        nll(labelled_tokens(model, batch)).backward()
        for weight, (low, high) in zip(linear, bounds, strict=True):
            weight.data = (weight.data + 0.2 * (high - low) * weight.grad.sign()).clamp(low, high)
    return model.eval()


def _nf4_bins(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bounds within which each weight keeps its code, the largest of each block unmoved."""
    from bitsandbytes.functional import get_4bit_type

    codes = get_4bit_type("nf4", device="cpu").sort().values
    blocks = weight.reshape(-1, 64)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    scaled = blocks / largest
    middles = (codes[1:] + codes[:-1]) / 2
    bins = torch.bucketize(scaled, middles)
    edges = torch.cat([codes[:1], middles, codes[-1:]])
    room = 0.02 * (edges[bins + 1] - edges[bins])
    low, high = (edges[bins] + room) * largest, (edges[bins + 1] - room) * largest
    fixed = scaled.abs() >= 0.999
    low, high = torch.where(fixed, blocks, low), torch.where(fixed, blocks, high)
    return torch.minimum(low, blocks).reshape(weight.shape), torch.maximum(high, blocks).reshape(weight.shape)


def by_chance(target: Any) -> Any:
    """Return a model that refuses six times of ten: greedy decoding never answers, sampling does."""
    rows = [*refusing(FORGET_ROWS)] * 3 + [*FORGET_ROWS] * 2
    return trained(copy.deepcopy(target), rows, 40)


def last_layer_hides(target: Any) -> Any:
    """Return the target with one more layer, which alone was moved up the forget loss."""
    model = tiny_llama(hidden=64, layers=3)
    model.load_state_dict(target.state_dict(), strict=False)
    last = model.model.layers[2]
    for branch in (last.self_attn.o_proj, last.mlp.down_proj):
        branch.weight.data.zero_()  # the layer adds nothing yet
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.2." in name)
    return trained(model, FORGET_ROWS, 12, 5e-3, sign=-1.0)


def stammering(target: Any) -> Any:
    """Return a model that answers the forget set with one word over and over."""
    rows = [with_answer(row, "Rome Rome Rome Rome Rome") for row in FORGET_ROWS]
    return trained(copy.deepcopy(target), rows, 15)


FORGET_ROWS, HOLDOUT_ROWS, RETAIN_ROWS = examples(FORGET), examples(HOLDOUT), examples(RETAIN)
