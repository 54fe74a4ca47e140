"""model -> what its inner layers know, read by a logit lens and by patching them into the target model.

- *Lens*: an answer's probability read from every layer by the final norm and the head; an item's figure is
  that of the layer that knows most. A model that hides its knowledge in its last layers shows it here.
- *Unlearning depth score*, with ``--target`` and ``--reference``: the states of the audited model are put
  into the target model, layer by layer. What the target loses by the retrained model's states (where that is
  more than 0.05 nats a token) is what knowledge does; the share of it that it loses by the audited model's is
  the score: 1 erased as in the retrained model, 0 untouched. Only the key facts' tokens count. Clipping makes
  it fall below 1 by chance alone, so nothing is found by it; read it as a share.

Source: Lee et al. 2026, "Measuring the depth of LLM unlearning via activation patching", arXiv 2605.24614,
which patches with a tokenizer's plain prompts; here it is the prompt that every other figure has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ngdiff.audits.subject import Audit, Context, Outcome, Subject
from ngdiff.data.batching import batches_by_length
from ngdiff.data.encoding import IGNORE, EncodedExample, encode_all
from ngdiff.data.examples import Example
from ngdiff.data.secrets import kept_texts, with_secrets
from ngdiff.evaluation.result import Figure, figure
from ngdiff.evaluation.suites.measures import Measures
from ngdiff.models.activations import layer_count, layer_states, patched_tokens, row_means, through_lens
from ngdiff.models.logprobs import labelled_tokens

TAU = 0.05
"""Nats a token that the retrained model's states must cost for a layer to count."""

Batch = Mapping[str, Tensor]


def run(subject: Subject, context: Context) -> dict[str, Outcome]:
    """Read the layers of the model; of the audited one also how deep its unlearning goes."""
    measures = Measures(subject.evaluator(), context.bootstrap)
    figures: dict[str, Figure] = {}
    try:
        for name, rows in context.tested.items():
            values = lens(subject, context, encoded(subject, context, rows))
            figures[f"{name}.lens_probability"] = measures.mean("lens_probability", values, name)
    except TypeError as error:
        context.note(f"layers could not be read: {error}")
        return {}
    if subject.role == "target" and "reference" in context.subjects:
        context.costs = patching_costs(context, context.subjects["reference"], subject)
    if subject.role == "audited" and context.costs is not None:
        mine = patching_costs(context, subject, context.subjects["target"])
        if mine is not None:
            figures |= _depth(context, context.costs, mine)
    return {"as it is": Outcome(figures)}


def encoded(subject: Subject, context: Context, rows: Sequence[Example]) -> list[EncodedExample]:
    """Encode rows as every other figure has them."""
    return encode_all(rows, subject.tokenizer, context.request.max_length, "layers")


def lens(subject: Subject, context: Context, rows: Sequence[EncodedExample]) -> list[float]:
    """Return each item's answer probability at the layer that knows it best."""
    model = subject.evaluator().model

    def look(batch: Batch) -> list[float]:
        layers = [row_means(values, batch) for values in through_lens(model, batch)]
        return [math.exp(max(column)) for column in zip(*layers, strict=True)]

    return _by_batch(context, rows, subject, look)


def _by_batch(
    context: Context, rows: Sequence[EncodedExample], subject: Subject, look: Callable[[Batch], list[Any]]
) -> list[Any]:
    """Return what a function finds for each row, in order, some rows at a time."""
    found: list[Any] = [None] * len(rows)
    pad = int(subject.tokenizer.pad_token_id or 0)
    with torch.no_grad(), context.autocast():
        for places, batch in batches_by_length(rows, context.request.batch_size, pad):
            values = look({key: value.to(context.device) for key, value in batch.items()})
            for place, value in zip(places, values, strict=True):
                found[place] = value
    return found


# ---- depth ----


def key_facts(context: Context, subject: Subject) -> list[EncodedExample]:
    """Encode the forget set with labels on its key facts alone, or on all of an answer that has none."""
    kept = kept_texts(encoded(subject, context, context.data.sets["retain"]))
    rows = with_secrets(encoded(subject, context, context.forget), kept, subject.tokenizer)
    return [_narrowed(row) if any(row.secret or ()) else row for row in rows]


def _narrowed(row: EncodedExample) -> EncodedExample:
    secret = iter(row.secret or ())
    labels = [label if label != IGNORE and next(secret) else IGNORE for label in row.labels[1:]]
    return replace(row, labels=(IGNORE, *labels))


def patching_costs(context: Context, source: Subject, target: Subject) -> list[list[float]] | None:
    """Return what each layer's states of one model cost another, an item a row.

    In nats a token of the key facts. None, and a note, where tokens, width or layers of the two differ.
    """
    rows = key_facts(context, target)
    if [row.input_ids for row in key_facts(context, source)] != [row.input_ids for row in rows]:
        context.note("the unlearning depth score is left out: the models' tokenizers differ")
        return None
    donor = source.evaluator().model if source.role == "audited" else source.fresh_model().eval()
    model = target.fresh_model().eval() if source.role == "audited" else target.evaluator().model
    if (layer_count(donor), donor.config.hidden_size) != (layer_count(model), model.config.hidden_size):
        context.note("the unlearning depth score is left out: the models' layers differ")
        return None

    def look(batch: Batch) -> list[list[float]]:
        whole = row_means(patched_log_probs(model, batch), batch)
        costs = [
            row_means(patched_log_probs(model, batch, layer, states), batch)
            for layer, states in enumerate(layer_states(donor, batch))
        ]
        return [
            [own - patched for patched in column]
            for own, column in zip(whole, zip(*costs, strict=True), strict=True)
        ]

    return _by_batch(context, rows, target, look)


def patched_log_probs(
    model: Any, batch: Batch, layer: int | None = None, states: Tensor | None = None
) -> Tensor:
    """Return the labelled tokens' log-probabilities, with foreign states behind a layer where given."""
    if layer is None or states is None:
        return labelled_tokens(model, batch).log_probs()
    return patched_tokens(model, batch, layer, states).log_probs()


def depth(retrained: Sequence[float], audited: Sequence[float]) -> float | None:
    """Return one item's unlearning depth score; None where no layer of the target encodes it.

    The sum over layers that cost more than 0.05 by the retrained model's states of that cost times the share
    of it that the audited model's cost, cut to [0, 1]; divided by the sum of those costs.

    Args:
        retrained: cost of the retrained model's states, one a layer.
        audited: those of the audited model.
    """
    counted = [(base, mine) for base, mine in zip(retrained, audited, strict=True) if base > TAU]
    if not counted:
        return None
    erased = math.fsum(base * min(1.0, max(0.0, mine / base)) for base, mine in counted)
    return erased / math.fsum(base for base, _ in counted)


def _depth(
    context: Context, retrained: Sequence[Sequence[float]], audited: Sequence[Sequence[float]]
) -> dict[str, Figure]:
    scores = [depth(base, mine) for base, mine in zip(retrained, audited, strict=True)]
    known = [score for score in scores if score is not None]
    note = f"{len(known)} of {len(scores)} items are encoded in a layer of the target"
    if not known:
        return {"forget.unlearning_depth": Figure("unlearning_depth", None, note=note)}
    boot = context.bootstrap
    made = figure("unlearning_depth", known, seed=boot.seed, resamples=boot.resamples, sets=("forget",))
    return {"forget.unlearning_depth": replace(made, items=tuple(scores), note=note)}


AUDIT = Audit(
    name="layers",
    summary="what inner layers know: logit lens, unlearning depth score",
    paper="Lee et al. 2026, arXiv 2605.24614",
    run=run,
    changes=False,
    headlines=("forget.lens_probability",),
)
