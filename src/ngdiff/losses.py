"""labelled tokens -> a loss; one function a loss, and the table of them.

A loss is a sum over items (tokens or sequences) divided by their number *in the whole accumulated batch*, so
that 8 sequences at once and 8 times one sequence give the same gradient. The functions here return the sum;
whoever accumulates divides. Both tasks' losses are written so that they are minimised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from ngdiff.errors import Fault, RequestError, unknown_name
from ngdiff.logprobs import LabelledTokens, count_labelled

Task = Literal["forget", "retain"]
LossFunction = Callable[..., Float[Tensor, ""]]
"""Labelled tokens (and the loss's settings, by name) -> a sum over items."""


@dataclass(frozen=True)
class Loss:
    """One row of the loss table.

    Args:
        name: what the command line calls it.
        task: the set it is meant for.
        per: the items it averages over.
        function: labelled tokens of one micro-batch -> the sum over its items.
        summary: one line for ``ngdiff ls losses``.
        paper: where it comes from.
        settings: names and defaults of the settings that ``function`` takes; None stands for the mean NLL of
            text the model never saw, which is measured when a run begins.
        needs_reference: the function compares with the starting model's log-probabilities.
    """

    name: str
    task: Task
    per: Literal["token", "sequence"]
    function: LossFunction
    summary: str
    paper: str
    settings: Mapping[str, float | None] = field(default_factory=dict)
    needs_reference: bool = False

    def complete(self, given: Mapping[str, float], never_seen_nll: float) -> Loss:
        """Return the loss with its settings filled in: those given, the defaults, the level measured."""
        values = {**self.settings, **given}
        settled = {name: never_seen_nll if value is None else value for name, value in values.items()}
        return replace(self, function=partial(self.function, **settled), settings=settled)

    def count(self, batch: Mapping[str, Tensor]) -> int:
        """Count the items of a batch that the loss averages over."""
        return count_labelled(batch) if self.per == "token" else len(batch["labels"])


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
    sums, counts = _by_sequence(tokens, -tokens.log_probs())
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
    sums, _ = _by_sequence(tokens, tokens.log_probs())
    return (softplus(beta * (sums - tokens.reference)) * (2 / beta)).sum()


def _by_sequence(
    tokens: LabelledTokens, values: Float[Tensor, " tokens"]
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Return the sum of each sequence's values, and the number of its tokens."""
    zeros = values.new_zeros(tokens.row_count)
    return (
        zeros.index_add(0, tokens.rows, values),
        zeros.index_add(0, tokens.rows, torch.ones_like(values)).clamp(min=1),
    )


def cross_entropy_unlearning(tokens: LabelledTokens) -> Float[Tensor, ""]:
    """Sum the cross-entropy to the model's own prediction without the true token (CE-U).

    The target of a token is softmax of the logits with the true one at minus infinity, held constant: the
    gradient on the logits is p - target, bounded, and 0 where the token is forgotten.
    Source: Yang 2025, "CE-U: cross entropy unlearning", arXiv 2503.01224. OpenUnlearning leaves out the first
    token of each answer, after a footnote there; here all labelled tokens count.
    """
    target = tokens.logits.detach().scatter(1, tokens.targets.unsqueeze(1), -torch.inf).softmax(dim=1)
    log_probs = tokens.logits.log_softmax(dim=1)
    return -(target * log_probs).sum()


def logit_margin(tokens: LabelledTokens) -> Float[Tensor, ""]:
    """Sum (largest logit - mean logit)² of the labelled positions: flattens the prediction (PDU's).

    Source: Entesari et al. 2025, "Constrained entropic unlearning: a primal-dual framework for large language
    models", arXiv 2506.05314.
    """
    return (tokens.logits.amax(dim=1) - tokens.logits.mean(dim=1)).square().sum()


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("nll", "retain", "token", nll, "negative log-likelihood of the answers", "maximum likelihood"),
        Loss(
            "negated-nll",
            "forget",
            "token",
            negated_nll,
            "minus the negative log-likelihood (gradient ascent)",
            "Jang et al. 2023, arXiv 2210.01504",
        ),
        Loss(
            "bounded-nll",
            "forget",
            "token",
            bounded_nll,
            "minus the NLL, each token only up to the level of never-seen text",
            "NGDiff's own; see docs/decisions.md",
            settings={"ceiling": None},
        ),
        Loss(
            "unlikelihood",
            "forget",
            "token",
            unlikelihood,
            "-log(1 - p) of each token: pushes what is known, leaves what is forgotten",
            "Welleck et al. 2020, arXiv 1908.04319",
        ),
        Loss(
            "npo",
            "forget",
            "sequence",
            npo,
            "negative preference optimisation against the starting model",
            "Zhang et al. 2024, arXiv 2404.05868",
            settings={"beta": 0.1},
            needs_reference=True,
        ),
        Loss(
            "simnpo",
            "forget",
            "sequence",
            simnpo,
            "negative preference optimisation by mean NLL and a margin, without reference model",
            "Fan et al. 2024, arXiv 2410.07163",
            settings={"beta": 4.5, "delta": 0.0},
        ),
        Loss(
            "wga",
            "forget",
            "token",
            weighted_ascent,
            "gradient ascent weighted by p^beta",
            "Wang et al. 2025, arXiv 2502.19301",
            settings={"beta": 1.0},
        ),
        Loss(
            "satimp",
            "forget",
            "token",
            saturation_importance,
            "gradient ascent weighted by p^beta1 (1 - p)^beta2",
            "Yang et al. 2025, arXiv 2505.11953",
            settings={"beta1": 5.0, "beta2": 1.0},
        ),
        Loss(
            "ceu",
            "forget",
            "token",
            cross_entropy_unlearning,
            "cross-entropy to the model's own prediction without the true token",
            "Yang 2025, arXiv 2503.01224",
        ),
        Loss(
            "logit-margin",
            "forget",
            "token",
            logit_margin,
            "squared distance of the largest logit from the mean",
            "Entesari et al. 2025, arXiv 2506.05314",
        ),
    )
}


def find_loss(name: str, task: Task, settings: Mapping[str, float] | None = None) -> Loss:
    """Look a loss up by name, and check settings meant for it.

    Raises:
        RequestError: no loss of that name serves this task (the nearest names are given), or it has no such
            setting.
    """
    known = [loss.name for loss in LOSSES.values() if loss.task == task]
    if name not in known:
        raise RequestError(unknown_name(f"--{task}-loss", f"{task} loss", name, known))
    loss = LOSSES[name]
    unknown = sorted(set(settings or {}) - set(loss.settings))
    if unknown:
        what = f"the loss {name!r} has no setting called {', '.join(unknown)}"
        raise RequestError(
            Fault(f"--{task}-loss", what, f"Its settings: {', '.join(loss.settings) or 'none'}")
        )
    return loss
