"""The trainer: losses that compare with the starting model, and what is trained."""

from __future__ import annotations

import copy
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ngdiff.preparation.comparisons
import ngdiff.training.measurements
import ngdiff.training.trainer
from ngdiff.data.batching import collate
from ngdiff.data.datasets import as_encoded
from ngdiff.errors import RequestError
from ngdiff.losses import LOSSES, Loss
from ngdiff.methods import METHODS, Method
from ngdiff.models.logprobs import LabelledTokens, labelled_tokens
from ngdiff.preparation.predictable import figures_at_rest
from ngdiff.training.trainer import UnlearningTrainer
from tiny import tiny_llama
from training_runs import (
    TOKENIZER,
    UNSEEN,
    _word,
    assert_same_weights,
    make,
    rows,
    run,
    start,
    steps,
    taught,
    told,
    weights,
)

pytestmark = pytest.mark.usefixtures("quick_runs")


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


def test_a_divergence_begins_as_the_nll(tmp_path: Path) -> None:
    """It has no gradient at the start, so first step and first rate are the NLL's."""
    data = {"max_steps": 3, "method": "ngdiff-unlikelihood", "step_size": "auto", "learning_rate": 1e-4}
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
    assert not any("language were spared" in note for note in near.record.notes)


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


def test_what_is_measured_of_each_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start and at the end every row of every set, whatever the checks on the way look at."""
    monkeypatch.setattr(UnlearningTrainer, "CHECK_SIZE", 3)
    trainer = make(tmp_path, forget=rows("F", 7, _word))
    measured = trainer.measurements
    assert [one.example for one in measured.examples("forget")] == trainer.forget_examples
    assert [one.example for one in measured.examples("retain")] == trainer.held_out_examples
    assert len(measured.examples("never_seen")) == len(UNSEEN)
    trainer.train()
    found = measured.everything()
    assert found["forget"] == measured.figures("forget") and set(found) == {*trainer.record.before}
    assert len(found["items"]["forget"]["nll"]) == 7 and len(found["items"]["never_seen"]["nll"]) == 4
