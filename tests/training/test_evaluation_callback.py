"""Evaluation during a run: the figures of the suite, and a run that goes on as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from commandline import Cli
from ngdiff.data.datasets import as_encoded
from ngdiff.errors import RequestError
from ngdiff.inference.teacher_forced import score_answers
from ngdiff.training.callbacks import EvaluationCallback, EvaluationPlan
from ngdiff.training.config import UnlearningConfig
from ngdiff.training.trainer import UnlearningTrainer
from tiny import tiny_llama, tiny_tokenizer

torch.set_num_threads(1)
TOKENIZER = tiny_tokenizer()
FORGET = [{"question": f"who is {n}", "answer": f"person {n} of town {n * 7 % 5}"} for n in range(6)]
RETAIN = [{"question": f"what is {n}", "answer": f"thing {n} of kind {n * 3 % 7}"} for n in range(20)]
HOLDOUT = [{"question": f"where is {n}", "answer": f"place {n} of land {n * 3 % 7}"} for n in range(5)]


def dropping_llama() -> Any:
    """A model whose training draws random numbers."""
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=0.3,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def make(folder: Path, callbacks: Any = None, **settings: Any) -> UnlearningTrainer:
    args = {
        **{"use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False, "report_to": "none"},
        **{
            "per_device_train_batch_size": 2,
            "max_steps": 4,
            "stop_at": "none",
            "method": "ngdiff",
            "keep_utility": 0.0,
        },
    }
    return UnlearningTrainer(
        dropping_llama(),
        UnlearningConfig(output_dir=str(folder), **{**args, **settings}),
        forget_dataset=FORGET,
        retain_dataset=RETAIN,
        holdout_dataset=HOLDOUT,
        processing_class=TOKENIZER,
        callbacks=callbacks,
    )


def test_the_run_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    plain = make(tmp_path / "a")
    plain.train()
    watched = make(tmp_path / "b", eval_steps=1)  # seeds the random state again
    watched.train()
    assert len(watched.record.evaluations) == 5 and not plain.record.evaluations
    for mine, theirs in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    keys = ("forget_loss", "retain_loss", "learning_rate", "cosine")
    for one, other in zip(plain.record.steps, watched.record.steps, strict=True):
        assert [getattr(one, key) for key in keys] == [getattr(other, key) for key in keys]
    mine, theirs = ([e for e in run.state.log_history if "loss" in e] for run in (plain, watched))
    assert len(mine) == len(theirs) == 4  # steps are logged as before


def test_steps_and_figures(tmp_path: Path) -> None:
    seen: dict[int, float] = {}

    class Look(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            examples = as_encoded(FORGET, TOKENIZER, 512, "forget")
            scores = score_answers(model, examples, pad_id=1, batch_size=1)
            seen[state.global_step] = sum(score.probability for score in scores) / len(scores)

    trainer = make(tmp_path, [Look()], eval_steps=3)
    trainer.train()
    found = {entry["step"]: entry["figures"] for entry in trainer.record.evaluations}
    assert list(found) == [0, 3, 4]  # untouched, every third, the last
    for step in (3, 4):
        assert found[step]["forget.probability"]["value"] == pytest.approx(seen[step], rel=1e-5)
        low, high = found[step]["forget.probability"]["interval"]
        assert low <= found[step]["forget.probability"]["value"] <= high
    assert {"forget.rouge", "retain.extraction_strength", "utility", "forget.membership.min_k"} <= set(
        found[0]
    )
    assert "forget_quality" not in found[0]  # no reference, so no value
    logged = [entry for entry in trainer.state.log_history if "eval/forget.probability" in entry]
    assert len(logged) == 3
    assert json.loads(json.dumps(trainer.record.as_json()))["evaluations"] == trainer.record.evaluations


def test_as_a_callback_of_ones_own(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.add_callback(EvaluationCallback(trainer, EvaluationPlan(every=2, items=3, max_new_tokens=4)))
    trainer.train()
    assert [entry["step"] for entry in trainer.record.evaluations] == [0, 2, 4]
    callback = trainer.callback_handler.callbacks[-1]
    assert [len(examples) for examples in callback.data.sets.values()] == [3, 3, 3]


@pytest.mark.parametrize("name", ["every", "items", "max_new_tokens", "batch_size"])
def test_a_plan_needs_positive_numbers(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        EvaluationPlan(**{"every": 1, name: 0})


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"eval_steps": -1}, "eval_steps"),
        ({"eval_items": 0}, "eval_items"),
        ({"eval_steps": 1.5}, "eval_steps"),
    ],
)
def test_bad_settings(tmp_path: Path, settings: dict[str, Any], flag: str) -> None:
    with pytest.raises(RequestError, match=flag):
        UnlearningConfig(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_on_the_command_line(cli: Cli, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = cli(
        "unlearn",
        *(
            "--model",
            tmp_path / "model",
            "--output",
            tmp_path / "out",
            "--set",
            "max_steps=2",
            "--set",
            "eval_steps=2",
        ),
        *(
            "--forget",
            tmp_path / "forget.jsonl",
            "--retain",
            tmp_path / "retain.jsonl",
            "--set",
            "eval_items=2",
        ),
        *("--stop-at", "none", "--keep-utility", "0"),
    )
    assert answer.code == 0, answer.err
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert [entry["step"] for entry in record["evaluations"]] == [0, 2]
