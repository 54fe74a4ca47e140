"""starting model and examples -> the examples with its log-probability of each answer.

The data is fixed and so is the starting model, so one pass before the first step serves the whole run, and no
second model is ever in memory. What was worked out is remembered on disk under the hash of the weights, the
tokens and the settings, so that other runs from the same model find it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ngdiff.data.encoding import EncodedExample
from ngdiff.environment import weights_hash
from ngdiff.evaluation.cache import Cache, cache_key
from ngdiff.evaluation.evaluator import identity
from ngdiff.evaluation.teacher_forced import score_answers

VERSION = 1


def with_reference(
    model: Any,
    examples: Sequence[EncodedExample],
    *,
    tokenizer: Any,
    pad_id: int,
    batch_size: int,
    cache: Cache,
    precision: str,
) -> list[EncodedExample]:
    """Return the examples with ``reference_log_prob`` filled in.

    Args:
        model: the starting model, as it is before the first step.
        examples: what the loss will see.
        tokenizer: the model's; part of the key under which results are remembered.
        pad_id: what to pad with; any id will do.
        batch_size: sequences a forward pass.
        cache: where results are remembered.
        precision: what the model runs in; part of the key.
    """
    who = identity(model, tokenizer, weights_hash(model), precision)
    keys = [cache_key(who, "reference", VERSION, e.input_ids, e.labels) for e in examples]
    found = cache.get(keys)
    missing = [place for place, key in enumerate(keys) if key not in found]
    scores = score_answers(
        model, [examples[place] for place in missing], pad_id=pad_id, batch_size=batch_size
    )
    new = {keys[place]: -score.nll for place, score in zip(missing, scores, strict=True)}
    cache.put(new)
    known = found | new
    return [
        replace(example, reference_log_prob=float(known[key]))
        for example, key in zip(examples, keys, strict=True)
    ]
