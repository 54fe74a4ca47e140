"""model and token batch -> log-probabilities of the labelled tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

IGNORED = -100


@dataclass(frozen=True)
class LabelledTokens:
    """What the model says of the labelled tokens of one batch, in reading order.

    Args:
        logits: scores over the vocabulary at each labelled token, float32.
        targets: the token ids that stand there.
        rows: which sequence of the batch each token belongs to.
        row_count: number of sequences in the batch.
        reference: log-probability of each sequence's answer under the starting model, where it is known.
        reference_logits: the starting model's scores, where a loss compares with them.
        other: what the model says of other answers to the same prompts, row by row, where a loss has them.
        predictable: how probable each token would be to somebody who never saw the answer, where it is known.
        expected_ids: tokens that somebody who never met the subject would expect, the true one first.
        expected_probs: how probable each would be.
    """

    logits: Float[Tensor, "tokens vocab"]
    targets: Int[Tensor, " tokens"]
    rows: Int[Tensor, " tokens"]
    row_count: int
    reference: Float[Tensor, " rows"] | None = None
    reference_logits: Float[Tensor, "tokens vocab"] | None = None
    other: LabelledTokens | None = None
    predictable: Float[Tensor, " tokens"] | None = None
    expected_ids: Int[Tensor, "tokens kept"] | None = None
    expected_probs: Float[Tensor, "tokens kept"] | None = None

    def log_probs(self) -> Float[Tensor, " tokens"]:
        """Return log p(token | text before it), in nats."""
        return -nn.functional.cross_entropy(self.logits, self.targets, reduction="none")

    def log_odds(self) -> Float[Tensor, " tokens"]:
        """Return log(p / (1 - p)) of each token, exact where p is so near 1 that 1 - p would round to 0."""
        target = self.targets.unsqueeze(1)
        others = self.logits.scatter(1, target, -torch.inf).logsumexp(dim=1)
        return self.logits.gather(1, target).squeeze(1) - others

    def correct(self) -> Bool[Tensor, " tokens"]:
        """Return whether each token is the most probable one under teacher forcing."""
        return self.logits.detach().argmax(dim=-1) == self.targets


def predicting_positions(labels: Int[Tensor, "rows length"]) -> Bool[Tensor, "rows length"]:
    """Mark the positions whose *next* token is labelled: only these need the output head."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORED
    return mask


def output_head(model: nn.Module) -> nn.Module:
    """Return the module that turns hidden states into logits.

    Raises:
        TypeError: the model has none, so it is not a causal language model.
    """
    inner = getattr(model, "module", model)  # DistributedDataParallel keeps the model there
    find = getattr(inner, "get_output_embeddings", None)
    head = find() if callable(find) else None
    if not isinstance(head, nn.Module):
        raise TypeError(f"{type(inner).__name__} has no output head: it is not a causal language model")
    return head


@contextmanager
def head_sees_only(model: nn.Module, positions: Bool[Tensor, "rows length"]) -> Iterator[None]:
    """Narrow the head's input to some positions, whatever the model does before and after its head."""

    def narrow(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][positions].unsqueeze(0), *args[1:])

    handle = output_head(model).register_forward_pre_hook(narrow)
    try:
        yield
    finally:
        handle.remove()


def labelled_tokens(model: nn.Module, batch: Mapping[str, Tensor]) -> LabelledTokens:
    """Run the model once; send only the labelled positions through its output head.

    The head costs ``2 * hidden * vocabulary`` operations and ``4 * vocabulary`` bytes a position, the prompt
    needs neither. The model's own forward is called, so wrappers (DDP, FSDP, PEFT) and whatever it does to
    its logits (scaling, soft-capping) stay as they are.

    Args:
        model: a causal language model, wrapped or not.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, each of shape (rows, length).
    """
    labels = batch["labels"]
    positions = predicting_positions(labels)
    with head_sees_only(model, positions):
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    rows, columns = positions.nonzero(as_tuple=True)
    return LabelledTokens(
        logits=output.logits.squeeze(0).float(),
        targets=labels[rows, columns + 1],
        rows=rows,
        row_count=labels.shape[0],
        reference=batch.get("reference"),
        predictable=batch.get("predictable"),
        expected_ids=batch.get("expected_ids"),
        expected_probs=batch.get("expected_probs"),
    )


def count_labelled(batch: Mapping[str, Tensor]) -> int:
    """Count the labelled tokens that a loss over this batch averages over."""
    return int(predicting_positions(batch["labels"]).sum())
