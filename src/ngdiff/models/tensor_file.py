"""tensors, row by row -> one safetensors file with a digest of its content.

The library writes a file from tensors that are all in memory, and copies each of them again. A model's
predictions on a corpus may be larger than memory, so here they are written as they arrive. The format is that
of https://huggingface.co/docs/safetensors: the length of a header, the header as JSON, then the bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch
from safetensors import safe_open
from torch import Tensor

from ngdiff.system.environment import update_with
from ngdiff.system.output import staged_file

DIGEST = "sha256"
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
_NONE_YET = "0" * 64
_ROWS_AT_ONCE = 4096
"""Rows of a tensor that are copied at once."""


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        update_with(digest, name, tensor)
    return digest.hexdigest()


def mapped(path: Path) -> dict[str, Tensor]:
    """Return a file's tensors, mapped into memory rather than read; they remain valid after its deletion."""
    with safe_open(str(path), framework="pt") as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors whole or not at all."""
    with growing_file(path) as file:
        for name, tensor in tensors.items():
            file.add(name, tensor.dtype, tuple(tensor.shape))
        for name, tensor in tensors.items():
            for first in range(0, max(1, len(tensor)), _ROWS_AT_ONCE):
                file.put(name, first, tensor[first : first + _ROWS_AT_ONCE])


@contextmanager
def growing_file(path: Path) -> Iterator[GrowingFile]:
    """Yield a file to write tensors to; it exists, with its digest, only if the block succeeds."""
    with staged_file(path) as staging:
        with staging.open("r+b") as file:
            growing = GrowingFile(file)
            yield growing
            growing.write_header()
        text = json.dumps(digest_of(mapped(staging)))
        with staging.open("r+b") as file:
            place = file.read(growing.begin).find(json.dumps(_NONE_YET).encode())
            file.seek(place)
            file.write(text.encode())


class GrowingFile:
    """A safetensors file whose tensors come row by row, in any order, once all their shapes are known.

    Args:
        file: to write in.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        self._starts: dict[str, int] = {}
        self.begin = 0
        """The first byte after the header."""

    def add(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        """Declare the tensors, before anything is written."""
        self._shapes[name] = dtype, shape

    def put(self, name: str, first: int, rows: Tensor) -> None:
        """Write some rows of a tensor, starting at row ``first``."""
        if not self.begin:
            self.write_header()
        dtype, shape = self._shapes[name]
        width = dtype.itemsize * torch.Size(shape[1:]).numel()
        content = rows.detach().to("cpu", dtype).contiguous().flatten().view(torch.uint8).numpy()
        self._file.seek(self.begin + self._starts[name] + first * width)
        self._file.write(content.data)

    def write_header(self) -> None:
        """Write the header, and set the file's length; a second call does nothing."""
        if self.begin:
            return
        header: dict[str, object] = {"__metadata__": {DIGEST: _NONE_YET}}
        end = 0
        for name, (dtype, shape) in sorted(self._shapes.items()):
            self._starts[name], size = end, dtype.itemsize * torch.Size(shape).numel()
            header[name] = {
                "dtype": _NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [end, end := end + size],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file.write(len(text).to_bytes(8, "little") + text)
        self.begin = 8 + len(text)
        self._file.truncate(self.begin + end)
