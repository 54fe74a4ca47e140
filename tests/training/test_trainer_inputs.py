"""The trainer: data sets and adapters that it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from ngdiff.data.datasets import as_encoded
from ngdiff.training.config import UnlearningConfig
from ngdiff.training.trainer import UnlearningTrainer
from tiny import tiny_llama
from training_runs import (
    FORGET,
    OLD_NAME,
    RETAIN,
    TOKENIZER,
    leftovers,
    make,
    run,
    start,
    steps,
    weights,
)

pytestmark = pytest.mark.usefixtures("quick_runs")


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
