"""model and prompts -> the answers it gives, greedily."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ngdiff.data.encoding import encode_prompt
from ngdiff.data.examples import Example
from ngdiff.evaluation.teacher_forced import Advance

_LOOK_EVERY = 4
"""Steps between looks for rows that have met a stop string."""

_SETTINGS_OF_OTHERS = (
    "no_repeat_ngram_size",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "sequence_bias",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
)
"""Settings of generation that let something else than the likelihoods decide a token."""


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
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


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids at which an answer ends: the generation settings' own, else the tokenizer's."""
    settings = getattr(getattr(model, "module", model), "generation_config", None)
    found = getattr(settings, "eos_token_id", None)
    ids = set(found) if isinstance(found, (list, tuple)) else {found}
    ids.add(tokenizer.eos_token_id)
    return frozenset(int(token) for token in ids if token is not None)


def generate_answers(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    max_length: int = 512,
    advance: Advance | None = None,
    stop_strings: Sequence[str] = (),
) -> list[str]:
    """Answer every example's prompt by greedy decoding.

    Rows that have ended leave the batch, so that nothing is computed for them any more. Models whose cache
    does not allow for it are left to ``model.generate``.

    Args:
        model: a causal language model; it is left in the mode it was in.
        tokenizer: with its chat template, where it has one.
        examples: whose prompts to answer, in this order.
        max_new_tokens: longest answer, in tokens.
        batch_size: prompts answered at once; similar lengths go together.
        max_length: longest prompt, in tokens.
        advance: called with the number of examples done, for a progress bar.
        stop_strings: texts before which an answer ends.
    """
    prompts = [encode_prompt(example, tokenizer, max_length) for example in examples]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers = [""] * len(prompts)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            decode = _Greedy(model, tokenizer, max_new_tokens, stop_strings)
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                for row, tokens in zip(rows, decode([prompts[row] for row in rows]), strict=True):
                    answers[row] = answer_text(tokenizer, tokens, stop_strings)
                if advance is not None:
                    advance(len(rows))
    finally:
        model.train(was_training)
    return answers


def answer_text(tokenizer: Any, tokens: Sequence[int], stop_strings: Sequence[str] = ()) -> str:
    """Return what generated tokens, without the one that ended them, read."""
    return cut(str(tokenizer.decode(tokens, skip_special_tokens=True)), stop_strings).strip()


def cut(text: str, stop_strings: Sequence[str]) -> str:
    """Return what stands before the first of the stop strings."""
    ends = [place for stop in stop_strings if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


class _Greedy:
    """Greedy decoding of batches of prompts."""

    def __init__(self, model: Any, tokenizer: Any, most: int, stop_strings: Sequence[str]) -> None:
        self.model, self.tokenizer, self.most, self.stops = model, tokenizer, most, stop_strings
        self.ends = torch.tensor(sorted(end_tokens(model, tokenizer)))
        self.device = next(model.parameters()).device
        self.own_loop = _can_loop(model)
        self.cache_name = _cache_name(model)

    def __call__(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return each prompt's new tokens, without the token that ended them."""
        pad_id = int(self.tokenizer.pad_token_id or 0)
        ids, mask = (part.to(self.device) for part in left_padded(prompts, pad_id))
        if self.own_loop:
            try:
                return self._loop(ids, mask)
            except (TypeError, AttributeError, NotImplementedError):  # a cache or forward of another kind
                self.own_loop = False
        return self._by_the_model(ids, mask, pad_id)

    def _by_the_model(self, ids: Tensor, mask: Tensor, pad_id: int) -> list[list[int]]:
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=self.most,
            do_sample=False,
            pad_token_id=pad_id,
            eos_token_id=self.ends.tolist() or None,
        )
        ends = set(self.ends.tolist())
        return [_until(row, ends) for row in output[:, ids.shape[1] :].tolist()]

    def _loop(self, ids: Tensor, mask: Tensor) -> list[list[int]]:
        said: list[list[int]] = [[] for _ in range(len(ids))]
        alive = list(range(len(ids)))
        cache: Any = DynamicCache(config=getattr(self.model, "config", None))
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        for step in range(self.most):
            output = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **{self.cache_name: cache},
            )
            if step == 0 and _cached_tokens(cache) != ids.shape[1]:
                raise NotImplementedError("the model keeps its state elsewhere")
            chosen = output.logits[:, -1].argmax(dim=-1)
            going = ~torch.isin(chosen, self.ends.to(chosen.device))
            for place, token in enumerate(chosen.tolist()):
                if going[place]:
                    said[alive[place]].append(token)
            if self.stops and step % _LOOK_EVERY == 0:
                met = [self._has_stopped(said[row]) for row in alive]
                going &= ~torch.tensor(met, device=going.device)
            kept = going.nonzero().squeeze(1)
            if len(kept) == 0:
                break
            if len(kept) < len(alive):
                alive = [alive[place] for place in kept.tolist()]
                cache.batch_select_indices(kept)
                chosen, mask, positions = chosen[kept], mask[kept], positions[kept]
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        return said

    def _has_stopped(self, tokens: list[int]) -> bool:
        text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
        return any(stop in text for stop in self.stops)


def _until(tokens: Sequence[int], ends: set[int]) -> list[int]:
    return list(tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))])


def _cache_name(model: Any) -> str:
    """Return what the model's forward calls its cache: transformers 5.24 renamed it."""
    inner = getattr(model, "module", model)
    base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"


def _cached_tokens(cache: Any) -> int:
    try:
        return int(cache.get_seq_length())
    except ValueError:  # there are layers without keys and values
        return 0


def is_plain_greedy(model: Any) -> bool:
    """Say whether nothing but the likelihoods decides a token under greedy decoding."""
    settings = getattr(getattr(model, "module", model), "generation_config", None)
    if settings is None:
        return False
    penalty = getattr(settings, "repetition_penalty", None) not in (None, 1.0)
    return not penalty and not any(getattr(settings, name, None) for name in _SETTINGS_OF_OTHERS)


def _can_loop(model: Any) -> bool:
    """Say whether rows can leave the model's cache, and decoding is plain."""
    inner = getattr(model, "module", model)
    if getattr(inner.config, "is_encoder_decoder", False):
        return False
    supported = bool(getattr(inner, "_supports_default_dynamic_cache", lambda: False)())
    return supported and is_plain_greedy(model)
