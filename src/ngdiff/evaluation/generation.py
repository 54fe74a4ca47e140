"""model and prompts -> the answers it gives, greedily."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ngdiff.data.encoding import encode_prompt
from ngdiff.data.examples import Example
from ngdiff.evaluation.teacher_forced import Advance


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad prompts on the left, so that every answer begins in the same column.

    Returns:
        Ids and attention mask, int64 of shape (prompts, longest); the mask comes from lengths.
    """
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def generate_answers(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    max_length: int = 512,
    advance: Advance | None = None,
) -> list[str]:
    """Answer every example's prompt by greedy decoding, stopping at the end-of-turn token.

    Args:
        model: a causal language model; it is left in the mode it was in.
        tokenizer: with its chat template, where it has one.
        examples: whose prompts to answer, in this order.
        max_new_tokens: longest answer, in tokens.
        batch_size: prompts answered at once; similar lengths go together.
        max_length: longest prompt, in tokens.
        advance: called with the number of examples done, for a progress bar.
    """
    prompts = [encode_prompt(example, tokenizer, max_length) for example in examples]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers = [""] * len(prompts)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            ids, mask = left_padded([prompts[row] for row in rows], tokenizer.pad_token_id)
            with torch.no_grad():
                output = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                )
            fresh = output[:, ids.shape[1] :]
            for row, text in zip(rows, tokenizer.batch_decode(fresh, skip_special_tokens=True), strict=True):
                answers[row] = text.strip()
            if advance is not None:
                advance(len(rows))
    finally:
        model.train(was_training)
    return answers
