"""forget gradients as they arrive -> one buffer of them on the CPU or in bfloat16.

The second gradient costs as much device memory as the first. Kept on the CPU it costs none of it, in bfloat16
half. Each parameter's gradient is taken as soon as the backward pass has it, so that no second set of them is
ever on the device, not even for a moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ngdiff.system.processes import local

Keep = Literal["device", "cpu", "bf16"]


class ForgetBuffer:
    """Keeps one gradient a parameter, this process's part of it, away from the gradients' own place.

    Args:
        parameters: those that need a gradient.
        keep: ``cpu`` keeps the numbers as they are, in pinned memory where there is a GPU; ``bf16`` keeps
            them on the device, rounded after every micro-batch (relative error 2**-9 each time).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], keep: Keep) -> None:
        self.parameters, self.keep = parameters, keep
        self._kept: list[Tensor | None] = [None] * len(parameters)
        self._filled = [False] * len(parameters)

    def clear(self) -> None:
        """Forget the gradients; their storage stays for the next ones."""
        self._filled = [False] * len(self.parameters)

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Take the gradients of backward passes inside the block."""
        handles = [
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                partial(self._arrived, index)
            )
            for index, parameter in enumerate(self.parameters)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _arrived(self, index: int, parameter: Tensor) -> None:
        if parameter.grad is None:
            return
        fresh, parameter.grad = local(parameter.grad), None
        kept = self._kept[index]
        if not self._filled[index]:
            if kept is None or kept.shape != fresh.shape:
                kept = self._kept[index] = self._room(fresh)
            kept.copy_(fresh)
        elif kept is not None and self.keep == "cpu":
            kept.add_(fresh.to(kept.device))
        elif kept is not None:
            kept.copy_(fresh.add_(kept))  # in float32, then rounded once
        self._filled[index] = True

    def _room(self, like: Tensor) -> Tensor:
        if self.keep == "bf16":
            return torch.empty_like(like, dtype=torch.bfloat16)
        return on_host(like)

    def gradients(self) -> list[Tensor | None]:
        """Return this process's part of each gradient; None where none arrived."""
        return [kept if filled else None for kept, filled in zip(self._kept, self._filled, strict=True)]

    def spare(self) -> list[Tensor]:
        """Return scratch space on the CPU that holds this process's part of each parameter exactly.

        The gradients are lost where their place serves as well; a bfloat16 buffer cannot, and is let go.
        """
        found: list[Tensor] = []
        for index, parameter in enumerate(self.parameters):
            part, kept = local(parameter), self._kept[index]
            fits = kept is not None and self.keep == "cpu"
            if not (fits and kept is not None and kept.dtype == part.dtype and kept.shape == part.shape):
                kept = on_host(part)
            found.append(kept)
            self._kept[index] = kept if self.keep == "cpu" else None
        self.clear()
        return found


def on_host(like: Tensor) -> Tensor:
    """Make an uninitialised tensor of the same kind in the CPU's memory, pinned where there is a GPU."""
    return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=like.is_cuda)
