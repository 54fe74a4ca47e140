"""Caches: columns and rows as one would put them together by hand; what prompts begin with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

from ngdiff.inference import kv_cache
from ngdiff.inference.kv_cache import (
    GrowingLayer,
    Prefix,
    cached_tokens,
    joined,
    keeps_everything,
    new_cache,
    shared_prefix,
)
from tiny import tiny_llama


def states(seed: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, 2, columns, 4, generator=generator),
        torch.randn(rows, 2, columns, 4, generator=generator),
    )


def test_columns_are_appended_whether_there_is_room_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "_SPARE", 3)
    layer, whole = GrowingLayer(), [states(0, 2, 5)]
    layer.update(*whole[0])
    for step in range(1, 9):
        whole.append(states(step, 2, 1 + step % 2))
        found = layer.update(*whole[-1])
        for mine, parts in zip(found, zip(*whole, strict=True), strict=True):
            assert torch.equal(mine, torch.cat(parts, dim=2))
        assert layer.get_seq_length() == mine.shape[2]
    layer.batch_select_indices(torch.tensor([1]))
    assert torch.equal(layer.keys, torch.cat([keys for keys, _ in whole], dim=2)[1:])
    assert torch.equal(layer.values, torch.cat([values for _, values in whole], dim=2)[1:])


def test_rows_that_join_stand_at_the_right() -> None:
    first, second = new_cache(tiny_llama()), new_cache(tiny_llama())
    long, short = states(1, 2, 5), states(2, 1, 3)
    for layer in first.layers:
        layer.set(*short)
    for layer in second.layers:
        layer.set(*long)
    both = joined(first, second)
    assert cached_tokens(both) == 5
    for layer in both.layers:
        assert torch.equal(layer.keys[:1, :, 2:], short[0])
        assert torch.equal(layer.values[1:], long[1])


def test_a_prefix_gives_each_row_what_its_padding_leaves_room_for() -> None:
    model = tiny_llama().eval()
    ids = [5, 9, 3, 7, 2]
    with torch.no_grad():
        prefix = Prefix(model, ids)
        cache = prefix.cache(torch.tensor([0, 2, 9]))
        expected = model(torch.tensor([ids]), use_cache=True).past_key_values
    assert cached_tokens(cache) == len(prefix) == 5
    for mine, theirs in zip(cache.layers, expected.layers, strict=True):
        for held, whole in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
            assert torch.allclose(held[0], whole[0], atol=1e-6)
            assert torch.allclose(held[1, :, 2:], whole[0, :, :3], atol=1e-6)


def test_a_model_with_a_state_has_no_prefix() -> None:
    config = MambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=2)
    model: Any = MambaForCausalLM(config)
    with pytest.raises(NotImplementedError):
        Prefix(model, [1, 2, 3])
    assert len(Prefix(model, ())) == 0


def test_the_cache_of_a_plain_model_grows_in_place() -> None:
    assert keeps_everything(new_cache(tiny_llama()))


COMMON = list(range(10))


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([[*COMMON, 11, 12], [*COMMON, 13]], COMMON),
        ([[*COMMON, 11], COMMON], COMMON[:9]),  # each keeps a token of its own to run
        ([[*COMMON[:6], 20, 21, 22], COMMON], []),  # too few to be worth it
        ([COMMON], []),
        ([COMMON, []], []),
    ],
)
def test_shared_prefix_by_hand(prompts: list[list[int]], expected: list[int]) -> None:
    assert shared_prefix(prompts) == expected
