"""Tensor files: the library reads what was written in parts, and nothing is there after a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ngdiff.models.tensor_file import DIGEST, digest_of, growing_file, mapped, save_tensors

TENSORS = {
    "states": torch.arange(60, dtype=torch.float32).reshape(20, 3),
    "head.weight": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    "head.bias": torch.ones(5, dtype=torch.float16),
}


def test_the_library_reads_what_came_in_any_order(tmp_path: Path) -> None:
    with growing_file(tmp_path / "a.safetensors") as file:
        for name, tensor in TENSORS.items():
            file.add(name, tensor.dtype, tuple(tensor.shape))
        for name, first, last in (
            ("states", 7, 20),
            ("head.weight", 0, 5),
            ("states", 0, 7),
            ("head.bias", 0, 5),
        ):
            file.put(name, first, TENSORS[name][first:last])
    found = load_file(tmp_path / "a.safetensors")
    assert set(found) == set(TENSORS) and all(torch.equal(found[name], TENSORS[name]) for name in found)
    assert digest_of(found) == digest_of(mapped(tmp_path / "a.safetensors")) == digest_of(TENSORS)
    assert f'"{DIGEST}":"{digest_of(TENSORS)}"'.encode() in (tmp_path / "a.safetensors").read_bytes()


def test_whole_tensors_make_the_same_file(tmp_path: Path) -> None:
    with growing_file(tmp_path / "a") as file:
        for name in sorted(TENSORS, reverse=True):
            file.add(name, TENSORS[name].dtype, tuple(TENSORS[name].shape))
        for name, tensor in TENSORS.items():
            file.put(name, 0, tensor)
    save_tensors(TENSORS, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nothing_is_left_of_a_file_that_failed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), growing_file(tmp_path / "a") as file:
        file.add("states", torch.float32, (2, 3))
        file.put("states", 0, torch.zeros(1, 3))
        raise OSError(28, "full")
    assert not list(tmp_path.iterdir())


_GROW = """
import resource, sys, torch
from pathlib import Path
from ngdiff.models.tensor_file import growing_file
torch.set_num_threads(1)
with growing_file(Path(sys.argv[1])) as file:
    file.add("states", torch.float32, (100_000, 256))
    part = torch.ones(1000, 256)
    before = int(open("/proc/self/statm").read().split()[1])
    most = before
    for first in range(0, 100_000, 1000):
        file.put("states", first, part)
        most = max(most, int(open("/proc/self/statm").read().split()[1]))
print((most - before) * resource.getpagesize())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _GROW, str(tmp_path / "a")], capture_output=True, text=True, check=True
    )
    assert (tmp_path / "a").stat().st_size > 100_000_000 > 5 * int(done.stdout)
