"""model and encoded examples -> how well it knows each answer, from one teacher-forced pass an example."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ngdiff.data.batching import batches_by_length
from ngdiff.data.encoding import EncodedExample
from ngdiff.inference.predictions import Predictions
from ngdiff.inference.prefix_trees import Agreement, PrefixTrees
from ngdiff.models.logprobs import LabelledTokens, labelled_tokens

Advance = Callable[[int], object]

ITEM_COLUMNS = ("nll", "tokens", "extraction_strength", "exact_memorisation")
"""What is kept of each item in a record."""

SURE = 1e-6
"""Least 1 - p that the unlikelihood tells apart from certainty."""

_TOKENS_AT_ONCE = 64
PASSAGE = 50
"""Tokens of a passage that counts as reproduced word for word."""
MOST_TOKENS = 2048
"""Tokens of a forward pass over long texts: predictions take 8 bytes a token and word of the vocabulary."""


@dataclass(frozen=True)
class AnswerScore:
    """How well a model knows one answer.

    Args:
        nll: negative log-likelihood of the answer, summed over its tokens, in nats.
        tokens: number of labelled tokens, the end-of-turn token included.
        extraction_strength: see :func:`extraction_strength`, in [0, 1].
        exact_memorisation: share of the labelled tokens, the last left out, that are the argmax, in [0, 1].
        log_probs: log p of each labelled token, in nats, in reading order.
        z_scores: (log p - mu) / sigma of each, mu and sigma the mean and deviation of log p over the
            vocabulary under p; empty unless requested.
        verbatim: see :func:`verbatim`, in [0, 1].
        greedy: the first tokens that greedy decoding writes behind the prompt, as far as this pass shows
            them: those of the answer that are the argmax, and the argmax where the answer parts from it.
    """

    nll: float
    tokens: int
    extraction_strength: float
    exact_memorisation: float
    log_probs: tuple[float, ...] = ()
    z_scores: tuple[float, ...] = ()
    greedy: tuple[int, ...] = ()
    verbatim: float = 0.0

    @property
    def mean_nll(self) -> float:
        """Negative log-likelihood in nats per token."""
        return self.nll / self.tokens

    @property
    def probability(self) -> float:
        """exp(-mean NLL): the geometric mean of the tokens' probabilities, in [0, 1]."""
        return math.exp(-self.mean_nll)


Counted = TypeVar("Counted", Tensor, tuple[float, ...])


def but_last(tokens: Counted) -> Counted:
    """Return what strengths and attacks look at: all labelled tokens but the last, where there are several.

    The last is the end of the turn, which says nothing of the answer. So does OpenUnlearning.
    """
    return tokens[:-1] if len(tokens) > 1 else tokens


def extraction_strength(correct: Bool[Tensor, " tokens"]) -> float:
    """Return 1 - k/n, with k the length of the shortest true prefix after which every argmax is right.

    1 where the whole answer follows from the prompt; 0 where even its last token is wrong, for which
    OpenUnlearning gives 1/n. The end of the turn is left out, see :func:`but_last`.
    Source: Carlini et al. 2021, "Extracting training data from large language models"; as used by Wang et al.
    2025, "Towards effective evaluations and comparisons for LLM unlearning methods".
    """
    kept = but_last(correct)
    wrong = (~kept).nonzero()
    prefix = int(wrong[-1]) + 1 if len(wrong) else 0
    return 1 - prefix / len(kept)


def verbatim(correct: Bool[Tensor, " tokens"]) -> float:
    """Return the longest passage that greedy decoding reproduces, as a share of 50 tokens, at most 1.

    It is the longest run of tokens that are the argmax: given the true text up to its beginning, greedy
    decoding writes just these tokens. Texts of fewer than 50 tokens are measured by their own length. The end
    of the text is left out, see :func:`but_last`. Fifty tokens are what Carlini et al. 2023, "Quantifying
    memorization across neural language models" (arXiv 2202.07646), call extractable; they take one place of
    each text, this takes the worst one.
    """
    kept = but_last(correct)
    wrong = torch.cat([torch.tensor([-1]), (~kept).nonzero().flatten().cpu(), torch.tensor([len(kept)])])
    return min(1.0, int(wrong.diff().max() - 1) / min(PASSAGE, len(kept)))


def exact_memorisation(correct: Bool[Tensor, " tokens"]) -> float:
    """Return the share of tokens that are the argmax, the end of the turn left out: see :func:`but_last`."""
    return float(but_last(correct).float().mean())


def standardised(
    logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Return (log p(target) - mu) / sigma, with mu and sigma those of log p over the vocabulary, under p.

    Computed some tokens at a time, in float32 whatever the model runs in. Where one token has all the
    probability, sigma is 0 and nothing can be told: 0.
    Source: Zhang et al. 2024, "Min-K%++", arXiv 2404.02936, eq. 3.
    """
    found = []
    for start in range(0, len(targets), _TOKENS_AT_ONCE):
        part, chosen = (whole[start : start + _TOKENS_AT_ONCE] for whole in (logits, targets))
        log_probs = part.float().log_softmax(dim=-1)
        probs = log_probs.exp()
        mean = (probs * log_probs).nan_to_num().sum(dim=-1)  # 0 log 0 is 0
        apart = log_probs - mean.unsqueeze(-1)
        sigma = (probs * apart.square()).nan_to_num().sum(dim=-1).sqrt()
        mine = apart.gather(1, chosen.unsqueeze(1)).squeeze(1)
        found.append(torch.where(sigma > 0, mine / sigma, torch.zeros_like(mine)))
    return torch.cat(found) if found else logits.new_zeros(0)


def score_tokens(
    tokens: LabelledTokens | Predictions, z_scores: Sequence[bool] | None = None
) -> list[AnswerScore]:
    """Score each sequence of one batch, in the batch's order; ``z_scores`` says which get theirs."""
    asked = [False] * tokens.row_count if z_scores is None else z_scores
    wanted = torch.tensor(asked)[tokens.rows.cpu()]
    if isinstance(tokens, LabelledTokens):
        log_probs, likeliest, z = _in_parts(tokens, wanted.to(tokens.rows.device))
    else:
        log_probs, likeliest, z = _columns(tokens, wanted.to(tokens.rows.device))
    counts = torch.bincount(tokens.rows.cpu(), minlength=tokens.row_count).tolist()
    columns = (log_probs.double(), tokens.targets, likeliest, z)
    parts = zip(*(torch.split(column.cpu(), counts) for column in columns), asked, strict=True)
    return [_answer_score(*part) for part in parts]


def _columns(found: Predictions, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p of each token, the most probable one in its place, and its z-score where it is wanted."""
    z = torch.zeros(len(wanted), dtype=torch.float64, device=wanted.device)
    if bool(wanted.any()):
        z[wanted] = standardised(found.logits[found.nodes[wanted]], found.targets[wanted]).double()
    return found.log_probs(), found.likeliest(), z


@torch.no_grad()
def _in_parts(tokens: LabelledTokens, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same where all logits may not be there at once."""

    def columns(logits: Tensor, targets: Tensor, wanted: Tensor) -> Tensor:
        nodes = torch.arange(len(targets), device=targets.device)
        part = Predictions(logits, nodes, targets, nodes, len(targets))
        return torch.stack([column.double() for column in _columns(part, wanted)], dim=1)

    log_probs, likeliest, z = tokens.each(columns, tokens.targets, wanted).unbind(dim=1)
    return log_probs, likeliest.long(), z  # float64 holds every token's number exactly


def _answer_score(
    log_probs: Tensor, targets: Tensor, likeliest: Tensor, z_scores: Tensor, asked: bool
) -> AnswerScore:
    correct = targets == likeliest
    agreeing = int(correct.cumprod(0).sum())
    return AnswerScore(
        nll=-float(log_probs.sum()),
        tokens=len(targets),
        extraction_strength=extraction_strength(correct),
        exact_memorisation=exact_memorisation(correct),
        verbatim=verbatim(correct),
        log_probs=tuple(log_probs.tolist()),
        z_scores=tuple(z_scores.tolist()) if asked else (),
        greedy=tuple(likeliest[: agreeing + 1].tolist()),
    )


def score_answers(
    model: nn.Module,
    examples: Sequence[EncodedExample],
    *,
    pad_id: int,
    batch_size: int = 16,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    advance: Advance | None = None,
    z_scores: bool | Sequence[bool] = False,
    agreement: Agreement | None = None,
    share_prompts: bool = True,
) -> list[AnswerScore]:
    """Score every example, in the given order, with the model in eval mode; its mode is restored.

    Several answers to one prompt run the prompt once, and what all prompts begin with is run once for all,
    where the model allows it (see :mod:`ngdiff.inference.prefix_trees`).

    Args:
        model: a causal language model.
        examples: encoded examples; sorted by length internally, which changes no figure.
        pad_id: what to pad with; any id will do.
        batch_size: sequences a forward pass; of long texts fewer, see :data:`MOST_TOKENS`.
        autocast: opens the context in which the model runs.
        advance: called with the number of examples done, for a progress bar.
        z_scores: also standardise each token's log-probability, for min-k++; of all, or as each row says.
        agreement: results of earlier comparisons with the same model; updated.
        share_prompts: run a prompt once for several answers. Without it the number of forward passes depends
            on the number of examples alone, as a model that is sharded over processes needs it.
    """
    wanted = [z_scores] * len(examples) if isinstance(z_scores, bool) else z_scores
    device = next(model.parameters()).device
    scores: list[AnswerScore | None] = [None] * len(examples)

    def keep(rows: Sequence[int], tokens: LabelledTokens | Predictions) -> None:
        for row, score in zip(rows, score_tokens(tokens, [wanted[row] for row in rows]), strict=True):
            scores[row] = score
        if advance is not None:
            advance(len(rows))

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = list(range(len(examples)))
            with autocast():
                sharing = PrefixTrees.of(model, examples, pad_id, agreement) if share_prompts else None
            if sharing is not None:
                alone = sharing.alone
                for rows, work in sharing.batches(batch_size):
                    with autocast():
                        found = work()
                    keep(rows, found)
            plain = [examples[row] for row in alone]
            most = MOST_TOKENS if share_prompts else None
            for places, batch in batches_by_length(plain, batch_size, pad_id, most):
                on_device = {key: value.to(device) for key, value in batch.items()}
                with autocast():
                    tokens = labelled_tokens(model, on_device, in_parts=True)
                keep([alone[place] for place in places], tokens)
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


def unlikelihood(scores: Sequence[AnswerScore]) -> float:
    """Return the mean over items of each answer's mean -log(1 - p), in nats per token.

    Source: the unlikelihood of Welleck et al. 2020 (arXiv 1908.04319), eq. 4. While a model gives way it
    falls about as the steps go on, where the probability stays near 1 at first and the NLL near 0. The last
    token, the end of the turn, is left out, and p ends at 1 - :data:`SURE`.

    Raises:
        ValueError: there are no scores, or they lack the tokens' log-probabilities.
    """
    columns = [but_last(score.log_probs) for score in scores]
    if not columns or not all(columns):
        raise ValueError("no log-probabilities to work the unlikelihood out from")
    means = [math.fsum(-math.log(max(-math.expm1(x), SURE)) for x in found) / len(found) for found in columns]
    return math.fsum(means) / len(means)


def items_of(scores: Sequence[AnswerScore]) -> dict[str, list[float]]:
    """Return a column a measure: nats and labelled tokens of each answer, and both strengths in [0, 1]."""
    return {name: [getattr(score, name) for score in scores] for name in ITEM_COLUMNS}


def summarise_items(items: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Average like :func:`summarise` over columns ``nll``, ``tokens`` and both strengths, one value an item.

    Raises:
        ValueError: there are no items, or the columns are not equally long.
        KeyError: a column is missing.
    """
    rows = zip(*(items[name] for name in ITEM_COLUMNS), strict=True)
    return summarise([AnswerScore(nll, int(tokens), es, em) for nll, tokens, es, em in rows])


def batch_extraction_strength(tokens: LabelledTokens) -> Float[Tensor, ""]:
    """Return the mean extraction strength of the sequences in a batch, on the device, without a sync.

    Costs one argmax over logits that are there anyway, so a training step can report it for free.
    """
    correct = tokens.correct()
    count = torch.zeros(tokens.row_count, device=correct.device)
    count = count.scatter_add(0, tokens.rows, torch.ones_like(correct, dtype=count.dtype))
    first = torch.cat([torch.zeros(1, device=count.device), count.cumsum(0)[:-1]])
    place = torch.arange(len(correct), device=count.device) - first[tokens.rows]
    kept = (count - 1).clamp(min=1)  # the last is left out where there are several
    fine = correct | (place >= kept[tokens.rows])
    bad_end = torch.where(fine, torch.zeros_like(place), place + 1)
    prefix = torch.zeros_like(count).scatter_reduce(0, tokens.rows, bad_end, "amax", include_self=True)
    return (1 - prefix / kept).mean()
