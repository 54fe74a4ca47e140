"""Two processes share an evaluation: one result, a single process's figures, and no hanging."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from commandline import save_model
from ngdiff.evaluation.result import read_result
from tofu_folder import make_tofu

TIMEOUT = 240


def run(*words: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launch if processes > 1 else []), "-m", "ngdiff", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT, env=environment, check=False
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_model(folder / "model", 0)
    save_model(folder / "retrained", 1)
    make_tofu(folder / "tofu", forget=5)
    return folder


def words(place: Path, output: Path) -> tuple[object, ...]:
    model, reference = place / "model", place / "retrained"
    data = ("--suite", "tofu", "--forget", "forget01", "--tofu-dir", place / "tofu", "--max-new-tokens", 4)
    exact = ("--resamples", 20, "--precision", "fp32")  # bf16 sees which rows share a batch
    return ("evaluate", model, *data, "--reference", reference, "--output", output, *exact)


def test_the_figures_of_one(place: Path, tmp_path: Path) -> None:
    alone = run(*words(place, tmp_path / "one.json"), "--no-cache")
    assert alone.returncode == 0, alone.stderr
    shared = run(*words(place, tmp_path / "two.json"), "--cache-dir", tmp_path / "cache", processes=2)
    assert shared.returncode == 0, shared.stderr
    one, two = read_result(tmp_path / "one.json"), read_result(tmp_path / "two.json")
    assert two.provenance["settings"]["processes"] == 2
    assert one.figures.keys() == two.figures.keys()
    for key, figure in one.figures.items():
        assert two.figures[key].items == pytest.approx(figure.items, rel=1e-5, abs=1e-7), key
        if figure.value is not None:
            assert two.figures[key].value == pytest.approx(figure.value, rel=1e-6, abs=1e-9), key
    assert shared.stdout.count("forget_quality") <= 1  # one of them prints


def test_a_fault_ends_all(place: Path, tmp_path: Path) -> None:
    wrong = run(*words(place, tmp_path / "e.json"), "--batch-size", 0, processes=2)
    assert wrong.returncode != 0 and "--batch-size" in wrong.stderr
    assert not (tmp_path / "e.json").exists()
