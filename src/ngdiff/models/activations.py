"""model and token batch -> hidden states behind one layer, at the positions that predict labelled tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ngdiff.models.logprobs import Places, head_sees, labelled_states, output_head


@dataclass(frozen=True)
class Activations:
    """Hidden states at the positions that predict the labelled tokens of one batch, in reading order.

    These are the states from which the answer is read; OpenUnlearning takes the labelled positions
    themselves, one further on, so the end token's state counts there and that of the prompt's end does not.

    Args:
        hidden: behind the layer, float32.
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
    raise TypeError(f"{type(inner).__name__} has no list of layers: this loss cannot look behind one of them")


def layer_count(model: nn.Module) -> int:
    """Count the model's layers."""
    return len(decoder_layers(model))


def freeze_behind(model: nn.Module, layer: int) -> None:
    """Freeze the layers behind one, and the output head where its weights are not the embeddings' too."""
    for further in list(decoder_layers(model))[layer + 1 :]:
        further.requires_grad_(False)
    inner: Any = getattr(model, "module", model)
    shared = {id(parameter) for parameter in inner.get_input_embeddings().parameters()}
    for parameter in output_head(model).parameters():
        if id(parameter) not in shared:
            parameter.requires_grad_(False)


@contextmanager
def only_layers(model: nn.Module, count: int) -> Iterator[nn.Module]:
    """Leave out all layers behind the first ``count``; yield the last that is left.

    The list itself is shortened and put back, so the forward above costs nothing, and it still ends as any
    forward does, which wrappers rely on.
    """
    layers = decoder_layers(model)
    cut = {name: layers._modules.pop(name) for name in list(layers._modules)[count:]}
    try:
        yield layers[count - 1]
    finally:
        layers._modules.update(cut)


def labelled_activations(model: nn.Module, batch: Mapping[str, Tensor], layer: int) -> Activations:
    """Run the model up to one layer, and no further.

    Args:
        model: a causal language model, wrapped or not.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, each of shape (rows, length); with
            ``reference_states``, the starting model's activations, where they are known.
        layer: counted from 0.
    """
    places = Places.of(model, batch)
    caught: list[Tensor] = []

    def catch(_: nn.Module, __: Any, output: Any) -> None:
        # nothing is worked out in here: with gradient checkpointing this would run once and not again
        caught.append(output[0] if isinstance(output, tuple) else output)

    with only_layers(model, layer + 1) as last, head_sees(model, places.seen[:0]):
        handle = last.register_forward_hook(catch)
        try:
            model(**places.inputs)
        finally:
            handle.remove()
    return Activations(labelled_states(caught[0], places.seen).float(), batch.get("reference_states"))
