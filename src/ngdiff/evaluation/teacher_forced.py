"""model and encoded examples -> how well it knows each answer, from one teacher-forced pass an example."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ngdiff.data.batching import batches_by_length
from ngdiff.data.encoding import EncodedExample
from ngdiff.logprobs import LabelledTokens, labelled_tokens

Advance = Callable[[int], object]


@dataclass(frozen=True)
class AnswerScore:
    """How well a model knows one answer.

    Args:
        nll: negative log-likelihood of the answer, summed over its tokens, in nats.
        tokens: number of labelled tokens, the end-of-turn token included.
        extraction_strength: see :func:`extraction_strength`, in [0, 1].
        exact_memorisation: share of the labelled tokens, the last left out, that are the argmax, in [0, 1].
    """

    nll: float
    tokens: int
    extraction_strength: float
    exact_memorisation: float

    @property
    def mean_nll(self) -> float:
        """Negative log-likelihood in nats per token."""
        return self.nll / self.tokens

    @property
    def probability(self) -> float:
        """exp(-mean NLL): the geometric mean of the tokens' probabilities, in [0, 1]."""
        return math.exp(-self.mean_nll)


def extraction_strength(correct: Bool[Tensor, " tokens"]) -> float:
    """Return 1 - k/n, with k the length of the shortest true prefix after which every argmax is right.

    1 where the whole answer follows from the prompt; 0 where even its last token is wrong.
    Source: Carlini et al. 2021, "Extracting training data from large language models"; as used by Wang et al.
    2025, "Towards effective evaluations and comparisons for LLM unlearning methods".
    """
    wrong = (~correct).nonzero()
    prefix = int(wrong[-1]) + 1 if len(wrong) else 0
    return 1 - prefix / len(correct)


def exact_memorisation(correct: Bool[Tensor, " tokens"]) -> float:
    """Return the share of tokens that are the argmax, the last (the end-of-turn token) left out."""
    kept = correct[:-1] if len(correct) > 1 else correct
    return float(kept.float().mean())


def score_tokens(tokens: LabelledTokens) -> list[AnswerScore]:
    """Score each sequence of one batch, in the batch's order."""
    log_probs, correct = tokens.log_probs().detach().cpu(), tokens.correct().cpu()
    rows = tokens.rows.cpu()
    scores = []
    for row in range(tokens.row_count):
        mine = rows == row
        scores.append(
            AnswerScore(
                nll=-float(log_probs[mine].double().sum()),
                tokens=int(mine.sum()),
                extraction_strength=extraction_strength(correct[mine]),
                exact_memorisation=exact_memorisation(correct[mine]),
            )
        )
    return scores


def score_answers(
    model: nn.Module,
    examples: Sequence[EncodedExample],
    *,
    pad_id: int,
    batch_size: int = 16,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    advance: Advance | None = None,
) -> list[AnswerScore]:
    """Score every example, in the given order, with the model in eval mode; its mode is put back.

    Args:
        model: a causal language model.
        examples: encoded examples; sorted by length internally, which changes no figure.
        pad_id: what to pad with; any id will do.
        batch_size: sequences a forward pass.
        autocast: opens the context in which the model runs.
        advance: called with the number of examples done, for a progress bar.
    """
    device = next(model.parameters()).device
    scores: list[AnswerScore | None] = [None] * len(examples)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for rows, batch in batches_by_length(examples, batch_size, pad_id):
                on_device = {key: value.to(device) for key, value in batch.items()}
                with autocast():
                    tokens = labelled_tokens(model, on_device)
                for row, score in zip(rows, score_tokens(tokens), strict=True):
                    scores[row] = score
                if advance is not None:
                    advance(len(rows))
    finally:
        model.train(was_training)
    return [score for score in scores if score is not None]


def summarise(scores: Sequence[AnswerScore]) -> dict[str, float]:
    """Average over items: probability, extraction strength, exact memorisation; NLL in nats per token."""
    if not scores:
        raise ValueError("no scores to summarise")
    count = len(scores)
    return {
        "probability": sum(s.probability for s in scores) / count,
        "extraction_strength": sum(s.extraction_strength for s in scores) / count,
        "exact_memorisation": sum(s.exact_memorisation for s in scores) / count,
        "nll": sum(s.nll for s in scores) / sum(s.tokens for s in scores),
    }


def batch_extraction_strength(tokens: LabelledTokens) -> Float[Tensor, ""]:
    """Return the mean extraction strength of the sequences in a batch, on the device, without a sync.

    Costs one argmax over logits that are there anyway, so a training step can report it for free.
    """
    correct = tokens.correct()
    count = torch.zeros(tokens.row_count, device=correct.device)
    count = count.scatter_add(0, tokens.rows, torch.ones_like(correct, dtype=count.dtype))
    first = torch.cat([torch.zeros(1, device=count.device), count.cumsum(0)[:-1]])
    place = torch.arange(len(correct), device=count.device) - first[tokens.rows]
    bad_end = torch.where(correct, torch.zeros_like(place), place + 1)
    prefix = torch.zeros_like(count).scatter_reduce(0, tokens.rows, bad_end, "amax", include_self=True)
    return (1 - prefix / count.clamp(min=1)).mean()
