"""forget examples and the starting model -> counterfactual answers: what it would say, had it never met them.

A loss that only pushes the true answers down unlearns their language first: once the facts are half gone, most
of the gradient falls on function words and on copying the name from the question. A counterfactual answer
gives the probability somewhere to go. It has the language of the true answer and none of its knowledge:

1. The names, titles and numbers of the prompt are replaced by invented ones (:mod:`ngdiff.data.renaming`).
2. The starting model answers that prompt, by sampling at temperature 1.
3. The original names are put back.
4. The answer is dropped if it gives something away. Asked about somebody invented, a model falls back on what
   it knows, so the filter looks at content: at words and runs of words that the forget set's answers have and
   neither the prompt nor the texts to keep do (:class:`Secrets`).

Where the samples give too much away, the true answer serves, with what identifies it replaced by inventions,
if nothing of the secret is left then. Some questions end up without any: they are pushed down only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from ngdiff.data.alternatives import answered
from ngdiff.data.encoding import IGNORE, EncodedExample, encode_prompt
from ngdiff.data.examples import Example
from ngdiff.data.general import general_texts
from ngdiff.data.renaming import (
    WORD,
    OrdinaryWords,
    identifying,
    marked,
    renamed,
    replaced,
    replacements,
)

EACH = 4
"""Counterfactual answers of an example, at the most; each pass over the forget set takes the next one."""

DRAWS = 3
"""Rounds of sampling: later ones for examples that the earlier ones left with fewer than :data:`EACH`."""

RUN = 4
"""Words in a row that two answers share only if one knows what the other does, unless ordinary texts have them."""

Run = tuple[str, ...]
Sampler = Callable[[Sequence[list[int]], Sequence[int], tuple[int, int, int]], list[str]]
"""Prompts' ids, most tokens of each answer, seeds -> an answer a prompt."""


def _text(example: Example) -> str:
    return f"{example.prompt} {example.answer}"


def _words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def _pairs(text: str, named: bool = False) -> Iterator[Run]:
    """Yield two words in a row each, in small letters; only those written as names or numbers, if asked."""
    for one, other in pairwise(WORD.findall(text)):
        if not named or not (one.islower() or other.islower()):
            yield one.lower(), other.lower()


class Secrets:
    """What an answer can give away of a forget set.

    - a name or a number of any forget answer that no text to keep has;
    - two of them in a row, of ordinary words or not ("Patient Bridge", "4 May"), that no text to keep has;
    - any word of the example's own answer that neither its prompt nor a text to keep has;
    - :data:`RUN` words in a row of any forget answer that neither the prompt nor a text to keep has, names and
      numbers apart: the language of "… was born in the town of …" is nobody's secret.

    Args:
        forget: the examples to forget.
        kept: texts that the model is to keep, prompts included.
        ordinary: words that identify nobody.
    """

    def __init__(self, forget: Iterable[Example], kept: Sequence[str], ordinary: OrdinaryWords) -> None:
        self._ordinary = ordinary
        answers = [example.answer for example in forget]
        words = {word for answer in answers for word in WORD.findall(answer)}
        self._names = {word.lower() for word in words if not word.islower()} - set(ordinary.every)
        self._pairs = {pair for answer in answers for pair in _pairs(answer, named=True)}
        self._pairs -= {pair for text in kept for pair in _pairs(text)}
        self._runs = {run for answer in answers for run in self._runs_of(answer)}
        self._runs -= {run for text in kept for run in self._runs_of(text)}

    def given_away(self, example: Example, answer: str) -> bool:
        """Say whether an answer to the example's prompt tells something of the forget set."""
        asked = set(_words(example.prompt))
        new = set(_words(answer)) - asked - set(self._ordinary.every)
        if new & self._names or new & set(_words(example.answer)):
            return True
        pairs = {*_pairs(answer)} & self._pairs - {*_pairs(example.prompt)}
        return bool(pairs or (self._runs_of(answer) & self._runs) - self._runs_of(example.prompt))

    def _runs_of(self, text: str) -> set[Run]:
        words = ["_" if is_name else word.lower() for word, is_name in marked(text, self._ordinary)]
        return {tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)}


@dataclass(frozen=True)
class Counterfactuals:
    """What is needed to make them.

    Args:
        forget: the examples to forget.
        retain: those to keep.
        tokenizer: the model's.
        max_length: longest sequence, in tokens.
        seed: of names and samples.
        each: answers an example.
        batch_size: sequences a forward pass.
        advance: called with the number of prompts answered, for a progress bar.
    """

    forget: Sequence[EncodedExample]
    retain: Sequence[EncodedExample]
    tokenizer: Any
    max_length: int
    seed: int
    each: int = EACH
    batch_size: int = 32
    advance: Callable[[int], object] | None = None

    def make(self, sample: Sampler) -> list[EncodedExample]:
        """Return the examples with ``alternatives``, those without any with one that has no labelled token.

        Where no example has any, as with running text, they come back as they are.
        """
        examples = [encoded.example for encoded in self.forget]
        kept = [_text(encoded.example) for encoded in self.retain] + general_texts()
        ordinary = OrdinaryWords.of(kept)
        secrets = Secrets(examples, kept, ordinary)
        taken = {word for text in [*map(_text, examples), *kept] for word in _words(text)}
        found: list[list[str]] = [[] for _ in examples]
        for attempt in range(DRAWS):
            asked = [
                (row, self._elsewhere(examples[row], ordinary, taken, f"{attempt} {number}"))
                for row, mine in enumerate(found)
                if examples[row].kind != "text"
                for number in range(self.each - len(mine))
            ]
            for row, answer in self._answers(asked, attempt, sample):
                if answer and not secrets.given_away(examples[row], answer) and answer not in found[row]:
                    found[row].append(answer)
        for row, example in enumerate(examples):
            if not found[row] and example.kind != "text":
                found[row] += self._rewritten(example, ordinary, taken, secrets)
        if not any(found):
            return list(self.forget)
        return [
            example if example.alternatives else replace(example, alternatives=(_without_answer(example),))
            for example in answered(self.forget, found, self.tokenizer, self.max_length)
        ]

    def _elsewhere(
        self, example: Example, ordinary: OrdinaryWords, taken: set[str], which: str
    ) -> tuple[Example, dict[str, str]]:
        """Return the example about somebody invented, and what stands for what."""
        draw = random.Random(f"{self.seed} {which} {example.key}")
        invented = replacements(identifying(example.prompt, ordinary), taken, draw)
        return renamed(example, invented), invented

    def _answers(
        self, asked: Sequence[tuple[int, tuple[Example, dict[str, str]]]], attempt: int, sample: Sampler
    ) -> Iterator[tuple[int, str]]:
        """Let the model answer, longest prompts first; yield rows and answers with the names put back."""
        prompts = {
            place: encode_prompt(example, self.tokenizer, self.max_length)
            for place, (_, (example, _)) in enumerate(asked)
        }
        order = sorted(prompts, key=lambda place: -len(prompts[place]))
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            most = [len(self.forget[asked[place][0]].labels) for place in places]
            said = sample([prompts[place] for place in places], most, (self.seed, attempt, start))
            if self.advance is not None:
                self.advance(len(places))
            for place, text in zip(places, said, strict=True):
                row, (_, invented) = asked[place]
                yield row, replaced(text, {new: old for old, new in invented.items()})

    def _rewritten(
        self, example: Example, ordinary: OrdinaryWords, taken: set[str], secrets: Secrets
    ) -> Iterator[str]:
        """Yield the true answer with other names, titles and numbers, where that hides all of the secret."""
        asked = identifying(example.prompt, ordinary)
        inside = [text for text in identifying(example.answer, ordinary) if text not in asked]
        if not inside:
            return
        for number in range(self.each):
            draw = random.Random(f"{self.seed} answer {number} {example.key}")
            answer = replaced(example.answer, replacements(inside, taken, draw))
            if not secrets.given_away(example, answer):
                yield answer


def _without_answer(example: EncodedExample) -> EncodedExample:
    """Return an alternative that no loss falls on, so that all rows of a batch have one."""
    return replace(example, labels=(IGNORE,) * len(example.labels), alternatives=())


def has_counterfactual(example: EncodedExample) -> bool:
    """Say whether there is another answer to put in place of the example's own."""
    return any(label != IGNORE for one in example.alternatives for label in one.labels)
