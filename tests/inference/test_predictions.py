"""Likelihoods and argmax at shared nodes against torch's own, for vocabularies of any size."""

from __future__ import annotations

import pytest
import torch

from ngdiff.inference.predictions import Predictions, likeliest


@pytest.mark.parametrize("vocab", [1, 255, 256, 257, 512, 1000])
def test_the_argmax(vocab: int) -> None:
    logits = torch.randn(70, vocab, generator=torch.Generator().manual_seed(vocab))
    assert torch.equal(likeliest(logits), logits.argmax(1))


@pytest.mark.parametrize("places", [(3, 700), (255, 256), (511, 512), (999,), (0, 1), (768, 999)])
def test_the_first_of_equals(places: tuple[int, ...]) -> None:
    logits = torch.zeros(2, 1000) - 1
    logits[:, list(places)] = 4.0
    assert likeliest(logits).tolist() == [places[0]] * 2
    assert likeliest(torch.zeros(1, 1000)).tolist() == [0]


def test_log_probs_of_tokens_that_share_nodes() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(150, 300, generator=generator) * 8
    nodes = torch.randint(0, 150, (400,), generator=generator)
    targets = torch.randint(0, 300, (400,), generator=generator)
    found = Predictions(logits, nodes, targets, torch.zeros(400, dtype=torch.long), 1)
    expected = logits.double().log_softmax(1)[nodes, targets]
    assert torch.allclose(found.log_probs().double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(found.likeliest(), logits.argmax(1)[nodes])


def test_a_sure_token_keeps_its_last_digits() -> None:
    logits = torch.tensor([[100.0, 92.0, 91.0]])
    zero = torch.zeros(1, dtype=torch.long)
    found = Predictions(logits, zero, zero, zero, 1).log_probs()
    assert float(found) == pytest.approx(float(logits.double().log_softmax(1)[0, 0]), rel=1e-3)
