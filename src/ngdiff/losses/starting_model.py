"""labelled tokens -> losses that compare whole predictions with the starting model's."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from ngdiff.models.head import OfLogits
from ngdiff.models.logprobs import LabelledTokens


def beside_start(tokens: LabelledTokens, function: OfLogits, *columns: Tensor) -> Float[Tensor, ""]:
    """Sum a function of each token's logits, the starting model's, and further columns."""
    if tokens.reference_logits is not None:
        return tokens.each(function, tokens.reference_logits.detach(), *columns).sum()
    if tokens.starting is None:
        raise ValueError("this loss compares with the starting model: the batch lacks its predictions")
    states, head = tokens.starting

    def with_logits(logits: Tensor, states: Tensor, *columns: Tensor) -> Tensor:
        with torch.no_grad():
            start = head(states)
        return function(logits, start, *columns)

    return tokens.each(with_logits, states, *columns).sum()


def kl_to_start(tokens: LabelledTokens) -> Float[Tensor, ""]:
    """Sum KL(starting model || model) over the labelled tokens, in nats.

    Zero, with no gradient, at the first step: it holds the model where it is.
    Source: Maini et al. 2024, "TOFU", arXiv 2401.06121, eq. 3 (KL minimisation). OpenUnlearning averages over
    prompt and padding besides.
    """
    return beside_start(tokens, _Divergence.apply)


class _Divergence(torch.autograd.Function):
    """KL(start || model) at each position; keeps its gradient, p - p_start, and nothing else as large."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, start: Tensor) -> Tensor:
        found, wanted = logits.log_softmax(dim=1), start.log_softmax(dim=1)
        probs = wanted.exp()
        divergence = (wanted.sub_(found).mul_(probs)).nan_to_num_().sum(dim=1)
        ctx.save_for_backward(found.exp_().sub_(probs))
        return divergence

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (found,) = ctx.saved_tensors
        return found * gradients[0].unsqueeze(1), None


def self_distillation(tokens: LabelledTokens, beta: float = 10.0) -> Float[Tensor, ""]:
    """Sum the cross-entropy to the starting model's prediction with the true token pushed down (UNDIAL).

    The target of a token is softmax(z_start - beta * onehot(true token)): fixed, so the loss has a minimum,
    where the model predicts as it did but for the true token.
    Source: Dong et al. 2024, "UNDIAL: self-distillation with adjusted logits", arXiv 2402.10052, eq. 3-4.
    Where the label is -100 OpenUnlearning lowers a real token's logit; here only labelled tokens count.

    Args:
        tokens: the labelled tokens, with the starting model's logits.
        beta: by how much the true token's logit is lowered.
    """

    def distil(logits: Tensor, start: Tensor, targets: Tensor) -> Tensor:
        lowered = start.scatter_add(1, targets.unsqueeze(1), start.new_full((len(start), 1), -beta))
        return cross_entropy(logits, lowered.softmax(dim=1), reduction="none")

    return beside_start(tokens, distil, tokens.targets)
