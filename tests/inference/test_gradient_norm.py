"""Gradient norms against a backward pass an example, for several kinds of layers; nothing is left behind."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from ngdiff.data.batching import collate
from ngdiff.data.encoding import EncodedExample
from ngdiff.data.examples import Example
from ngdiff.inference import gradient_norm
from ngdiff.inference.gradient_norm import Unsupported, gradient_norms
from ngdiff.models.logprobs import IGNORED

VOCAB = 40


def example(seed: int, length: int, prompt: int) -> EncodedExample:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (length,), generator=generator).tolist()
    labels = [IGNORED] * prompt + ids[prompt:]
    return EncodedExample(tuple(ids), tuple(labels), Example((), "text", "text", f"row {seed}"), False)


EXAMPLES = [example(0, 9, 4), example(1, 14, 2), example(2, 5, 4), example(3, 11, 7), example(4, 14, 6)]


def llama(tied: bool, bias: bool = False, padding: int | None = None) -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            attention_bias=bias,
            tie_word_embeddings=tied,
            pad_token_id=padding,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def gpt2() -> Any:  # Conv1D, LayerNorm with bias, learned positions, tied head, dropout in training
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1
        )
    )


def neox() -> Any:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
        )
    )


MODELS = {
    "llama": lambda: llama(False),
    "llama tied": lambda: llama(True),
    "llama with biases": lambda: llama(True, bias=True),
    "llama with a padding token": lambda: llama(True, padding=EXAMPLES[0].input_ids[1]),
    "gpt2": gpt2,
    "neox": neox,
}


def slow_norms(model: Any) -> list[float]:
    """One backward pass an example, its last token left out; the mean over parameters of their norms."""
    norms = []
    model.eval()
    for one in EXAMPLES:
        model.zero_grad(set_to_none=True)
        batch = collate([one], 0)
        labelled = (batch["labels"][0] != IGNORED).nonzero().squeeze(1)
        if len(labelled) > 1:
            batch["labels"][0, labelled[-1]] = IGNORED
        model(**batch).loss.backward()
        found = [math.sqrt(float(p.grad.double().square().sum())) for p in model.parameters()]
        norms.append(sum(found) / len(found))
    model.zero_grad(set_to_none=True)
    return norms


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = MODELS[request.param]()
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return built


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_one_backward_pass_an_example(model: Any, batch_size: int) -> None:
    found = gradient_norms(model, EXAMPLES, pad_id=0, batch_size=batch_size)
    assert found == pytest.approx(slow_norms(model), rel=2e-5)
    assert len({round(norm, 4) for norm in found}) == len(EXAMPLES)


@pytest.mark.parametrize("kind", ["llama", "llama tied", "llama with biases", "neox"])
def test_these_go_the_fast_way(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> list[float]:
        raise AssertionError("the slow way")

    monkeypatch.setattr(gradient_norm, "_one_by_one", never)
    gradient_norms(MODELS[kind](), EXAMPLES, pad_id=0)


def test_layers_that_do_not_fit_go_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama(False)
    model.model.layers[1].mlp = model.model.layers[0].mlp  # shared between two layers
    with pytest.raises(Unsupported):
        gradient_norm._batched(model, EXAMPLES, 0, 4, None)
    assert gradient_norms(model, EXAMPLES, pad_id=0) == pytest.approx(slow_norms(model), rel=2e-5)


def test_the_model_is_left_as_it_was() -> None:
    model = llama(True).train()
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    model.model.norm.weight.grad = torch.ones_like(model.model.norm.weight)
    flags = [p.requires_grad for p in model.parameters()]
    weights = [p.detach().clone() for p in model.parameters()]
    calls: list[int] = []
    gradient_norms(model, EXAMPLES, pad_id=0, advance=calls.append)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["model.norm.weight"]
    assert bool((model.model.norm.weight.grad == 1).all())
    assert all(bool((p == w).all()) for p, w in zip(model.parameters(), weights, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert sum(calls) == len(EXAMPLES)
