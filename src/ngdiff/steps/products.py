"""two lists of gradients -> their three inner products, and their combination, tensor by tensor.

The way that works everywhere, and what :mod:`ngdiff.steps.fused` is checked against.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

Pair = tuple[Tensor | None, Tensor | None]
"""The retain and the forget gradient of one parameter; None where none arrived."""

_NAMED = ((0, 0), (0, 1), (1, 1))


@torch.no_grad()
def inner_products(pairs: Iterable[Pair], device: torch.device) -> Tensor:
    """Return ``g_R·g_R``, ``g_R·g_f`` and ``g_f·g_f``, float64 of shape (3,), on a device.

    Each tensor's sum runs in at least float32, the sum of these in float64.

    Args:
        pairs: of tensors of one shape, type and device each; looked at one after the other.
        device: where the sums are wanted.
    """
    found: tuple[list[Tensor], ...] = ([], [], [])
    for pair in pairs:
        flat = [None if part is None else _flat(part) for part in pair]
        for sums, (first, second) in zip(found, _NAMED, strict=True):
            left, right = flat[first], flat[second]
            if left is not None and right is not None:
                dot = torch.dot(left, right)
                sums.append(dot if dot.device == device else dot.to(device))
    zero = torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack([torch.stack(sums).double().sum() if sums else zero for sums in found])


def _flat(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    return flat.float() if flat.dtype in (torch.bfloat16, torch.float16) else flat


@torch.no_grad()
def combine(retain: list[Tensor], forget: list[Tensor], weights: tuple[float, float]) -> None:
    """Put ``weights[0] * retain + weights[1] * forget`` in the place of ``retain``.

    A weight of 0 leaves the forget gradient out, whatever is in it.
    """
    torch._foreach_mul_(retain, weights[0])
    if weights[1] != 0:
        torch._foreach_add_(retain, forget, alpha=weights[1])
