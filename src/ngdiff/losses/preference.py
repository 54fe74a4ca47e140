"""labelled tokens -> losses that prefer one answer, or anything else, to the one to be forgotten."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from ngdiff.models.logprobs import LabelledTokens


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
