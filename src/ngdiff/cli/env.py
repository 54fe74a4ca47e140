"""``ngdiff env``: versions, hardware, caches and variables, to paste into an issue."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from ngdiff.cli.app import app
from ngdiff.errors import printable

GIB = 2**30
NOT_SHOWN = frozenset({"dev", "docs", "study"})
"""Extras of people who work on NGDiff itself."""
PREFIXES = (
    *("NGDIFF_", "HF_", "HUGGING", "TRANSFORMERS_", "XDG_CACHE_HOME", "TORCH", "PYTORCH_", "TRITON_"),
    *("CUDA_", "HIP_", "ROCR_", "NVIDIA_VISIBLE", "NCCL_", "ACCELERATE_", "FSDP_", "WANDB_", "TRACKIO_"),
    *("TENSORBOARD_", "TOKENIZERS_", "OMP_", "MKL_", "RANK", "LOCAL_RANK", "WORLD_SIZE"),
)
"""Prefixes of variables that affect NGDiff."""
OWN = frozenset({"HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM"})
"""Variables that the command line sets itself."""
HARMLESS = re.compile(r"[\d,]{1,12}|true|false|yes|no|on|off|auto|lines|json", re.IGNORECASE)
"""Values that cannot be secrets."""
SHOWN = frozenset(
    {"CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "LOCAL_RANK", "NGDIFF_LOG_FORMAT", "NGDIFF_PACKING"}
    | {"NGDIFF_QUIET", "OMP_NUM_THREADS", "RANK", "WORLD_SIZE"}
)
"""Variables whose harmless values are shown; of others, only the name is shown."""
SET = "set"


@app.command()
def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Print versions, hardware, cache folders and the variables that are set, to paste into an issue.

    `ngdiff env`

    `ngdiff env --json`

    Environment variables are listed by name; values are shown only if they are plain numbers or switches. The
    home folder is abbreviated to ~.
    """
    found = collect()
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))


def collect() -> dict[str, Any]:
    """Return everything that the command prints, as JSON values."""
    return {
        "ngdiff": metadata.version("ngdiff"),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform(),
        "packages": packages(),
        "processor": processor(),
        "memory": memory(),
        "gpus": gpus(),
        "caches": caches(),
        "variables": variables(),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """Return what :func:`collect` found as text: a name and a value on each line."""
    cpu, gib = found["processor"], found["memory"]
    bf16 = {True: "fast bf16", False: "no fast bf16", None: "bf16 unknown"}[cpu["bf16"]]
    rows = [
        ("ngdiff", found["ngdiff"]),
        ("Python", found["python"]),
        ("system", found["system"]),
        *found["packages"].items(),
        ("processor", f"{cpu['name']}, {cpu['usable_cores']} of {cpu['cores']} cores usable, {bf16}"),
        ("memory", f"{gib['total_gib']:.1f} GiB, {gib['available_gib']:.1f} GiB available"),
        *(("GPU", _gpu_line(gpu)) for gpu in found["gpus"] or [{"name": "none found"}]),
        *((f"{name} cache", where) for name, where in found["caches"].items()),
        ("variables", ", ".join(map(_variable, found["variables"].items())) or "none set"),
    ]
    width = max(len(name) for name, _ in rows)
    return [printable(f"{name:{width}}  {value}") for name, value in rows]


def _gpu_line(gpu: dict[str, Any]) -> str:
    parts = [gpu["name"]]
    parts += [f"{gpu['memory_gib']:.1f} GiB"] if gpu.get("memory_gib") is not None else []
    parts += [f"driver {gpu['driver']}"] if gpu.get("driver") else []
    parts += [gpu["build"]] if gpu.get("build") else []
    parts += ["bf16" if gpu["bf16"] else "no bf16"] if gpu.get("bf16") is not None else []
    return ", ".join(parts) + ("" if gpu.get("usable", True) else ": torch cannot use it")


def _variable(pair: tuple[str, str]) -> str:
    name, value = pair
    return name if value == SET else f"{name}={value}"


def packages() -> dict[str, str]:
    """Return the version of each package that NGDiff needs, or can use and finds, as NGDiff declares them."""
    from packaging.requirements import Requirement

    found = {}
    for requirement in map(Requirement, metadata.requires("ngdiff") or ()):
        extra = re.search(r"extra == .([\w-]+)", str(requirement.marker or ""))
        if extra and extra[1] in NOT_SHOWN:
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if not extra:
                found[requirement.name] = f"missing (needs {requirement.specifier})"
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        found[requirement.name] = version if fits else f"{version} (needs {requirement.specifier})"
    return found


def processor() -> dict[str, Any]:
    """Return the processor's name, its cores, those this process may use, and whether bf16 is fast on it."""
    told = _proc("/proc/cpuinfo")
    name = re.search(r"^model name\s*: (.+)$", told, re.MULTILINE)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": name[1].strip() if name else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "bf16": bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", told)) if "flags" in told else None,
    }


def _proc(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def memory() -> dict[str, float]:
    """Return the machine's memory in GiB, all of it and what is available."""
    import psutil

    found = psutil.virtual_memory()
    return {"total_gib": round(found.total / GIB, 2), "available_gib": round(found.available / GIB, 2)}


def gpus() -> list[dict[str, Any]]:
    """Return each GPU; torch, which takes seconds to import, is used only where there is a sign of one."""
    drivers = nvidia_gpus()
    if not drivers and not _other_accelerator():
        return []
    usable = torch_gpus()
    if not usable:
        return [{**gpu, "usable": False} for gpu in drivers]
    driver = drivers[0]["driver"] if drivers else None
    return [{**gpu, "driver": driver, "usable": True} for gpu in usable]


def _other_accelerator() -> bool:
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return apple or any(Path(place).exists() for place in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))


def nvidia_gpus() -> list[dict[str, Any]]:
    """Return the GPUs that NVIDIA's driver knows, whether or not torch can use them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in told.splitlines()]
    return [
        {
            "name": row[0],
            "memory_gib": round(int(row[1]) / 1024, 2) if row[1].isdigit() else None,
            "driver": row[2],
        }
        for row in rows
        if len(row) == 3
    ]


def torch_gpus() -> list[dict[str, Any]]:
    """Return the GPUs that torch can use."""
    import torch

    build = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    if torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        properties = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
        return [
            {"name": gpu.name, "memory_gib": round(gpu.total_memory / GIB, 2), "build": build, "bf16": bf16}
            for gpu in properties
        ]
    if torch.backends.mps.is_available():
        return [{"name": "Apple GPU", "memory_gib": None, "build": "MPS", "bf16": None}]
    return []


def caches() -> dict[str, str]:
    """Return the cache folders of NGDiff and of Hugging Face, and whether they exist."""
    from huggingface_hub.constants import HF_HUB_CACHE

    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ngdiff"
    return {"NGDiff": _place(own), "Hugging Face": _place(Path(HF_HUB_CACHE))}


def _place(path: Path) -> str:
    home = Path.home()
    shown = f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else str(path)
    return shown if path.is_dir() else f"{shown} (not there yet)"


def variables() -> dict[str, str]:
    """Return the variables that are set; "set" stands for every value that is not known to be harmless."""
    found = {}
    for name, value in sorted(os.environ.items()):
        if name.startswith(PREFIXES) and name not in OWN and value:
            found[name] = value if name in SHOWN and HARMLESS.fullmatch(value) else SET
    return found
