"""labelled tokens -> losses that compare whole predictions with the starting model's."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from ngdiff.models.logprobs import LabelledTokens


def _starting_logits(tokens: LabelledTokens) -> Float[Tensor, "tokens vocab"]:
    if tokens.reference_logits is None:
        raise ValueError("this loss compares with the starting model: the batch lacks its predictions")
    return tokens.reference_logits.detach()


def kl_to_start(tokens: LabelledTokens) -> Float[Tensor, ""]:
    """Sum KL(starting model || model) over the labelled tokens, in nats.

    Zero, with no gradient, at the first step: it holds the model where it is.
    Source: Maini et al. 2024, "TOFU", arXiv 2401.06121, eq. 3 (KL minimisation). OpenUnlearning averages over
    prompt and padding besides.
    """
    start = _starting_logits(tokens).log_softmax(dim=1)
    return (start.exp() * (start - tokens.logits.log_softmax(dim=1))).nan_to_num().sum()


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
    target = _starting_logits(tokens).clone()
    target[range(len(target)), tokens.targets] -= beta
    return cross_entropy(tokens.logits, target.softmax(dim=1), reduction="sum")
