"""Activations behind a layer: those of the whole model, without the part behind it."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from ngdiff.data.batching import collate
from ngdiff.data.encoding import EncodedExample
from ngdiff.data.examples import Example
from ngdiff.models.activations import (
    decoder_layers,
    freeze_behind,
    labelled_activations,
    layer_count,
    layer_states,
    patched_tokens,
    through_lens,
)
from ngdiff.models.logprobs import IGNORED, Places, labelled_tokens
from ngdiff.models.packing import takes_packed
from tiny import tiny_llama

torch.set_num_threads(1)
EXAMPLES = [
    EncodedExample(
        tuple(range(3, 3 + length)),
        (IGNORED,) * 3 + tuple(range(6, 3 + length)),
        Example((), "", "text", "a"),
        False,
    )
    for length in (5, 9, 7)
]
BATCH = collate(EXAMPLES, 1)


def gpt2() -> nn.Module:
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=2, n_positions=32)
    return GPT2LMHeadModel(config).eval()


def adapted() -> nn.Module:
    return get_peft_model(tiny_llama(layers=3), LoraConfig(r=2, target_modules=["q_proj"])).eval()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("make", [lambda: tiny_llama(layers=3).eval(), gpt2, adapted])
@pytest.mark.parametrize("layer", [0, 1])
def test_they_are_the_whole_models_hidden_states(make: type[nn.Module], layer: int) -> None:
    model = make()
    found = labelled_activations(model, BATCH, layer).hidden
    inputs = {key: BATCH[key] for key in ("input_ids", "attention_mask")}
    hidden = model(**inputs, output_hidden_states=True).hidden_states[layer + 1]
    expected = [
        hidden[row, position - 1]
        for row, example in enumerate(EXAMPLES)
        for position in range(1, len(example.labels))
        if example.labels[position] != IGNORED
    ]
    assert len(decoder_layers(model)) == layer_count(model) == 3  # put back
    torch.testing.assert_close(found, torch.stack(expected))


def test_the_layers_of_packed_rows_are_those_of_padded_ones() -> None:
    model, other = tiny_llama(layers=3).eval(), tiny_llama(layers=3, seed=1).eval()
    padded = {name: value for name, value in BATCH.items() if name not in ("real", "labelled")}
    # the trial of packed rows comes first here, and no hook may see it
    states = layer_states(model, BATCH)
    assert "packed_rows" in Places.of(model, BATCH).inputs and len(states) == 3
    for found, expected in zip(states, layer_states(model, padded), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for found, expected in zip(through_lens(model, BATCH), through_lens(model, padded), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    whole = labelled_tokens(model, padded).log_probs()
    for layer, own in enumerate(states):
        torch.testing.assert_close(patched_tokens(model, BATCH, layer, own).log_probs(), whole)
    foreign = layer_states(other, BATCH)[1]
    found, expected = (patched_tokens(model, b, 1, foreign).log_probs() for b in (BATCH, padded))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, whole)


def test_nothing_behind_the_layer_runs_or_learns() -> None:
    model = tiny_llama(layers=3)
    assert takes_packed(model)  # finding that out runs the whole model
    ran: list[int] = []
    for number, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, n=number: ran.append(n))
    labelled_activations(model, BATCH, 1).hidden.sum().backward()
    assert ran == [0, 1]
    assert model.lm_head.weight.grad is None or not bool(model.lm_head.weight.grad.any())
    assert all(p.grad is None for p in model.model.layers[2].parameters())
    freeze_behind(model, 1)
    assert not any(p.requires_grad for p in model.model.layers[2].parameters())
    assert all(p.requires_grad for p in model.model.layers[1].parameters())
    assert not model.lm_head.weight.requires_grad and model.get_input_embeddings().weight.requires_grad


def test_the_layers_are_put_back_after_an_error() -> None:
    model = tiny_llama(layers=3)
    with pytest.raises(IndexError):
        labelled_activations(model, {**BATCH, "input_ids": BATCH["input_ids"] + 1000}, 0)
    assert layer_count(model) == 3


def test_a_model_without_a_list_of_layers() -> None:
    with pytest.raises(TypeError, match="no list of layers"):
        decoder_layers(nn.Linear(2, 2))
