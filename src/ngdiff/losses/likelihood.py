"""labelled tokens -> losses of their likelihood under the model alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from ngdiff.models.logprobs import LabelledTokens


def nll(tokens: LabelledTokens) -> Float[Tensor, ""]:
    """Sum the negative log-likelihood of the labelled tokens, in nats (average it per token)."""
    return -tokens.log_probs().sum()


def negated_nll(tokens: LabelledTokens) -> Float[Tensor, ""]:
    """Sum the log-likelihood of the labelled tokens, in nats: gradient ascent on the NLL.

    Source: Jang et al., "Knowledge unlearning for mitigating privacy risks in language models", 2023, eq. 1.
    """
    return tokens.log_probs().sum()


def bounded_nll(tokens: LabelledTokens, ceiling: float = math.inf) -> Float[Tensor, ""]:
    """Sum minus the NLL of the labelled tokens, none counted beyond ``ceiling``, in nats.

    A token that has become as improbable as text the model never saw is forgotten: it gets no more gradient.
    Gradient ascent does the opposite. Its gradient on a token of probability p grows with 1 - p, so what is
    already forgotten is pushed ever further, and what is still known waits.

    Args:
        tokens: the labelled tokens.
        ceiling: NLL of a token, in nats, beyond which it counts as forgotten.
    """
    return -(-tokens.log_probs()).clamp(max=ceiling).sum()


def unlikelihood(tokens: LabelledTokens) -> Float[Tensor, ""]:
    """Sum -log(1 - p) of the labelled tokens, in nats.

    Its gradient on the log-odds of a token is p: a token that is still known gets all of it, one that is
    forgotten next to none, and the loss has a minimum, 0. Gradient ascent's is -(1 - p), the other way about.
    Source: Welleck et al., "Neural text generation with unlikelihood training", ICLR 2020, arXiv 1908.04319,
    eq. 5 (token level), with the true token as the negative candidate.
    """
    return softplus(tokens.log_odds()).sum()


def selective_unlikelihood(tokens: LabelledTokens) -> Float[Tensor, ""]:
    """Sum KL(level || p) of the labelled tokens as two-way choices, in nats: unlikelihood down to a level.

    With the level b of a token, how probable it would be to somebody who never saw the answer, and its
    log-odds z, a token costs softplus(z) - b z - H(b), where H is the entropy of b in nats. Its gradient on z
    is p - b: knowledge (b near 0) is pushed like :func:`unlikelihood`, language (p near b) is left as it is.
    That not every token needs forgetting is Wan et al.'s, 2025, arXiv 2506.00876, who find the tokens with
    two assistant models. Without levels it is :func:`unlikelihood`.
    """
    log_odds = tokens.log_odds()
    if tokens.predictable is None:
        return softplus(log_odds).sum()
    level = tokens.predictable.to(log_odds)
    entropy = -(torch.xlogy(level, level) + torch.xlogy(1 - level, 1 - level))
    return (softplus(log_odds) - level * log_odds - entropy).sum()


def counterfactual(tokens: LabelledTokens) -> Float[Tensor, ""]:
    """Sum KL(expected || model) over the labelled tokens, in nats.

    Expected is what the starting model would predict, had it never met the subject, without the secrets
    (:mod:`ngdiff.preparation.counterfactual`). It is known for the true token and for the likeliest others;
    all the rest count as one, which makes this a lower bound of the divergence over the whole vocabulary. The
    loss has its minimum, 0, where the model predicts as expected: a secret is pushed down, language stays,
    and the probability has somewhere to go. Without expectations it is :func:`selective_unlikelihood`.
    """
    if tokens.expected_ids is None or tokens.expected_probs is None:
        return selective_unlikelihood(tokens)
    return tokens.each(_grouped_divergence, tokens.expected_ids, tokens.expected_probs).sum()


def _grouped_divergence(logits: Tensor, ids: Tensor, probs: Tensor) -> Tensor:
    return _GroupedDivergence.apply(logits, ids, probs.to(logits))  # type: ignore[no-untyped-call, no-any-return]


class _GroupedDivergence(torch.autograd.Function):
    """KL over some tokens and the group of all others, at each position.

    Its gradient takes one buffer of the logits' size.

    With p the model's probabilities, q the expected ones, and r their rest, the gradient on a logit is p - q
    of a token that is told apart, and p - q_r p / p_r of one of the others.
    """

    LEAST = -60.0  # log p_r from which on the others' gradient no longer grows

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, probs: Tensor) -> Tensor:
        total = logits.logsumexp(dim=1)
        chosen = logits.gather(1, ids) - total.unsqueeze(1)
        others = logits.scatter(1, ids, -torch.inf).logsumexp(dim=1) - total
        rest = (1 - probs.sum(dim=1)).clamp(min=0)
        ctx.save_for_backward(logits, ids, probs, total, others, rest)
        wanted = torch.xlogy(probs, probs).sum(dim=1) + torch.xlogy(rest, rest)
        # where nothing is expected, nothing is lost, however improbable the model finds it
        there = torch.where(probs > 0, probs * chosen, 0.0).sum(dim=1)
        elsewhere = torch.where(rest > 0, rest * others, 0.0)
        return wanted - there - elsewhere

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, ids, probs, total, others, rest = ctx.saved_tensors
        found = (logits - total.unsqueeze(1)).exp_()
        chosen = found.gather(1, ids)
        found.mul_(1 - (rest * (-others.clamp(min=_GroupedDivergence.LEAST)).exp()).unsqueeze(1))
        found.scatter_(1, ids, chosen).scatter_add_(1, ids, -probs)
        return found.mul_(gradients[0].unsqueeze(1)), None, None


def _probabilities(log_probs: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """Return p without gradient: it weighs the tokens."""
    return log_probs.detach().exp()


def weighted_ascent(tokens: LabelledTokens, beta: float = 1.0) -> Float[Tensor, ""]:
    """Sum p^beta log p of the labelled tokens, p^beta held constant (WGA).

    Gradient ascent that leaves alone what is forgotten: a token's weight falls with its probability.
    Source: Wang et al. 2025, "Rethinking LLM unlearning objectives", ICLR, arXiv 2502.19301.

    Args:
        tokens: the labelled tokens.
        beta: how fast the weight falls; 0 is gradient ascent.
    """
    log_probs = tokens.log_probs()
    return (_probabilities(log_probs) ** beta * log_probs).sum()


def saturation_importance(
    tokens: LabelledTokens, beta1: float = 5.0, beta2: float = 1.0
) -> Float[Tensor, ""]:
    """Sum p^beta1 (1 - p)^beta2 log p of the labelled tokens, the weights held constant (SatImp).

    Source: Yang et al. 2025, "Exploring criteria of loss reweighting to enhance LLM unlearning", arXiv
    2505.11953.

    Args:
        tokens: the labelled tokens.
        beta1: saturation: how fast the weight falls as a token is forgotten.
        beta2: importance: how fast it falls as the model is sure of a token.
    """
    log_probs = tokens.log_probs()
    p = _probabilities(log_probs)
    return (p**beta1 * (1 - p) ** beta2 * log_probs).sum()


def cross_entropy_unlearning(tokens: LabelledTokens) -> Float[Tensor, ""]:
    """Sum the cross-entropy to the model's own prediction without the true token (CE-U).

    The target of a token is softmax of the logits with the true one at minus infinity, held constant: the
    gradient on the logits is p - target, bounded, and 0 where the token is forgotten.
    Source: Yang 2025, "CE-U: cross entropy unlearning", arXiv 2503.01224. OpenUnlearning leaves out the first
    token of each answer, after a footnote there; here all labelled tokens count.
    """
    return tokens.each(_without_the_true_token, tokens.targets).sum()


def _without_the_true_token(logits: Tensor, targets: Tensor) -> Tensor:
    target = logits.detach().scatter(1, targets.unsqueeze(1), -torch.inf).softmax(dim=1)
    return -(target * logits.log_softmax(dim=1)).sum(dim=1)


def logit_margin(tokens: LabelledTokens) -> Float[Tensor, ""]:
    """Sum (largest logit - mean logit)² where labelled tokens are predicted: flattens the prediction (PDU's).

    Source: Entesari et al. 2025, "Constrained entropic unlearning: a primal-dual framework for large language
    models", arXiv 2506.05314. OpenUnlearning takes the labelled positions themselves, one further on, where
    the next token is predicted; as with RMU the first word of an answer is left out there.
    """
    return tokens.each(lambda logits: (logits.amax(dim=1) - logits.mean(dim=1)).square()).sum()
