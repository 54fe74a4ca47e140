"""unlearning request -> what it would take: rows, tokens, room and time, without loading the model."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ngdiff.data.encoding import EncodedExample
from ngdiff.data.sharing import examples_of_a_step
from ngdiff.models.loading import weights_bytes
from ngdiff.system.output import nearest_folder
from ngdiff.unlearn import Prepared, UnlearnRequest, data_sets, room

if TYPE_CHECKING:
    from ngdiff.training.config import UnlearningConfig

PROBE_COST = 0.05
"""Share of the time that probes and checks take, on top of the steps' own passes."""
OF_THE_PEAK = 0.66
"""Share of its matrix products' speed that a processor reaches in training (see ``ngdiff.demo``)."""


@dataclass(frozen=True)
class SetStatistics:
    """What one data set holds.

    Args:
        examples: rows.
        tokens: of all prompts and answers, as the model would read them.
        answer_tokens: those of them that are learned or forgotten, the last one's end token included.
        longest: tokens of the longest example.
        cut: answers that were cut at the longest length.
        repeated: rows that another row of the same set says already.
    """

    examples: int
    tokens: int
    answer_tokens: int
    longest: int
    cut: int
    repeated: int


@dataclass(frozen=True)
class Validation:
    """What a request in order would take.

    Args:
        sets: by their role.
        shared: rows of the retain set that are in the forget set too.
        most_steps: most optimizer steps; a run that reaches its forget target ends earlier.
        disk_bytes: most disk space that the run takes; None where the model is on the hub.
        free_bytes: room there is.
        seconds_a_step: rough estimate from the speed of matrix products here; None where nothing is known of
            the model's size, or on an accelerator.
        notes: what is not wrong, and should be known before the run.
    """

    sets: dict[str, SetStatistics]
    shared: int
    most_steps: int
    disk_bytes: int | None
    free_bytes: int
    seconds_a_step: float | None
    notes: tuple[str, ...] = ()


def validation(request: UnlearnRequest, ready: Prepared) -> Validation:
    """Compute what a request, found in order by ``prepare``, would take."""
    sets = data_sets(ready)
    weights = weights_bytes(ready.source)
    keys = {encoded.example.key for encoded in ready.forget}
    return Validation(
        sets={name: statistics(examples) for name, examples in sets.items() if examples},
        shared=sum(encoded.example.key in keys for encoded in ready.retain),
        most_steps=most_steps(ready.config, len(ready.forget)),
        disk_bytes=None if weights is None else room(request, weights),
        free_bytes=shutil.disk_usage(nearest_folder(request.output)).free,
        seconds_a_step=_seconds_a_step(ready, weights),
        notes=ready.notes,
    )


def statistics(examples: Sequence[EncodedExample]) -> SetStatistics:
    """Count what a data set holds."""
    lengths = [len(encoded.input_ids) for encoded in examples]
    return SetStatistics(
        examples=len(examples),
        tokens=sum(lengths),
        answer_tokens=sum(label != -100 for encoded in examples for label in encoded.labels),
        longest=max(lengths),
        cut=sum(encoded.truncated for encoded in examples),
        repeated=len(examples) - len({encoded.example.key for encoded in examples}),
    )


def most_steps(config: UnlearningConfig, forget: int) -> int:
    """Return the most optimizer steps of a run on one process."""
    if config.max_steps > 0:
        return int(config.max_steps)
    return math.ceil(math.ceil(forget / _examples(config, forget)) * float(config.num_train_epochs))


def _examples(config: UnlearningConfig, forget: int) -> int:
    product: int = config.per_device_train_batch_size * config.gradient_accumulation_steps
    asked = examples_of_a_step(forget) if config.examples_per_step is None else config.examples_per_step
    return asked or product


def _seconds_a_step(ready: Prepared, weights: int | None) -> float | None:
    """Estimate a step's seconds: 6 operations a parameter and token, forward and backward.

    Kaplan et al. 2020, "Scaling laws for neural language models", section 2.1.
    """
    import torch

    from ngdiff.system.environment import matmul_flops

    if weights is None or torch.cuda.is_available():
        return None
    sets = (ready.forget, ready.retain)
    each = _examples(ready.config, len(ready.forget))
    tokens = sum(each * sum(len(encoded.input_ids) for encoded in part) / len(part) for part in sets)
    operations = 6 * (weights / 4) * tokens * (1 + PROBE_COST)
    return float(operations / (OF_THE_PEAK * matmul_flops(0.2)))
