"""model and token batch -> hidden states after a layer, and what inner layers know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ngdiff.models.logprobs import (
    LabelledTokens,
    Places,
    head_sees,
    labelled_states,
    labelled_tokens,
    output_head,
    predicting_positions,
)


@dataclass(frozen=True)
class Activations:
    """Hidden states at the positions that predict the labelled tokens of one batch, in reading order.

    These are the states that predict the answer; OpenUnlearning uses the labelled positions themselves, one
    further on, so that the state of the end token counts there, and that of the prompt's end does not.

    Args:
        hidden: after the layer, float32.
        reference: the starting model's, where a loss compares with them.
    """

    hidden: Float[Tensor, "tokens width"]
    reference: Float[Tensor, "tokens width"] | None = None


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the list of the model's layers.

    Raises:
        TypeError: no list in it has as many modules as its configuration says it has layers.
    """
    inner = getattr(model, "module", model)
    count = getattr(getattr(inner, "config", None), "num_hidden_layers", None)
    for module in inner.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise TypeError(f"{type(inner).__name__} has no list of layers, whose output this loss needs")


def layer_count(model: nn.Module) -> int:
    """Count the model's layers."""
    return len(decoder_layers(model))


def freeze_behind(model: nn.Module, layer: int) -> None:
    """Freeze the layers after one, and the output head unless it shares the embeddings' weights."""
    for further in list(decoder_layers(model))[layer + 1 :]:
        further.requires_grad_(False)
    inner: Any = getattr(model, "module", model)
    shared = {id(parameter) for parameter in inner.get_input_embeddings().parameters()}
    for parameter in output_head(model).parameters():
        if id(parameter) not in shared:
            parameter.requires_grad_(False)


@contextmanager
def only_layers(model: nn.Module, count: int) -> Iterator[nn.Module]:
    """Remove all layers after the first ``count``; yield the last remaining one.

    The list itself is shortened and restored, so later layers cost nothing, and the forward pass still ends
    normally, which wrappers rely on.
    """
    layers = decoder_layers(model)
    cut = {name: layers._modules.pop(name) for name in list(layers._modules)[count:]}
    try:
        yield layers[count - 1]
    finally:
        layers._modules.update(cut)


def labelled_activations(model: nn.Module, batch: Mapping[str, Tensor], layer: int) -> Activations:
    """Run the model up to and including one layer.

    Args:
        model: a causal language model, wrapped or not.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, each of shape (rows, length); with
            ``reference_states``, the starting model's activations, where they are known.
        layer: counted from 0.
    """
    places = Places.of(model, batch)
    caught: list[Tensor] = []

    def catch(_: nn.Module, __: Any, output: Any) -> None:
        # compute nothing here: with gradient checkpointing this would not run again
        caught.append(output[0] if isinstance(output, tuple) else output)

    with only_layers(model, layer + 1) as last, head_sees(model, places.seen[:0]):
        handle = last.register_forward_hook(catch)
        try:
            model(**places.inputs)
        finally:
            handle.remove()
    return Activations(labelled_states(caught[0], places.seen).float(), batch.get("reference_states"))


# ---- model and token batch -> what its inner layers know about the labelled tokens ----


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
    """Return the states after each layer at the positions that predict labelled tokens, in reading order."""
    seen = Places.of(model, batch).seen  # before the hooks, which must not see the trial of packed rows
    states: list[Tensor] = []

    def catch(_: nn.Module, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        states.append(labelled_states(hidden, seen).float())

    handles = [layer.register_forward_hook(catch) for layer in decoder_layers(model)]
    try:
        labelled_tokens(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return states


def through_lens(model: nn.Module, batch: Mapping[str, Tensor]) -> list[Float[Tensor, " tokens"]]:
    """Return the log-probability of each labelled token, read from each layer by the final norm and the head.

    That of the last layer is the model's own, unless something follows the head (soft-capping).
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
    """Run the model with another model's states after one layer, at the positions that predict the answer.

    Args:
        model: of the same width as the other.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, each of shape (rows, length).
        layer: counted from 0.
        states: the other model's, as :func:`layer_states` gives them.
    """
    seen = Places.of(model, batch).seen  # before the hook, which must not see the trial of packed rows

    def replace(_: nn.Module, __: Any, output: Any) -> Any:
        whole = output[0] if isinstance(output, tuple) else output
        hidden = whole.flatten(0, 1).index_copy(0, seen, states.to(whole.dtype)).view_as(whole)
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
