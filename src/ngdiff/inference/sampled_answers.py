"""model and one prompt -> sampled answers; their scores -> what the best of k of them is expected to show.

Greedy decoding shows one answer, and an unlearned model may give its knowledge in the second. Sampling is at
temperature 1 from all of the vocabulary.

Source: Reisizadeh et al. 2025, "Leak@k: Unlearning does not make LLMs forget under probabilistic decoding",
arXiv 2511.04934; the estimator is that of pass@k, Chen et al. 2021, arXiv 2107.03374, for scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ngdiff.inference.generation import answer_text, end_tokens, until

BUDGETS = (1, 4, 16, 64)
"""Answers that somebody may draw, as published."""


def best_of(scores: Sequence[float], k: int) -> float:
    """Return the expected best score of k of n sampled answers, without bias.

    That is the mean of the maximum over all subsets of size k: with scores in rising order,
    sum over i of C(i - 1, k - 1) / C(n, k) times the i-th.

    Args:
        scores: one an answer, in [0, 1].
        k: from 1 to the number of scores.

    Raises:
        ValueError: there are fewer than k scores.
    """
    if not 1 <= k <= len(scores):
        raise ValueError(f"the best of {k} needs {k} answers, got {len(scores)}")
    ways = math.comb(len(scores), k)
    ordered = enumerate(sorted(scores))
    return math.fsum(math.comb(below, k - 1) / ways * score for below, score in ordered)


def sampled_answers(
    model: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    count: int,
    *,
    max_new_tokens: int,
    at_once: int,
    seed: int,
) -> list[str]:
    """Draw answers to one prompt; the caller's random state is left alone.

    Args:
        model: a causal language model in eval mode.
        tokenizer: its tokenizer.
        prompt: ids.
        count: number of answers.
        max_new_tokens: longest answer, in tokens.
        at_once: answers drawn in one batch.
        seed: of the answers.
    """
    device = next(model.parameters()).device
    ids = torch.tensor([list(prompt)], device=device)
    ends = end_tokens(model, tokenizer)
    texts: list[str] = []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        while len(texts) < count:
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=min(at_once, count - len(texts)),
                max_new_tokens=max_new_tokens,
                pad_token_id=int(tokenizer.pad_token_id or 0),
                eos_token_id=sorted(ends) or None,
            )
            said = output[:, ids.shape[1] :].tolist()
            texts += [answer_text(tokenizer, until(row, ends)) for row in said]
    return texts
