"""several answers to one prompt -> their tokens' likelihoods, the prompt run once.

TOFU asks of every question what the model makes of one paraphrased and five perturbed answers. A chat prompt
is about as long as its answer, so running it once for all six saves close to half of the work. It pays
wherever two answers share a prompt of more than one token; a row without a partner goes the plain way.

The prompt, but for its last token, fills a cache of keys and values; each answer then continues from a copy
of it. Models whose cache cannot be copied, or that give other likelihoods that way, are run the plain way:
some answers are always done both ways first and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import DynamicCache

from ngdiff.data.batching import collate
from ngdiff.data.encoding import EncodedExample
from ngdiff.logprobs import LabelledTokens, head_sees_only, labelled_tokens

_CLOSE = 1e-3
"""Nats by which a token's two likelihoods may differ (float32; in bf16 ``_CLOSE_BF16``)."""
_CLOSE_BF16 = 0.5


@dataclass(frozen=True)
class Group:
    """Answers to one prompt.

    Args:
        rows: of the examples.
        prompt: token ids that all of them begin with, up to the one before the last of the prompt.
    """

    rows: tuple[int, ...]
    prompt: tuple[int, ...]


def group_by_prompt(examples: Sequence[EncodedExample]) -> tuple[list[Group], list[int]]:
    """Return the groups of two or more with one prompt, and the rows that are in none."""
    together: dict[tuple[int, ...], list[int]] = {}
    alone = []
    for row, example in enumerate(examples):
        start = next(place for place, label in enumerate(example.labels) if label >= 0)
        if start < 2:
            alone.append(row)
        else:
            together.setdefault(tuple(example.input_ids[: start - 1]), []).append(row)
    groups = [Group(tuple(rows), prompt) for prompt, rows in together.items() if len(rows) > 1]
    alone += [rows[0] for rows in together.values() if len(rows) == 1]
    return groups, sorted(alone)


class SharedPrompts:
    """The groups of one set of examples, ready to run.

    Args:
        model: in eval mode; called without gradients.
        examples: all of them.
        groups: those that share.
        alone: rows of the rest.
        pad_id: what to pad with.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: Sequence[EncodedExample],
        groups: Sequence[Group],
        alone: list[int],
        pad_id: int,
    ) -> None:
        self.model, self.examples, self.alone, self._pad_id = model, examples, alone, pad_id
        self._groups = sorted(groups, key=lambda group: -self._longest(group))
        self._device = next(model.parameters()).device

    @classmethod
    def of(cls, model: nn.Module, examples: Sequence[EncodedExample], pad_id: int) -> SharedPrompts | None:
        """Return the sharing of these examples, or ``None`` where nothing is shared or the model cannot."""
        groups, alone = group_by_prompt(examples)
        if not groups:
            return None
        sharing = cls(model, examples, groups, alone, pad_id)
        return sharing if sharing._agrees() else None

    def _longest(self, group: Group) -> int:
        return max(len(self.examples[row].input_ids) for row in group.rows)

    def _agrees(self) -> bool:
        """Run two answers of the longest and of the shortest prompt both ways and compare."""
        ends = [self._groups[0], self._groups[-1]] if len(self._groups) > 1 else self._groups
        pairs = [Group(group.rows[:2], group.prompt) for group in ends]
        rows = [self.examples[row] for pair in pairs for row in pair.rows]
        batch = {key: value.to(self._device) for key, value in collate(rows, self._pad_id).items()}
        plain = labelled_tokens(self.model, batch).log_probs()
        try:
            shared = self._run(pairs).log_probs()
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, NotImplementedError):
            return False
        low = torch.is_autocast_enabled(self._device.type) or next(self.model.parameters()).element_size() < 4
        both = torch.stack([plain, shared])
        if not bool(both.isfinite().all()):
            return False  # the plain way names the item
        return bool((plain - shared).abs().max() <= (_CLOSE_BF16 if low else _CLOSE))

    def batches(self, batch_size: int) -> Iterator[tuple[list[int], Callable[[], LabelledTokens]]]:
        """Yield rows and what to call for their likelihoods, longest groups first.

        A batch holds no more continued tokens than ``batch_size`` whole sequences would.
        """
        waiting: list[Group] = []
        room = 0
        for group in self._groups:
            longest = self._longest(group)
            size = len(group.rows) * (longest - len(group.prompt))
            if waiting and size > room:
                yield self._batch(waiting)
                waiting = []
            if not waiting:
                room = batch_size * longest
            waiting.append(group)
            room -= size
        if waiting:
            yield self._batch(waiting)

    def _batch(self, groups: Sequence[Group]) -> tuple[list[int], Callable[[], LabelledTokens]]:
        chosen = tuple(groups)
        return [row for group in chosen for row in group.rows], lambda: self._run(chosen)

    def _run(self, groups: Sequence[Group]) -> LabelledTokens:
        prompts, mask = _padded([group.prompt for group in groups], self._pad_id, self._device)
        cache: Any = DynamicCache(config=getattr(self.model, "config", None))
        nothing = torch.zeros_like(mask, dtype=torch.bool)
        with head_sees_only(self.model, nothing):
            self.model(input_ids=prompts, attention_mask=mask, past_key_values=cache, use_cache=True)
        copies = torch.tensor(
            [place for place, group in enumerate(groups) for _ in group.rows], device=self._device
        )
        cache.batch_select_indices(copies)
        return self._continue(groups, cache, mask[copies])

    def _continue(self, groups: Sequence[Group], cache: Any, prompt_mask: Tensor) -> LabelledTokens:
        starts = [len(group.prompt) for group in groups for _ in group.rows]
        rows = [self.examples[row] for group in groups for row in group.rows]
        pairs = list(zip(rows, starts, strict=True))
        ids, mask = _padded([e.input_ids[start:-1] for e, start in pairs], self._pad_id, self._device)
        targets, _ = _padded([e.labels[start + 1 :] for e, start in pairs], -1, self._device)
        positions = torch.tensor(starts, device=self._device)[:, None] + torch.arange(
            ids.shape[1], device=self._device
        )
        labelled = targets >= 0
        with head_sees_only(self.model, labelled):
            output = self.model(
                input_ids=ids,
                attention_mask=torch.cat([prompt_mask, mask], dim=1),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        places, columns = labelled.nonzero(as_tuple=True)
        logits = output.logits.squeeze(0).float()
        return LabelledTokens(logits, targets[places, columns], places, len(rows))


def _padded(
    sequences: Sequence[Sequence[int]], fill: int, device: torch.device
) -> tuple[Int[Tensor, "rows longest"], Int[Tensor, "rows longest"]]:
    """Pad on the right; returns ids and the mask of what is no padding."""
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), fill, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids.to(device), mask.to(device)
