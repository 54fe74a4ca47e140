"""two losses -> two gradients, their Gramian, and the combined gradient.

Two buffers trade places as ``parameter.grad`` by reference: whatever is backpropagated inside
``pair.task("forget")`` accumulates in one, inside ``pair.task("retain")`` in the other. Nothing is copied,
and each optimizer step costs one gradient buffer more than plain training. Between steps the forget buffer
is free: a step-size probe may keep the parameters there (:meth:`GradientPair.spare`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn

Gramian = Float64[Tensor, "2 2"]
Task = Literal["retain", "forget"]
RETAIN, FORGET = 0, 1


class Weights(NamedTuple):
    """Factors of the two gradients in the combined one: ``retain * g_R + forget * g_f``."""

    retain: float
    forget: float


class GradientPair:
    """The gradients of the retain and the forget loss over all trainable parameters.

    Args:
        parameters: the model's parameters; those that need no gradient are left out.

    Example:
        >>> pair = GradientPair(model.parameters())
        >>> with pair.task("forget"):
        ...     forget_loss.backward()
        >>> with pair.task("retain"):
        ...     retain_loss.backward()
        >>> pair.combine(rule(pair.gramian()))  # now in parameter.grad
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("no parameter needs a gradient: nothing could be unlearned")
        self._buffers: dict[Task, list[Tensor | None]] = {}
        self.clear()

    def clear(self) -> None:
        """Forget both gradients: the start of a step."""
        self._buffers = {"retain": [None] * len(self.parameters), "forget": [None] * len(self.parameters)}
        for parameter in self.parameters:
            parameter.grad = None

    @contextmanager
    def task(self, task: Task) -> Iterator[None]:
        """Let backward passes inside the block add to this task's gradient."""
        buffer = self._buffers[task]
        for parameter, gradient in zip(self.parameters, buffer, strict=True):
            parameter.grad = gradient
        try:
            yield
        finally:
            for index, parameter in enumerate(self.parameters):
                buffer[index] = parameter.grad
                parameter.grad = None

    def gradient(self, task: Task) -> list[Tensor | None]:
        """Return one task's gradient, a tensor a parameter; None where nothing reached it."""
        return list(self._buffers[task])

    def gramian(self) -> Gramian:
        """Return ``[[g_R·g_R, g_R·g_f], [g_R·g_f, g_f·g_f]]`` in float64 on the CPU, with one device sync."""
        device = self.parameters[0].device
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        for retain, forget in zip(self._buffers["retain"], self._buffers["forget"], strict=True):
            for place, (left, right) in enumerate(((retain, retain), (retain, forget), (forget, forget))):
                if left is not None and right is not None:
                    sums[place] += _inner(left, right).to(device)
        retain_norm, cross, forget_norm = sums.cpu()
        return torch.stack([torch.stack([retain_norm, cross]), torch.stack([cross, forget_norm])])

    def combine(self, weights: Weights) -> None:
        """Put ``retain * g_R + forget * g_f`` into ``parameter.grad``, in place of the retain gradient.

        The forget buffer keeps its storage and is free from here on.
        """
        buffers = zip(self.parameters, self._buffers["retain"], self._buffers["forget"], strict=True)
        for index, (parameter, retain, forget) in enumerate(buffers):
            if retain is None and forget is not None:
                retain = torch.zeros_like(forget)
            if retain is not None:
                retain.mul_(weights.retain)
                if forget is not None and weights.forget != 0:
                    retain.add_(forget, alpha=weights.forget)
            self._buffers["retain"][index] = parameter.grad = retain

    def combine_each(self, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Put ``combine(g_R, g_f)`` into ``parameter.grad``, parameter by parameter, like :meth:`combine`."""
        buffers = zip(self.parameters, self._buffers["retain"], self._buffers["forget"], strict=True)
        for index, (parameter, retain, forget) in enumerate(buffers):
            if retain is None and forget is None:
                continue
            either = retain if retain is not None else forget
            assert either is not None
            zero = torch.zeros_like(either) if retain is None or forget is None else either
            found = combine(zero if retain is None else retain, zero if forget is None else forget)
            self._buffers["retain"][index] = parameter.grad = found

    def drop(self) -> None:
        """Leave no gradient on any parameter, so that the optimizer's next step changes nothing."""
        for parameter in self.parameters:
            parameter.grad = None

    def spare(self) -> list[Tensor]:
        """Return the forget buffer as scratch space, one tensor a parameter; call after :meth:`combine`."""
        buffer = self._buffers["forget"]
        for index, parameter in enumerate(self.parameters):
            scratch = buffer[index]
            if scratch is None or scratch.shape != parameter.shape or scratch.dtype != parameter.dtype:
                buffer[index] = torch.empty_like(parameter)
        return [scratch for scratch in buffer if scratch is not None]


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """Inner product of two tensors of one shape, as a float64 scalar; the sum runs in at least float32."""
    left, right = left.detach().flatten(), right.detach().flatten()
    if left.dtype in (torch.bfloat16, torch.float16):
        left, right = left.float(), right.float()
    return torch.dot(left, right).double()


def cosine(gramian: Gramian) -> float:
    """Cosine between the two gradients; 0 where one of them is zero, NaN where one is not finite."""
    norms = float(gramian[RETAIN, RETAIN].sqrt() * gramian[FORGET, FORGET].sqrt())
    if not math.isfinite(norms):
        return math.nan
    return max(-1.0, min(1.0, float(gramian[RETAIN, FORGET]) / norms)) if norms > 0 else 0.0
