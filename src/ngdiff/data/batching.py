"""encoded examples -> padded token batches, and the order in which forget and retain examples meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ngdiff.data.encoding import EncodedExample
from ngdiff.models.logprobs import IGNORED, predicting_positions

Batch = dict[str, Tensor]
"""Tensors by name; ``other`` holds a batch of its own."""


def collate(examples: Sequence[EncodedExample], pad_id: int) -> Batch:
    """Pad sequences on the right into one batch.

    The attention mask comes from lengths, never from comparing ids with the pad id, so a pad id that equals
    the end token hides nothing.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels`` (-100 where no loss falls), int64 of shape
        (rows, longest); ``real``, the places of all tokens that are not padding, and ``labelled``, those
        whose next token is labelled, int64, counted row after row; ``reference``, float32 of shape
        (rows,), where the starting model's log-probabilities of the answers are known.
    """
    longest = max(len(example.input_ids) for example in examples)
    shape = (len(examples), longest)
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    labels = torch.full(shape, IGNORED, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        input_ids[row, :length] = torch.tensor(example.input_ids)
        labels[row, :length] = torch.tensor(example.labels)
        attention_mask[row, :length] = 1
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    # computed here, on the host: a GPU would have to wait for the number of places
    batch["real"] = attention_mask.flatten().nonzero().squeeze(1)
    batch["labelled"] = predicting_positions(labels).flatten().nonzero().squeeze(1)
    references = [example.reference_log_prob for example in examples]
    if None not in references:
        batch["reference"] = torch.tensor(references, dtype=torch.float32)
    levels = [example.predictable for example in examples if example.predictable is not None]
    if len(levels) == len(examples):
        batch["predictable"] = torch.tensor([level for row in levels for level in row], dtype=torch.float32)
    return batch


def batches_by_length(
    examples: Sequence[EncodedExample], batch_size: int, pad_id: int, most_tokens: int | None = None
) -> Iterator[tuple[list[int], Batch]]:
    """Yield batches of similar length, longest first, each with the positions of its examples.

    Args:
        examples: what to put into batches.
        batch_size: most sequences of a batch.
        pad_id: what to pad with; any id will do.
        most_tokens: limit of a batch, including padding, unless one sequence alone has more.
    """
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i].input_ids))
    start = 0
    while start < len(order):
        size = batch_size
        if most_tokens is not None:
            size = max(1, min(size, most_tokens // len(examples[order[start]].input_ids)))
        rows = order[start : start + size]
        start += size
        yield rows, collate([examples[i] for i in rows], pad_id)


def little_padding(
    examples: Sequence[EncodedExample], batch_size: int, worth: float = 0.1
) -> list[list[EncodedExample]]:
    """Sort by length, cut into batches, and halve those where that saves ``worth`` of their tokens."""
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    batches: list[list[EncodedExample]] = []
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        half, longest = len(batch) // 2, len(batch[-1].input_ids)
        saved = half * (longest - len(batch[half - 1].input_ids)) if half else 0
        batches += [batch[:half], batch[half:]] if saved > worth * len(batch) * longest else [batch]
    return batches


def even_parts(examples: Sequence[EncodedExample], most: int, processes: int) -> list[list[EncodedExample]]:
    """Sort by length and cut into parts of nearly one size, as many for every process; some may be empty."""
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    count = processes * -(-len(ordered) // (most * processes))
    bounds = [len(ordered) * place // count for place in range(count + 1)]
    return [ordered[start:stop] for start, stop in pairwise(bounds)]


def permutation(size: int, seed: int, cycle: int) -> list[int]:
    """Return the order of one pass over ``size`` examples; depends on nothing but its arguments."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + cycle) % 2**63)
    return torch.randperm(size, generator=generator).tolist()


class Stream:
    """An endless shuffled sequence over ``size`` examples: each pass visits every example once.

    ``stream[i]`` is a pure function of the seed and ``i``, so a resumed run needs no sampler state.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._cycle, self._order = -1, [0]

    def __getitem__(self, position: int) -> int:
        cycle, offset = divmod(position, self.size)
        if cycle != self._cycle:
            self._cycle, self._order = cycle, permutation(self.size, self.seed, cycle)
        return self._order[offset]


GENERAL_EVERY = 2
"""One in so many retain examples of a step is general text, where there is any."""


class RetainStream:
    """An endless order of the rows to keep, in which every second row is general text.

    Args:
        own: rows of the retain set.
        general: rows of general text, which follow those; 0 for none.
        seed: of both orders.
    """

    def __init__(self, own: int, general: int, seed: int) -> None:
        self._own, self._first = Stream(own, seed), own
        self._general = Stream(general, seed) if general else None

    def __getitem__(self, position: int) -> int:
        if self._general is None:
            return self._own[position]
        turn, place = divmod(position, GENERAL_EVERY)
        if place == GENERAL_EVERY - 1:
            return self._first + self._general[turn]
        return self._own[turn * (GENERAL_EVERY - 1) + place]


ROUNDS = 100_003
"""Tells the rounds of one epoch apart from the next epochs' first ones."""

ABSENT = "absent"
"""Marks a placeholder batch: a process runs it so that the others can continue, and it does not count."""

Pair = tuple[EncodedExample, EncodedExample, int]
"""A forget example, a retain example, and the retain example's row."""


class PairedDataset(Dataset[Pair]):
    """Forget and retain examples addressed together.

    An address is (forget row + pass × size of the forget set, retain row): where a forget example has several
    alternatives, each pass takes the next one, however its steps are cut into micro-batches and processes.
    """

    def __init__(self, forget: Sequence[EncodedExample], retain: Sequence[EncodedExample]) -> None:
        self.forget, self.retain = forget, retain

    def __len__(self) -> int:
        return len(self.forget)

    def __getitem__(self, pair: tuple[int, int]) -> Pair:
        turn, row = divmod(pair[0], len(self.forget))
        forget, retain = self.forget[row], pair[1]
        if len(forget.alternatives) > 1:
            chosen = forget.alternatives[turn % len(forget.alternatives)]
            forget = replace(forget, alternatives=(chosen,))
        return forget, self.retain[retain], retain

    def arranged(self, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Sort the examples of one step by length, each set separately, and pair them again.

        Micro-batches of similar lengths have less padding; the step keeps its examples.
        """
        size = len(self.forget)
        forget = sorted((row for row, _ in pairs), key=lambda row: len(self.forget[row % size].input_ids))
        retain = sorted((row for _, row in pairs), key=lambda row: len(self.retain[row].input_ids))
        return list(zip(forget, retain, strict=True))

    def stand_in(self) -> Pair:
        """Return a pair on which any loss can be computed, once the data is complete."""
        known = (row for row, example in enumerate(self.retain) if example.reference_states is not None)
        return self[0, next(known, 0)]


class PairSampler(Sampler[tuple[int, int]]):
    """One epoch visits each forget example once; the retain stream continues where the last epoch left it.

    Yields addresses of :class:`PairedDataset`.

    Args:
        forget_size: rows of the forget set.
        retain_size: rows of the retain set.
        seed: of both orders.
        general: rows of general text behind those of the retain set; see :class:`RetainStream`.
        chosen: called at the beginning of an epoch with its number; returns the forget rows that it draws
            from. Where these are fewer than all, they are repeated until the epoch has its full length.
    """

    def __init__(
        self,
        forget_size: int,
        retain_size: int,
        seed: int,
        chosen: Callable[[int], Sequence[int]] | None = None,
        general: int = 0,
    ) -> None:
        self._size, self._seed, self._chosen = forget_size, seed, chosen
        self._retain = RetainStream(retain_size, general, seed + 1)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start = self.epoch * self._size
        rows = range(self._size) if self._chosen is None else self._chosen(self.epoch)
        # each repetition of a row has its own round, and takes the next alternative
        order = permutation(len(rows), self._seed, self.epoch)
        for place in range(self._size):
            turn, offset = divmod(place, len(rows))
            if offset == 0 and turn > 0:
                order = permutation(len(rows), self._seed, self.epoch + turn * ROUNDS)
            yield rows[order[offset]] + start + turn * self._size, self._retain[start + place]


def collate_for_loss(examples: Sequence[EncodedExample], pad_id: int) -> Batch:
    """Pad sequences like :func:`collate`, and add everything that a loss may compare them with.

    Args:
        examples: of one micro-batch.
        pad_id: what to pad with; any id will do.

    Returns:
        The batch of :func:`collate`; ``reference_states``, of shape (labelled tokens, width) in reading
        order, where the starting model's are known; ``expected_ids`` and ``expected_probs``, of shape
        (labelled tokens, kept), where expectations are; ``other``, the batch of the first alternatives, where
        there are any.
    """
    batch = collate(examples, pad_id)
    states = [example.reference_states for example in examples if example.reference_states is not None]
    if len(states) == len(examples):
        batch["reference_states"] = torch.cat(states)
    ids = [example.expected_ids for example in examples if example.expected_ids is not None]
    probs = [example.expected_probs for example in examples if example.expected_probs is not None]
    if len(ids) == len(probs) == len(examples):
        batch["expected_ids"], batch["expected_probs"] = torch.cat(ids).long(), torch.cat(probs)
    others = [example.alternatives[0] for example in examples if example.alternatives]
    if len(others) == len(examples):
        batch["other"] = collate(others, pad_id)  # type: ignore[assignment]
    return batch


class PairCollator:
    """Turn pairs into ``{"forget": batch, "retain": batch, "retain_rows": rows of the retain set}``.

    Args:
        pad_id: what to pad with; any id will do.
        dataset: where a pair comes from for a process that gets none; the batch is marked as absent.
    """

    def __init__(self, pad_id: int, dataset: PairedDataset | None = None) -> None:
        self.pad_id, self.dataset = pad_id, dataset

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Batch | Tensor]:
        """Pad the pairs of one micro-batch, each task to its own longest sequence."""
        if not pairs and self.dataset is not None:
            return {**self([self.dataset.stand_in()]), ABSENT: torch.ones(1)}
        forget, retain, rows = zip(*pairs, strict=True)
        return {
            "forget": collate_for_loss(forget, self.pad_id),
            "retain": collate_for_loss(retain, self.pad_id),
            "retain_rows": torch.tensor(rows),
        }
