"""forget examples and the starting model -> what it would say, had it never met their subjects.

Pushing every token of an answer down unlearns the language first: once the facts are half gone, most of the
gradient falls on function words and on copying the name from the question. So each token is told what to be
instead of being known. Two things are asked:

1. What would the model say of somebody it never met? The names, titles and numbers of the prompt are replaced
   by invented ones, in the prompt and in the answer (:mod:`ngdiff.data.renaming`), and the starting model
   reads the true answer under the invented names. Its predictions are averaged over several inventions.
   Where the answer repeats a name of the prompt, it is expected to repeat it still. Where a prompt names
   nothing, and in running text, the probability of the true token is its level instead
   (:mod:`ngdiff.data.predictable`).
2. Is the token a secret, that is, can it be known from the forget set alone (:mod:`ngdiff.data.secrets`)?
   Then its expected probability is 0. The model itself cannot say so. Asked about somebody invented, it
   falls back on what it memorised.

What remains of the probability is spread as the model spreads it under the other names. A teacher that reads
the text under other names is Eldan and Russinovich's idea (2023, arXiv 2310.02238), developed by Liu et al.
(2024, arXiv 2407.16997); telling secrets by the texts to keep is our own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ngdiff.data.batching import batches_by_length
from ngdiff.data.encoding import IGNORE, EncodedExample, encode_all
from ngdiff.data.renaming import OrdinaryWords, identifying, renamed, replacements
from ngdiff.data.secrets import kept_texts, labelled_ids, words_of
from ngdiff.models.logprobs import labelled_tokens

INVENTIONS = 4
"""Other names that the starting model reads an answer under."""

KEPT = 64
"""Most probable other tokens of which the expectation keeps each; the rest counts as one."""

ROOM = 64
"""Tokens by which other names may be longer."""

MOST_TOKENS = 1024
"""Labelled tokens whose whole predictions are in memory at once."""


@dataclass(frozen=True)
class Expected:
    """What each labelled token of one answer should be.

    Args:
        ids: of the true token, then of the likeliest others, of shape (tokens, 1 + KEPT).
        probs: their expected probabilities, likewise; what is missing to 1 belongs to all other tokens.
    """

    ids: Tensor
    probs: Tensor


@dataclass(frozen=True)
class Expectations:
    """What is needed to work expectations out.

    Args:
        forget: the examples to forget.
        retain: those to keep.
        levels: of each labelled token of each forget example, in [0, 1], for those that name nothing.
        tokenizer: the model's.
        pad_id: what to pad with; any id will do.
        max_length: longest sequence, in tokens.
        seed: of the invented names.
        batch_size: sequences a forward pass.
    """

    forget: Sequence[EncodedExample]
    retain: Sequence[EncodedExample]
    levels: Sequence[Sequence[float]]
    tokenizer: Any
    pad_id: int
    max_length: int
    seed: int
    batch_size: int

    @torch.no_grad()
    def work_out(self, model: nn.Module) -> list[EncodedExample]:
        """Return the forget examples with ``expected`` filled in, and ``predictable`` likewise.

        Args:
            model: the starting model. Of a sharded one every process has to ask.
        """
        kept = kept_texts(self.retain)
        elsewhere = [self._elsewhere(OrdinaryWords.of(kept), number) for number in range(INVENTIONS)]
        named = [
            other.example.messages != encoded.example.messages
            for other, encoded in zip(elsewhere[0], self.forget, strict=True)
        ]
        device = next(model.parameters()).device
        longest = max(sum(label != IGNORE for label in example.labels) for example in self.forget)
        size = max(1, min(self.batch_size, MOST_TOKENS // longest))
        found: list[EncodedExample] = list(self.forget)
        was_training = model.training
        model.eval()
        try:
            for rows, _ in batches_by_length(self.forget, size, self.pad_id):
                readings = [Reading.of(self.forget[row]) for row in rows]
                for number, others in enumerate(elsewhere):
                    # where nothing was renamed, one reading is as good as all
                    asked = [place for place, row in enumerate(rows) if named[row] or number == 0]
                    if asked:
                        chosen = [others[rows[place]] for place in asked]
                        self._read(model, device, chosen, [readings[place] for place in asked])
                for row, reading in zip(rows, readings, strict=True):
                    level = None if named[row] else self.levels[row]
                    secret = self.forget[row].secret or ()
                    expected = without_variants(reading.expected(level, secret), secret, self.tokenizer)
                    predictable = tuple(expected.probs[:, 0].tolist())
                    found[row] = replace(
                        self.forget[row],
                        predictable=predictable,
                        expected_ids=expected.ids,
                        expected_probs=expected.probs,
                    )
        finally:
            model.train(was_training)
        return found

    def _elsewhere(self, ordinary: OrdinaryWords, number: int) -> list[EncodedExample]:
        """Return the forget examples under other names."""
        examples = [encoded.example for encoded in self.forget]
        taken = {word for e in examples for word in words_of(f"{e.prompt} {e.answer}")} | set(ordinary.every)
        others = []
        for example in examples:
            draw = random.Random(f"{self.seed} {number} {example.key}")
            others.append(renamed(example, replacements(identifying(example.prompt, ordinary), taken, draw)))
        return encode_all(others, self.tokenizer, self.max_length + ROOM, "other names")

    def _read(
        self, model: nn.Module, device: torch.device, examples: list[EncodedExample], into: list[Reading]
    ) -> None:
        for places, batch in batches_by_length(examples, len(examples), self.pad_id):
            tokens = labelled_tokens(model, {name: part.to(device) for name, part in batch.items()})
            probs = tokens.whole_logits().softmax(dim=-1).cpu()
            counts = torch.bincount(tokens.rows.cpu(), minlength=len(places)).tolist()
            for place, part in zip(places, torch.split(probs, counts), strict=True):
                into[place].add(labelled_ids(examples[place]), part)


class Reading:
    """What a model says of one answer under several other names, token by token of the true one.

    Args:
        targets: the true answer's labelled ids.
    """

    def __init__(self, targets: Sequence[int]) -> None:
        self.targets = torch.tensor(targets)
        self._total: Tensor | None = None
        self._count = torch.zeros(len(targets))
        self._repeated = torch.zeros(len(targets))
        self._repeats = torch.zeros(len(targets))

    @classmethod
    def of(cls, example: EncodedExample) -> Reading:
        """Begin for an example."""
        return cls(labelled_ids(example))

    def add(self, ids: Sequence[int], probs: Tensor) -> None:
        """Take in one reading.

        Args:
            ids: the labelled ids of the answer under other names.
            probs: predictions at each of them, of shape (tokens, vocabulary).
        """
        if self._total is None:
            self._total = torch.zeros(len(self.targets), probs.shape[1])
        true = self.targets.tolist()
        for kind, first, last, start, stop in SequenceMatcher(None, true, ids, False).get_opcodes():
            if kind == "equal":
                self._total[first:last] += probs[start:stop]
                self._count[first:last] += 1
            elif stop > start:  # another name: how surely it is repeated
                there = probs[range(start, stop), list(ids[start:stop])].clamp_min(1e-9)
                self._repeated[first:last] += there.log().mean().exp()
                self._repeats[first:last] += 1

    def expected(self, levels: Sequence[float] | None, secret: Sequence[bool]) -> Expected:
        """Return the expectation.

        Args:
            levels: of each token, where the names could not be changed.
            secret: whether each can be known from the forget set alone.
        """
        assert self._total is not None
        aligned, target = self._count > 0, self.targets.unsqueeze(1)
        mean = self._total / self._count.clamp_min(1).unsqueeze(1)
        repeated = self._repeated / self._repeats.clamp_min(1)
        if levels is None:
            true = torch.where(aligned, mean.gather(1, target).squeeze(1), repeated)
        else:
            true = torch.tensor(levels, dtype=torch.float32)
        if secret:
            true = true.masked_fill(torch.tensor(secret, dtype=torch.bool), 0.0)
        others = mean.scatter(1, target, 0.0)
        top = others.topk(min(KEPT, others.shape[1] - 1), dim=1)
        scale = (1 - true) / others.sum(dim=1).clamp_min(1e-9)
        ids = torch.where(aligned.unsqueeze(1), top.indices, target)  # of unknown ones nothing is kept
        probs = top.values * torch.where(aligned, scale, 0.0).unsqueeze(1)
        return Expected(torch.cat([target, ids], 1), torch.cat([true.unsqueeze(1), probs], 1).float())


def without_variants(expected: Expected, secret: Sequence[bool], tokenizer: Any) -> Expected:
    """Take from a secret token's alternatives those that read the same but for case and white space.

    What was theirs belongs to all other tokens.
    """
    probs = expected.probs.clone()
    for place, is_secret in enumerate(secret):
        if is_secret:
            texts = [tokenizer.decode([token]).strip().lower() for token in expected.ids[place].tolist()]
            for column, text in enumerate(texts):
                if column and text == texts[0]:
                    probs[place, column] = 0.0
    return replace(expected, probs=probs)


def save_expected(forget: Sequence[EncodedExample], path: Path) -> None:
    """Write the expectations of all examples to one file (safetensors)."""
    ids = [example.expected_ids for example in forget if example.expected_ids is not None]
    probs = [example.expected_probs for example in forget if example.expected_probs is not None]
    save_file({"ids": torch.cat(ids).contiguous(), "probs": torch.cat(probs).contiguous()}, path)


def with_expected(forget: Sequence[EncodedExample], path: Path) -> list[EncodedExample]:
    """Return the examples with the expectations that :func:`save_expected` wrote for them."""
    found = load_file(path)
    counts = [len(labelled_ids(example)) for example in forget]
    parts = zip(forget, torch.split(found["ids"], counts), torch.split(found["probs"], counts), strict=True)
    return [replace(example, expected_ids=ids, expected_probs=probs) for example, ids, probs in parts]
