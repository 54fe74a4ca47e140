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
    """

    name: str
    task: Task
    per: Literal["token", "sequence"]
    function: LossFunction
    summary: str
    paper: str
    settings: Mapping[str, float | None] = field(default_factory=dict)

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
