"""two lists of gradients on a GPU -> their three inner products, and their combination, in one kernel each.

A loop over tensors launches several kernels for each of them: their number, not their size, then sets the
time. Here one launch walks over all tensors: each program takes one chunk of one of them, by a table of
addresses. Both gradients are read once for the three products and once more for the combination. Programs add
up in float32 over a few thousand numbers and in float64 beyond, and their sums are added in a fixed order.

Triton comes with torch's builds for GPUs. Where it is missing, or the tensors are of other kinds,
:mod:`ngdiff.steps.products` does the same tensor by tensor.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from ngdiff.steps import products

CHUNK, BLOCK = 65536, 4096
"""Numbers that one program takes, and how many of them at a time."""

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


refused: dict[str, str] = {}
"""Why the kernels are not used on a device, by its name: for the record of the run."""


def takes(retain: Sequence[Tensor], forget: Sequence[Tensor]) -> bool:
    """Return whether the kernels can run on these gradients: dense ones on one GPU, each list of one type."""
    if not retain or (retain[0].device.type != "cuda" and not _interpreted()):
        return False
    device, types = retain[0].device, (retain[0].dtype, forget[0].dtype)
    alike = all(
        (mine.dtype, other.dtype) == types
        and mine.device == other.device == device
        and mine.stride() == other.stride()
        and _is_dense(mine)
        for mine, other in zip(retain, forget, strict=True)
    )
    return alike and set(types) <= set(_TYPES) and _work(device, *types)


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or bool(torch.ops.aten.is_non_overlapping_and_dense(tensor))


def _interpreted() -> bool:
    """Return whether Triton was asked to interpret its kernels, which it can do on a CPU; for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _work(device: torch.device, *types: torch.dtype) -> bool:
    """Try the kernels once on numbers whose products are known; note down why they cannot be used.

    A compiler, a driver or a chip that nobody here has seen must not decide what a model forgets.
    """
    if not _has_triton():
        refused[str(device)] = "Triton is not installed"
        return False
    sizes = (CHUNK + 1, 3, BLOCK)
    draw = torch.Generator().manual_seed(0)
    retain, forget = ([torch.randn(n, generator=draw).to(device, t) for n in sizes] for t in types)
    try:
        found = inner_products(retain, forget)
        expected = products.inner_products(list(zip(retain, forget, strict=True)), device)
        wanted = [left.clone() for left in retain]
        products.combine(wanted, forget, (0.75, -1.5))
        combine(retain, forget, (0.75, -1.5))
    except Exception as error:
        refused[str(device)] = f"Triton's kernels do not run ({type(error).__name__})"
        return False
    tolerance = 1e-5 if types[0] == torch.float32 else 2e-2
    right = bool(((found - expected).abs() <= 1e-5 * expected[0]).all()) and all(
        torch.allclose(mine.float(), other.float(), rtol=tolerance, atol=tolerance)
        for mine, other in zip(retain, wanted, strict=True)
    )
    if not right:
        refused[str(device)] = "Triton's kernels give wrong numbers"
    return right


def inner_products(retain: Sequence[Tensor], forget: Sequence[Tensor]) -> Tensor:
    """Return ``g_R·g_R``, ``g_R·g_f`` and ``g_f·g_f``, float64 of shape (3,), on the gradients' device.

    Args:
        retain: one gradient, a tensor a parameter; see :func:`takes`.
        forget: the other one, of the same shapes.
    """
    chunks, places = _table(retain, forget)
    found = torch.empty((len(chunks), 3), dtype=torch.float64, device=retain[0].device)
    _kernels().products[(len(chunks),)](
        places, chunks, found, _sample(retain), _sample(forget), CHUNK=CHUNK, BLOCK=BLOCK
    )
    return found.sum(dim=0)


def combine(retain: Sequence[Tensor], forget: Sequence[Tensor], weights: tuple[float, float]) -> None:
    """Put ``weights[0] * retain + weights[1] * forget`` in the place of ``retain``, computed in float32."""
    chunks, places = _table(retain, forget)
    _kernels().combination[(len(chunks),)](
        places, chunks, *weights, _sample(retain), _sample(forget), CHUNK=CHUNK, BLOCK=BLOCK
    )


def _sample(tensors: Sequence[Tensor]) -> Tensor:
    """Return an empty tensor that tells a kernel the type behind the addresses."""
    return tensors[0].new_empty(1)


def _table(retain: Sequence[Tensor], forget: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the chunks (tensor, first number, its numbers), and the addresses of both gradients."""
    device = retain[0].device
    addresses = [(left.data_ptr(), right.data_ptr()) for left, right in zip(retain, forget, strict=True)]
    places = torch.tensor(addresses, dtype=torch.int64, pin_memory=device.type == "cuda")
    sizes = tuple(tensor.numel() for tensor in retain)
    return _chunks(sizes, device), places.to(device, non_blocking=True)


@lru_cache(maxsize=8)
def _chunks(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    rows = [(place, first, size) for place, size in enumerate(sizes) for first in range(0, size, CHUNK)]
    return torch.tensor(rows, dtype=torch.int64, device=device)


@cache
def _kernels() -> Any:
    from ngdiff.steps import fused_kernels

    return fused_kernels
