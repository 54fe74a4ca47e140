"""labelled tokens -> a loss; one function a loss, and the table of them.

A loss is a sum over items (tokens or sequences) divided by their number *in the whole accumulated batch*, so
that 8 sequences at once and 8 times one sequence give the same gradient. The functions here return the sum;
whoever accumulates divides. Both tasks' losses are written so that they are minimised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from ngdiff.errors import RequestError, unknown_name
from ngdiff.logprobs import LabelledTokens, count_labelled

Task = Literal["forget", "retain"]
LossFunction = Callable[[LabelledTokens], Float[Tensor, ""]]


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
    """

    name: str
    task: Task
    per: Literal["token", "sequence"]
    function: LossFunction
    summary: str
    paper: str

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
    )
}


def find_loss(name: str, task: Task) -> Loss:
    """Look a loss up by name.

    Raises:
        RequestError: no loss of that name serves this task; the nearest names are given.
    """
    known = [loss.name for loss in LOSSES.values() if loss.task == task]
    if name not in known:
        raise RequestError(unknown_name(f"--{task}-loss", f"{task} loss", name, known))
    return LOSSES[name]
