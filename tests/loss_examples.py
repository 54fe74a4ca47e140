"""Encoded examples with all that any loss compares with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ngdiff.data.batching import collate_for_loss
from ngdiff.data.encoding import EncodedExample
from ngdiff.data.examples import Example
from ngdiff.models import logprobs
from ngdiff.models.logprobs import IGNORED

VOCABULARY = 40


def example(seed: int, prompt: int, answer: int, vocabulary: int = 40) -> EncodedExample:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, vocabulary, (prompt + answer,), generator=generator).tolist()
    labels = [IGNORED] * prompt + ids[prompt:]
    item = Example((), "", "text", "a, line 1")
    return EncodedExample(tuple(ids), tuple(labels), item, False, reference_log_prob=-3.6 * answer)


EXAMPLES = [example(seed, prompt=1 + seed % 4, answer=2 + 3 * (seed % 3)) for seed in range(8)]


def complete(name: str) -> dict[str, Any]:
    """A batch with all that any loss compares with; the examples have from 2 to 8 labelled tokens."""
    draw = torch.Generator().manual_seed(5)
    examples = []
    for one in EXAMPLES:
        count = sum(label != logprobs.IGNORED for label in one.labels[1:])
        others = torch.randint(0, VOCABULARY, (count, 2), generator=draw)
        ids = torch.cat([torch.tensor(one.labels[-count:]).unsqueeze(1), others], dim=1)
        ids[:, 2] = (ids[:, 0] + 1 + ids[:, 1]) % VOCABULARY
        probs = torch.rand(count, 3, generator=draw).softmax(dim=1) * 0.7
        examples.append(
            replace(
                one,
                predictable=tuple(torch.rand(count, generator=draw).tolist()),
                reference_states=torch.randn(count, 32, generator=draw),
                alternatives=(example(len(one.input_ids) + 50, 3, 4),),
                **({"expected_ids": ids, "expected_probs": probs} if name == "counterfactual" else {}),
            )
        )
    return collate_for_loss(examples, pad_id=1)
