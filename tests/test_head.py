"""Logits of some tokens at a time, against all of them at once: values, gradients, memory."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CohereConfig, Gemma2Config, GraniteConfig
from transformers.models.auto import AutoModelForCausalLM

from ngdiff.data.batching import collate, collate_for_loss
from ngdiff.inference.teacher_forced import batch_extraction_strength, score_tokens
from ngdiff.losses import LOSSES
from ngdiff.losses.loss import look
from ngdiff.models import head, logprobs
from ngdiff.models.logprobs import LabelledTokens, labelled_tokens
from test_losses import EXAMPLES, example
from tiny import tiny_llama

VOCABULARY = 40
SETTINGS: dict[str, dict[str, float]] = {"bounded-nll": {"ceiling": 3.0}}
OF_LOGITS = sorted(name for name, loss in LOSSES.items() if loss.looks_at == "predictions")


@pytest.fixture
def three_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "AT_ONCE", 3 * 4 * VOCABULARY)


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


ROUNDING = {"jsd": 2e-6}
"""Share of the largest gradient that sums in another order may differ by, where 1e-6 is too little."""


def loss_and_gradients(
    name: str, model: nn.Module, batch: dict[str, Tensor], autocast: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    row = LOSSES[name].complete(SETTINGS.get(name, {}), {"never-seen NLL": 3.0})
    start = tiny_llama(vocab_size=VOCABULARY, seed=3).lm_head.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        seen = look(row, model, batch, lambda states: start(states).float())
        assert isinstance(seen, LabelledTokens)
        loss = row.function(seen)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", OF_LOGITS)
def test_every_loss_and_its_gradient_is_that_of_all_logits_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = tiny_llama(vocab_size=VOCABULARY), complete(name)
    expected, gradients = loss_and_gradients(name, model, batch)
    monkeypatch.setattr(head, "AT_ONCE", 3 * 4 * VOCABULARY)
    assert labelled_tokens(model, batch, in_parts=True).logits is None
    found, parts = loss_and_gradients(name, model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert parts.keys() == gradients.keys()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(
            parts[parameter], gradient, rtol=1e-5, atol=ROUNDING.get(name, 1e-6) * float(gradient.abs().max())
        )


@pytest.mark.parametrize("name", ["nll", "counterfactual", "kl"])
def test_under_bf16_it_is_as_near_to_float32_as_all_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = tiny_llama(vocab_size=VOCABULARY), complete(name)
    exact, exact_gradients = loss_and_gradients(name, model, batch)
    weight = "model.embed_tokens.weight" if "lm_head.weight" not in exact_gradients else "lm_head.weight"

    def errors() -> tuple[float, float]:
        found, gradients = loss_and_gradients(name, model, batch, autocast=True)
        apart = gradients[weight] - exact_gradients[weight]
        return abs(float(found - exact)), float(apart.norm())

    whole = errors()
    monkeypatch.setattr(head, "AT_ONCE", 3 * 4 * VOCABULARY)
    parts = errors()
    assert parts[0] <= 1.01 * whole[0] + 1e-4 * abs(float(exact))
    assert parts[1] <= 1.2 * whole[1]  # each part's product is rounded, and there are thirteen of them here


def test_each_token_is_worked_out_with_its_own_columns(three_at_a_time: None) -> None:
    """Against a second way to the logits: the model's own, one example at a time."""
    model = tiny_llama(vocab_size=VOCABULARY).eval()
    tokens = labelled_tokens(model, collate(EXAMPLES, 1), in_parts=True)
    assert tokens.deferred is not None
    place = 0
    for one in EXAMPLES:
        log_probs = model(torch.tensor([one.input_ids])).logits[0].log_softmax(-1).detach()
        for position, label in enumerate(one.labels[1:]):
            if label != logprobs.IGNORED:
                found = float(tokens.log_probs()[place].detach())
                assert found == pytest.approx(float(log_probs[position, label]), abs=1e-5)
                place += 1
    assert place == len(tokens.targets) == len(tokens.whole_logits())


def test_scores_are_those_of_all_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(vocab_size=VOCABULARY).eval()
    asked = [row % 2 == 0 for row in range(len(EXAMPLES))]
    with torch.no_grad():
        whole = labelled_tokens(model, collate(EXAMPLES, 1), in_parts=True)
        monkeypatch.setattr(head, "AT_ONCE", 3 * 4 * VOCABULARY)
        parts = labelled_tokens(model, collate(EXAMPLES, 1), in_parts=True)
        assert whole.deferred is None and parts.deferred is not None
        for mine, other in zip(score_tokens(parts, asked), score_tokens(whole, asked), strict=True):
            assert mine.log_probs == pytest.approx(other.log_probs, abs=1e-5)
            assert mine.z_scores == pytest.approx(other.z_scores, abs=1e-4)
            assert (mine.greedy, mine.extraction_strength) == (other.greedy, other.extraction_strength)
        assert float(batch_extraction_strength(parts)) == float(batch_extraction_strength(whole))


def test_the_likeliest_tokens_come_with_the_loss(three_at_a_time: None) -> None:
    model = tiny_llama(vocab_size=VOCABULARY)
    tokens = labelled_tokens(model, collate(EXAMPLES, 1), in_parts=True)
    expected = tokens.correct()  # of a pass of its own
    assert tokens.deferred is not None and tokens.deferred.likeliest is not None
    tokens.deferred.likeliest = None
    tokens.log_probs()
    seen: Any = tokens.deferred.likeliest
    assert torch.equal(seen == tokens.targets, expected)


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The most bytes that any one tensor takes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(one, Tensor):
                self.bytes = max(self.bytes, one.numel() * one.element_size())
        return found


def test_no_tensor_is_as_long_as_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary, at_once = 4000, 16
    model = tiny_llama(vocab_size=vocabulary, hidden=16, layers=1)
    batch = collate([example(seed, 4, 30, vocabulary) for seed in range(8)], 1)
    largest = {}
    for name, most in (("whole", 240), ("parts", at_once)):
        monkeypatch.setattr(head, "AT_ONCE", most * 4 * vocabulary)
        with Largest() as seen:
            (-labelled_tokens(model, batch, in_parts=True).log_probs().sum()).backward()
        largest[name] = seen.bytes
    assert largest["whole"] == 240 * 4 * vocabulary
    assert largest["parts"] <= at_once * 4 * vocabulary  # and that of the weights is 16 * 4 * vocabulary


SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 1,
    "bos_token_id": None,
    "eos_token_id": 1,
}


@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(**SMALL, logits_scaling=4.0),
        CohereConfig(**SMALL, logit_scale=0.25),
        Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0),
    ],
    ids=lambda config: config.model_type,
)
def test_what_models_do_to_their_logits_is_done(config: Any, three_at_a_time: None) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    nn.init.normal_(model.get_output_embeddings().weight, std=2.0)
    batch = collate(EXAMPLES, 1)
    parts, whole = (labelled_tokens(model, batch, in_parts=wanted) for wanted in (True, False))
    assert parts.deferred is not None and whole.logits is not None
    torch.testing.assert_close(parts.whole_logits(), whole.logits, rtol=1e-4, atol=1e-5)


def test_a_head_that_cannot_stand_apart_is_left_with_its_model(three_at_a_time: None) -> None:
    batch = collate(EXAMPLES, 1)
    inner = tiny_llama(vocab_size=VOCABULARY)

    class Odd(nn.Module):
        config = inner.config

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def get_output_embeddings(self) -> nn.Module:
            return inner.lm_head

        def forward(self, **inputs: Any) -> Any:
            output = self.inner(**inputs)
            output.logits = output.logits.abs() + 1
            return output

    tokens = labelled_tokens(Odd(), batch, in_parts=True)
    assert tokens.deferred is None and tokens.logits is not None and len(tokens.logits) == len(tokens.targets)
    assert "more with its logits" in head.refused[inner.lm_head]

    class Mine(nn.Linear):
        pass

    other = tiny_llama(vocab_size=VOCABULARY)
    mine = Mine(32, VOCABULARY, bias=False)
    other.set_output_embeddings(mine)
    assert labelled_tokens(other, batch, in_parts=True).deferred is None
    assert head.refused[mine] == "the output head is a Mine, not a linear layer"


def test_a_bias_and_frozen_weights(three_at_a_time: None) -> None:
    """Of a head with a bias the bias gets its gradient; of a frozen head only the states do."""
    torch.manual_seed(0)
    states = torch.randn(10, 8, requires_grad=True)
    weight, bias = torch.randn(VOCABULARY, 8, requires_grad=True), torch.randn(VOCABULARY, requires_grad=True)
    targets = torch.arange(10)
    found = head.HeadInput(states, head.Head(weight, bias, factor=0.5, cap=3.0))
    value = found.each(logprobs._log_probs, targets).square().sum()
    logits = 3.0 * torch.tanh((states @ weight.T + bias) * 0.5 / 3.0)
    expected = logits.log_softmax(1)[range(10), targets].square().sum()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    mine = torch.autograd.grad(value, [states, weight, bias])
    theirs = torch.autograd.grad(expected, [states, weight, bias])
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    frozen = head.HeadInput(states, head.Head(weight.detach(), None))
    frozen.each(logprobs._log_odds, targets).sum().backward()
    assert states.grad is not None and bool(states.grad.abs().sum() > 0)


def test_tokens_at_once_go_by_bytes() -> None:
    assert head.tokens_at_once(49_152) == 1365 and head.tokens_at_once(128_256) == 523
    assert head.tokens_at_once(2**40) == 1
    assert [p.stop - p.start for p in head._parts(3000, 49_152)] == [1000, 1000, 1000]
    assert math.isclose(head.AT_ONCE, 2**28)


def test_a_run_trains_probes_and_checks_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_trainer import run

    settings = {"learning_rate": 1e-3, "max_steps": 3, "method": "ngdiff-counterfactual"}
    whole = run(tmp_path / "whole", **settings)
    monkeypatch.setattr(head, "AT_ONCE", 5 * 4 * 320)
    parts = run(tmp_path / "parts", **settings)
    for mine, other in zip(parts.record.steps, whole.record.steps, strict=True):
        assert mine.forget_loss == pytest.approx(other.forget_loss, rel=1e-4)
        assert mine.retain_loss == pytest.approx(other.retain_loss, rel=1e-3, abs=1e-6)
        assert mine.forget_extraction_strength == other.forget_extraction_strength
