"""The trainer: what one step is made of, and how it is recorded."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ngdiff.preparation.comparisons
import ngdiff.training.measurements
import ngdiff.training.trainer
from ngdiff.data.batching import Stream, collate
from ngdiff.errors import RequestError
from ngdiff.losses import LOSSES, nll
from ngdiff.models.logprobs import LabelledTokens, labelled_tokens
from ngdiff.training.config import UnlearningConfig
from ngdiff.training.trainer import UnlearningTrainer
from tiny import tiny_llama
from training_runs import (
    assert_same_steps,
    assert_same_weights,
    make,
    rows,
    run,
    start,
    weights,
)

pytestmark = pytest.mark.usefixtures("quick_runs")


def test_records_agree_with_each_other(tmp_path: Path) -> None:
    trainer = run(tmp_path, optim="sgd", learning_rate=0.05)
    for step in trainer.record.steps:
        assert step.weights == pytest.approx((1 / step.retain_norm, 1 / step.forget_norm))
        assert step.combined_norm == pytest.approx(math.sqrt(2 * (1 + step.cosine)), rel=1e-4)
        assert step.forget_loss < 0 < step.retain_loss
        assert 0.5 < step.changed <= 1
        # plain descent applies d itself: cos(d, g_R) = cos(d, g_f) = (1 + c) / |d|
        both = math.sqrt((1 + step.cosine) / 2)
        assert (step.retain_descent, step.forget_descent) == pytest.approx((both, both), abs=1e-4)
        assert step.skipped is None
    assert json.loads(json.dumps(trainer.record.as_json(), allow_nan=False))["stop"]["code"] == "end"
    assert trainer.record.cost["steps"] == 6


def test_the_bound_is_the_level_of_never_seen_text(tmp_path: Path) -> None:
    trainer = run(tmp_path, method="ngdiff-bounded", max_steps=2)
    level = trainer.record.before["never_seen"]["nll"]
    assert trainer.record.losses == {"forget": {"ceiling": level}, "retain": {}}
    assert -level <= trainer.record.steps[0].forget_loss < 0
    given = run(tmp_path, forget_loss="bounded-nll", forget_loss_settings={"ceiling": 0.5}, max_steps=2)
    assert given.record.losses["forget"] == {"ceiling": 0.5}
    for step in given.record.steps:  # every token is far less probable than e^-0.5: the forget set is done
        assert (step.forget_loss, step.forget_norm, step.weights[1]) == (-0.5, 0.0, 0.0)
        assert step.retain_norm > 0 and step.skipped is None


@pytest.mark.parametrize("bounded", [False, True])
def test_a_bound_pushes_no_token_far_beyond_it(tmp_path: Path, memorised: nn.Module, bounded: bool) -> None:
    method = "ngdiff-bounded" if bounded else "ngdiff"
    model = copy.deepcopy(memorised)
    trainer = run(tmp_path, model=model, method=method, max_steps=40, learning_rate=3e-3)
    level = trainer.record.losses["forget"].get("ceiling", trainer.record.before["never_seen"]["nll"])
    assert (trainer.record.after["forget"]["nll"] < 2 * level) is bounded


def test_sago_takes_each_coordinate_from_one_of_the_two(tmp_path: Path) -> None:
    """A step of SGD against the two gradients, taken one by one."""
    trainer = run(tmp_path, rule="sago", max_steps=1, optim="sgd", learning_rate=0.1)
    model = tiny_llama(layers=1, hidden=16)
    found = {}
    pairs = [trainer.train_dataset[pair] for pair in list(trainer._get_train_sampler())[:2]]
    for place, (task, sign) in enumerate((("forget", -1.0), ("retain", 1.0))):
        tokens = labelled_tokens(model, collate([pair[place] for pair in pairs], 0))
        loss = sign * nll(tokens) / len(tokens.targets)
        found[task] = torch.autograd.grad(loss, list(model.parameters()))
    for parameter, forget, retain in zip(model.parameters(), found["forget"], found["retain"], strict=True):
        chosen = torch.where(forget * retain < 0, retain, forget)
        parameter.data -= 0.1 * chosen
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights(trainer)[name], value, rtol=0, atol=1e-6)
    step = trainer.record.steps[0]
    assert step.combined_norm is None and step.cosine is not None


@pytest.mark.parametrize("settings", [{}, {"forget_buffer": "cpu"}, {"per_device_train_batch_size": 4}])
def test_a_sharpness_aware_step_takes_the_forget_gradient_uphill(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """A step of SGD against its definition: the forget gradient at w + radius g_f / |g_f|, taken at w."""
    radius, rate = 0.3, 0.1
    common: dict[str, Any] = {"rule": "constant", "optim": "sgd", "learning_rate": rate, "max_steps": 1}
    common |= {"per_device_train_batch_size": 2, "examples_per_step": 4, "sam_radius": radius}
    trainer = run(tmp_path, **{**common, **settings})
    pairs = [trainer.train_dataset[pair] for pair in list(trainer._get_train_sampler())[:4]]

    def gradient(model: nn.Module, place: int, sign: float) -> tuple[Tensor, ...]:
        tokens = labelled_tokens(model, collate([pair[place] for pair in pairs], 0))
        return torch.autograd.grad(sign * nll(tokens) / len(tokens.targets), list(model.parameters()))

    model, uphill = (tiny_llama(layers=1, hidden=16) for _ in range(2))
    flat = gradient(model, 0, -1.0)
    length = math.sqrt(sum(float(part.square().sum()) for part in flat))
    for parameter, part in zip(uphill.parameters(), flat, strict=True):
        parameter.data += radius / length * part
    steep, retain = gradient(uphill, 0, -1.0), gradient(model, 1, 1.0)
    assert any(not torch.allclose(one, other, rtol=0.05) for one, other in zip(steep, flat, strict=True))
    for parameter, ours, theirs in zip(model.parameters(), steep, retain, strict=True):
        parameter.data -= rate * (ours + theirs)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights(trainer)[name], value, rtol=0, atol=1e-6)
    step, plain = trainer.record.steps[0], run(tmp_path / "plain", **{**common, "sam_radius": 0.0})
    assert step.forget_loss == pytest.approx(plain.record.steps[0].forget_loss, rel=1e-6)  # that of w itself
    assert step.forget_norm == pytest.approx(
        math.sqrt(sum(float(part.square().sum()) for part in steep)), rel=1e-4
    )


def test_a_sharpness_aware_run_is_the_same_however_a_step_is_cut(tmp_path: Path) -> None:
    common = {
        "optim": "sgd",
        "learning_rate": 0.05,
        "sam_radius": 0.1,
        "max_steps": 4,
        "examples_per_step": 8,
    }
    wide = run(tmp_path / "w", per_device_train_batch_size=8, **common)
    narrow = run(tmp_path / "n", per_device_train_batch_size=1, **common)
    assert_same_weights(wide, narrow, 1e-5)
    assert_same_steps(wide, narrow, 1e-4)


@pytest.mark.parametrize("method", ["ngdiff", "ngdiff-unlikelihood", "rmu", "sago", "retain-only"])
def test_every_method_takes_a_radius(tmp_path: Path, method: str) -> None:
    settings = {"rule": method, "learning_rate": 1e-3} if method == "retain-only" else {"method": method}
    trainer = run(tmp_path, sam_radius=0.05, max_steps=2, **settings)
    assert trainer.record.sources["sam_radius"].startswith("Fan et al. 2025")
    assert [step.skipped for step in trainer.record.steps] == [None, None]


def test_a_model_without_a_forget_gradient_is_not_moved_uphill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES, "negated-nll", replace(LOSSES["negated-nll"], function=_flat))
    trainer = run(tmp_path, rule="constant", learning_rate=1e-3, sam_radius=0.5, max_steps=2)
    assert [step.forget_norm for step in trainer.record.steps] == [0.0, 0.0]
    assert all(bool(value.isfinite().all()) for value in weights(trainer).values())


def _flat(tokens: LabelledTokens) -> Tensor:
    return tokens.log_probs().sum() * 0


def test_a_radius_is_a_length(tmp_path: Path) -> None:
    for radius in (-0.1, math.inf, math.nan):
        with pytest.raises(RequestError, match=r"sam_radius.*is not (a length|finite)"):
            UnlearningConfig(output_dir=str(tmp_path), sam_radius=radius)
    assert UnlearningConfig(output_dir=str(tmp_path), method="npo-sam").sam_radius == 0.01
    assert UnlearningConfig(output_dir=str(tmp_path), method="npo-sam", sam_radius=0.0).sam_radius == 0


@pytest.mark.parametrize("rule", ["pdu", "lossnorm"])
def test_rules_see_the_losses_of_the_whole_batch(tmp_path: Path, rule: str) -> None:
    settings = {"bound": 3.0, "rate": 0.5} if rule == "pdu" else {}
    common = {"rule_settings": settings, "learning_rate": 1e-3, "gradient_accumulation_steps": 2}
    trainer = run(tmp_path, rule=rule, max_steps=4, **common)
    multiplier = 1.0
    for step in trainer.record.steps:
        assert step.retain_loss is not None and step.forget_loss is not None
        expected = (multiplier, 1.0) if rule == "pdu" else (1 / step.retain_loss, -1 / step.forget_loss)
        assert step.weights == pytest.approx(expected, rel=1e-5)
        multiplier = max(0.0, multiplier + 0.5 * (step.retain_loss - 3.0))


@pytest.mark.parametrize(("rule", "skipped"), [("retain-only", "forget"), ("forget-only", "retain")])
def test_a_task_without_weight_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, skipped: str
) -> None:
    other = {"forget": "negated-nll", "retain": "nll"}[skipped]
    monkeypatch.setitem(LOSSES, other, replace(LOSSES[other], function=_must_not_run))
    trainer = run(tmp_path, rule=rule, learning_rate=1e-3)
    for step in trainer.record.steps:
        assert (step.forget_loss is None) == (skipped == "forget")
        assert (step.retain_loss is None) == (skipped == "retain")


def _must_not_run(tokens: LabelledTokens) -> Tensor:
    raise AssertionError("this task has weight 0")


def test_a_learning_rate_given_is_fixed(tmp_path: Path) -> None:
    trainer = run(tmp_path, learning_rate=2e-4, max_steps=12)
    assert {step.learning_rate for step in trainer.record.steps} == {2e-4}
    assert trainer.record.probes == []


def test_graddiff_has_its_papers_rate(tmp_path: Path) -> None:
    trainer = run(tmp_path, method="graddiff")
    assert {step.learning_rate for step in trainer.record.steps} == {1e-5}
    assert trainer.record.probes == []


def test_automatic_rate_probes_every_so_often(tmp_path: Path) -> None:
    trainer = run(tmp_path, probe_every=3, max_steps=8)
    assert [probe.step for probe in trainer.record.probes] == [1, 4, 7]
    rates = {step.step: step.learning_rate for step in trainer.record.steps}
    for probe in trainer.record.probes:
        assert rates[probe.step] == probe.applied
        assert rates[probe.step + 1] == probe.after
    assert trainer.args.learning_rate is None


def test_the_papers_method_begins_at_its_rate_and_probes_at_every_tenth_step(tmp_path: Path) -> None:
    trainer = run(tmp_path, method="ngdiff", max_steps=21, step_size="gen", learning_rate=1e-3)
    probes = trainer.record.probes
    assert [probe.step for probe in probes] == [10, 20]
    rates = [step.learning_rate for step in trainer.record.steps]
    assert rates[:9] == [1e-3] * 9 and probes[0].before == 1e-3
    assert rates[9:19] == [probes[0].after] * 10 and rates[19:] == [probes[1].after] * 2
    assert all(0.95 <= probe.after / probe.before <= 1.1 for probe in probes if probe.before)
    assert trainer.record.sources["step_size"].startswith("Bu & Xu")
    assert trainer.record.checks == [] or {check["step"] for check in trainer.record.checks} == {0}
    assert trainer.record.stop["code"] == "end" and trainer.record.stop["utility_floor"] == 0


def test_search_begins_where_told(tmp_path: Path) -> None:
    trainer = run(tmp_path, step_size="auto", learning_rate=1e-3, max_steps=2)
    (probe,) = trainer.record.probes
    assert probe.before == 1e-3
    assert probe.points[0].width == 1e-3
    assert len(probe.points) < len(run(tmp_path / "cold", max_steps=1).record.probes[0].points)


def test_probes_look_at_other_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, set[tuple[int, ...]]]] = []
    draw = ngdiff.training.measurements.ProbeLoss._draw

    def seen(self: Any) -> Any:
        batches = draw(self)
        mine = {tuple(row[row >= 0].tolist()) for batch in batches for row in batch["labels"]}
        used = {_labels(self.trainer.retain_set[row].labels) for row in self.trainer.run.step.retain_rows}
        assert not mine & used
        drawn.append((self.trainer.state.global_step, mine))
        return batches

    monkeypatch.setattr(ngdiff.training.measurements.ProbeLoss, "_draw", seen)
    # every retain answer differs, so that examples can be told apart by their labels
    monkeypatch.setattr(UnlearningTrainer, "PROBE_SHARE", 2.5)
    run(tmp_path, retain=rows("R", 20, lambda n: f"{n:02}"), probe_every=2)
    assert [step for step, _ in drawn] == [0, 2, 4]
    assert all(len(mine) == 5 for _, mine in drawn)
    assert drawn[0][1] != drawn[1][1]


def _labels(labels: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(label for label in labels if label >= 0)


def test_batches_follow_the_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each epoch visits every forget example once; the retain stream runs on across epochs."""
    trainer = make(tmp_path, learning_rate=1e-3, max_steps=10)
    seen: list[list[int]] = []
    take = trainer.get_batch_samples

    def watched(*args: Any) -> Any:
        batches, count = take(*args)
        seen.append(sorted(int(row) for batch in batches for row in batch["retain_rows"]))
        return batches, count

    monkeypatch.setattr(trainer, "get_batch_samples", watched)
    trainer.train()
    stream = Stream(len(trainer.retain_set), trainer.args.seed + 1)
    assert seen == [sorted([stream[2 * step], stream[2 * step + 1]]) for step in range(10)]


def test_clipping_bounds_the_combined_gradient(tmp_path: Path) -> None:
    free = run(tmp_path / "f", optim="sgd", learning_rate=1.0, max_steps=1)
    clipped = run(tmp_path / "c", optim="sgd", learning_rate=1.0, max_steps=1, max_grad_norm=0.01)
    lengths = []
    for trainer in (free, clipped):
        moved = [(value - start()[name]).flatten() for name, value in weights(trainer).items()]
        lengths.append(float(torch.cat(moved).norm()))
    assert lengths[0] == pytest.approx(free.record.steps[0].combined_norm, rel=1e-3)
    assert lengths[1] == pytest.approx(0.01, rel=1e-2)
