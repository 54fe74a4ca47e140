"""Two processes give the run of one: weights, losses, Gramians, rates, whatever shares the work."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from several_processes import Case, as_json, learn, run

torch.set_num_threads(1)
HERE = Path(__file__).parent
TIMEOUT = 500
FOLLOWED = ("forget_loss", "retain_loss", "forget_norm", "retain_norm", "learning_rate", "combined_norm")


def launch(folder: Path, cases: list[Case], processes: int = 2) -> None:
    """Run cases on several processes, one after the other in one session."""
    (folder / "plan.json").write_text(as_json(cases))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, str(HERE / "several_processes.py"), str(folder / "plan.json")],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def read(folder: Path, case: Case) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read what a case came to."""
    return json.loads((folder / f"{case.name}.json").read_text()), load_file(
        folder / f"{case.name}.safetensors"
    )


def assert_same_run(one: Path, two: Path, alone: Case, shared: Case, weights: float | None) -> None:
    """Compare two runs: weights to ``weights`` where it is given, the rest to 1e-4 of each figure."""
    (left, here), (right, there) = read(one, alone), read(two, shared)
    assert here.keys() == there.keys()
    if weights is not None:
        for name, value in here.items():
            torch.testing.assert_close(there[name], value, rtol=0, atol=weights, msg=lambda m, n=name: f"{n}: {m}")
    assert len(left["steps"]) == len(right["steps"])
    for before, after in zip(left["steps"], right["steps"], strict=True):
        for key in FOLLOWED:
            assert after[key] == pytest.approx(before[key], rel=1e-4), (before["step"], key)
        # the Gramian's third number is small beside the other two: it is compared as a cosine
        assert after["cosine"] == pytest.approx(before["cosine"], abs=1e-4)
        assert after["forget_extraction_strength"] == pytest.approx(before["forget_extraction_strength"])
    for key in ("outcome", "step"):
        assert [probe[key] for probe in right["probes"]] == [probe[key] for probe in left["probes"]]
    for moment in ("before", "after"):
        for part, figures in left[moment].items():
            assert right[moment][part] == pytest.approx(figures, rel=1e-4, abs=1e-6), (moment, part)
    assert right["stop"]["code"] == left["stop"]["code"]
    assert right["stop"]["kept_step"] == left["stop"]["kept_step"]


def _cases(start: Path) -> list[Case]:
    """Twenty steps at the automatic rate, whole model and adapters, accumulation 1 and 4 a process."""
    chosen = [(False, "sgd", 1), (False, "adamw_torch", 4), (True, "sgd", 4), (True, "adamw_torch", 1)]
    return [
        Case(
            f"{'lora' if lora else 'full'}-{optim}-{accumulation}",
            lora=lora,
            start=str(start),
            settings={"optim": optim, "examples_per_step": 4 * accumulation},
        )
        for lora, optim, accumulation in chosen
    ]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("start") / "start.safetensors"
    learn(file)
    return file


@pytest.fixture(scope="module")
def runs(start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of one process's runs and of two's."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    for case in _cases(start):
        run(case, one)
    launch(two, [replace(case, name=f"{how}-{case.name}", how=how) for how in ("ddp", "fsdp2") for case in _cases(start)])
    return one, two


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
@pytest.mark.parametrize("place", range(4), ids=lambda place: _cases(Path())[place].name)
def test_the_run_of_one(runs: tuple[Path, Path], start: Path, how: str, place: int) -> None:
    alone = _cases(start)[place]
    shared = replace(alone, name=f"{how}-{alone.name}")
    sgd = alone.settings["optim"] == "sgd"
    assert_same_run(*runs, alone, shared, 1e-5 if sgd else None)
    assert not math.isnan(read(runs[1], shared)[0]["steps"][-1]["retain_loss"])
