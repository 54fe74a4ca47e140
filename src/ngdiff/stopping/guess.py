"""expectations of the forget answers, never-seen text -> how well each item could be guessed, unlearned.

An item's own level, beside the level of never-seen text: what its extraction strength and its probability
would be, were the model to predict its language as somebody does who never met the subject, and its secrets
as it predicts those of text that it never saw. Where the answer is "Yes", that is about a half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ngdiff.data.encoding import EncodedExample
from ngdiff.inference.teacher_forced import AnswerScore, extraction_strength, verbatim
from ngdiff.stopping.criterion import PERCENTILE, Guess

LEAST = 1e-4
"""Least probability of a token: none of an answer's tokens can make its level nothing."""


def guesses(
    forget: Sequence[EncodedExample], never_seen: Sequence[EncodedExample], scores: Sequence[AnswerScore]
) -> Mapping[int, Guess]:
    """Return the figures of :data:`GUESSED` of each forget item that has expectations, by row.

    Args:
        forget: with ``expected_probs`` and ``secret`` filled in.
        never_seen: with ``secret`` filled in.
        scores: of never-seen text, under the starting model.
    """
    known = {row: example for row, example in enumerate(forget) if example.expected_probs is not None}
    level = secret_level(never_seen, scores) if known else 0.0
    return {row: _guess(example, level) for row, example in known.items()}


def secret_level(never_seen: Sequence[EncodedExample], scores: Sequence[AnswerScore]) -> float:
    """Return the 95th percentile over never-seen items of their secret tokens' mean log-probability, in nats.

    Without any secret token, that of all tokens.
    """
    means = []
    for example, score in zip(never_seen, scores, strict=True):
        flags = example.secret or (False,) * len(score.log_probs)
        own = [value for value, flag in zip(score.log_probs, flags, strict=True) if flag]
        if own:
            means.append(math.fsum(own) / len(own))
    means = means or [-score.mean_nll for score in scores]
    return float(np.quantile(means, PERCENTILE, method="higher"))


def _guess(example: EncodedExample, level: float) -> Guess:
    probs = example.expected_probs
    assert probs is not None
    logs = probs[:, 0].clamp_min(LEAST).log()
    if example.secret:
        logs = logs.masked_fill(torch.tensor(example.secret, dtype=torch.bool), level)
    likeliest = probs[:, 0] > probs[:, 1:].amax(dim=1) if probs.shape[1] > 1 else probs[:, 0] > 0.5
    return extraction_strength(likeliest), math.exp(float(logs.mean())), verbatim(likeliest)
