"""model and token batch -> log-probabilities of the labelled tokens."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ngdiff.models.head import TRIED, HeadInput, OfLogits, head_apart, may_stand_apart, tokens_at_once
from ngdiff.models.packing import WORTH, inputs_for, register, rows_of, takes_packed

IGNORED = -100
PACKING = os.environ.get("NGDIFF_PACKING") != "0"
"""Whether rows are packed where the model supports it; turn it off to measure the cost of padding."""

StartingHead = Callable[[Tensor], Tensor]
"""The starting model's last hidden states, of shape (tokens, width) -> its logits, (tokens, vocabulary)."""


@dataclass(frozen=True)
class LabelledTokens:
    """The model's predictions at the labelled tokens of one batch, in reading order.

    Args:
        logits: scores over the vocabulary at each labelled token, float32; None where they would take too
            much memory, and ``deferred`` stands in for them.
        targets: the labelled token ids.
        rows: which sequence of the batch each token belongs to.
        row_count: number of sequences in the batch.
        reference: log-probability of each sequence's answer under the starting model, where it is known.
        reference_logits: the starting model's scores, where a loss compares with them.
        starting: the starting model's hidden states and the head that turns them into scores, in place of
            ``reference_logits``.
        other: the model's predictions for other answers to the same prompts, row by row, where a loss needs
            them.
        predictable: how probable each token would be to somebody who never saw the answer, where it is known.
        expected_ids: tokens that somebody who never met the subject would expect, the true one first.
        expected_probs: how probable each would be.
        deferred: the head's input, from which the logits of some tokens at a time are computed.
    """

    logits: Float[Tensor, "tokens vocab"] | None
    targets: Int[Tensor, " tokens"]
    rows: Int[Tensor, " tokens"]
    row_count: int
    reference: Float[Tensor, " rows"] | None = None
    reference_logits: Float[Tensor, "tokens vocab"] | None = None
    other: LabelledTokens | None = None
    predictable: Float[Tensor, " tokens"] | None = None
    expected_ids: Int[Tensor, "tokens kept"] | None = None
    expected_probs: Float[Tensor, "tokens kept"] | None = None
    starting: tuple[Tensor, StartingHead] | None = None
    deferred: HeadInput | None = None

    def each(self, function: OfLogits, *columns: Tensor) -> Tensor:
        """Apply a function of each token's logits and of further columns, all at once or in parts.

        Args:
            function: of logits and columns, divided the same way; its values may not depend on other tokens.
            columns: with one row per token; no gradient flows into them.
        """
        if self.deferred is not None:
            return self.deferred.each(function, *columns)
        assert self.logits is not None
        return function(self.logits, *columns)

    def whole_logits(self) -> Float[Tensor, "tokens vocab"]:
        """Return the logits of all tokens, regardless of their memory."""
        return self.each(lambda logits: logits)

    def log_probs(self) -> Float[Tensor, " tokens"]:
        """Return log p(token | text before it), in nats."""
        return self.each(_log_probs, self.targets)

    def log_odds(self) -> Float[Tensor, " tokens"]:
        """Return log(p / (1 - p)) of each token, exact even where 1 - p would round to 0."""
        return self.each(_log_odds, self.targets)

    def correct(self) -> Bool[Tensor, " tokens"]:
        """Return whether each token is the most probable one under teacher forcing."""
        if self.deferred is not None and self.deferred.likeliest is not None:
            return self.deferred.likeliest == self.targets
        with torch.no_grad():
            return self.each(lambda logits: logits.argmax(dim=-1)) == self.targets


def _log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    return -nn.functional.cross_entropy(logits, targets, reduction="none")


def _log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    target = targets.unsqueeze(1)
    others = logits.scatter(1, target, -torch.inf).logsumexp(dim=1)
    return logits.gather(1, target).squeeze(1) - others


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


def labelled_tokens(
    model: nn.Module, batch: Mapping[str, Tensor], *, in_parts: bool = False
) -> LabelledTokens:
    """Run the model once; send only the labelled positions through its output head.

    The head costs ``2 * hidden * vocabulary`` operations and ``4 * vocabulary`` bytes per position, which the
    prompt does not need. The model's own forward is called, so wrappers (DDP, FSDP, PEFT) and changes to the
    logits (scaling, soft-capping) still apply.

    Args:
        model: a causal language model, wrapped or not.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, each of shape (rows, length); with ``real``
            and ``labelled``, as :func:`ngdiff.data.batching.collate` makes it, padding is skipped.
        in_parts: where all logits would take more than :data:`ngdiff.models.head.AT_ONCE`, keep the head's
            input instead. Under DDP the caller must then sum the gradients.
    """
    places = Places.of(model, batch)
    logits, deferred = None, None
    if in_parts and len(places.labelled) > _most_at_once(model):
        deferred = _deferred(model, places)
    if deferred is None:
        with head_sees(model, places.seen):
            logits = _logits(model, places)
    return LabelledTokens(
        logits=logits,
        targets=places.targets,
        rows=places.rows,
        row_count=batch["labels"].shape[0],
        reference=batch.get("reference"),
        predictable=batch.get("predictable"),
        expected_ids=batch.get("expected_ids"),
        expected_probs=batch.get("expected_probs"),
        deferred=deferred,
    )


@dataclass(frozen=True)
class Places:
    """A model's arguments for one batch, and the positions in it that predict labelled tokens.

    Args:
        inputs: of the model, packed where that is worthwhile and the model accepts it.
        labelled: positions that predict labelled tokens, among those of the padded batch, row after row.
        seen: the same positions, among those that the model runs over.
        targets: the token ids that are predicted there.
        rows: which sequence of the batch each belongs to.
    """

    inputs: Mapping[str, Any]
    labelled: Int[Tensor, " tokens"]
    seen: Int[Tensor, " tokens"]
    targets: Int[Tensor, " tokens"]
    rows: Int[Tensor, " tokens"]

    @classmethod
    def of(cls, model: nn.Module, batch: Mapping[str, Tensor]) -> Places:
        """Prepare a batch; without waiting for the device where it includes its positions."""
        register()
        labels, real, labelled = batch["labels"], batch.get("real"), batch.get("labelled")
        if labelled is None:
            labelled = predicting_positions(labels).flatten().nonzero().squeeze(1)
        packed = None
        if PACKING and real is not None and len(real) < (1 - WORTH) * labels.numel() and takes_packed(model):
            packed = rows_of(real, *labels.shape)
        return cls(
            inputs=inputs_for(model, batch, packed),
            labelled=labelled,
            seen=labelled if packed is None else packed.token[labelled],
            targets=labels.flatten()[labelled + 1],
            rows=labelled // labels.shape[1],
        )


def labelled_states(states: Float[Tensor, "rows length width"], places: Int[Tensor, " tokens"]) -> Tensor:
    """Return the states at some positions, counted row after row."""
    return states.flatten(0, 1).index_select(0, places)


def _logits(model: nn.Module, places: Places) -> Tensor:
    logits: Tensor = model(**places.inputs).logits.squeeze(0).float()
    return logits


@contextmanager
def head_sees(model: nn.Module, places: Int[Tensor, " tokens"]) -> Iterator[None]:
    """Narrow the head's input to some positions, counted row after row."""

    def narrow(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (labelled_states(args[0], places).unsqueeze(0), *args[1:])

    handle = output_head(model).register_forward_pre_hook(narrow)
    try:
        yield
    finally:
        handle.remove()


def _most_at_once(model: nn.Module) -> float:
    layer: Any = output_head(model)
    return tokens_at_once(layer.weight.shape[0]) if may_stand_apart(layer) else math.inf


def _deferred(model: nn.Module, places: Places) -> HeadInput | None:
    """Run the model with only a few positions passed to its head, and keep the states at all positions.

    These few show whether the separate head gives the same logits; None where it does not.
    """
    caught: list[Tensor] = []
    layer = output_head(model)

    def narrow(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        caught.append(labelled_states(args[0], places.seen))
        return (caught[0][:TRIED].unsqueeze(0), *args[1:])

    handle = layer.register_forward_pre_hook(narrow)
    try:
        few = _logits(model, places)
    finally:
        handle.remove()
    head = head_apart(getattr(model, "module", model), layer, caught[0][:TRIED], few)
    return None if head is None else HeadInput(caught[0], head)


def count_labelled(batch: Mapping[str, Tensor]) -> int:
    """Count the labelled tokens that a loss over this batch averages over."""
    if "labelled" in batch:
        return len(batch["labelled"])
    return int(predicting_positions(batch["labels"]).sum())
