"""model and token batch -> what its inner layers know of the labelled tokens.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens"; Patil et al. 2024, arXiv 2309.17410 (as an
attack); activation patching as in Lee et al. 2026, "Measuring the depth of LLM unlearning via activation
patching", arXiv 2605.24614.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ngdiff.models.activations import decoder_layers
from ngdiff.models.logprobs import LabelledTokens, labelled_tokens, output_head, predicting_positions

_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm")


def final_norm(model: nn.Module) -> nn.Module:
    """Return the normalisation between the last layer and the output head.

    Raises:
        TypeError: the model has none under a known name.
    """
    base = getattr(getattr(model, "module", model), "base_model", model)
    for holder in (base, getattr(base, "decoder", None)):
        for name in _NORMS:
            if isinstance(found := getattr(holder, name, None), nn.Module):
                return found
    raise TypeError(f"{type(model).__name__} has no final normalisation under a known name")


def layer_states(model: nn.Module, batch: Mapping[str, Tensor]) -> list[Float[Tensor, "tokens width"]]:
    """Return the states behind each layer at the positions that predict labelled tokens, in reading order."""
    positions = predicting_positions(batch["labels"])
    states: list[Tensor] = []

    def catch(_: nn.Module, __: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output)[positions].float())

    handles = [layer.register_forward_hook(catch) for layer in decoder_layers(model)]
    try:
        labelled_tokens(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return states


def through_lens(model: nn.Module, batch: Mapping[str, Tensor]) -> list[Float[Tensor, " tokens"]]:
    """Return the log-probability of each labelled token, read from each layer by the final norm and the head.

    That of the last layer is the model's own, where nothing stands behind the head (no soft-capping).
    """
    labels = batch["labels"]
    rows, columns = predicting_positions(labels).nonzero(as_tuple=True)
    targets = labels[rows, columns + 1]
    norm, head = final_norm(model), output_head(model)
    weight = next(head.parameters())
    found = []
    for states in layer_states(model, batch):
        logits = head(norm(states.to(weight.dtype))).float()
        found.append(-nn.functional.cross_entropy(logits, targets, reduction="none"))
    return found


def patched_tokens(
    model: nn.Module, batch: Mapping[str, Tensor], layer: int, states: Float[Tensor, "tokens width"]
) -> LabelledTokens:
    """Run the model with another model's states behind one layer, at the positions that predict the answer.

    Args:
        model: of the same width as the other.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, each of shape (rows, length).
        layer: counted from 0.
        states: the other model's, as :func:`layer_states` gives them.
    """
    positions = predicting_positions(batch["labels"])

    def replace(_: nn.Module, __: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[positions] = states.to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = decoder_layers(model)[layer].register_forward_hook(replace)
    try:
        return labelled_tokens(model, batch)
    finally:
        handle.remove()


def row_means(values: Float[Tensor, " tokens"], batch: Mapping[str, Tensor]) -> list[float]:
    """Average a value a labelled token over the tokens of each row."""
    rows = predicting_positions(batch["labels"]).nonzero(as_tuple=True)[0]
    count = batch["labels"].shape[0]
    sums = torch.zeros(count, dtype=torch.float64, device=values.device).index_add(0, rows, values.double())
    means: Sequence[float] = (sums / torch.bincount(rows, minlength=count)).tolist()
    return list(means)
