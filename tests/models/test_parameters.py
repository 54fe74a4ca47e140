"""Parameters: the share that a step changed, and the copy to go back to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ngdiff.models.adapters import with_lora
from ngdiff.models.parameters import BestWeights, ChangeMeter
from tiny import tiny_llama

torch.set_num_threads(1)


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 2, bias=False))  # 88 + 16 parameters


def test_share_is_exact_on_a_small_model() -> None:
    model = two_layers()
    meter = ChangeMeter(model)
    meter.before()
    assert meter.after() == 0.0
    with torch.no_grad():
        model[0].weight[0, :7] += 1.0
        model[1].weight[1, 2] *= -2.0
        model[0].bias[3] += 1.0
    assert meter.after() == 9 / 104
    meter.before()
    assert meter.after() == 0.0


def test_descent_is_the_cosine_of_gradient_and_applied_update() -> None:
    model = two_layers()
    meter = ChangeMeter(model)
    generator = torch.Generator().manual_seed(0)
    gradient = [torch.randn(p.shape, generator=generator) for p in model.parameters()]
    update = [torch.randn(p.shape, generator=generator) for p in model.parameters()]
    sampled = meter.sample(gradient)
    with pytest.raises(ValueError, match="no step"):
        meter.descent(sampled)
    meter.before()
    with torch.no_grad():
        for parameter, part in zip(model.parameters(), update, strict=True):
            parameter -= part
    meter.after()
    flat = [torch.cat([part.flatten() for part in parts]).double() for parts in (gradient, update)]
    by_hand = float(flat[0] @ flat[1] / (flat[0].norm() * flat[1].norm()))
    assert meter.descent(sampled) == pytest.approx(by_hand, abs=1e-5)
    assert meter.descent([-part for part in sampled]) == pytest.approx(-by_hand, abs=1e-5)
    assert meter.descent([torch.zeros_like(part) for part in sampled]) == 0.0
    nothing = meter.sample([None, *gradient[1:]])
    assert float(nothing[0][:80].abs().sum()) == 0.0 != float(nothing[0][80:].abs().sum())


def test_frozen_parameters_do_not_count() -> None:
    model = two_layers()
    model[0].requires_grad_(False)
    meter = ChangeMeter(model)
    meter.before()
    with torch.no_grad():
        model[0].weight += 1.0
        model[1].weight[0] += 1.0
    assert meter.after() == 8 / 16


def test_a_sample_is_close_to_the_whole() -> None:
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))
    meter = ChangeMeter(model, sample=1000)
    meter.before()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[torch.rand(parameter.shape, generator=generator) < 0.3] += 1.0
    assert meter.after() == pytest.approx(0.3, abs=0.06)


def test_small_updates_round_away_in_bf16() -> None:
    shares = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_llama().to(dtype)
        meter = ChangeMeter(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)
        meter.before()
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
        optimizer.step()
        shares[dtype] = meter.after()
    assert shares[torch.float32] > 0.99
    assert shares[torch.bfloat16] < 0.2


def test_best_weights_round_trip(tmp_path: Path) -> None:
    model = two_layers()
    best = BestWeights(model, tmp_path / "run")
    best.restore()  # nothing kept yet: nothing happens
    first = [parameter.detach().clone() for parameter in model.parameters()]
    best.save()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(1)
    second = [parameter.detach().clone() for parameter in model.parameters()]
    identities = [id(parameter) for parameter in model.parameters()]
    best.restore()
    assert all(map(torch.equal, model.parameters(), first))
    assert [id(parameter) for parameter in model.parameters()] == identities  # in place: the optimizer's own
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), second, strict=True):
            parameter.copy_(value)
    best.save()  # replaces the earlier copy
    with torch.no_grad():
        model[0].bias.zero_()
    best.restore()
    assert all(map(torch.equal, model.parameters(), second))
    assert len(list((tmp_path / "run").glob(".best-*/*"))) == 1
    best.discard()
    assert list((tmp_path / "run").iterdir()) == []
    best.discard()


def test_best_weights_leave_frozen_parameters_alone(tmp_path: Path) -> None:
    model = two_layers()
    model[0].requires_grad_(False)
    best = BestWeights(model, tmp_path)
    best.save()
    with torch.no_grad():
        model[0].weight.fill_(7.0)
        model[1].weight.fill_(7.0)
    best.restore()
    best.discard()
    assert bool((model[0].weight == 7.0).all())
    assert not bool((model[1].weight == 7.0).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_best_weights_of_a_model_with_tied_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny_llama().to(dtype)
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    best = BestWeights(model, tmp_path)
    best.save()
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.norm.weight.zero_()
    best.restore()
    best.discard()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_best_weights_travel_with_a_checkpoint(tmp_path: Path) -> None:
    first, second = two_layers(), two_layers()
    kept, checkpoint = BestWeights(first, tmp_path / "a"), tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    kept.copy_to(checkpoint)  # nothing kept: nothing to travel
    assert list(checkpoint.iterdir()) == []
    kept.save()
    kept.copy_to(checkpoint)
    taken = BestWeights(second, tmp_path / "b")
    taken.take(tmp_path)  # none there
    taken.take(checkpoint)
    taken.restore()
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    for best in (kept, taken):
        best.discard()
    assert len(list(checkpoint.iterdir())) == 1
    assert list(tmp_path.rglob(".best-*")) == []


def test_adapters_begin_as_their_seed_says() -> None:
    def begun(seed: int) -> dict[str, torch.Tensor]:
        model = with_lora(tiny_llama(layers=1, hidden=16), seed)
        return {name: value for name, value in model.state_dict().items() if "lora_A" in name}

    first = begun(3)
    torch.rand(7)
    again, other = begun(3), begun(4)
    assert first and all(torch.equal(value, again[name]) for name, value in first.items())
    assert not any(torch.equal(value, other[name]) for name, value in first.items())
