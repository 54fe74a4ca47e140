"""What one loss is: its function, its settings, and what it looks at and has to be given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from ngdiff.models.activations import Activations, labelled_activations
from ngdiff.models.logprobs import LabelledTokens, StartingHead, count_labelled, labelled_tokens

Task = Literal["forget", "retain"]
LossFunction = Callable[..., Float[Tensor, ""]]
"""What the model says of a micro-batch (and the loss's settings, by name) -> a sum over items."""

Measured = Literal["never-seen NLL", "layer at 7/32 of the depth"]
"""A setting whose default is found when a run begins: on text the model never saw, or from its depth."""

Answers = Literal["refusals", "preferred", "invented"]
"""Where other answers come from: the project's list of refusals, a column of the data, the model itself."""

Compared = Literal["answers", "predictions", "activations"]
"""What the starting model is asked: the log-probability of each answer, its whole prediction at each labelled
token, or its activations there."""


@dataclass(frozen=True)
class Loss:
    """One row of the loss table.

    Args:
        name: what the command line calls it.
        task: the set it is meant for.
        per: the items it averages over.
        function: what the model says of one micro-batch -> the sum over its items. It is given
            :class:`~ngdiff.models.logprobs.LabelledTokens`, or
            :class:`~ngdiff.models.activations.Activations` where the loss looks at these.
        summary: one line for ``ngdiff ls losses``.
        paper: where it comes from.
        settings: names and defaults of the settings that ``function`` takes (and of ``layer``, where it looks
            at activations).
        compares: what it needs of the starting model.
        other_answers: where other answers to the same questions come from, if it needs some.
        own_answers: whether it reads the answers of the data themselves.
        levels: whether it has to know how predictable each token is without the answer's knowledge.
        expected: whether it has to know what each token would be, had the model never met the subject.
        looks_at: what of the model: its predictions, or its activations behind one layer.
    """

    name: str
    task: Task
    per: Literal["token", "sequence"]
    function: LossFunction
    summary: str
    paper: str
    settings: Mapping[str, float | Measured] = field(default_factory=dict)
    compares: Compared | None = None
    other_answers: Answers | None = None
    own_answers: bool = True
    levels: bool = False
    expected: bool = False
    looks_at: Literal["predictions", "activations"] = "predictions"

    def complete(self, given: Mapping[str, float], measured: Mapping[Measured, float] | None) -> Loss:
        """Return the loss with its settings filled in: those given, the defaults, what was measured.

        Before anything was (None), settings to be measured stay open.
        """
        values = {name: value for name, value in {**self.settings, **given}.items() if value is not None}
        settled = {
            name: measured[value] if isinstance(value, str) and measured is not None else value
            for name, value in values.items()
        }
        handed = {name: value for name, value in settled.items() if name != "layer"}
        return replace(self, function=partial(self.function, **handed), settings=settled)

    @property
    def layer(self) -> int | None:
        """The layer whose activations it looks at; None where it looks at predictions, or before
        :meth:`complete`."""
        value = self.settings.get("layer")
        return None if value is None or value in get_args(Measured) else int(value)

    def count(self, batch: Mapping[str, Tensor]) -> int:
        """Count the items of a batch that the loss averages over."""
        looked_at: Mapping[str, Tensor] = batch if self.own_answers else batch["other"]  # type: ignore[assignment]
        return count_labelled(looked_at) if self.per == "token" else len(looked_at["labels"])


# ---- loss, model and batch -> what the loss looks at ----


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
