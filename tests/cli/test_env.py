"""``ngdiff env`` says what an issue needs, quickly, and gives no secret away."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import psutil
import pytest
import torch

from commandline import Cli
from ngdiff.cli import env

ALONE = """
import sys
sys.argv = ["ngdiff", "env"]
from ngdiff.cli.app import main
try:
    main()
finally:
    loaded = sorted({"torch", "transformers", "numpy"} & set(sys.modules))
    assert not loaded, loaded
"""
SMI = (
    '#!/bin/sh\ntest "$2" = --format=csv,noheader,nounits && echo "NVIDIA H100 80GB HBM3, 81559, 550.54.15"\n'
)
Tool = Callable[[str], None]


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Put a program of that name on the path, with this text."""

    def put(text: str) -> None:
        (tmp_path / "nvidia-smi").write_text(text, encoding="utf-8")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return put


def found(cli: Cli) -> dict:
    answer = cli("env", "--json")
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


def test_versions_and_hardware_are_this_machines(cli: Cli) -> None:
    told = found(cli)
    assert told["ngdiff"] == metadata.version("ngdiff")
    assert told["python"].startswith(platform.python_version())
    assert told["packages"]["torch"] == metadata.version("torch")
    assert told["processor"]["cores"] == os.cpu_count() >= told["processor"]["usable_cores"] >= 1
    assert told["memory"]["total_gib"] == pytest.approx(psutil.virtual_memory().total / 2**30, abs=0.01)
    assert {"pytest", "sphinx", "ruff"}.isdisjoint(told["packages"])


def test_text_and_json_say_the_same(cli: Cli) -> None:
    told, text = found(cli), cli("env").out
    shown = dict(line.split("  ", 1) for line in text.splitlines())
    for name, version in told["packages"].items():
        assert shown[name].strip() == version
    assert told["processor"]["name"] in text
    for place in told["caches"].values():
        assert place in text


def test_nothing_heavy_is_loaded_where_there_is_no_gpu() -> None:
    if env.nvidia_gpus() or env._other_accelerator():
        pytest.skip("there is a sign of a GPU here")
    ran = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "none found" in ran.stdout


def test_a_package_that_is_missing_or_too_old_is_named_with_what_it_needs(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = ["torch>=9999", "no-such-thing-here>=2", 'neither-this>=1 ; extra == "sign"', "rich>=1"]
    needs += ['ruff>=0.9 ; extra == "dev"']
    monkeypatch.setattr(metadata, "requires", lambda name: needs)
    assert found(cli)["packages"] == {
        "torch": f"{metadata.version('torch')} (needs >=9999)",
        "no-such-thing-here": "missing (needs >=2)",
        "rich": metadata.version("rich"),
    }


# ---- what may be secret ----


def test_no_value_that_may_be_secret_is_printed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "HF_TOKEN": "hf_secret",
        "WANDB_API_KEY": "1234567890",  # looks like a number, and is a key
        "NGDIFF_TOFU_DIR": "/data/jane-secret",
        "OMP_NUM_THREADS": "secret-by-mistake",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "NGDIFF_LOG_FORMAT": "lines",
        "OTHER_PASSWORD": "secret",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    told, text = found(cli)["variables"], cli("env").out
    for shown in (json.dumps(told), text):
        assert "secret" not in shown and "1234567890" not in shown and "OTHER_PASSWORD" not in shown
    assert {name: told[name] for name in secrets if name != "OTHER_PASSWORD"} == {
        "HF_TOKEN": "set",
        "WANDB_API_KEY": "set",
        "NGDIFF_TOFU_DIR": "set",
        "OMP_NUM_THREADS": "set",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "NGDIFF_LOG_FORMAT": "lines",
    }
    assert "CUDA_VISIBLE_DEVICES=0,1" in text and "HF_TOKEN" in text


def test_variables_that_the_command_sets_itself_are_not_listed(cli: Cli) -> None:
    assert not set(found(cli)["variables"]) & env.OWN


def test_the_home_folder_is_not_named(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    assert found(cli)["caches"]["NGDiff"] == "~/kept/ngdiff (not there yet)"
    (tmp_path / "kept" / "ngdiff").mkdir(parents=True)
    assert found(cli)["caches"]["NGDiff"] == "~/kept/ngdiff"


def test_a_name_with_control_characters_stays_on_its_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NGDIFF_\x1b[31m", "x")
    assert "\x1b" not in cli("env").out


# ---- GPUs ----


def test_a_gpu_that_torch_cannot_use_is_shown_as_such(
    cli: Cli, nvidia_smi: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    nvidia_smi(SMI)
    gpu = {"name": "NVIDIA H100 80GB HBM3", "memory_gib": 79.65, "driver": "550.54.15", "usable": False}
    assert found(cli)["gpus"] == [gpu]
    assert "NVIDIA H100 80GB HBM3, 79.7 GiB, driver 550.54.15: torch cannot use it" in cli("env").out


def test_a_gpu_that_torch_uses_is_shown_with_its_driver_and_build(
    cli: Cli, nvidia_smi: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Properties:
        name, total_memory = "NVIDIA H100 80GB HBM3", 80 * 2**30

    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda n: Properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    nvidia_smi(SMI)
    told = found(cli)["gpus"]
    assert len(told) == 2 and told[0]["driver"] == "550.54.15" and told[0]["bf16"] is True
    line = "NVIDIA H100 80GB HBM3, 80.0 GiB, driver 550.54.15, CUDA 12.8, bf16\n"
    assert cli("env").out.count(line) == 2


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 9\n", "#!/bin/sh\necho 'No devices were found'\n", "no"])
def test_a_driver_that_does_not_answer_is_no_fault(cli: Cli, nvidia_smi: Tool, text: str) -> None:
    nvidia_smi(text)
    assert env.nvidia_gpus() == []
    assert cli("env").code == 0
