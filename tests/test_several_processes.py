"""Two processes give the run of one: weights, losses, Gramians, rates, decisions, files, checkpoints."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from commandline import questions, save_model, tree, write_jsonl
from ngdiff.errors import RequestError
from ngdiff.models.parameters import BEST_FILE
from ngdiff.training.config import UnlearningConfig
from several_processes import Case, as_json, learn, run

torch.set_num_threads(1)
HERE = Path(__file__).parent
TIMEOUT = 500
How = Literal["ddp", "fsdp2"]
HOWS: tuple[How, How] = ("ddp", "fsdp2")
FOLLOWED = ("forget_loss", "retain_loss", "forget_norm", "retain_norm", "learning_rate", "combined_norm")

# twenty steps at the automatic rate; 17 forget examples, so that every epoch ends in a step of one
TWENTY = {
    f"{'lora' if lora else 'full'}-{optim}-{accumulation}": Case(
        "", lora=lora, settings={"optim": optim, "examples_per_step": 4 * accumulation}
    )
    for lora, optim, accumulation in itertools.product((False, True), ("sgd", "adamw_torch"), (1, 4))
    # half of them, in which each choice meets each other; NGDIFF_ALL_COMBINATIONS=1 runs the rest, too
    if "NGDIFF_ALL_COMBINATIONS" in os.environ or (lora + (optim != "sgd") + (accumulation > 1)) % 2 == 0
}
FEW = {"examples_per_step": 4, "max_steps": 4, "optim": "sgd"}
STOPPED = {**FEW, "max_steps": 9, "stop_at": "extraction_strength=0.5", "check_every": 3, "keep_utility": 0.6}
OTHERS = {
    "stop": STOPPED,
    "rmu": {**FEW, "method": "rmu", "learning_rate": 0.05},
    "dpo": {**FEW, "method": "idkdpo", "learning_rate": 0.05},
    "kl": {**FEW, "retain_loss": "kl"},
    "forget-buffer": {**FEW, "forget_buffer": "cpu"},
    "checkpointing": {**FEW, "gradient_checkpointing": True},
    "graddiff": {**FEW, "method": "graddiff", "learning_rate": 0.05},
    "evaluated": {**FEW, "evaluate_every": 2, "evaluate_items": 6},
}
COMMANDS = ("unlearned", "adapter", "finetuned")
# what takes a road of its own under one of the two
WITH: dict[How, tuple[str, ...]] = {
    "ddp": ("stop", "rmu", "forget-buffer", "graddiff", "evaluated", "unlearned"),
    "fsdp2": ("stop", "rmu", "dpo", "kl", "forget-buffer", "checkpointing", *COMMANDS),
}
PAIRS = [(how, name) for how in HOWS for name in WITH[how]]
CHECKPOINTS = {
    **{**FEW, "max_steps": 8, "stop_at": "extraction_strength=0", "check_every": 2, "keep_utility": 0.5},
    **{"save_strategy": "steps", "save_steps": 4},
}


@dataclass(frozen=True)
class Places:
    """Where the runs lie: of this process, of one process and of two that torchrun started."""

    here: Path
    one: Path
    two: Path


def launch(folder: Path, cases: list[Case], processes: int) -> None:
    """Run cases on several processes, one after the other in one session."""
    (folder / "plan.json").write_text(as_json(cases))
    done = torchrun(processes, str(HERE / "several_processes.py"), str(folder / "plan.json"))
    assert done.returncode == 0, done.stderr[-4000:]


def torchrun(processes: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program on several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, *words], capture_output=True, text=True, timeout=TIMEOUT, env=environment, check=False
    )


def read(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what a run came to."""
    return json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")


def assert_same_weights(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float) -> None:
    """Compare all weights."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        apart = float((right[name] - value).abs().max())
        assert apart <= tolerance, f"{name} is {apart} apart"


def near(value: float | None, relative: float, absolute: float = 1e-9) -> Any:
    """Return what compares equal to a figure; a run without two gradients has some that are None."""
    return None if value is None else pytest.approx(value, rel=relative, abs=absolute)


def figures_of(measured: dict[str, Any]) -> dict[Any, Any]:
    """Return the mean figures of each set, and those of the single items by set and measure."""
    items = {(name, key): v for name, part in measured["items"].items() for key, v in part.items()}
    return {name: figures for name, figures in measured.items() if name != "items"} | items


def assert_same_record(left: dict[str, Any], right: dict[str, Any], relative: float) -> None:
    """Compare the steps' figures, the probes' outcomes, the figures before and after, and the end."""
    assert len(left["steps"]) == len(right["steps"])
    for before, after in zip(left["steps"], right["steps"], strict=True):
        for key in FOLLOWED:
            assert after[key] == near(before[key], relative), (before["step"], key)
        # the Gramian's third number is small beside the other two: it is compared as a cosine
        assert after["cosine"] == near(before["cosine"], 0, 10 * relative)
        assert after["forget_extraction_strength"] == near(before["forget_extraction_strength"], 1e-6)
        assert after["skipped"] == before["skipped"]
    for key in ("outcome", "step"):
        assert [probe[key] for probe in right["probes"]] == [probe[key] for probe in left["probes"]]
    for moment in ("before", "after"):
        for part, figures in figures_of(left[moment]).items():
            found = figures_of(right[moment])[part]
            assert found == pytest.approx(figures, rel=10 * relative, abs=1e-6), (moment, part)
    for key in ("code", "step", "kept_step", "target_met"):
        assert right["stop"][key] == left["stop"][key]
    assert [check["best"] for check in right["checks"]] == [check["best"] for check in left["checks"]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    learn(folder / "start.safetensors")
    save_model(folder / "model")
    for name, first, count in (("forget", 0, 9), ("retain", 20, 20), ("holdout", 60, 4)):
        write_jsonl(folder / f"{name}.jsonl", questions(first, count))
    return folder


def commands(inputs: Path) -> dict[str, Case]:
    """Return requests whose result is a folder."""
    few = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "stop_at": "none",
        "method": "ngdiff",
        "learning_rate": 0.05,  # a rate that is fitted depends on the last bits of the losses
        "optim": "sgd",
    }
    unlearn: dict[str, Any] = {
        name: [str(inputs / f"{name}.jsonl")] for name in ("forget", "retain", "holdout")
    }
    unlearn |= {"model": str(inputs / "model"), "precision": "fp32", "settings": {**few, "max_length": 64}}
    finetune = {"model": str(inputs / "model"), "data": unlearn["forget"], "precision": "fp32"}
    finetune |= {"epochs": 1.0, "batch_size": 6, "max_length": 64}
    return {
        "unlearned": Case("", settings=unlearn, command="unlearn"),
        "adapter": Case("", settings={**unlearn, "lora": True}, command="unlearn"),
        "finetuned": Case("", settings=finetune, command="finetune"),
    }


@pytest.fixture(scope="module")
def places(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Places:
    places = Places(*(tmp_path_factory.mktemp(name) for name in ("here", "one", "two")))
    start = str(inputs / "start.safetensors")
    runs = {name: replace(case, start=start) for name, case in TWENTY.items()}
    runs |= {name: Case("", settings=settings, start=start) for name, settings in OTHERS.items()}
    runs |= commands(inputs)
    for name, case in runs.items():
        run(replace(case, name=name), places.here)
    sharded = Case("whole", "fsdp2", settings=CHECKPOINTS, start=start)
    launch(places.one, [sharded], 1)
    middle = "whole/checkpoint-4"
    taken_up = replace(sharded, name="taken-up")
    launch(
        places.two,
        [
            *(
                replace(case, name=f"{how}-{name}", how=how)
                for how in HOWS
                for name, case in runs.items()
                if name in TWENTY or (name in WITH[how] and (how, name) != ("ddp", "unlearned"))
            ),
            sharded,
            replace(taken_up, resume=str(places.one / middle)),
            replace(
                sharded, name="full-disk", full_disk=True, settings={**CHECKPOINTS, "optim": "adamw_torch"}
            ),
            Case(
                "refused",
                settings={**commands(inputs)["unlearned"].settings, "precision": "none"},
                command="unlearn",
            ),
        ],
        2,
    )
    launch(places.one, [replace(taken_up, resume=str(places.two / middle))], 1)
    command(inputs, places.two / "ddp-unlearned")
    return places


def command(inputs: Path, output: Path) -> None:
    """Make the folder of one of the requests by the real command."""
    sources = [
        word for name in ("forget", "retain", "holdout") for word in (f"--{name}", inputs / f"{name}.jsonl")
    ]
    settings = "--method ngdiff --lr 0.05 --max-steps 3 --batch-size 4 --stop-at none"
    settings += " --max-length 64 --precision fp32"
    words = ["unlearn", "--model", inputs / "model", *sources, *settings.split(), "--set", "optim=sgd"]
    done = torchrun(2, "-m", "ngdiff", *map(str, words), "--output", str(output))
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("Unlearning: ") == 1  # one of them speaks


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", TWENTY)
def test_the_run_of_one(places: Places, how: How, name: str) -> None:
    (left, here), (right, there) = read(places.here, name), read(places.two, f"{how}-{name}")
    if "sgd" in name:
        assert_same_weights(here, there, 1e-5)
    # AdamW's first steps magnify the rounding of weights whose gradient is next to nothing
    assert_same_record(left, right, 2e-3 if "sgd" in name else 1e-3)
    assert left["probes"] and len(left["steps"]) == 20


@pytest.mark.parametrize(("how", "name"), [pair for pair in PAIRS if pair[1] in OTHERS])
def test_other_losses_options_and_ends(places: Places, how: How, name: str) -> None:
    (left, here), (right, there) = read(places.here, name), read(places.two, f"{how}-{name}")
    assert_same_weights(here, there, 1e-5)
    assert_same_record(left, right, 2e-3)


def test_evaluations_during_the_run(places: Places) -> None:
    left, right = (read(folder, name)[0]["evaluations"] for folder, name in _pair(places, "evaluated"))
    assert [entry["step"] for entry in left] == [entry["step"] for entry in right] == [0, 2, 4]
    for before, after in zip(left, right, strict=True):
        assert before["figures"].keys() == after["figures"].keys()
        for key, figure in before["figures"].items():
            assert after["figures"][key]["value"] == pytest.approx(figure["value"], rel=1e-3, abs=1e-6), key


def _pair(places: Places, name: str) -> tuple[tuple[Path, str], tuple[Path, str]]:
    return (places.here, name), (places.two, f"ddp-{name}")


@pytest.mark.parametrize(("how", "name"), [pair for pair in PAIRS if pair[1] in COMMANDS])
def test_the_folder_of_one(places: Places, how: How, name: str) -> None:
    here, there = tree(places.here / name), tree(places.two / f"{how}-{name}")
    # the report shows times; of a sharded model no answers are recorded, which the record notes
    others = {"report.html"} | ({"answers.json"} if how == "fsdp2" else set())
    assert here.keys() - others == there.keys() - others
    for file in here.keys() - others:
        content = here[file]
        if file.endswith(".safetensors"):
            left, right = (load_file(folder / file) for folder in _folders(places, how, name))
            assert_same_weights(left, right, 1e-5)
        elif file == "adapter_config.json":  # which names the adapted layers as a set
            left, right = (json.loads((folder / file).read_text()) for folder in _folders(places, how, name))
            assert {**right, "target_modules": sorted(right["target_modules"])} == {
                **left,
                "target_modules": sorted(left["target_modules"]),
            }
        elif file == "answers.json":
            assert [item["question"] for item in json.loads(content)["items"]] == [
                item["question"] for item in json.loads(there[file])["items"]
            ]
        elif file not in ("record.json", "receipt.json", "README.md"):  # which hold times and hashes
            assert there[file] == content, file
    if name != "finetuned":
        record = json.loads(there["record.json"])
        alone = json.loads(here["record.json"])
        assert record["settings"] == alone["settings"] and record["data"] == alone["data"]
        assert record["model"]["sha256_before"] == alone["model"]["sha256_before"]
        assert record["request_sha256"] == alone["request_sha256"]
    assert not list(places.two.glob(f".{how}-{name}*"))  # nothing of the work is left


def _folders(places: Places, how: How, name: str) -> tuple[Path, Path]:
    return places.here / name, places.two / f"{how}-{name}"


def test_sharded_checkpoints_pass_to_another_number_of_processes(places: Places) -> None:
    whole, weights = read(places.one, "whole")
    for folder in (places.one, places.two):
        taken_up, again = read(folder, "taken-up")
        assert_same_weights(weights, again, 1e-5)
        assert [step["step"] for step in taken_up["steps"]] == [step["step"] for step in whole["steps"]]
        assert taken_up["stop"]["kept_step"] == whole["stop"]["kept_step"] > 0
        assert "resumed at step 4" in " ".join(taken_up["notes"])
    files = {file.name for file in (places.two / "whole" / "checkpoint-4").rglob("*")}
    assert {"pytorch_model_fsdp_0", "__0_0.distcp", "__1_0.distcp"} <= files
    assert BEST_FILE not in files


def test_a_disk_that_fills_between_two_copies_stops_no_process(places: Places) -> None:
    """transformers gathers the optimizer's state after the first process alone has written the weights."""
    record, _ = read(places.two, "full-disk")
    notes = [note for note in record["notes"] if "could not be written (No space left" in note]
    assert [note.partition(":")[0] for note in notes] == ["step 4", "step 8"]
    assert [step["step"] for step in record["steps"]] == list(range(1, 9))


def test_the_hash_is_that_of_the_whole_weights(places: Places) -> None:
    record, weights = read(places.two, "whole")
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.numpy().tobytes())
    assert record["hash"] == digest.hexdigest()


def test_a_fault_ends_all_and_nothing_is_written(places: Places) -> None:
    for rank in (0, 1):
        assert "--precision" in (places.two / f"refused-{rank}.txt").read_text()
    assert not (places.two / "refused").exists()
    assert not list(places.two.glob(".refused*"))


def test_fsdp1_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(RequestError, match="fsdp_version: 2"):
        UnlearningConfig(output_dir=str(tmp_path), use_cpu=True)
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(RequestError, match="--eval-every"):
        UnlearningConfig(output_dir=str(tmp_path), use_cpu=True, evaluate_every=5)
