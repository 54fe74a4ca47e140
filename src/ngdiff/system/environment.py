"""this machine and process -> their description in a record."""

from __future__ import annotations

import ctypes
import hashlib
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ngdiff.system.processes import process_count, whole

ROOT = Path(__file__).parent.parent
"""The package's own folder."""
PACKAGES = ("ngdiff", "torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "tokenizers")


def versions() -> dict[str, str]:
    """Return the versions of Python and of every package that affects a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    commit = git_commit()
    return found | ({"git": commit} if commit else {})


def git_commit() -> str | None:
    """Return the commit of the checkout this code runs from, with ``+changes`` where it was changed."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if not git("ls-files", "__init__.py"):
            return None  # installed inside another project's checkout
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def machine() -> dict[str, object]:
    """Return processor, accelerator, number of threads and processes, and operating system."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "accelerator": gpu,
        "threads": torch.get_num_threads(),
        "processes": process_count(),
    }


def peak_memory_gib() -> dict[str, float]:
    """Return the process's peak resident memory, and the accelerator's peak where there is one, in GiB."""
    peaks = {"process": _peak_resident_bytes() / 2**30}
    if torch.cuda.is_available():
        peaks["accelerator"] = torch.cuda.max_memory_allocated() / 2**30
    return peaks


def _peak_resident_bytes() -> int:
    # not ru_maxrss if possible: a process inherits it from its parent
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return _peak_outside_linux()


def _peak_outside_linux() -> int:
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_freed_memory() -> bool:
    """Tell glibc to reuse large freed blocks instead of returning them to the system each time.

    Training on a CPU allocates the same large tensors at every step; by default each one is mapped, zeroed
    page by page and unmapped again. Linux with glibc only; elsewhere nothing happens.

    Returns:
        Whether it took effect.
    """
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of <malloc.h>
    mallopt = _of_glibc("mallopt")
    never = -1
    return bool(mallopt and mallopt(mmap_threshold, 2**30) and mallopt(trim_threshold, never))


def return_freed_memory() -> None:
    """Return to the system what glibc keeps of freed memory, in whole pages.

    Batches of many lengths leave gaps that few later ones fit, so that a run would otherwise grow with its
    steps. The next step maps what it needs again, so call it once in several steps. Linux with glibc only;
    elsewhere nothing happens.
    """
    trim = _of_glibc("malloc_trim")
    if trim:
        trim(0)


def _of_glibc(name: str) -> Any:
    """Return a function of glibc; None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None


def weights_hash(model: torch.nn.Module) -> str:
    """Return the SHA-256 of names, shapes, types and bytes of all parameters, in name order.

    Where they are sharded, every process must call this.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        update_with(digest, name, whole(parameter))
    return digest.hexdigest()


def update_with(digest: hashlib._Hash, name: str, parameter: torch.Tensor) -> None:
    """Add one parameter to a hash of weights."""
    tensor = parameter.detach().cpu().contiguous()
    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
    digest.update(tensor.flatten().view(torch.uint8).numpy().data)


def code_hash() -> str:
    """Return the SHA-256 of this package's source: of each ``.py`` file, name, newline and content."""
    digest = hashlib.sha256()
    for path in sorted(ROOT.rglob("*.py"), key=lambda file: file.relative_to(ROOT).as_posix()):
        digest.update(f"{path.relative_to(ROOT).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def matmul_flops(seconds: float = 0.5) -> float:
    """Measure float32 operations per second in products of the sizes that SmolLM2-135M needs."""
    left, right = torch.randn(512, 576), torch.randn(576, 1536)
    torch.mm(left, right)
    started, rounds = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        torch.mm(left, right)
        rounds += 1
    elapsed = time.monotonic() - started
    return rounds * 2 * 512 * 576 * 1536 / elapsed
