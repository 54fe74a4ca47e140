"""labelled tokens -> losses that compare: with another answer, or with the starting model."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

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


def simnpo(tokens: LabelledTokens, beta: float = 4.5, delta: float = 0.0) -> Float[Tensor, ""]:
    """Sum (2/beta) softplus(-beta (mean NLL - delta)) over the sequences (SimNPO).

    NPO without a reference model: its place is taken by the sequence's length and a margin. The paper writes
    the margin outside of beta, gamma = beta * delta; the settings that are compared in practice are given
    for delta. As beta goes to 0 the gradient becomes that of the negated mean NLL of each sequence.
    Source: Fan et al. 2024, "Simplicity prevails: rethinking negative preference optimization for LLM
    unlearning", arXiv 2410.07163, eq. 4.

    Args:
        tokens: the labelled tokens.
        beta: sharpness.
        delta: margin, in nats per token.
    """
    sums, counts = by_sequence(tokens, -tokens.log_probs())
    return (softplus(-beta * (sums / counts - delta)) * (2 / beta)).sum()


def npo(tokens: LabelledTokens, beta: float = 0.1) -> Float[Tensor, ""]:
    """Sum (2/beta) softplus(beta (log p - log p_ref)) over the sequences, log p of the whole answer (NPO).

    As beta goes to 0 the gradient becomes that of gradient ascent on the sequences' log-probabilities.
    Source: Zhang et al. 2024, "Negative preference optimization", arXiv 2404.05868, eq. 3. MUSE's code puts
    logits where log-probabilities belong.

    Args:
        tokens: the labelled tokens, with the starting model's log-probabilities.
        beta: inverse temperature.
    """
    if tokens.reference is None:
        raise ValueError("NPO compares with the starting model: the batch lacks its log-probabilities")
    sums, _ = by_sequence(tokens, tokens.log_probs())
    return (softplus(beta * (sums - tokens.reference)) * (2 / beta)).sum()


def by_sequence(
    tokens: LabelledTokens, values: Float[Tensor, " tokens"]
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Return the sum of each sequence's values, and the number of its tokens."""
    zeros = values.new_zeros(tokens.row_count)
    return (
        zeros.index_add(0, tokens.rows, values),
        zeros.index_add(0, tokens.rows, torch.ones_like(values)).clamp(min=1),
    )


def dpo(tokens: LabelledTokens, beta: float = 0.1) -> Float[Tensor, ""]:
    """Sum (1/beta) softplus(-beta (other answer's log-ratio - true answer's)) over the sequences (DPO).

    A log-ratio is log p - log p_ref of a whole answer. As beta goes to 0 the gradient becomes half that of
    (the true answer's log-probability - the other's). With refusals for other answers it is IdkDPO, with
    answers that the model made up AltPO (Mekala et al. 2024, arXiv 2409.13474).
    Source: Rafailov et al. 2023, arXiv 2305.18290, eq. 7; with the factor 1/beta of Zhang et al. 2024, arXiv
    2404.05868, eq. 2. OpenUnlearning has 2/beta, twice the gradient.

    Args:
        tokens: the labelled tokens of the true answers, those of the ``other`` ones beside them, both with
            the starting model's log-probabilities.
        beta: inverse temperature.
    """
    other = tokens.other
    if other is None or tokens.reference is None or other.reference is None:
        raise ValueError("DPO compares two answers with the starting model: the batch lacks some of it")
    true_ratio = by_sequence(tokens, tokens.log_probs())[0] - tokens.reference
    other_ratio = by_sequence(other, other.log_probs())[0] - other.reference
    return (softplus(beta * (true_ratio - other_ratio)) / beta).sum()


# ---- labelled tokens -> bounded divergences: from a refusal, another answer, the starting model ----


def jensen_shannon_to_answer(tokens: LabelledTokens) -> Float[Tensor, ""]:
    """Sum the Jensen-Shannon divergence between each labelled token and the prediction (JensUn, forget part).

    Against a prediction that is certain of the token it has a closed form in its probability p alone,
    (2 log 2 - (1 + p) log(1 + p) + p log p) / 2 nats: log 2 at p = 0, 0 at p = 1. The labelled tokens are
    those of a refusal. Bounded, so a token that is far off pulls no harder than others.
    Source: Singh et al. 2025, "Unlearning that lasts", arXiv 2509.02820. Their released code puts probability
    1 on each of the two tokens of "No idea" at every position, prompts included, which is not a distribution;
    this is the loss as the paper describes it, token by token of the refusal.
    """
    log_p = tokens.log_probs()
    p = log_p.exp()
    return (2 * math.log(2) - (1 + p) * p.log1p() + p * log_p).sum() / 2


def jensen_shannon_to_start(tokens: LabelledTokens) -> Float[Tensor, ""]:
    """Sum JSD(starting model, model) over the labelled tokens, in nats (JensUn, retain part).

    Zero, with no gradient, at the first step, and at most log 2 a token.
    Source: Singh et al. 2025, arXiv 2509.02820. Their code averages over prompt and padding besides.
    """
    return beside_start(tokens, _jensen_shannon)


def _jensen_shannon(
    logits: Float[Tensor, "tokens vocab"], start: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, " tokens"]:
    now, before = logits.log_softmax(dim=1), start.log_softmax(dim=1)
    middle = torch.logaddexp(before, now) - math.log(2)
    sides = [(part.exp() * (part - middle)).nan_to_num().sum(dim=1) for part in (before, now)]
    return (sides[0] + sides[1]) / 2


def answer_divergence(tokens: LabelledTokens) -> Float[Tensor, ""]:
    """Sum exp(P - 1) - P' over the sequences, P and P' mean token probabilities (FLAT, by KL).

    P is that of the true answer's tokens, P' of the other answer's, a refusal: the variational form of the
    divergence between the two, which is maximised. It weighs the two answers against each other without a
    retain set, and is bounded.
    Source: Wang et al. 2024, "LLM unlearning via loss adjustment with only forget data", arXiv 2410.11143,
    with the activation and the conjugate of KL as in the authors' code. They average over prompt and padding
    with zeros, which shrinks both P.

    Args:
        tokens: the labelled tokens of the true answers, those of the ``other`` ones beside them.
    """
    if tokens.other is None:
        raise ValueError("FLAT compares two answers: the batch lacks the other ones")
    true, other = (_mean_probability(part) for part in (tokens, tokens.other))
    return ((true - 1).exp() - other).sum()


def _mean_probability(tokens: LabelledTokens) -> Float[Tensor, " rows"]:
    sums, counts = by_sequence(tokens, tokens.log_probs().exp())
    return sums / counts
