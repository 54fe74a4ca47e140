"""Rows packed into one, against the same rows padded: losses, gradients, and which models take them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Phi3Config,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

from loss_examples import EXAMPLES, example
from ngdiff.data.batching import collate
from ngdiff.models import packing
from ngdiff.models.activations import labelled_activations
from ngdiff.models.logprobs import Places, labelled_tokens
from tiny import tiny_llama

VOCABULARY = 40
LONG = [*EXAMPLES, example(11, 9, 14), example(12, 2, 3)]
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 1,
    "bos_token_id": None,
    "eos_token_id": 1,
}
GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
TAKEN: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SMALL),
    "qwen3": lambda: Qwen3Config(**SMALL, head_dim=8),
    "phi3": lambda: Phi3Config(**SMALL),
    "gpt2": lambda: GPT2Config(**GPT2, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0),
    "gpt-neox": lambda: GPTNeoXConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}),
    "a window narrower than the rows": lambda: MistralConfig(**SMALL, sliding_window=5),
}
PADDED: dict[str, tuple[Callable[[], Any], str]] = {
    "bloom, whose positions are in its attention": (
        lambda: BloomConfig(
            vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1
        ),
        "cannot keep packed rows apart",
    ),
    "mamba, which has a state": (
        lambda: MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4),
        "cannot keep packed rows apart",
    ),
}


@pytest.fixture(autouse=True)
def rows_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ngdiff.models.logprobs.PACKING", True)


def built(config: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(config).eval()
    return model


def without_places(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch that a model runs over as it is."""
    return {name: value for name, value in batch.items() if name not in ("real", "labelled")}


def gradients(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    log_probs = labelled_tokens(model, batch).log_probs()
    log_probs.square().sum().backward()
    return log_probs.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", TAKEN)
def test_packed_rows_have_the_losses_and_gradients_of_padded_ones(name: str) -> None:
    model, batch = built(TAKEN[name]()), collate(LONG, 1)
    assert "packed_rows" in Places.of(model, batch).inputs, packing.refused.get(model)
    packed, mine = gradients(model, batch)
    padded, theirs = gradients(model, without_places(batch))
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("packed", [True, False])
def test_bf16_gradients_on_a_cpu_pass_through_float32_attention(
    packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = tiny_llama(vocab_size=VOCABULARY), collate(LONG, 1)
    assert packing.takes_packed(model)
    batch = batch if packed else without_places(batch)
    exact, right = gradients(model, batch)
    seen: list[torch.dtype] = []
    kernel = nn.functional.scaled_dot_product_attention

    def watched(*states: Tensor, **settings: Any) -> Tensor:
        found = kernel(*states, **settings)
        seen.append(found.dtype)
        return found

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, found = gradients(model, batch)
        assert set(seen) == {torch.float32}
        seen.clear()
        with torch.no_grad():
            labelled_tokens(model, batch)
        assert set(seen) == {torch.bfloat16}
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)
    for one, other in zip(found, right, strict=True):
        assert float((one - other).norm()) <= 0.05 * max(1e-3, float(other.norm()))


def test_a_resumed_run_attends_like_the_one_it_continues() -> None:
    """One may begin with padded rows where the other had packed ones before them."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register("sdpa", sdpa_attention_forward)
    packing.register.cache_clear()
    model, padded = tiny_llama(vocab_size=VOCABULARY), without_places(collate(LONG, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first, before = gradients(model, padded)
        labelled_tokens(model, collate(LONG, 1))
        second, after = gradients(model, padded)
    assert torch.equal(first, second)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_only_real_tokens_are_run_over() -> None:
    model, batch = tiny_llama(vocab_size=VOCABULARY), collate(LONG, 1)
    seen: list[int] = []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda _, args, __: seen.append(args[0].numel()))
    try:
        labelled_tokens(model, batch)
        labelled_tokens(model, without_places(batch))
    finally:
        handle.remove()
    real = sum(len(one.input_ids) for one in LONG)
    # the trial comes first, both ways
    assert seen[-2:] == [32 * real, 32 * batch["labels"].numel()] and real < 0.5 * batch["labels"].numel()


def test_a_batch_with_next_to_no_padding_is_left_as_it_is() -> None:
    even = [example(seed, 20, 30) for seed in range(4)]
    model = tiny_llama(vocab_size=VOCABULARY)
    assert "packed_rows" not in Places.of(model, collate(even, 1)).inputs
    assert "packed_rows" not in Places.of(model, collate([*even, example(9, 20, 29)], 1)).inputs
    assert "packed_rows" in Places.of(model, collate([*even, example(9, 20, 24)], 1)).inputs


@pytest.mark.parametrize("name", PADDED)
def test_other_models_are_padded_and_it_is_said_why(name: str) -> None:
    config, why = PADDED[name]
    model, batch = built(config()), collate(LONG, 1)
    assert "packed_rows" not in Places.of(model, batch).inputs
    assert why in packing.refused[model]
    packed, _ = gradients(model, batch)
    padded, _ = gradients(model, without_places(batch))
    assert torch.equal(packed, padded)


@pytest.mark.parametrize("base", ["FullyShardedDataParallel", "FSDPModule"])
def test_a_model_whose_weights_are_split_is_padded_without_a_trial(base: str) -> None:
    model, sharded = tiny_llama(vocab_size=VOCABULARY), type(base, (), {})
    layer = model.model.layers[0]
    layer.__class__ = type("Sharded", (type(layer), sharded), {})
    layer.forward = lambda *_, **__: pytest.fail("the trial must not run a part of a sharded model")
    assert "packed_rows" not in Places.of(model, collate(LONG, 1)).inputs
    assert "split over processes" in packing.refused[model]


def test_a_model_that_mixes_rows_is_found_out() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_llama(vocab_size=VOCABULARY)
            self.config = self.inner.config
            self.inner.model.layers[0].register_forward_hook(
                lambda _, __, output: output + output.roll(1, dims=1)
            )

        def get_output_embeddings(self) -> nn.Module:
            return self.inner.lm_head

        def forward(self, **inputs: Any) -> Any:
            return self.inner(**inputs)

    class Deaf(Mixing):
        def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
            return self.inner(input_ids=input_ids, attention_mask=attention_mask)

    mixing, deaf = Mixing(), Deaf()
    assert not packing.takes_packed(mixing) and not packing.takes_packed(deaf)
    assert packing.refused[mixing] == (
        "the model's predictions for packed rows differ from those for padded ones"
    )
    assert packing.refused[deaf] == "the model does not accept packed rows (TypeError)"


def test_the_trial_leaves_modes_and_random_numbers_as_they_were() -> None:
    model = tiny_llama(vocab_size=VOCABULARY).train()
    model.model.layers[1].eval()
    before, state = [m.training for m in model.modules()], torch.get_rng_state()
    assert packing.takes_packed(model)
    assert [m.training for m in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)


def test_activations_are_those_of_padded_rows() -> None:
    model, batch = tiny_llama(vocab_size=VOCABULARY), collate(LONG, 1)
    torch.testing.assert_close(
        labelled_activations(model, batch, 0).hidden,
        labelled_activations(model, without_places(batch), 0).hidden,
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")
def test_layers_that_are_run_again_in_the_backward_pass() -> None:
    model, batch = tiny_llama(vocab_size=VOCABULARY).train(), collate(LONG, 1)
    _, plain = gradients(model, batch)
    again = copy.deepcopy(model)
    again.gradient_checkpointing_enable({"use_reentrant": False})
    _, recomputed = gradients(again, batch)
    for one, other in zip(recomputed, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_batches_like_any_other_go_to_transformers_attention() -> None:
    """With weights of 4 heads over 2 of keys, a mask or none: registered for all, it changes nothing."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    layer = tiny_llama().model.layers[0].self_attn
    query, key, value = (torch.randn(2, heads, 6, 8) for heads in (4, 2, 2))
    for mask in (None, torch.ones(6, 6, dtype=torch.bool).tril()[None, None]):
        mine = packing.attend(layer, query, key, value, mask, scaling=0.3)[0]
        assert torch.equal(mine, sdpa_attention_forward(layer, query, key, value, mask, scaling=0.3)[0])


def test_flash_attention_is_told_where_rows_begin() -> None:
    """Its kernels are not here: what it would be called with, as DataCollatorWithFlattening has it."""
    model, batch = tiny_llama(vocab_size=VOCABULARY), collate(LONG[:3], 1)
    model.config._attn_implementation = "flash_attention_2"
    inputs = packing.inputs_for(model, batch, packing.rows_of(batch["real"], *batch["labels"].shape))
    lengths = [len(one.input_ids) for one in LONG[:3]]
    ends = [0, lengths[0], lengths[0] + lengths[1], sum(lengths)]
    assert inputs["cu_seq_lens_q"].tolist() == inputs["cu_seq_lens_k"].tolist() == ends
    assert inputs["cu_seq_lens_q"].dtype == torch.int32 and inputs["max_length_q"] == max(lengths)
    assert inputs["position_ids"].tolist() == [[place for n in lengths for place in range(n)]]
    assert inputs["attention_mask"] is None


def test_a_run_on_padded_rows_is_the_same_and_says_so(tmp_path: Path) -> None:
    from training_runs import run

    settings = {"learning_rate": 1e-3, "max_steps": 3}
    packed = run(tmp_path / "packed", **settings)
    model = tiny_llama(layers=1, hidden=16)
    model.set_attn_implementation("eager")
    padded = run(tmp_path / "padded", model=model, **settings)
    for mine, other in zip(packed.record.steps, padded.record.steps, strict=True):
        assert mine.forget_loss == pytest.approx(other.forget_loss, rel=1e-4)
        assert mine.retain_loss == pytest.approx(other.retain_loss, rel=1e-4)
    said = "attention of the kind 'eager' cannot keep packed rows apart: batches were padded"
    assert said in padded.record.notes and said not in packed.record.notes
