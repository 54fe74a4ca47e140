"""The ready-made configurations: accelerate takes them, and what they say is what ngdiff accepts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.dataclasses import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from ngdiff.training.config import UnlearningConfig
from ngdiff.training.launch import launch_faults

FOLDER = Path(__file__).parents[2] / "examples" / "distributed"
FILES = sorted(FOLDER.glob("*.yaml"))
PROCESSES = {"one_gpu": (1, 1), "ddp_8gpu": (1, 8), "fsdp2_8gpu": (1, 8), "fsdp2_2x8gpu": (2, 16)}


def _environment(file: Path) -> dict[str, str]:
    """Return what accelerate launch would set for the processes it starts."""
    words = ["--config_file", str(file), "-m", "ngdiff", "unlearn"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    if args.num_processes == 1:
        return prepare_simple_launcher_cmd_env(args)[1]
    return prepare_multi_gpu_env(args)


def test_there_is_one_for_every_size() -> None:
    assert {file.stem for file in FILES} == set(PROCESSES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_takes_it(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config_from_file(str(file))
    assert isinstance(config, ClusterConfig)
    assert (config.num_machines, config.num_processes) == PROCESSES[file.stem]
    for name, value in _environment(file).items():
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(name, value)
    settings = UnlearningConfig(output_dir=str(tmp_path), use_cpu=True)
    assert launch_faults(settings) == []
    assert (os.environ.get("ACCELERATE_USE_FSDP") == "true") == file.stem.startswith("fsdp2")
    if file.stem.startswith("fsdp2"):
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
        assert "SHARDED" in str(plugin.state_dict_type) and plugin.cpu_ram_efficient_loading


def test_the_slurm_script_is_sound() -> None:
    script = FOLDER / "unlearn.sbatch"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    text = script.read_text()
    for name in PROCESSES:
        if name != "ddp_8gpu":
            assert f"CONFIG={name}" in text
