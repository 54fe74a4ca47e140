"""hidden states at labelled positions -> functions of their logits, without holding all of them at once.

The logits of one token are as long as the vocabulary: for 16 texts of 512 tokens they take gigabytes, several
times over. Most uses need only one or a few numbers per token, so the output head is applied to some tokens
at a time, and again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

AT_ONCE = 2**28
"""Most bytes of float32 logits in memory at once; smaller batches are not divided."""
TRIED = 8
"""Positions at which a separately applied head is compared with the model's own logits."""

OfLogits = Callable[..., Tensor]
"""Logits, float32 of shape (tokens, vocabulary), and further columns, one row per token -> one value or row
per token, which does not depend on other tokens."""


def tokens_at_once(vocabulary: int) -> int:
    """Return the most tokens whose logits are in memory at once."""
    return max(1, AT_ONCE // (4 * vocabulary))


@dataclass(frozen=True)
class Head:
    """An output head with its model's changes to the logits, separate from the model.

    Args:
        weight: of shape (vocabulary, width).
        bias: of shape (vocabulary,), where there is one.
        factor: the logits are multiplied by it.
        cap: c of c * tanh(logits / c), where the model caps them.
        precision: what the product is computed in.
    """

    weight: Tensor
    bias: Tensor | None
    factor: float = 1.0
    cap: float | None = None
    precision: torch.dtype = torch.float32

    def product(self, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output of the linear layer in float32; ``weight`` and ``bias`` are in ``precision``."""
        return nn.functional.linear(states.to(self.precision), weight, bias).float()

    def behind(self, product: Tensor) -> Tensor:
        """Return the logits: the product with scaling and capping applied."""
        logits = product if self.factor == 1 else product * self.factor
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


@dataclass
class HeadInput:
    """The input of a model's head, in place of its logits.

    Args:
        states: at the labelled tokens, in reading order.
        head: that turns them into logits.
        likeliest: the most probable token of each, once a function has been applied.
    """

    states: Float[Tensor, "tokens width"]
    head: Head
    likeliest: Tensor | None = None

    def each(self, function: OfLogits, *columns: Tensor) -> Tensor:
        """Apply a function of the logits, some tokens at a time, with gradients for states and head."""
        found, self.likeliest = _Each.apply(  # type: ignore[no-untyped-call]
            self.states, self.head.weight, self.head.bias, self.head, function, columns
        )
        return found  # type: ignore[no-any-return]


def _parts(count: int, vocabulary: int) -> list[slice]:
    pieces = max(1, -(-count // tokens_at_once(vocabulary)))
    bounds = [count * piece // pieces for piece in range(pieces + 1)]
    return [slice(first, last) for first, last in pairwise(bounds)]


class _Each(torch.autograd.Function):
    """Head and function on some tokens at a time; the backward pass recomputes the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        function: OfLogits,
        columns: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        cast, cast_bias = _cast(weight, head), _cast(bias, head)
        found, likeliest = [], []
        for part in _parts(len(states), len(weight)):
            logits = head.behind(head.product(states[part], cast, cast_bias))  # type: ignore[arg-type]
            likeliest.append(logits.argmax(dim=1))
            found.append(function(logits, *(column[part] for column in columns)))
        ctx.save_for_backward(states, weight, bias, *columns)
        ctx.head, ctx.function = head, function
        best = torch.cat(likeliest)
        ctx.mark_non_differentiable(best)
        return torch.cat(found), best

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, *columns = ctx.saved_tensors
        head: Head = ctx.head
        cast, cast_bias = _cast(weight, head), _cast(bias, head)
        sums = _Sums(states, weight, bias, ctx.needs_input_grad)
        for part in _parts(len(states), len(weight)):
            mine = states[part].to(head.precision)
            product = head.product(mine, cast, cast_bias).requires_grad_()  # type: ignore[arg-type]
            with torch.enable_grad():
                value = ctx.function(head.behind(product), *(column[part] for column in columns))
            (back,) = torch.autograd.grad(value, product, gradient[part])
            sums.add(part, back.to(head.precision), mine, cast)  # type: ignore[arg-type]
        return (*sums.found(), None, None, None)


def _cast(tensor: Tensor | None, head: Head) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(head.precision)


class _Sums:
    """Gradients of states, weight and bias, where needed, summed over the parts."""

    def __init__(self, states: Tensor, weight: Tensor, bias: Tensor | None, needed: Sequence[bool]) -> None:
        self.of = states, weight, bias
        wide = [None if t is None else torch.promote_types(t.dtype, torch.float32) for t in self.of]
        self.states = torch.empty_like(states) if needed[0] else None
        self.weight = torch.zeros_like(weight, dtype=wide[1]) if needed[1] else None
        self.bias = torch.zeros_like(bias, dtype=wide[2]) if bias is not None and needed[2] else None

    def add(self, part: slice, back: Tensor, states: Tensor, weight: Tensor) -> None:
        """Add the gradient of one part's product, in the precision of the head."""
        if self.states is not None:
            self.states[part] = back @ weight
        if self.weight is not None:
            if self.weight.dtype == back.dtype:
                self.weight.addmm_(back.t(), states)
            else:
                self.weight += back.t() @ states
        if self.bias is not None:
            self.bias += back.sum(dim=0, dtype=self.bias.dtype)

    def found(self) -> tuple[Tensor | None, ...]:
        """Return the gradients in the types of their tensors."""
        sums = (self.states, self.weight, self.bias)
        return tuple(
            None if sum_ is None or of is None else sum_.to(of.dtype)
            for sum_, of in zip(sums, self.of, strict=True)
        )


# ---- a model's head, separate from the model ----

_SCALES: dict[str, Callable[[float], float]] = {
    "logit_scale": lambda value: value,
    "logits_scaling": lambda value: 1 / value,
    "lm_head_multiplier": lambda value: value,
}
"""Settings of models that scale their logits, by the names in ``transformers``' configurations."""

_known: WeakKeyDictionary[nn.Module, tuple[float, float | None]] = WeakKeyDictionary()
refused: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Why a model's logits are held all at once, for the record of the run."""


def may_stand_apart(layer: nn.Module) -> bool:
    """Return whether an output head could be applied without its model, judging by the head alone."""
    if layer not in refused:
        why = _why_not(layer)
        if why is not None:
            refused[layer] = why
    return layer not in refused


def head_apart(model: nn.Module, layer: nn.Module, states: Tensor, logits: Tensor) -> Head | None:
    """Return a model's output head if it can be applied without the model, else None.

    Args:
        model: the model, unwrapped.
        layer: its output head.
        states: some of the head's inputs, of shape (tokens, width).
        logits: the model's own for these states; compared once for each model.
    """
    if not may_stand_apart(layer):
        return None
    if layer not in _known:
        found = _described(model)
        if not _agrees(_head(layer, *found, states), states, logits):
            refused[layer] = "the model does more with its logits than scale or cap them"
            return None
        _known[layer] = found
    return _head(layer, *_known[layer], states)


def _why_not(layer: nn.Module) -> str | None:
    if isinstance(getattr(layer, "weight", None), DTensor):
        return "the output head lies in parts on several processes"
    if type(layer) is not nn.Linear:
        return f"the output head is a {type(layer).__name__}, not a linear layer"
    if layer._forward_hooks or hasattr(layer, "_hf_hook"):
        return "the output head has hooks"
    return None


def _described(model: nn.Module) -> tuple[float, float | None]:
    """Return the factor and the cap that a model's configuration names."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    factor = 1.0
    for name, scale in _SCALES.items():
        value = getattr(config, name, None)
        factor *= scale(float(value)) if value else 1.0
    cap = getattr(config, "final_logit_softcapping", None)
    return factor, float(cap) if cap else None


def _head(layer: nn.Module, factor: float, cap: float | None, states: Tensor) -> Head:
    device = states.device.type
    mixed = torch.is_autocast_enabled(device)
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    precision = torch.get_autocast_dtype(device) if mixed else weight.dtype
    return Head(weight, bias if isinstance(bias, Tensor) else None, factor, cap, precision)


@torch.no_grad()
def _agrees(head: Head, states: Tensor, logits: Tensor) -> bool:
    again = head.behind(
        head.product(states, _cast(head.weight, head), _cast(head.bias, head))  # type: ignore[arg-type]
    )
    tolerance = 0.02 if head.precision in (torch.bfloat16, torch.float16) else 1e-4
    return float((again - logits).abs().max()) <= tolerance * max(1.0, float(logits.abs().max()))
