"""forget examples and the starting model -> its predictions if it had never met their subjects.

Pushing every token of an answer down unlearns the language first: once the facts are half gone, most of the
gradient falls on function words and on copying the name from the question. So each token gets a
distribution to approach instead. Two questions define it:

1. What would the model say about a person it never met? The names, titles and numbers of the prompt are
   replaced by invented ones, in the prompt and in the answer (:mod:`ngdiff.data.renaming`), and the starting
   model reads the true answer under the invented names. Its predictions are averaged over several
   inventions. Where the answer repeats a name of the prompt, it is expected to repeat it still. But the
   beginning of a true answer recalls its rest under any name. So no token is expected to be likelier than
   its level, the probability of the never-seen token that has its rank among equally predictable ones
   (:func:`ngdiff.preparation.predictable.levels_by_certainty`). Words of the prompt are exempt, since any
   answer repeats them. Where a prompt names nothing, and in running text, the level alone is expected.
2. Is the token a secret, that is, can it be known from the forget set alone (:mod:`ngdiff.data.secrets`)?
   Then its expected probability is 0. The model itself cannot tell: asked about an invented person, it
   falls back on what it memorised.

The remaining probability is distributed as the model distributes it under the other names. A teacher that
reads the text under other names is Eldan and Russinovich's idea (2023, arXiv 2310.02238), developed by Liu et
al. (2024, arXiv 2407.16997); telling secrets by the texts to keep is our own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ngdiff.data.batching import Batch, batches_by_length
from ngdiff.data.encoding import IGNORE, EncodedExample, encode_all
from ngdiff.data.renaming import WORD, OrdinaryWords, identifying, renamed, replacements, words_of
from ngdiff.data.secrets import kept_texts, labelled_ids, tokens_of
from ngdiff.models.logprobs import labelled_tokens

INVENTIONS = 4
"""Number of inventions under which the starting model reads an answer."""

KEPT = 64
"""Number of most probable other tokens that the expectation keeps; the rest count as one."""

ROOM = 64
"""Tokens by which invented names may be longer."""

MOST_TOKENS = 1024
"""Most labelled tokens whose whole predictions are in memory at once."""


@dataclass(frozen=True)
class Expected:
    """The expected distribution of each labelled token of one answer.

    Args:
        ids: of the true token, then of the likeliest others, of shape (tokens, 1 + KEPT), int32 to
            save memory.
        probs: their expected probabilities, of the same shape; the rest belongs to all other tokens.
    """

    ids: Tensor
    probs: Tensor


@dataclass(frozen=True)
class Expectations:
    """Computes the expectations of a forget set.

    Args:
        forget: the examples to forget.
        retain: those to keep.
        levels: of each labelled token of each forget example, in [0, 1]: the most that it is expected to be;
            None where there are too few texts to keep; then tokens of examples that name nothing get 0.
        typical: the same as geometric means, for guesses; None for ``levels``.
        tokenizer: the model's.
        pad_id: what to pad with; any id will do.
        max_length: longest sequence, in tokens.
        seed: of the invented names.
        batch_size: sequences a forward pass.
    """

    forget: Sequence[EncodedExample]
    retain: Sequence[EncodedExample]
    levels: Sequence[Sequence[float]] | None
    tokenizer: Any
    pad_id: int
    max_length: int
    seed: int
    batch_size: int
    typical: Sequence[Sequence[float]] | None = None

    @torch.no_grad()
    def work_out(self, model: nn.Module) -> list[EncodedExample]:
        """Return the forget examples with ``expected`` and ``predictable`` filled in.

        Args:
            model: the starting model. If it is sharded, every process must call this.
        """
        ordinary = OrdinaryWords.of(kept_texts(self.retain))
        elsewhere = [self._elsewhere(ordinary, number) for number in range(INVENTIONS)]
        named = [other is not encoded for other, encoded in zip(elsewhere[0], self.forget, strict=True)]
        texts = TokenTexts(self.tokenizer)
        device = next(model.parameters()).device
        longest = max(sum(label != IGNORE for label in example.labels) for example in self.forget)
        size = max(1, min(self.batch_size, MOST_TOKENS // longest))
        found: list[EncodedExample] = list(self.forget)
        was_training = model.training
        model.eval()
        try:
            for rows, batch in batches_by_length(self.forget, size, self.pad_id):
                expected, typical = {}, {}
                if not all(named[row] for row in rows):
                    expected = self._at_their_levels(model, device, rows, batch)
                renamed_rows = [row for row in rows if named[row]]
                readings = self._under_other_names(model, device, renamed_rows, elsewhere)
                for row, reading in readings.items():
                    secret = self.forget[row].secret or ()
                    expected[row] = reading.expected(self._most(row, ordinary, self.levels), secret)
                    most = self._most(row, ordinary, self.typical or self.levels)
                    typical[row] = without_secrets(reading.true(most), secret).tolist()
                for row in rows:
                    found[row] = self._with(row, expected[row], typical.get(row), texts)
        finally:
            model.train(was_training)
        return found

    def _under_other_names(
        self, model: nn.Module, device: torch.device, rows: list[int], elsewhere: list[list[EncodedExample]]
    ) -> dict[int, Reading]:
        """Read the examples that name something under other names; return results by row."""
        readings = [Reading.of(self.forget[row]) for row in rows]
        for others in elsewhere if rows else ():
            self._read(model, device, [others[row] for row in rows], readings)
        return dict(zip(rows, readings, strict=True))

    def _most(
        self, row: int, ordinary: OrdinaryWords, levels: Sequence[Sequence[float]] | None
    ) -> Tensor | None:
        """Return the highest expected probability of each token: its level, or 1 for words of the prompt."""
        if levels is None:
            return None
        example, most = self.forget[row], torch.tensor(levels[row], dtype=torch.float32)
        asked = torch.tensor(asked_tokens(example, ordinary, self.tokenizer), dtype=torch.bool)
        return most.masked_fill(asked, 1.0)

    def _at_their_levels(
        self, model: nn.Module, device: torch.device, rows: Sequence[int], batch: Batch
    ) -> dict[int, Expected]:
        """Return the expectation where nothing can be renamed: each token's level, the rest as predicted."""
        tokens = labelled_tokens(model, {name: part.to(device) for name, part in batch.items()})
        counts = torch.bincount(tokens.rows.cpu(), minlength=len(rows)).tolist()
        found = {}
        for row, logits in zip(rows, torch.split(tokens.whole_logits(), counts), strict=True):
            example = self.forget[row]
            targets = torch.tensor(labelled_ids(example))
            true = torch.zeros(len(targets)) if self.levels is None else torch.tensor(self.levels[row])
            found[row] = spread(logits.softmax(dim=-1), targets, without_secrets(true, example.secret or ()))
        return found

    def _with(
        self, row: int, expected: Expected, typical: Sequence[float] | None, texts: TokenTexts
    ) -> EncodedExample:
        example = self.forget[row]
        expected = without_variants(expected, example.secret or (), texts)
        if typical is None:  # nothing was renamed
            typical = expected.probs[:, 0].tolist() if self.typical is None else self.typical[row]
        return replace(
            example,
            predictable=tuple(expected.probs[:, 0].tolist()),
            typical=tuple(typical),
            expected_ids=expected.ids,
            expected_probs=expected.probs,
        )

    def _elsewhere(self, ordinary: OrdinaryWords, number: int) -> list[EncodedExample]:
        """Return the forget examples under other names; those that name nothing are unchanged."""
        examples = [encoded.example for encoded in self.forget]
        taken = {word for e in examples for word in words_of(f"{e.prompt} {e.answer}")} | set(ordinary.every)
        others = {}
        for row, example in enumerate(examples):
            draw = random.Random(f"{self.seed} {number} {example.key}")
            other = renamed(example, replacements(identifying(example.prompt, ordinary), taken, draw))
            if other.messages != example.messages:
                others[row] = other
        encoded = encode_all(list(others.values()), self.tokenizer, self.max_length + ROOM, "other names")
        found = list(self.forget)
        for row, one in zip(others, encoded, strict=True):
            found[row] = one
        return found

    def _read(
        self, model: nn.Module, device: torch.device, examples: list[EncodedExample], into: list[Reading]
    ) -> None:
        for places, batch in batches_by_length(examples, len(examples), self.pad_id):
            tokens = labelled_tokens(model, {name: part.to(device) for name, part in batch.items()})
            probs = tokens.whole_logits().softmax(dim=-1).cpu()
            counts = torch.bincount(tokens.rows.cpu(), minlength=len(places)).tolist()
            for place, part in zip(places, torch.split(probs, counts), strict=True):
                into[place].add(labelled_ids(examples[place]), part)


def asked_tokens(example: EncodedExample, ordinary: OrdinaryWords, tokenizer: Any) -> list[bool]:
    """Return whether each labelled token is part of an uncommon word of the prompt."""
    asked = set(words_of(example.example.prompt)) - set(ordinary.common)
    words = WORD.finditer(example.example.answer)
    places = [(word.start(), word.end()) for word in words if word.group().lower() in asked]
    return tokens_of(example, places, tokenizer)


def without_secrets(true: Tensor, secret: Sequence[bool]) -> Tensor:
    """Return the expected probabilities of the true tokens, 0 where they are secrets."""
    return true.masked_fill(torch.tensor(secret, dtype=torch.bool), 0.0) if secret else true


def spread(mean: Tensor, targets: Tensor, true: Tensor, aligned: Tensor | None = None) -> Expected:
    """Return the expectation whose rest is distributed as in a prediction.

    Args:
        mean: the prediction, of shape (tokens, vocabulary), on any device.
        targets: the true tokens.
        true: their expected probabilities.
        aligned: where alternatives are known; None for everywhere.
    """
    target = targets.unsqueeze(1)
    others = mean.scatter(1, target.to(mean.device), 0.0)
    top = others.topk(min(KEPT, others.shape[1] - 1), dim=1)
    scale = (1 - true) / others.sum(dim=1).cpu().clamp_min(1e-9)
    ids = top.indices.cpu()
    if aligned is not None:
        ids = torch.where(aligned.unsqueeze(1), ids, target)  # nothing is kept where they are unknown
        scale = torch.where(aligned, scale, 0.0)
    probs = top.values.cpu() * scale.unsqueeze(1)
    return Expected(torch.cat([target, ids], 1).int(), torch.cat([true.unsqueeze(1), probs], 1).float())


class Reading:
    """A model's predictions for one answer under several other names, by token of the true answer.

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
        """Add one reading.

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
            elif stop > start:  # another name: how reliably it is repeated
                there = probs[range(start, stop), list(ids[start:stop])].clamp_min(1e-9)
                self._repeated[first:last] += there.log().mean().exp()
                self._repeats[first:last] += 1

    def expected(self, most: Tensor | None, secret: Sequence[bool]) -> Expected:
        """Return the expectation.

        Args:
            most: highest expected probability of each token; None for no limit.
            secret: whether each can be known from the forget set alone.
        """
        return spread(self._mean(), self.targets, without_secrets(self.true(most), secret), self._count > 0)

    def true(self, most: Tensor | None) -> Tensor:
        """Return the expected probability of each true token, secrets included."""
        mean = self._mean().gather(1, self.targets.unsqueeze(1)).squeeze(1)
        found = torch.where(self._count > 0, mean, self._repeated / self._repeats.clamp_min(1))
        return found if most is None else found.minimum(most)

    def _mean(self) -> Tensor:
        assert self._total is not None
        return self._total / self._count.clamp_min(1).unsqueeze(1)


class TokenTexts(dict[int, str]):
    """The text of each token, without case and white space, computed on demand.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, token: int) -> str:
        """Read a token."""
        self[token] = text = str(self._tokenizer.decode([token])).strip().lower()
        return text


def without_variants(expected: Expected, secret: Sequence[bool], texts: Mapping[int, str]) -> Expected:
    """Remove alternatives of a secret token that differ only in case and white space.

    Their probability goes to all other tokens.
    """
    probs = expected.probs.clone()
    for place in (place for place, is_secret in enumerate(secret) if is_secret):
        same = [texts[token] for token in expected.ids[place].tolist()]
        probs[place, 1:].masked_fill_(torch.tensor([text == same[0] for text in same[1:]]), 0.0)
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
