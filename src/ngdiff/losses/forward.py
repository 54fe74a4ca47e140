"""loss, model and batch -> what the loss looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from ngdiff.losses import Loss
from ngdiff.models.activations import Activations, labelled_activations
from ngdiff.models.logprobs import LabelledTokens, StartingHead, labelled_tokens


def look(
    loss: Loss, model: nn.Module, batch: Mapping[str, Tensor], head: StartingHead | None = None
) -> LabelledTokens | Activations:
    """Run the model as often and as far as the loss asks for.

    Args:
        loss: with its settings filled in.
        model: a causal language model, wrapped or not.
        batch: as :func:`ngdiff.data.batching.collate_for_loss` makes it.
        head: the starting model's, for losses that compare predictions.
    """
    if loss.looks_at == "activations":
        assert loss.layer is not None
        return labelled_activations(model, batch, loss.layer)
    other = None
    if loss.other_answers is not None:
        other = labelled_tokens(model, batch["other"], in_parts=True)  # type: ignore[arg-type]
        if not loss.own_answers:
            return other
    tokens = replace(labelled_tokens(model, batch, in_parts=True), other=other)
    if loss.compares == "predictions" and head is not None:
        tokens = replace(tokens, starting=(batch["reference_states"], head))
    return tokens
