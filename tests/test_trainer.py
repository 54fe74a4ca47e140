"""The trainer: equal settings give equal runs, a resumed run goes on as it was, and every way to end."""

from __future__ import annotations

import copy
import gc
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor, nn
from transformers import TrainerCallback

import ngdiff.preparation.comparisons
import ngdiff.training.measurements
import ngdiff.training.trainer
from ngdiff.data.batching import Stream, collate
from ngdiff.data.datasets import as_encoded
from ngdiff.errors import RequestError
from ngdiff.inference.teacher_forced import AnswerScore
from ngdiff.losses import LOSSES, Loss, nll
from ngdiff.methods import METHODS, Method
from ngdiff.models.logprobs import LabelledTokens, labelled_tokens
from ngdiff.preparation.predictable import figures_at_rest
from ngdiff.runs.checkpoints import MANIFEST
from ngdiff.stopping.rule import StoppingRule
from ngdiff.system.environment import versions
from ngdiff.training.config import UnlearningConfig
from ngdiff.training.run_state import STATE_FILE
from ngdiff.training.trainer import UnlearningTrainer
from tiny import tiny_llama, tiny_tokenizer

torch.set_num_threads(1)
# peft asks transformers for the old name of a property
OLD_NAME = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
TOKENIZER = tiny_tokenizer(None)


VERSIONS = versions()


@pytest.fixture(autouse=True)
def _quick_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each run begins with a garbage collection and a look at what is installed: spare it what is known."""
    monkeypatch.setattr(ngdiff.training.trainer, "versions", lambda: VERSIONS)
    gc.freeze()
    yield
    gc.unfreeze()


def rows(letter: str, count: int, answer: Callable[[int], str]) -> list[dict[str, str]]:
    return [{"prompt": f"{letter}{n:02}:", "completion": f" {answer(n)}"} for n in range(count)]


def _word(n: int) -> str:
    return "".join(random.Random(n).choices("abcdefghij", k=4 + n % 7))


FORGET = rows("F", 8, _word)
RETAIN = rows("R", 20, lambda n: "abcdefghij"[n % 10] * (3 + n % 5))
UNSEEN = rows("U", 4, lambda n: _word(n + 50))


def make(
    folder: Path,
    *,
    model: nn.Module | None = None,
    forget: Any = FORGET,
    retain: Any = RETAIN,
    holdout: Any = UNSEEN,
    callbacks: Any = None,
    peft_config: Any = None,
    **settings: Any,
) -> UnlearningTrainer:
    quiet = {"use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False, "report_to": "none"}
    small: dict[str, Any] = {"stop_at": "none", "max_length": 64}
    small |= {"per_device_train_batch_size": 2, "max_steps": 6}
    small["keep_utility"] = 0.0  # these models know nothing at first, so there is nothing to keep
    small["floors"] = {"general": 0.0} if settings.get("keep_utility") else {}
    if "method" not in settings:
        small["method"] = "ngdiff"  # an untrained model finds every token improbable: a bound leaves nothing
        if "learning_rate" not in settings:
            small["step_size"] = "auto"
    return UnlearningTrainer(
        tiny_llama(layers=1, hidden=16) if model is None else model,
        UnlearningConfig(output_dir=str(folder), **{**quiet, **small, **settings}),
        forget_dataset=forget,
        retain_dataset=retain,
        holdout_dataset=holdout,
        processing_class=TOKENIZER,
        callbacks=callbacks,
        peft_config=peft_config,
    )


def run(folder: Path, **settings: Any) -> UnlearningTrainer:
    trainer = make(folder, **settings)
    trainer.train()
    return trainer


def weights(trainer: UnlearningTrainer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def assert_same_weights(left: UnlearningTrainer, right: UnlearningTrainer, tolerance: float = 0.0) -> None:
    there = weights(right)
    for name, value in weights(left).items():
        torch.testing.assert_close(
            value, there[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def steps(trainer: UnlearningTrainer) -> list[dict[str, Any]]:
    """The record's steps without their times."""
    return [asdict(replace(step, seconds=0.0)) for step in trainer.record.steps]


def assert_same_steps(left: UnlearningTrainer, right: UnlearningTrainer, tolerance: float) -> None:
    assert len(left.record.steps) == len(right.record.steps)
    for mine, other in zip(steps(left), steps(right), strict=True):
        for key, value in mine.items():
            if value is None or isinstance(value, str):
                assert other[key] == value
            else:
                # a parameter whose gradient is next to nothing moves in the one rounding and not in the other
                close = max(tolerance, 1e-3) if key == "changed" else tolerance
                assert other[key] == pytest.approx(value, rel=close, abs=close), (mine["step"], key)


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(".best-*"))


# ---- equal settings, equal runs ----


@pytest.mark.parametrize("rule", ["ngdiff", "constant", "pcgrad", "lossnorm", "pdu"])
def test_one_batch_of_eight_is_eight_batches_of_one(tmp_path: Path, rule: str) -> None:
    common = {"optim": "sgd", "learning_rate": 0.05, "rule": rule, "max_steps": 5}
    wide = run(tmp_path / "w", per_device_train_batch_size=8, **common)
    deep = run(tmp_path / "d", per_device_train_batch_size=1, gradient_accumulation_steps=8, **common)
    assert_same_steps(wide, deep, 1e-5)
    assert_same_weights(wide, deep, 1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(weights(wide).values(), start().values(), strict=True))


@pytest.mark.parametrize("method", ["idkdpo", "idknll", "altpo"])
def test_other_answers_are_the_same_however_a_step_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    common = {"optim": "sgd", "learning_rate": 0.05, "method": method, "max_steps": 4, "max_length": 256}
    wide = run(tmp_path / "w", per_device_train_batch_size=4, **common)
    deep = run(tmp_path / "d", per_device_train_batch_size=1, gradient_accumulation_steps=4, **common)
    assert_same_steps(wide, deep, 1e-5)
    assert_same_weights(wide, deep, 1e-5)


def start() -> dict[str, Tensor]:
    return tiny_llama(layers=1, hidden=16).state_dict()


def test_accumulation_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    """6 examples, 2 at a time, 2 micro-batches a step: every second step is one micro-batch short."""
    trainer = run(tmp_path, forget=FORGET[:6], gradient_accumulation_steps=2, max_steps=5, learning_rate=0.01)
    assert [step.step for step in trainer.record.steps] == [1, 2, 3, 4, 5]
    assert [step.epoch for step in trainer.record.steps] == pytest.approx([2 / 3, 1, 5 / 3, 2, 8 / 3])
    assert all(math.isfinite(step.combined_norm or math.nan) for step in trainer.record.steps)


def test_same_seed_same_run(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = run(tmp_path / "a", max_steps=2)
    torch.manual_seed(2)
    second = run(tmp_path / "b", max_steps=2)
    assert steps(first) == steps(second)
    assert_same_weights(first, second)
    third = run(tmp_path / "c", max_steps=2, seed=1)
    assert steps(third) != steps(first)


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.5, "gamma": 2.0}])
def test_one_buffer_or_two(tmp_path: Path, settings: dict[str, float]) -> None:
    common = {"rule": "constant", "rule_settings": settings, "learning_rate": 0.05, "optim": "sgd"}
    one = run(tmp_path / "1", **common)
    two = run(tmp_path / "2", log_gramian=True, **common)
    assert_same_weights(one, two, 1e-6)
    for mine, other in zip(one.record.steps, two.record.steps, strict=True):
        assert mine.forget_loss == pytest.approx(other.forget_loss, rel=1e-5)
        assert mine.retain_loss == pytest.approx(other.retain_loss, rel=1e-5)
        assert mine.weights == other.weights == (settings.get("alpha", 1.0), settings.get("gamma", 1.0))
        assert (mine.forget_norm, mine.retain_norm, mine.cosine, mine.combined_norm) == (None,) * 4
        assert None not in (other.forget_norm, other.retain_norm, other.cosine, other.combined_norm)


# ---- what a step is ----


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
    trainer = run(tmp_path, method="ngdiff", max_steps=21, lr_start=1e-3)
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
    trainer = run(tmp_path, lr_start=1e-3, max_steps=2)
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
    run(tmp_path, retain=rows("R", 20, lambda n: f"{n:02}"), probe_every=2, probe_size=5)
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


# ---- inputs ----


def test_data_sets_in_any_form(tmp_path: Path) -> None:
    plain = run(tmp_path / "rows", max_steps=2)
    hub = run(
        tmp_path / "hub", max_steps=2, forget=Dataset.from_list(FORGET), retain=Dataset.from_list(RETAIN)
    )
    encoded = [as_encoded(data, TOKENIZER, 64, "x") for data in (FORGET, RETAIN)]
    ready = run(tmp_path / "encoded", max_steps=2, forget=encoded[0], retain=encoded[1])
    assert steps(plain) == steps(hub) == steps(ready)


def test_invented_people_where_nothing_is_held_out(tmp_path: Path) -> None:
    trainer = UnlearningTrainer(
        tiny_llama(layers=1, hidden=16),
        UnlearningConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", max_length=256),
        forget_dataset=FORGET,
        retain_dataset=RETAIN,
        processing_class=TOKENIZER,
    )
    assert len(trainer._never_seen) >= 8


def test_too_few_retain_examples_are_noted(tmp_path: Path) -> None:
    trainer = run(tmp_path, retain=RETAIN[:2], max_steps=1)
    assert any("too few to split" in note for note in trainer.record.notes)
    assert any("so small that probes reuse" in note for note in trainer.record.notes)


@OLD_NAME
@pytest.mark.parametrize("method", ["ngdiff", "graddiff"])
def test_adapters_alone_are_trained(tmp_path: Path, method: str) -> None:
    model = tiny_llama(layers=1, hidden=16)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    stop = {"stop_at": "nll=99", "check_every": 2, "keep_utility": 0.0}
    trainer = run(tmp_path, model=model, peft_config=lora, method=method, max_steps=4, **stop)
    base = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    assert all(torch.equal(base[name], value) for name, value in start().items())
    adapters = {name: value for name, value in weights(trainer).items() if "lora_B" in name}
    assert len(adapters) == 2
    assert all(bool(value.any()) for value in adapters.values())
    assert [step.step for step in trainer.record.steps] == [1, 2, 3, 4]
    assert trainer.record.stop["code"] == "end"
    # along adapters' first update the loss levels off: no reason for a rate of billions
    assert all(step.learning_rate < 100 for step in trainer.record.steps)
    assert leftovers(tmp_path) == []


@OLD_NAME
def test_adapters_begin_from_the_seed(tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    states = []
    for before in (1, 2):
        torch.manual_seed(before)  # whatever the caller did before
        states.append(weights(make(tmp_path, peft_config=lora, seed=5)))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# ---- callbacks and trackers ----


class Watcher(TrainerCallback):  # type: ignore[misc]
    """A user's callback: counts steps, keeps what is logged, and may stop or fail."""

    def __init__(self, stop_after: int | None = None, fail_after: int | None = None) -> None:
        self.stop_after, self.fail_after = stop_after, fail_after
        self.ended: list[int] = []
        self.logs: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ended.append(state.global_step)
        if state.global_step == self.fail_after:
            raise KeyboardInterrupt
        if state.global_step == self.stop_after:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logs.append(dict(logs))


def test_users_callback_may_stop_the_run(tmp_path: Path) -> None:
    watcher = Watcher(stop_after=3)
    trainer = run(tmp_path, callbacks=[watcher])
    assert watcher.ended == [1, 2, 3]
    assert trainer.record.stop["code"] == "end"
    assert trainer.record.stop["step"] == trainer.record.stop["kept_step"] == 3
    assert "all" not in trainer.record.stop["reason"]


def test_what_is_logged(tmp_path: Path) -> None:
    watcher = Watcher()
    trainer = run(tmp_path, callbacks=[watcher], probe_every=3)
    logged = [log for log in watcher.logs if "loss" in log]
    assert [log["learning_rate"] for log in logged] == [step.learning_rate for step in trainer.record.steps]
    assert [log["loss"] for log in logged] == pytest.approx([s.retain_loss for s in trainer.record.steps])
    assert [log["grad_norm"] for log in logged] == [step.combined_norm for step in trainer.record.steps]


def test_logged_loss_without_a_retain_loss(tmp_path: Path) -> None:
    watcher = Watcher()
    trainer = run(tmp_path, callbacks=[watcher], method="ga", max_steps=2)
    logged = [log["loss"] for log in watcher.logs if "loss" in log]
    assert logged == pytest.approx([step.forget_loss for step in trainer.record.steps])


def test_nothing_is_left_behind_by_a_run_that_breaks(tmp_path: Path) -> None:
    trainer = make(tmp_path, callbacks=[Watcher(fail_after=2)], stop_at="nll=99", keep_utility=0.0)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert leftovers(tmp_path) == []


# ---- resuming ----

UNREACHED = {"stop_at": "nll=1e6", "keep_utility": 0.0, "check_every": 3}


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        ({}, "path"),
        ({"step_size": "gen", "lr_start": 1e-2, "probe_every": 4}, "path"),
        (UNREACHED, "latest"),
        ({"learning_rate": 1e-3}, "path"),
        ({"learning_rate": 1e-3, "rule": "pdu"}, "path"),
        ({"learning_rate": 1e-3, "rule": "rlw"}, "path"),
    ],
    ids=["auto", "gen", "stopping", "fixed", "multiplier", "draws"],
)
def test_a_resumed_run_goes_on_as_it_was(tmp_path: Path, settings: dict[str, Any], how: str) -> None:
    common = {"save_strategy": "steps", "save_steps": 7, "max_steps": 13, "probe_every": 5, **settings}
    whole = run(tmp_path, **common)
    shutil.rmtree(tmp_path / "checkpoint-13")
    second = make(tmp_path, model=tiny_llama(layers=1, hidden=16, seed=9), **common)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7") if how == "path" else True)
    assert steps(second) == steps(whole)
    assert second.record.probes == whole.record.probes
    assert len(second.record.probes) == (0 if "learning_rate" in settings else 3)
    assert_same_weights(whole, second)
    assert whole.record.before == second.record.before
    assert whole.record.after == second.record.after
    assert whole.record.checks == second.record.checks
    assert whole.record.stop == second.record.stop
    assert any("resumed at step 7" in note for note in second.record.notes)
    assert leftovers(tmp_path) == []


def test_a_resumed_run_checks_when_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps' own figures decide when a check is worth its time: the one before the cut counts too."""

    def strength(_: LabelledTokens) -> Tensor:
        return torch.tensor(1.0 if trainer.state.global_step < 4 else 0.2)

    monkeypatch.setattr(ngdiff.training.trainer, "batch_extraction_strength", strength)
    common = {"stop_at": "extraction_strength=0.2", "check_every": 50, "learning_rate": 1e-3}
    for path in (None, str(tmp_path / "checkpoint-4")):
        trainer = make(tmp_path, save_strategy="steps", save_steps=4, **common)
        script(trainer, lambda step: (0.9, 1.0), monkeypatch)
        trainer.train(resume_from_checkpoint=path)
        assert [check["step"] for check in trainer.record.checks] == [0, 6]


@OLD_NAME
def test_a_resumed_run_with_adapters(tmp_path: Path) -> None:
    common = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "lr_start": 1e-3, "probe_every": 3}
    lora = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    whole = run(tmp_path, peft_config=LoraConfig(**lora), **common)
    second = make(tmp_path, peft_config=LoraConfig(**lora), **common)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert steps(second) == steps(whole)
    assert_same_weights(whole, second)


def test_a_checkpoint_of_another_trainer_starts_afresh(tmp_path: Path) -> None:
    common = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    run(tmp_path, **common)
    (tmp_path / "checkpoint-2" / STATE_FILE).unlink()
    (tmp_path / "checkpoint-2" / MANIFEST).unlink()
    second = make(tmp_path, **common)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [step.step for step in second.record.steps] == [3, 4]


Figures = Callable[[int], tuple[float, float]]


def script(trainer: UnlearningTrainer, figures: Figures, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every check find what ``figures`` says of a step: extraction strength (nll likewise), utility."""
    sure = math.log(-math.expm1(-7.0))  # of a token whose unlikelihood is 7

    def scripted(name: str, rows: Sequence[int] | None = None) -> list[AnswerScore]:
        strength, utility = figures(trainer.state.global_step)
        nll = {"forget": 100 * (1 - strength), "never_seen": 9.0}.get(name, -math.log(utility))
        count = len(trainer.measurements.examples(name)) if rows is None else len(rows)
        return [AnswerScore(2 * nll, 2, strength, 0.5, (sure, 0.0))] * count

    monkeypatch.setattr(trainer.measurements, "scores", scripted)


class Keeper(TrainerCallback):  # type: ignore[misc]
    """Keeps the weights after every step."""

    def __init__(self) -> None:
        self.at: dict[int, dict[str, Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.at[state.global_step] = copy.deepcopy(model.state_dict())


def assert_kept(trainer: UnlearningTrainer, keeper: Keeper, step: int) -> None:
    assert trainer.record.stop["kept_step"] == step
    kept = start() if step == 0 else keeper.at[step]
    assert all(torch.equal(value, kept[name]) for name, value in weights(trainer).items())


# far from what the steps' own losses say, so that checks come when they are due and not before
SCRIPTED = {"stop_at": "nll=99", "keep_utility": 0.9, "check_every": 2, "learning_rate": 0.01}


@pytest.mark.parametrize("best", [0, 2, 4, 6])
def test_best_weights_survive_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: int) -> None:
    common = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8, "check_patience": 9, **SCRIPTED}

    def figures(step: int) -> tuple[float, float]:
        return 1 - step / 10, 1.0 if step <= best else 0.1

    keeper = Keeper()
    for path in (None, str(tmp_path / "checkpoint-4")):
        trainer = make(tmp_path, callbacks=[keeper], **common)
        script(trainer, figures, monkeypatch)
        trainer.train(resume_from_checkpoint=path)
        assert len(trainer.record.steps) == 8
        assert_kept(trainer, keeper, best)
        assert leftovers(tmp_path) == []


# ---- ways to end ----


def test_best_state_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Keeper()
    trainer = make(tmp_path, callbacks=[keeper], max_steps=20, **SCRIPTED)
    found = {0: (0.9, 1.0), 2: (0.5, 0.95), 4: (0.6, 0.95), 6: (0.3, 0.5), 8: (0.0, 0.5), 10: (0.0, 0.5)}
    script(trainer, lambda step: found.get(step, (0.0, 0.5)), monkeypatch)
    trainer.train()
    assert trainer.record.stop["code"] == "floor"
    assert trainer.record.stop["step"] == 10
    assert [check["step"] for check in trainer.record.checks] == [0, 2, 4, 6, 8, 10]
    assert_kept(trainer, keeper, 2)
    assert leftovers(tmp_path) == []


def test_the_last_state_is_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends between two checks: what is kept has been seen to be above the floor."""
    for last, code, kept in (((0.0, 0.1), "end", 2), ((0.5, 1.0), "end", 3), ((0.0, 1.0), "target", 3)):
        keeper = Keeper()
        trainer = make(tmp_path, callbacks=[keeper], max_steps=3, **SCRIPTED)
        script(trainer, {0: (1.0, 1.0), 2: (0.9, 1.0), 3: last}.__getitem__, monkeypatch)
        trainer.train()
        assert trainer.record.stop["code"] == code
        assert [check["step"] for check in trainer.record.checks] == [0, 2, 3]
        assert_kept(trainer, keeper, kept)


def test_a_run_stopped_from_outside_keeps_what_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper()
    trainer = make(tmp_path, callbacks=[keeper, Watcher(stop_after=5)], max_steps=9, **SCRIPTED)
    script(trainer, lambda step: (1 - step / 10, 1.0 if step < 5 else 0.1), monkeypatch)
    trainer.train()
    assert_kept(trainer, keeper, 4)


def test_target_met_at_the_start(tmp_path: Path) -> None:
    trainer = run(tmp_path, stop_at="probability=1", learning_rate=0.1)
    assert trainer.record.stop["code"] == "target"
    assert trainer.record.stop["target_met"]
    assert trainer.record.stop["kept_step"] == 0
    assert all(torch.equal(value, start()[name]) for name, value in weights(trainer).items())
    assert len(trainer.record.steps) <= 1
    assert leftovers(tmp_path) == []


def taught(model: nn.Module, data: list[dict[str, str]], count: int) -> nn.Module:
    """Train a model for so many steps, until it knows all answers by heart."""
    batch = collate(as_encoded(data, TOKENIZER, 64, "x"), TOKENIZER.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(count):
        optimizer.zero_grad()
        (nll(labelled_tokens(model, batch)) / 100).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def memorised() -> nn.Module:
    """A model that knows all answers by heart."""
    return taught(tiny_llama(layers=1), FORGET + RETAIN, 120)


def test_forgets_to_the_target_and_keeps_the_rest(tmp_path: Path, memorised: nn.Module) -> None:
    trainer = run(
        tmp_path,
        model=copy.deepcopy(memorised),
        per_device_train_batch_size=8,
        stop_at="extraction_strength=0.5",
        keep_utility=0.8,
        max_steps=80,
        check_every=4,
    )
    record = trainer.record
    assert record.before["forget"]["extraction_strength"] > 0.9
    assert record.before["retain"]["probability"] > 0.9
    assert record.stop["code"] == "target"
    assert record.stop["step"] == record.stop["kept_step"] < 80
    assert record.after["forget"]["extraction_strength"] <= 0.5
    assert max(record.after["items"]["forget"]["extraction_strength"]) <= 0.5  # and so is every item
    assert record.after["retain"]["probability"] >= record.stop["utility_floor"]
    assert record.stop["left"] == []
    assert record.stop["utility_floor"] == pytest.approx(0.8 * record.before["retain"]["probability"])
    assert trainer.measurements.figures("retain") == record.after["retain"]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("method", ["ngdiff", "ngdiff-unlikelihood", "ngdiff-selective"])
@pytest.mark.parametrize("target", ["nll=1.5", "probability=0.25"])
def test_the_end_is_seen_coming_whatever_the_forget_loss(
    tmp_path: Path, memorised: nn.Module, method: str, target: str
) -> None:
    settings = {"check_every": 1000, "keep_utility": 0.0, "learning_rate": 3e-3, "max_steps": 60}
    trainer = run(tmp_path, model=copy.deepcopy(memorised), method=method, stop_at=target, **settings)
    assert trainer.record.stop["code"] == "target"
    assert trainer.record.stop["step"] < 60


def test_automatic_target_is_the_level_of_unseen_text(tmp_path: Path, memorised: nn.Module) -> None:
    trainer = run(tmp_path, model=copy.deepcopy(memorised), stop_at="auto", max_steps=1)
    items = trainer.record.before["items"]["never_seen"]
    strengths = items["extraction_strength"]
    odds = [math.exp(-nll / tokens) for nll, tokens in zip(items["nll"], items["tokens"], strict=True)]
    bounds = {bound["measure"]: bound for bound in trainer.record.stop["target"]["bounds"]}
    for measure, values in (("extraction_strength", strengths), ("probability", odds)):
        mean = sum(values) / 4
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 3)
        assert bounds[measure]["item"] == pytest.approx(max(values))  # the 95th percentile of four
        assert bounds[measure]["mean"] == pytest.approx(mean + 1.645 * spread * math.sqrt(1 / 4 + 1 / 8))
    target = trainer.record.stop["target"]
    assert (target["measure"], target["value"]) == (
        "extraction_strength",
        bounds["extraction_strength"]["mean"],
    )
    assert "never saw" in trainer.record.stop["target_source"]
    assert "the holdout that was given" in trainer.record.stop["level_source"]


def test_a_floor_that_cannot_hold(tmp_path: Path, memorised: nn.Module) -> None:
    keeper = Keeper()
    trainer = run(
        tmp_path,
        model=copy.deepcopy(memorised),
        method="ga",
        learning_rate=0.02,
        stop_at="nll=1000",
        keep_utility=0.99,
        check_every=1,
        check_patience=3,
        max_steps=40,
        callbacks=[keeper],
    )
    record = trainer.record
    assert record.stop["code"] == "floor"
    assert record.stop["target_met"] is False
    assert record.checks[-1]["utility"]["probability"] < record.stop["utility_floor"]
    assert record.after["retain"]["probability"] >= record.stop["utility_floor"]
    kept = record.stop["kept_step"]
    state = memorised.state_dict() if kept == 0 else keeper.at[kept]
    assert all(torch.equal(value, state[name]) for name, value in weights(trainer).items())
    assert leftovers(tmp_path) == []


def breaks_at(monkeypatch: pytest.MonkeyPatch, name: str, calls: Callable[[int], bool], bad: float) -> None:
    """Let a loss come out as ``bad`` at some of its calls, counted from 1; gradients follow it."""
    whole, calls_so_far = LOSSES[name].function, iter(range(1, 10_000))

    def broken(tokens: LabelledTokens) -> Tensor:
        loss = whole(tokens)
        return loss * bad if torch.is_grad_enabled() and calls(next(calls_so_far)) else loss

    monkeypatch.setitem(LOSSES, name, replace(LOSSES[name], function=broken))


@pytest.mark.parametrize(
    ("rule", "name", "bad"),
    [
        ("ngdiff", "nll", math.nan),
        ("ngdiff", "negated-nll", math.inf),
        ("constant", "nll", math.inf),
        ("constant", "negated-nll", math.nan),
    ],
)
def test_a_step_that_is_not_finite_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rule: str, bad: float
) -> None:
    breaks_at(monkeypatch, name, lambda call: call == 3, bad)
    keeper = Keeper()
    trainer = run(tmp_path, rule=rule, learning_rate=1e-3, callbacks=[keeper], max_steps=5)
    assert [step.skipped for step in trainer.record.steps] == [None, None, "non-finite", None, None]
    same = [all(torch.equal(keeper.at[n][k], keeper.at[n + 1][k]) for k in start()) for n in range(1, 5)]
    assert same == [False, True, False, False]
    assert all(bool(value.isfinite().all()) for value in weights(trainer).values())
    assert trainer.record.stop["code"] == "end"
    assert trainer.record.steps[2].learning_rate == 0.0


def test_a_gradient_that_is_not_finite_under_fixed_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is finite, its gradient is not: with one buffer there is no Gramian to show it."""

    def rooted(tokens: LabelledTokens) -> Tensor:
        loss = nll(tokens)
        return loss + (loss - loss.detach()).sqrt()  # sqrt(0) has an infinite slope

    monkeypatch.setitem(LOSSES, "nll", replace(LOSSES["nll"], function=rooted))
    trainer = run(tmp_path, rule="constant", learning_rate=1e-3)
    assert {step.skipped for step in trainer.record.steps} == {"non-finite"}
    assert trainer.record.stop["code"] == "non-finite"
    assert all(torch.equal(value, start()[name]) for name, value in weights(trainer).items())


@pytest.mark.parametrize("first", [1, 3])
def test_automatic_rate_survives_a_skipped_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    breaks_at(monkeypatch, "negated-nll", lambda call: call == first, math.nan)
    trainer = run(tmp_path, probe_every=2)
    skipped = [step.step for step in trainer.record.steps if step.skipped]
    assert skipped == [first]
    assert trainer.record.probes[0].step == 1
    rates = [step.learning_rate for step in trainer.record.steps if not step.skipped]
    assert all(0 < rate < math.inf for rate in rates)
    assert all(bool(value.isfinite().all()) for value in weights(trainer).values())


def test_five_in_a_row_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks_at(monkeypatch, "nll", lambda call: call == 2 or call > 4, math.nan)
    trainer = run(tmp_path, learning_rate=1e-3, max_steps=30)
    assert trainer.record.stop["code"] == "non-finite"
    assert len(trainer.record.steps) == 9
    assert sum(step.skipped == "non-finite" for step in trainer.record.steps) == 6


def test_a_run_ended_by_nan_keeps_what_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks_at(monkeypatch, "nll", lambda call: call > 3, math.nan)
    keeper = Keeper()
    trainer = make(tmp_path, callbacks=[keeper], max_steps=30, **{**SCRIPTED, "check_every": 20})
    script(trainer, lambda step: (0.5, 1.0 if step == 0 else 0.1), monkeypatch)
    trainer.train()
    assert trainer.record.stop["code"] == "non-finite"
    assert_kept(trainer, keeper, 0)


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("nll", "negated-nll"):
        whole = LOSSES[name].function
        still = lambda tokens, whole=whole: whole(tokens) * 0.0  # noqa: E731
        monkeypatch.setitem(LOSSES, name, replace(LOSSES[name], function=still))
    yield


@pytest.mark.usefixtures("flat")
@pytest.mark.parametrize(
    "settings", [{}, {"learning_rate": 0.1, "weight_decay": 0.5}, {"method": "graddiff"}, {"method": "ga"}]
)
def test_nothing_left_to_change(tmp_path: Path, settings: dict[str, Any]) -> None:
    trainer = run(tmp_path, **settings)
    assert trainer.record.stop["code"] == "stationary"
    assert [step.skipped for step in trainer.record.steps] == ["stationary"]
    assert all(torch.equal(value, start()[name]) for name, value in weights(trainer).items())


def test_one_task_without_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    still = replace(LOSSES["negated-nll"], function=lambda tokens: tokens.log_probs().sum() * 0.0)
    monkeypatch.setitem(LOSSES, "negated-nll", still)
    trainer = run(tmp_path, learning_rate=1e-3, max_steps=3)
    for step in trainer.record.steps:
        assert step.weights[1] == 0.0
        assert step.combined_norm == pytest.approx(1.0)
        assert step.skipped is None


def test_a_second_run_with_the_same_trainer(tmp_path: Path) -> None:
    trainer = run(tmp_path, learning_rate=1e-3, max_steps=2)
    first = weights(trainer)
    trainer.train()
    assert trainer.record.stop["code"] == "end"
    assert any(not torch.equal(value, first[name]) for name, value in weights(trainer).items())
    assert all(step.skipped is None for step in trainer.record.steps)


def test_updates_that_vanish_are_noted(tmp_path: Path) -> None:
    low = tiny_llama(layers=1, hidden=16).to(torch.bfloat16)
    trainer = run(tmp_path, model=low, learning_rate=1e-6, max_steps=2)
    assert any("rounded away" in note for note in trainer.record.notes)
    whole = run(tmp_path, learning_rate=1e-6, max_steps=2)
    assert whole.record.notes == []


# ---- going back ----


def test_utility_under_the_floor_leads_back_to_the_best_weights_and_a_smaller_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper()
    monkeypatch.setattr(ngdiff.training.trainer, "batch_extraction_strength", lambda _: torch.tensor(1.0))
    settings = {"stop_at": "extraction_strength=0.1", "check_every": 3, "max_steps": 12, "probe_every": 50}
    trainer = make(tmp_path, callbacks=[keeper], **settings, keep_utility=0.95)
    script(trainer, lambda step: (0.9 - 0.01 * step, 0.5 if step in (6, 9) else 1.0), monkeypatch)
    trainer.train()
    rates = [step.learning_rate for step in trainer.record.steps]
    first = rates[0]
    assert first is not None
    assert rates == pytest.approx([first] * 6 + [first / 2] * 3 + [first / 4] * 3)
    for name, value in keeper.at[3].items():  # step 3 was the best; steps 6 and 9 were under the floor
        assert torch.equal(keeper.at[9][name], value)
    assert any(not torch.equal(keeper.at[6][name], value) for name, value in keeper.at[3].items())
    (note,) = [note for note in trainer.record.notes if "put back" in note]
    assert note.startswith("step 9:") and "the weights of step 3" in note
    assert trainer.record.stop["kept_step"] == 12


def test_a_retreat_goes_back_no_further_than_the_floor_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper()
    monkeypatch.setattr(ngdiff.training.trainer, "batch_extraction_strength", lambda _: torch.tensor(1.0))
    settings = {"stop_at": "extraction_strength=0.1", "check_every": 3, "max_steps": 9, "probe_every": 50}
    trainer = make(tmp_path, callbacks=[keeper], **settings, keep_utility=0.95)
    before: dict[str, Tensor] = {}

    def figures(step: int) -> tuple[float, float]:
        """A third of the way from step 3 to step 9 costs nothing; at step 9, half of it is too much."""
        if step < 6:
            return 0.9 - 0.01 * step, 1.0
        if step == 9 and not before:
            before.update(copy.deepcopy(weights(trainer)))
            return 0.7, 0.5
        name = next(iter(keeper.at[3]))
        way = (weights(trainer)[name] - keeper.at[3][name]).norm()
        whole = (before[name] - keeper.at[3][name]).norm() if before else way
        return 0.8 - 0.1 * float(1 - way / whole), 1.0 if way < whole / 3 else 0.5

    script(trainer, figures, monkeypatch)
    trainer.train()
    kept = weights(trainer)
    assert trainer.record.stop["kept_step"] == 9
    for name, value in keeper.at[3].items():
        torch.testing.assert_close(kept[name], value + (before[name] - value) / 4)
    assert [(check["step"], check["above_floor"]) for check in trainer.record.checks] == [
        *((0, True), (3, True), (6, False)),
        *((9, False), (9, True)),
    ]
    assert trainer.record.checks[-1]["best"] and leftovers(tmp_path) == []
    (note,) = [note for note in trainer.record.notes if note.startswith("step 9:")]
    assert "the weights of step 3 were approached by 75% of the way" in note


def test_a_floor_that_heals_within_an_interval_costs_half_the_rate_and_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper()
    monkeypatch.setattr(ngdiff.training.trainer, "batch_extraction_strength", lambda _: torch.tensor(1.0))
    settings = {"stop_at": "extraction_strength=0.1", "check_every": 3, "max_steps": 9, "probe_every": 50}
    trainer = make(tmp_path, callbacks=[keeper], **settings, keep_utility=0.95)
    script(trainer, lambda step: (0.9 - 0.01 * step, 0.5 if step == 6 else 1.0), monkeypatch)
    trainer.train()
    rates = [step.learning_rate for step in trainer.record.steps]
    first = rates[0]
    assert first is not None and rates == pytest.approx([first] * 6 + [first / 2] * 3)
    assert not any("put back" in note for note in trainer.record.notes)
    assert any(not torch.equal(keeper.at[6][name], value) for name, value in keeper.at[3].items())
    assert trainer.record.stop["kept_step"] == 9


def test_a_run_whose_utility_is_spent_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngdiff.training.trainer, "batch_extraction_strength", lambda _: torch.tensor(1.0))
    settings = {"stop_at": "extraction_strength=0.1", "check_every": 3, "max_steps": 12, "probe_every": 50}
    trainer = make(tmp_path, **settings, keep_utility=0.8)
    figures = {0: (0.9, 1.0), 3: (0.2, 0.801), 6: (0.15, 0.79), 9: (0.15, 0.79)}
    script(trainer, lambda step: figures[step], monkeypatch)
    trainer.train()
    stop = trainer.record.stop
    assert (stop["code"], stop["step"], stop["kept_step"]) == ("floor", 9, 3)
    assert "before the target" in stop["reason"] and stop["target_met"] is False


def test_a_run_that_spends_its_utility_too_fast_slows_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ngdiff.training.trainer, "batch_extraction_strength", lambda _: torch.tensor(1.0))
    settings = {"stop_at": "extraction_strength=0.1", "check_every": 3, "max_steps": 9, "probe_every": 50}
    trainer = make(tmp_path, **settings, keep_utility=0.8)
    # odds go from 9 to 3, where the target's are 1/9: a quarter of the way for 0.06 of 0.2. The rest would
    # cost 0.18, and half of 0.14 may be spent: 7/18 of the rate, and half of it is the least. Then half of
    # the way for nothing: a quarter faster again
    figures = {0: (0.9, 1.0), 3: (0.75, 0.94), 6: (0.25, 0.94), 9: (0.05, 0.87)}
    script(trainer, lambda step: figures[step], monkeypatch)
    trainer.train()
    rates = [step.learning_rate for step in trainer.record.steps]
    assert rates[:3] == [rates[0]] * 3
    assert rates[3:6] == pytest.approx([rates[0] / 2] * 3)
    assert rates[6:] == pytest.approx([1.25 / 2 * rates[0]] * 3)
    notes = [note for note in trainer.record.notes if "at the pace so far" in note]
    assert [note[:7] for note in notes] == ["step 3:", "step 6:"]
    assert trainer.record.stop["code"] == "target"


def test_the_pace_is_told_what_each_step_was_paid_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ngdiff.training.trainer, "batch_extraction_strength", lambda _: torch.tensor(1.0))
    told: list[tuple[float, dict[int, float], int]] = []

    def pace(rule: StoppingRule, rate: float, rates: dict[int, float], over: int) -> float:
        told.append((rate, rates, over))
        return 0.5

    monkeypatch.setattr(StoppingRule, "pace", pace)
    settings = {"stop_at": "extraction_strength=0.1", "check_every": 3, "max_steps": 7, "probe_every": 50}
    trainer = make(tmp_path, **settings)
    script(trainer, lambda step: (0.9 - step / 100, 1.0), monkeypatch)
    trainer.train()
    first = told[0][0]
    paid = dict.fromkeys((1, 2, 3), first)
    assert told == [(first, paid, 6), (first / 2, paid | dict.fromkeys((4, 5, 6), first / 2), 6)]


def test_near_the_target_frequent_checks_do_not_raise_the_rate_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ngdiff.training.trainer, "batch_extraction_strength", lambda _: torch.tensor(0.1))
    settings = {"stop_at": "extraction_strength=0.1", "check_every": 6, "max_steps": 20, "probe_every": 50}
    trainer = make(tmp_path, **settings)
    script(trainer, lambda step: (max(0.05, 0.9 - step / 14), 1.0), monkeypatch)
    trainer.train()
    assert [check["step"] for check in trainer.record.checks] == [0, 2, 4, 6, 8, 10, 12]
    notes = [note for note in trainer.record.notes if "would last well beyond" in note]
    assert [note[:7] for note in notes] == ["step 6:"]


def test_a_rate_that_was_given_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Keeper()
    settings = {"stop_at": "extraction_strength=0.1", "check_every": 3, "max_steps": 6, "learning_rate": 1e-3}
    trainer = make(tmp_path, callbacks=[keeper], **settings)
    script(trainer, lambda step: (0.5, 1.0 if step == 0 else 0.5), monkeypatch)
    trainer.train()
    assert {step.learning_rate for step in trainer.record.steps} == {1e-3}
    assert any(not torch.equal(value, keeper.at[2][name]) for name, value in keeper.at[3].items())
    assert not any("put back" in note for note in trainer.record.notes)


# ---- the starting model ----


def test_npo_compares_with_the_starting_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trainer = run(tmp_path / "a", method="npo", max_steps=3, learning_rate=1e-2)
    model = tiny_llama(layers=1, hidden=16).eval()
    for encoded in trainer.forget_set:
        with torch.no_grad():
            tokens = labelled_tokens(model, collate([encoded], 0))
        assert encoded.reference_log_prob == pytest.approx(float(tokens.log_probs().sum()), rel=1e-5)
    first = trainer.record.steps[0]
    assert first.forget_loss == pytest.approx(
        2 / 0.1 * math.log(2), rel=1e-5
    )  # the model is its own reference
    assert trainer.record.steps[2].forget_loss < first.forget_loss
    # another run from the same model finds it on disk, and gives the same steps
    monkeypatch.setattr(
        "ngdiff.preparation.starting_predictions.score_answers", lambda model, rows, **_: _nothing(rows)
    )
    again = run(tmp_path / "b", method="npo", max_steps=3, learning_rate=1e-2)
    assert steps(again) == steps(trainer)
    with pytest.raises(AssertionError, match="measured again"):
        run(tmp_path / "c", model=tiny_llama(layers=1, hidden=16, seed=5), method="npo", max_steps=1)


def _nothing(rows: Any) -> list[Any]:
    assert not rows, "measured again"
    return []


@pytest.mark.parametrize(
    "method",
    [
        *("npo", "kl", "undial", "rmu", "adaptive-rmu", "jensun", "flat"),
        *("idkdpo", "altpo", "idknll", "ngdiff-selective-kl"),
    ],
)
def test_a_resumed_run_keeps_what_the_starting_model_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(ngdiff.preparation.comparisons, "LEAST_COUNTED", 1)
    common = {
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 4,
        "max_length": 256,
        "method": method,
        "learning_rate": 1e-2,
    }
    whole = run(tmp_path / "run", **common)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # the checkpoint stands alone; idknll asks nothing
    second = make(tmp_path / "run", model=tiny_llama(layers=1, hidden=16, seed=9), **common)
    second.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert steps(second) == steps(whole)
    assert_same_weights(whole, second)


def test_the_divergence_from_the_start_holds_the_retain_set(tmp_path: Path) -> None:
    trainer = run(tmp_path, method="kl", max_steps=4, learning_rate=1e-2)
    losses = [step.retain_loss for step in trainer.record.steps]
    assert losses[0] == pytest.approx(0.0, abs=1e-6)
    assert all(loss is not None and loss > 1e-3 for loss in losses[1:])


def test_steering_moves_nothing_behind_its_layer(tmp_path: Path) -> None:
    model = tiny_llama(layers=3, hidden=16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = run(tmp_path, model=model, method="rmu", max_steps=3, learning_rate=1e-2)
    moved = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert trainer.record.losses["forget"]["layer"] == 1
    assert {"model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"} <= moved
    assert not any("layers.2" in name or "lm_head" in name for name in moved)
    first, *_, last = (step.forget_loss for step in trainer.record.steps)
    assert first is not None and last is not None and last < first
    assert not trainer.record.notes  # what no gradient reaches did not vanish in rounding


@pytest.mark.parametrize("layer", [-1, 1, 7])
def test_a_layer_that_is_not_there(tmp_path: Path, layer: int) -> None:
    with pytest.raises(RequestError, match=rf"--forget-loss.*no layer {layer}.*from 0 to 0"):
        make(tmp_path, method="rmu", forget_loss_settings={"layer": layer})


def test_only_the_parameters_asked_for_are_trained(tmp_path: Path) -> None:
    trainer = run(tmp_path, trainable="down_proj", learning_rate=1e-2, max_steps=2)
    moved = {name for name, value in weights(trainer).items() if not torch.equal(value, start()[name])}
    assert moved == {"model.layers.0.mlp.down_proj.weight"}
    with pytest.raises(RequestError, match=r"no trainable parameter.*model.embed_tokens"):
        make(tmp_path, trainable="dwon_proj")


def test_a_new_method_is_one_function_and_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_known(tokens: LabelledTokens, target: float = 0.5) -> Tensor:
        return (tokens.log_probs().exp() - target).square().sum()

    loss = Loss(
        "half-known", "forget", "token", half_known, "every token to p = 1/2", "nobody", {"target": 0.5}
    )
    method = Method("halfway", "half-known", "nll", "ngdiff", "auto", "halfway", "nobody")
    monkeypatch.setitem(LOSSES, loss.name, loss)
    monkeypatch.setitem(METHODS, method.name, method)
    trainer = run(tmp_path, method="halfway", forget_loss_settings={"target": 0.1}, max_steps=8)
    first, last = trainer.record.steps[0], trainer.record.steps[-1]
    assert first.forget_loss == pytest.approx(0.01, rel=0.2)  # an untrained model gives each token 1/320
    assert last.forget_loss is not None and last.forget_loss < first.forget_loss
    assert trainer.record.losses["forget"] == {"target": 0.1}


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("method", ["graddiff", "npo", "pcgrad"])
def test_a_fixed_rate_warms_up_and_falls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, schedule: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trainer = run(
        tmp_path,
        method=method,
        lr_scheduler_type=schedule,
        warmup_steps=2,
        learning_rate=1e-3,
        max_steps=6,
    )
    done = [0.0, 0.25, 0.5, 0.75]
    falling = [1 - x if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * x)) for x in done]
    expected = [0.0, 0.5e-3, *(1e-3 * x for x in falling)]
    assert [step.learning_rate for step in trainer.record.steps] == pytest.approx(expected)


def told(letter: str, count: int, seed: int) -> list[dict[str, str]]:
    """Answers that are one sentence for their greater part, and a secret."""
    rng = random.Random(seed)
    return rows(letter, count, lambda _: f"so the word was {''.join(rng.choices('ghjkqxz', k=4))} at last")


def test_a_divergence_begins_as_the_nll(tmp_path: Path) -> None:
    """It has no gradient at the start, so first step and first rate are the NLL's."""
    data = {"max_steps": 3, "method": "ngdiff-unlikelihood", "lr_start": 1e-4}
    nll, kl = run(tmp_path / "nll", **data), run(tmp_path / "kl", retain_loss="kl", **data)
    assert steps(kl)[0] == steps(nll)[0] and kl.record.probes[0] == nll.record.probes[0]
    held, free = kl.record.steps[1], nll.record.steps[1]
    assert held.forget_loss == free.forget_loss
    assert 0 <= held.retain_loss < 0.1 * free.retain_loss
    fixed = run(
        tmp_path / "fixed", method="kl", learning_rate=1e-4, max_steps=2
    )  # a baseline is as published
    assert fixed.record.steps[0].retain_loss == pytest.approx(0, abs=1e-6)


def test_where_little_is_kept_every_token_is_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget, retain, unseen = told("F", 6, 1), told("R", 16, 2), told("U", 6, 3)
    data = {"forget": forget, "retain": retain, "holdout": unseen, "max_steps": 4, "learning_rate": 1e-3}

    def ran(method: str) -> UnlearningTrainer:
        model = tiny_llama(layers=1, hidden=16, seed=3)
        return run(tmp_path / method, model=model, method=method, **data)

    few, plain = ran("ngdiff-selective"), ran("ngdiff-unlikelihood")
    assert steps(few) == steps(plain)
    kept = len(few.retain_set)
    notes = [note for note in few.record.notes if "too few to tell" in note]
    assert len(notes) == 1 and notes[0].startswith(f"{kept} answers to keep")
    monkeypatch.setattr(ngdiff.preparation.comparisons, "LEAST_COUNTED", kept)
    shutil.rmtree(tmp_path / "ngdiff-selective")
    enough = ran("ngdiff-selective")
    assert steps(enough) != steps(plain) and not any("too few" in note for note in enough.record.notes)


@pytest.mark.parametrize("measure", ["nll", "probability"])
def test_a_target_beyond_what_language_leaves_has_every_token_pushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measure: str
) -> None:
    monkeypatch.setattr(ngdiff.preparation.comparisons, "LEAST_COUNTED", 1)
    forget, retain, unseen = told("F", 6, 1), told("R", 16, 2), told("U", 6, 3)
    data = {"forget": forget, "retain": retain, "holdout": unseen, "max_steps": 3, "learning_rate": 1e-3}
    learned = taught(tiny_llama(layers=1, hidden=16, seed=3), forget + retain, 40)

    def ran(name: str, method: str, stop_at: str) -> UnlearningTrainer:
        model = copy.deepcopy(learned)
        return run(tmp_path / name, model=model, method=method, stop_at=stop_at, **data)

    free = ran("free", "ngdiff-selective", "none")
    rest = figures_at_rest(free.forget_set)[measure]
    beyond, within = (rest * 1.2, rest * 0.8) if measure == "nll" else (rest * 0.8, rest * 1.2)
    far = ran("far", "ngdiff-selective", f"{measure}={beyond}")
    plain = ran("plain", "ngdiff-unlikelihood", f"{measure}={beyond}")
    assert steps(far) == steps(plain) and any(
        f"{measure} would end near {rest:.2f}" in note for note in far.record.notes
    )
    near = ran("near", "ngdiff-selective", f"{measure}={within}")
    assert steps(near)[0] == steps(free)[0] != steps(far)[0]
    assert not any("language spared" in note for note in near.record.notes)


def test_knowledge_is_forgotten_and_language_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngdiff.preparation.comparisons, "LEAST_COUNTED", 1)
    forget, retain, unseen = told("F", 6, 1), told("R", 16, 2), told("U", 6, 3)
    learned = taught(tiny_llama(layers=1, hidden=32), forget + retain, 150)
    asked = as_encoded(forget, TOKENIZER, 64, "x")
    is_secret = [
        token in TOKENIZER("ghjkqxz", add_special_tokens=False).input_ids
        for example in asked
        for token, label in zip(example.input_ids, example.labels, strict=True)
        if label != -100
    ]
    secret = torch.tensor(is_secret)
    left = {}
    for method in ("ngdiff-unlikelihood", "ngdiff-selective"):
        settings = {"per_device_train_batch_size": 6, "max_steps": 15, "learning_rate": 1e-3}
        trainer = run(
            tmp_path / method,
            model=copy.deepcopy(learned),
            forget=forget,
            retain=retain,
            holdout=unseen,
            method=method,
            **settings,
        )
        with torch.no_grad():
            p = (
                labelled_tokens(trainer.model.eval(), collate(asked, TOKENIZER.pad_token_id))
                .log_probs()
                .exp()
            )
        left[method] = float(p[secret].mean()), float(p[~secret].mean())
    knowledge, language = left["ngdiff-selective"]
    assert knowledge < 0.5 < 0.9 < language, left
    assert language > left["ngdiff-unlikelihood"][1] + 0.2, left


def test_what_is_measured_of_each_set(tmp_path: Path) -> None:
    """At the start and at the end every row of every set, whatever the checks on the way look at."""
    trainer = make(tmp_path, forget=rows("F", 7, _word), check_size=3)
    measured = trainer.measurements
    assert [one.example for one in measured.examples("forget")] == trainer.forget_examples
    assert [one.example for one in measured.examples("retain")] == trainer.held_out_examples
    assert len(measured.examples("never_seen")) == len(UNSEEN)
    trainer.train()
    found = measured.everything()
    assert found["forget"] == measured.figures("forget") and set(found) == {*trainer.record.before}
    assert len(found["items"]["forget"]["nll"]) == 7 and len(found["items"]["never_seen"]["nll"]) == 4
