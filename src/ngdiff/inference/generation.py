"""model and prompts -> the answers it gives, greedily."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ngdiff.data.encoding import encode_prompt
from ngdiff.data.examples import Example
from ngdiff.inference.kv_cache import (
    Prefix,
    cache_name,
    cached_tokens,
    joined,
    keeps_everything,
    shared_prefix,
)
from ngdiff.inference.teacher_forced import Advance

_LOOK_EVERY = 4
"""Steps between looks for rows that have met a stop string."""

_REFILL = 4
"""Others take the place of rows that have ended when that many times their number would fill the batch."""

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
    starts: Sequence[Sequence[int]] | None = None,
) -> list[str]:
    """Answer every example's prompt by greedy decoding.

    What all prompts begin with is run once. Rows that have ended leave the batch, and others take their
    place, so that each pass over the weights serves many. Models whose cache does not allow for it are left
    to ``model.generate``.

    Args:
        model: a causal language model; it is left in the mode it was in.
        tokenizer: with its chat template, where it has one.
        examples: whose prompts to answer, in this order.
        max_new_tokens: longest answer, in tokens.
        batch_size: prompts answered at once; similar lengths go together.
        max_length: longest prompt, in tokens.
        advance: called with the number of examples done, for a progress bar.
        stop_strings: texts before which an answer ends.
        starts: the first tokens of each answer, where they are known already, without an end token.
    """
    prompts = [encode_prompt(example, tokenizer, max_length) for example in examples]
    said = [list(start)[:max_new_tokens] for start in starts or [()] * len(prompts)]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            _Greedy(model, tokenizer, max_new_tokens, stop_strings, batch_size, advance).fill(prompts, said)
    finally:
        model.train(was_training)
    return [answer_text(tokenizer, tokens, stop_strings) for tokens in said]


def answer_text(tokenizer: Any, tokens: Sequence[int], stop_strings: Sequence[str] = ()) -> str:
    """Return what generated tokens, without the one that ended them, read."""
    return cut(str(tokenizer.decode(tokens, skip_special_tokens=True)), stop_strings).strip()


def cut(text: str, stop_strings: Sequence[str]) -> str:
    """Return the text before the first stop string."""
    ends = [place for stop in stop_strings if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


@dataclass
class _Rows:
    """Answers under way.

    Args:
        places: of the prompts.
        cache: keys and values of all but each row's last token.
        mask: of the cache's columns and the last token's, int64 of shape (rows, columns).
        last: token of each row that is still to run, of shape (rows, 1).
    """

    places: list[int]
    cache: Any
    mask: Tensor
    last: Tensor

    def keep(self, kept: Tensor) -> None:
        if len(kept) == len(self.places):
            return
        self.places = [self.places[row] for row in kept.tolist()]
        if self.places:
            self.cache.batch_select_indices(kept)
        self.mask, self.last = self.mask[kept], self.last[kept]

    def take_in(self, others: _Rows) -> None:
        self.places += others.places
        self.cache = joined(self.cache, others.cache)
        longest = max(self.mask.shape[1], others.mask.shape[1])
        masks = [nn.functional.pad(mask, (longest - mask.shape[1], 0)) for mask in (self.mask, others.mask)]
        self.mask, self.last = torch.cat(masks), torch.cat([self.last, others.last])


class _Greedy:
    """Greedy decoding of prompts."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        most: int,
        stop_strings: Sequence[str],
        batch_size: int,
        advance: Advance | None,
    ) -> None:
        self.model, self.tokenizer, self.most, self.stops = model, tokenizer, most, stop_strings
        self.batch_size, self.advance = batch_size, advance or (lambda count: None)
        self.ends = torch.tensor(sorted(end_tokens(model, tokenizer)))
        self.device = next(model.parameters()).device
        self.pad_id = int(tokenizer.pad_token_id or 0)
        self.cache_name = cache_name(model)

    def fill(self, prompts: Sequence[Sequence[int]], said: list[list[int]]) -> None:
        """Append each prompt's new tokens, without the token that ended them."""
        texts = [[*prompt, *start] for prompt, start in zip(prompts, said, strict=True)]
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        waiting = [place for place in order if len(said[place]) < self.most]
        self.advance(len(order) - len(waiting))
        if _can_loop(self.model):
            known = [list(start) for start in said]
            try:
                self._loop(texts, waiting, said)
                return
            except (TypeError, AttributeError, NotImplementedError):  # a cache or forward of another kind
                said[:] = known
        for start in range(0, len(waiting), self.batch_size):
            self._by_the_model(texts, waiting[start : start + self.batch_size], said)

    def _by_the_model(self, texts: Sequence[Sequence[int]], places: list[int], said: list[list[int]]) -> None:
        ids, mask = (part.to(self.device) for part in left_padded([texts[p] for p in places], self.pad_id))
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(self.most - len(said[place]) for place in places),
            do_sample=False,
            pad_token_id=self.pad_id,
            eos_token_id=self.ends.tolist() or None,
        )
        ends = set(self.ends.tolist())
        for place, row in zip(places, output[:, ids.shape[1] :].tolist(), strict=True):
            said[place] = (said[place] + until(row, ends))[: self.most]
        self.advance(len(places))

    def _loop(self, texts: Sequence[Sequence[int]], waiting: list[int], said: list[list[int]]) -> None:
        prefix = self._prefix([texts[place] for place in waiting])
        rows: _Rows | None = None
        step = 0
        while waiting or rows is not None:
            room = self.batch_size - (0 if rows is None else len(rows.places))
            fits = rows is None or (keeps_everything(rows.cache) and _REFILL * room >= self.batch_size)
            if waiting and fits:
                new = self._begin(texts, waiting[:room], prefix, said)
                waiting = waiting[room:]
                if rows is not None and new.places:
                    rows.take_in(new)
                elif new.places:
                    rows = new
            if rows is not None:
                self._step(rows, said, look=step % _LOOK_EVERY == 0)
                rows = rows if rows.places else None
                step += 1

    def _prefix(self, texts: Sequence[Sequence[int]]) -> Prefix:
        try:
            return Prefix(self.model, shared_prefix(texts))
        except NotImplementedError:
            return Prefix(self.model, ())

    def _begin(
        self, texts: Sequence[Sequence[int]], places: list[int], prefix: Prefix, said: list[list[int]]
    ) -> _Rows:
        """Run prompts, from behind the prefix, and append the first token of each answer."""
        ids, mask = (part.to(self.device) for part in left_padded([texts[p] for p in places], self.pad_id))
        cache = prefix.cache((mask == 0).sum(dim=1))
        rows = _Rows(list(places), cache, mask, ids[:, len(prefix) :])
        self._step(rows, said, look=True, columns=ids.shape[1])
        return rows

    def _step(self, rows: _Rows, said: list[list[int]], look: bool, columns: int | None = None) -> None:
        """Run what is still to run, append the next token of each row, drop the rows that have ended."""
        positions = (rows.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -rows.last.shape[1] :]
        settings = {"use_cache": True, "logits_to_keep": 1, self.cache_name: rows.cache}
        output = self.model(input_ids=rows.last, attention_mask=rows.mask, position_ids=positions, **settings)
        if columns is not None and cached_tokens(rows.cache) != columns:
            raise NotImplementedError("the model keeps its state elsewhere")
        chosen = output.logits[:, -1].argmax(dim=-1)
        ended = torch.isin(chosen, self.ends.to(chosen.device)).tolist()
        kept = []
        for row, (place, token) in enumerate(zip(rows.places, chosen.tolist(), strict=True)):
            if ended[row]:
                continue
            said[place].append(token)
            stopped = self.stops and look and self._has_stopped(said[place])
            if not stopped and len(said[place]) < self.most:
                kept.append(row)
        self.advance(len(rows.places) - len(kept))
        rows.mask = torch.cat([rows.mask, rows.mask.new_ones(len(rows.mask), 1)], dim=1)
        rows.last = chosen[:, None]
        rows.keep(torch.tensor(kept, dtype=torch.long, device=self.device))

    def _has_stopped(self, tokens: list[int]) -> bool:
        text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
        return any(stop in text for stop in self.stops)


def until(tokens: Sequence[int], ends: Collection[int]) -> list[int]:
    """Return the tokens before the first end token."""
    return list(tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))])


def is_plain_greedy(model: Any) -> bool:
    """Return whether nothing but the likelihoods decides a token under greedy decoding."""
    settings = getattr(getattr(model, "module", model), "generation_config", None)
    if settings is None:
        return False
    penalty = getattr(settings, "repetition_penalty", None) not in (None, 1.0)
    return not penalty and not any(getattr(settings, name, None) for name in _SETTINGS_OF_OTHERS)


def _can_loop(model: Any) -> bool:
    """Return whether rows can leave the model's cache, and decoding is plain."""
    inner = getattr(model, "module", model)
    if getattr(inner.config, "is_encoder_decoder", False):
        return False
    supported = bool(getattr(inner, "_supports_default_dynamic_cache", lambda: False)())
    return supported and is_plain_greedy(model)
