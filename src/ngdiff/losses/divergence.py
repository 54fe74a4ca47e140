"""labelled tokens -> bounded divergences: from a refusal, between two answers, from the starting model."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ngdiff.losses.preference import by_sequence
from ngdiff.losses.starting_model import beside_start
from ngdiff.models.logprobs import LabelledTokens


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
