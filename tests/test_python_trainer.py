"""``trainer.save_model``: what the command line writes, whole or not at all, and nothing overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, TaskType

from commandline import Cli, make_cli, questions, save_model, tree, write_jsonl
from ngdiff import UnlearningConfig, UnlearningTrainer
from ngdiff.errors import RequestError, RunError
from ngdiff.models.loading import load_model, resolve_model
from ngdiff.system.environment import weights_hash
from tiny import tiny_llama, tiny_tokenizer
from training_runs import OLD_NAME

RETAIN = questions(100, 12)
QUICK: dict[str, Any] = {"method": "graddiff", "max_steps": 2, "stop_at": "none", "keep_utility": 0}


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return make_cli(capsys)


def make(folder: Path, model: Any, **others: Any) -> UnlearningTrainer:
    quiet = {"use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False, "report_to": "none"}
    settings = {"learning_rate": 1e-3, "per_device_train_batch_size": 2} | others.pop("settings", {})
    args = UnlearningConfig(output_dir=str(folder / "run"), **QUICK, **quiet, **settings)
    return UnlearningTrainer(
        model, args, forget_dataset=questions(0, 4), retain_dataset=RETAIN, allow_overlap=True, **others
    )


def test_a_named_model_is_saved_as_the_command_line_saves_it(tmp_path: Path, cli: Cli) -> None:
    target = save_model(tmp_path / "target")
    trainer = make(tmp_path, target)
    trainer.train()
    trainer.save_model(tmp_path / "out")
    out = tmp_path / "out"
    names = {name for name in tree(out) if "/" not in name}
    forget = write_jsonl(tmp_path / "forget.jsonl", questions(0, 4))
    retain = write_jsonl(tmp_path / "retain.jsonl", RETAIN)
    asked = ["--set", "max_steps=2", "--set", "answers=0", "--stop-at", "none", "--keep-utility", 0]
    asked += ["--method", "graddiff", "--lr", 1e-3, "--batch-size", 2, "--precision", "fp32"]
    asked += ["--model", target, "--forget", forget, "--retain", retain, "--output", tmp_path / "cli"]
    assert cli("unlearn", *asked).code == 0
    assert names == set(tree(tmp_path / "cli"))
    ours, theirs = (json.loads((f / "record.json").read_text("utf-8")) for f in (out, tmp_path / "cli"))
    assert ours["data"] == theirs["data"] and ours["model"] == theirs["model"]
    assert ours["after"] == theirs["after"] and ours["settings"].keys() <= theirs["settings"].keys()
    assert ours["settings"]["forget"] == [] and ours["settings"]["max_steps"] == 2
    verified = cli("verify", out, "--model", target, "--forget", forget, "--retain", retain)
    assert verified.code == 0, verified.out
    assert "files are those of the receipt" in " ".join(verified.out.split())
    refused = cli("check", out)
    assert refused.code == 2 and "does not name the data" in refused.err


def test_a_loaded_model_is_stated_by_its_hash_alone(tmp_path: Path, cli: Cli) -> None:
    model = tiny_llama()
    began = weights_hash(model)
    trainer = make(tmp_path, model, processing_class=tiny_tokenizer())
    trainer.train()
    trainer.save_model()
    written = json.loads((tmp_path / "run" / "record.json").read_text("utf-8"))
    assert written["model"]["name"] == "LlamaForCausalLM from memory"
    assert written["model"]["sha256_before"] == began
    assert written["model"]["sha256_after"] == weights_hash(load_model(resolve_model(str(tmp_path / "run"))))
    assert any("given as a loaded model" in note for note in written["notes"])
    stated = json.loads((tmp_path / "run" / "receipt.json").read_text("utf-8"))
    assert stated["starting_files"] is None and stated["previous"] is None
    target = save_model(tmp_path / "target")
    assert cli("verify", tmp_path / "run", "--model", target).code == 0
    other = save_model(tmp_path / "other", seed=1)
    assert cli("verify", tmp_path / "run", "--model", other).code == 4


@OLD_NAME
def test_adapters_are_saved_alone_and_the_hash_is_that_of_the_whole_model(tmp_path: Path, cli: Cli) -> None:
    target = save_model(tmp_path / "target")
    lora = LoraConfig(r=2, task_type=TaskType.CAUSAL_LM, target_modules="all-linear")
    trainer = make(tmp_path, target, peft_config=lora)
    trainer.train()
    trainer.save_model(tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert cli("verify", tmp_path / "out", "--model", target).code == 0


def test_nothing_is_overwritten_and_nothing_is_lost(tmp_path: Path) -> None:
    trainer = make(tmp_path, tiny_llama(), processing_class=tiny_tokenizer())
    trainer.save_model(tmp_path / "before")  # as transformers does
    assert not (tmp_path / "before" / "record.json").exists()
    trainer.train()
    out = tmp_path / "out"
    trainer.save_model(out)
    first = tree(out)
    with pytest.raises(RunError, match=r"out is not empty, so it was not replaced; the result is in (.*)"):
        trainer.save_model(out)
    assert tree(out) == first
    (kept,) = tmp_path.glob(".out.*.finished")
    assert (kept / "receipt.json").is_file()
    trainer.save_model(out, overwrite=True)
    (out / "mine.txt").touch()
    with pytest.raises(RunError, match=r"mine.txt, which ngdiff did not write"):
        trainer.save_model(out, overwrite=True)
    assert (out / "mine.txt").exists()


def test_a_result_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(tmp_path, tiny_llama(), processing_class=tiny_tokenizer())
    trainer.train()

    def broken(*_: Any) -> None:
        raise OSError("no")

    monkeypatch.setattr("ngdiff.python_trainer.write_receipt", broken)
    with pytest.raises(OSError, match="no"):
        trainer.save_model(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    monkeypatch.undo()
    trainer.save_model(tmp_path / "out")
    assert (tmp_path / "out" / "report.html").is_file()


def test_checkpoints_are_those_of_transformers(tmp_path: Path) -> None:
    each = {"save_strategy": "steps", "save_steps": 1}
    trainer = make(tmp_path, tiny_llama(), processing_class=tiny_tokenizer(), settings=each)
    trainer.train()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"checkpoint-1", "checkpoint-2"}
    assert not (tmp_path / "run" / "checkpoint-2" / "record.json").exists()
    with pytest.raises(RunError, match="not empty, so it was not replaced"):
        trainer.save_model()


def test_damaged_receipts_of_the_starting_model_are_refused(tmp_path: Path) -> None:
    trainer = make(tmp_path, save_model(tmp_path / "target"))
    trainer.train()
    trainer.save_model(tmp_path / "out")
    text = (tmp_path / "out" / "receipt.json").read_text("utf-8")
    (tmp_path / "out" / "receipt.json").write_text(text.replace("graddiff", "gradzero"), "utf-8")
    again = make(tmp_path, tmp_path / "out")
    with pytest.raises(RequestError, match=r"^model: receipt.json of"):
        again.train()
