"""`question and answer -> the same about an unknown person`: names, titles and numbers are replaced.

To learn what a model would say if it had never met the subject of a question, the model is asked about a
subject that does not exist. The words that identify the subject are the words of the prompt that are
capitalised although ordinary text does not capitalise them, quoted titles, and numbers; where there are none
(languages or data without capital letters), the words that occur in no text to keep.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from ngdiff.data.examples import Example, Message
from ngdiff.invented.people import book_title, first_name, surname

WORD = re.compile(r"(?<!\w[’'])\w(?:[\w\-]|[’'](?=\w)(?![sS]\b))*")
"""A word without the ending of a possessive: a name is the same name with and without it."""
_TITLE = re.compile(r"[\"“«]([^\"”»\n]{2,80})[\"”»]")
_BEGINNING = re.compile(r"(?:^|[.!?:\n][\"”’')\]]*)\s*[\"“«‘'(]?$")
"""Text before the first word of a sentence."""
_BETWEEN_NAMES = re.compile(r"(?:[’'][sS]?)?\s+")
COMMON = 25
"""A common word occurs in one in so many texts."""
YEARS = (1930, 1995)
_TRIES = 50


@dataclass(frozen=True)
class OrdinaryWords:
    """Words that do not identify the subject of a question.

    Args:
        small: words that occur without a capital letter.
        every: all words, in lower case.
        common: words in at least one of :data:`COMMON` texts, in lower case.
    """

    small: Collection[str]
    every: Collection[str]
    common: Collection[str]

    @classmethod
    def of(cls, texts: Iterable[str]) -> OrdinaryWords:
        """Collect them from texts that are to be kept."""
        found = [set(WORD.findall(text)) for text in texts]
        words = set[str]().union(*found)
        having = Counter(word for text in found for word in {word.lower() for word in text})
        return cls(
            small={word for word in words if word == word.lower()},
            every=set(having),
            common={word for word, count in having.items() if count * COMMON >= len(found)},
        )


def begins_sentence(text: str, place: int) -> bool:
    """Return whether the word at a position of a text is the first of a sentence."""
    before = text[max(0, place - 8) : place]
    return _BEGINNING.search(before if place <= 8 else f"…{before}") is not None


def marked(text: str, ordinary: OrdinaryWords) -> list[tuple[str, bool]]:
    """Return the words of a text in order, each with whether it is a number or (part of) a name.

    A word counts as a name if it has a capital letter that it does not have in ordinary text, or if it is
    next to such a word or to another capitalised word ("Rose King"), unless it begins a sentence.
    """
    found = list(WORD.finditer(text))
    words = [word.group() for word in found]
    sure = [_is_number(word) or _is_name(word, ordinary) for word in words]
    inside = [
        word[:1].isupper() and not begins_sentence(text, place.start())
        for word, place in zip(words, found, strict=True)
    ]
    joined = [_BETWEEN_NAMES.fullmatch(text, one.end(), other.start()) for one, other in pairwise(found)]

    def beside(place: int) -> bool:
        before = place > 0 and joined[place - 1] and (sure[place - 1] or inside[place - 1])
        behind = place + 1 < len(words) and joined[place] and (sure[place + 1] or inside[place + 1])
        return bool(before or behind)

    return [(word, sure[place] or (inside[place] and beside(place))) for place, word in enumerate(words)]


def identifying(prompt: str, ordinary: OrdinaryWords) -> list[str]:
    """Return the titles, names and numbers of a prompt, in reading order, each once."""
    titles = _TITLE.findall(prompt)
    words = marked(_TITLE.sub(" ", prompt), ordinary)
    named = [word for word, is_name in words if is_name]
    if not titles and not named:
        named = [word for word, _ in words if word.lower() not in ordinary.every]
    return list(dict.fromkeys([*titles, *named]))


def _is_number(word: str) -> bool:
    return any(character.isdigit() for character in word)


def _is_name(word: str, ordinary: OrdinaryWords) -> bool:
    return len(word) > 1 and word[0].isupper() and word.lower() not in ordinary.small


def replacements(found: Iterable[str], taken: Collection[str], draw: random.Random) -> dict[str, str]:
    """Invent something else for each title, name and number.

    Args:
        found: as :func:`identifying` returns them.
        taken: words of the data, in lower case, which are not invented.
        draw: source of random numbers.
    """
    names = 0
    invented: dict[str, str] = {}
    for text in found:
        if " " in text.strip():
            invented[text] = book_title(draw)
        elif _is_number(text):
            invented[text] = re.sub(r"\d+", lambda digits: _number(digits.group(), draw), text)
        else:
            invented[text] = _name(names, taken, draw)
            names += 1
    return invented


def _number(digits: str, draw: random.Random) -> str:
    """Return another number with the same number of digits, which could be part of a date."""
    if len(digits) == 4:
        return str(draw.randint(*YEARS))
    if len(digits) <= 2:
        return f"{draw.randint(1, 9 if len(digits) == 1 else 12):0{len(digits)}d}"
    return "".join(str(draw.randint(1, 9)) for _ in digits)


def _name(place: int, taken: Collection[str], draw: random.Random) -> str:
    """Return a first name and a surname in turn that the data does not contain."""
    make = surname if place % 2 else first_name
    name = make(draw)
    for _ in range(_TRIES):
        if name.lower() not in taken:
            break
        name = make(draw)
    return name


def replaced(text: str, invented: Mapping[str, str]) -> str:
    """Return the text with every occurrence replaced, as whole words, longer ones first."""
    if not invented:
        return text
    longest_first = sorted(invented, key=len, reverse=True)
    pattern = "|".join(rf"(?<!\w){re.escape(found)}(?!\w)" for found in longest_first)
    return re.sub(pattern, lambda found: invented[found.group()], text)


def renamed(example: Example, invented: Mapping[str, str]) -> Example:
    """Return the example with every occurrence replaced, in the prompt and in the answer."""
    messages = tuple(Message(turn.role, replaced(turn.content, invented)) for turn in example.messages)
    return replace(example, messages=messages)


def words_of(text: str) -> list[str]:
    """Return the words of a text, in small letters."""
    return [word.lower() for word in WORD.findall(text)]
