"""two losses -> two gradients, their Gramian, and the combined gradient.

Two buffers trade places as ``parameter.grad`` by reference: whatever is backpropagated inside
``pair.task("forget")`` accumulates in one, inside ``pair.task("retain")`` in the other. Nothing is copied,
and each optimizer step costs one gradient buffer more than plain training. Between steps the forget buffer
is free: a step-size probe may keep the parameters there (:meth:`GradientPair.spare`). Where device memory is
short it may lie elsewhere (:mod:`ngdiff.steps.forget_buffer`).

With sharded parameters (FSDP2) every process holds its part of both gradients, and the Gramian is summed over
the shards: three numbers cross the network.

Sharpness-aware minimisation takes the forget gradient nearby, where its loss is highest: what was forgotten
at the bottom of a narrow valley comes back with little relearning. With the gradient found a short way
uphill, the loss stays low all around.
Source: Fan et al. 2025, "Towards LLM unlearning resilient to relearning attacks: a sharpness-aware
minimization perspective and beyond", arXiv 2502.05374; Foret et al. 2021, arXiv 2010.01412, eq. 2 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from ngdiff.steps import fused, products
from ngdiff.steps.forget_buffer import ForgetBuffer, Keep
from ngdiff.steps.products import Pair, inner_products
from ngdiff.system.processes import Sums, add_up, check_reduced, local, spread

Gramian = Float64[Tensor, "2 2"]
Task = Literal["retain", "forget"]
RETAIN, FORGET = 0, 1
TASKS: tuple[Task, Task] = ("retain", "forget")


class Weights(NamedTuple):
    """Factors of the two gradients in the combined one: ``retain * g_R + forget * g_f``."""

    retain: float
    forget: float


class GradientPair:
    """The gradients of the retain and the forget loss over all trainable parameters.

    Args:
        parameters: the model's parameters; those that need no gradient are left out.
        keep: where the forget gradient is kept; ``device`` is beside the retain gradient.

    Example:
        >>> pair = GradientPair(model.parameters())
        >>> with pair.task("forget"):
        ...     forget_loss.backward()
        >>> with pair.task("retain"):
        ...     retain_loss.backward()
        >>> pair.combine(rule(pair.gramian()))  # now in parameter.grad
    """

    def __init__(self, parameters: Iterable[nn.Parameter], keep: Keep = "device") -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("no parameter needs a gradient: nothing could be unlearned")
        self._elsewhere = None if keep == "device" else ForgetBuffer(self.parameters, keep)
        self._buffers: dict[Task, list[Tensor | None]] = {}
        self.clear()

    def clear(self, *tasks: Task) -> None:
        """Forget the gradients of some tasks, of both where none is named: the start of a step."""
        for task in tasks or TASKS:
            self._buffers[task] = [None] * len(self.parameters)
            if task == "forget" and self._elsewhere is not None:
                self._elsewhere.clear()
        for parameter in self.parameters:
            parameter.grad = None

    @contextmanager
    def task(self, task: Task) -> Iterator[None]:
        """Let backward passes inside the block add to this task's gradient."""
        if task == "forget" and self._elsewhere is not None:
            with self._elsewhere.catching():
                yield
            self._buffers["forget"] = self._elsewhere.gradients()
            return
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

    def add_up(self, *tasks: Task) -> None:
        """Add gradients up over all processes, where nothing else has done so (plain tensors only).

        Args:
            tasks: whose gradients; both tasks' where none is named.
        """
        for task in tasks or TASKS:
            add_up(self._buffers[task])

    def _pairs(self) -> Iterator[tuple[int, nn.Parameter, Tensor | None, Tensor | None]]:
        """Yield this process's parts of both gradients, on one device and of one type."""
        buffers = zip(self.parameters, self._buffers["retain"], self._buffers["forget"], strict=True)
        for index, (parameter, retain, forget) in enumerate(buffers):
            mine = None if retain is None else local(retain)
            other = None if forget is None else local(forget)
            if other is not None and self._elsewhere is not None:
                place = local(parameter)
                other = other.to(place.device, place.dtype)
            yield index, parameter, mine, other

    def gramian(self) -> Gramian:
        """Return ``[[g_R·g_R, g_R·g_f], [g_R·g_f, g_f·g_f]]`` in float64 on the CPU, with one device sync.

        Summed over the shards, and the same to the last bit on all processes.
        """
        check_reduced(gradient for buffer in self._buffers.values() for gradient in buffer)
        sums = Sums(self.parameters, 3)
        alike: dict[Any, list[tuple[nn.Parameter, Pair]]] = {}
        for _, parameter, retain, forget in self._pairs():
            key = spread(parameter)
            if self._elsewhere is not None:  # the forget gradient passes by, a tensor at a time
                sums.add_all(parameter, inner_products([(retain, forget)], local(parameter).device))
            else:
                alike.setdefault(key, []).append((parameter, (retain, forget)))
        for members in alike.values():
            parameter = members[0][0]
            sums.add_all(parameter, _products([pair for _, pair in members], local(parameter).device))
        retain_norm, cross, forget_norm = sums.total()
        return torch.stack([torch.stack([retain_norm, cross]), torch.stack([cross, forget_norm])])

    @contextmanager
    def uphill(self, factor: float) -> Iterator[None]:
        """Move the parameters by factor times the forget gradient inside the block.

        After it they come back to the last bit, from a copy.
        """
        copies: list[tuple[Tensor, Tensor]] = []
        try:
            with torch.no_grad():
                for _, parameter, _, forget in self._pairs():
                    if forget is None:
                        continue
                    place = local(parameter.detach())
                    copies.append((place, place.clone()))
                    place.add_(forget.to(place.dtype), alpha=factor)
            yield
        finally:
            for place, copy in copies:
                place.copy_(copy)

    def combine(self, weights: Weights) -> None:
        """Put ``retain * g_R + forget * g_f`` into ``parameter.grad``, in place of the retain gradient.

        The forget buffer keeps its storage and is free from here on.
        """
        pairs: list[tuple[Tensor, Tensor | None]] = []
        for index, parameter, retain, forget in self._pairs():
            if retain is None and forget is not None:
                retain = self._zero_retain(index)
            parameter.grad = self._buffers["retain"][index]
            if retain is None:
                continue
            pairs.append((retain, forget))
            if self._elsewhere is not None:
                _combine(pairs, weights)
                pairs = []
        _combine(pairs, weights)

    def combine_each(self, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Put ``combine(g_R, g_f)`` into ``parameter.grad``, number by number, like :meth:`combine`."""
        for index, parameter, retain, forget in self._pairs():
            if retain is None and forget is None:
                continue
            if retain is None:
                retain = self._zero_retain(index)
            retain.copy_(combine(retain, torch.zeros_like(retain) if forget is None else forget))
            parameter.grad = self._buffers["retain"][index]

    def _zero_retain(self, index: int) -> Tensor:
        """Begin a retain gradient of zeros where none arrived; return this process's part of it."""
        gradient = self._buffers["retain"][index] = torch.zeros_like(self.parameters[index].detach())
        return local(gradient)

    def drop(self) -> None:
        """Leave no gradient on any parameter, so that the optimizer's next step changes nothing."""
        for parameter in self.parameters:
            parameter.grad = None

    def spare(self) -> list[Tensor]:
        """Return the forget buffer as scratch space for the parameters; call after :meth:`combine`.

        One tensor for this process's part of each parameter, of its shape and type. A buffer that cannot hold
        the parameters exactly is replaced.
        """
        if self._elsewhere is not None:
            return self._elsewhere.spare()
        found = []
        for index, (parameter, scratch) in enumerate(
            zip(self.parameters, self._buffers["forget"], strict=True)
        ):
            if scratch is None or scratch.shape != parameter.shape or scratch.dtype != parameter.dtype:
                scratch = self._buffers["forget"][index] = torch.empty_like(parameter.detach())
            found.append(local(scratch))
        return found


def _products(pairs: Sequence[Pair], device: torch.device) -> Tensor:
    """Return the three inner products, by the fused kernels as far as they can run."""
    both = [(retain, forget) for retain, forget in pairs if retain is not None and forget is not None]
    retain, forget = [mine for mine, _ in both], [other for _, other in both]
    if not fused.takes(retain, forget):
        return inner_products(pairs, device)
    alone = [pair for pair in pairs if None in pair]
    found = fused.inner_products(retain, forget)
    return found + inner_products(alone, device) if alone else found


def _combine(pairs: Sequence[tuple[Tensor, Tensor | None]], weights: Weights) -> None:
    """Put the weighted sums in the places of the retain gradients, by the fused kernel where it can run."""
    both = [(mine, other) for mine, other in pairs if other is not None and weights.forget != 0]
    alone = [mine for mine, other in pairs if other is None or weights.forget == 0]
    retain, forget = [mine for mine, _ in both], [other for _, other in both]
    if retain:
        (fused if fused.takes(retain, forget) else products).combine(retain, forget, weights)
    if alone:
        products.combine(alone, [], (weights.retain, 0.0))


def cosine(gramian: Gramian) -> float:
    """Cosine between the two gradients; 0 where one of them is zero, NaN where one is not finite."""
    norms = float(gramian[RETAIN, RETAIN].sqrt() * gramian[FORGET, FORGET].sqrt())
    if not math.isfinite(norms):
        return math.nan
    return max(-1.0, min(1.0, float(gramian[RETAIN, FORGET]) / norms)) if norms > 0 else 0.0


# ---- sharpness ----


def sharpen(pair: GradientPair, radius: float, forget_again: Callable[[], None]) -> None:
    """Put in place of g_f the forget gradient at ``w + radius g_f / |g_f|``; the weights stay w.

    The retain gradient stays that of w, as in the authors' public code. A forget gradient that is zero or not
    finite has no direction, and stays, too.

    Args:
        pair: both gradients of the step, complete over its micro-batches and all processes.
        radius: length of the way uphill, over all trainable parameters.
        forget_again: adds the forget gradients of the step's micro-batches to the pair once more, complete
            over the processes.
    """
    length = math.sqrt(float(pair.gramian()[FORGET, FORGET]))
    if not 0 < length < math.inf:
        return
    with pair.uphill(radius / length):
        pair.clear("forget")
        forget_again()
