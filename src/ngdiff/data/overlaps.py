"""examples of a request's sets -> what they share and repeat, and what few rows mean for the result."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from ngdiff.data.examples import Example
from ngdiff.data.renaming import OrdinaryWords, identifying
from ngdiff.errors import Fault

MOST_NAMED = 10
"""Most places that a message names."""
LEAST_WORDS = 4
"""Fewest words of an answer to two questions that counts as the same knowledge."""
LEAST_SHARED = 12
"""Fewest words of a text inside another one that counts as the same."""
LEAST_FORGET, LEAST_RETAIN = 8, 20
"""Number of rows below which results say little."""


def repeated(examples: Sequence[Example]) -> str | None:
    """Return a note where rows repeat others of the same set (compared by ``Example.key``)."""
    first: dict[str, Example] = {}
    again = [(first[e.key], e) for e in examples if e.key and first.setdefault(e.key, e) is not e]
    if not again:
        return None
    other, one = again[0]
    verb = "1 row repeats another" if len(again) == 1 else f"{len(again)} rows repeat others"
    return (
        f"{verb} in the forget set, and each repetition is trained on and counted as an item of its own "
        f"(first: {other.place} and {one.place})"
    )


def _plain(text: str) -> str:
    """Return the words alone, without punctuation, case and white space."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def answer_fault(forget: Sequence[Example], retain: Sequence[Example]) -> Fault | None:
    """Return a fault where the retain set contains what is to be forgotten.

    That is the same question, or the same answer of four or more words, ignoring case and punctuation.
    Identical rows are another fault
    (:func:`ngdiff.data.examples.overlap_fault`).
    """
    keys = {example.key for example in forget}
    questions, answers = (_first(forget, part) for part in ("prompt", "answer"))
    found = []
    for example in retain:
        if example.key in keys:
            continue
        asked, said = _plain(example.prompt), _plain(example.answer)
        if asked and asked in questions:
            found.append(f"{questions[asked].place} (same question as {example.place})")
        elif len(said.split()) >= LEAST_WORDS and said in answers:
            found.append(f"{answers[said].place} (same answer as {example.place})")
    if not found:
        return None
    what = (
        "rows of the forget set cannot be forgotten and kept, since the retain set contains them too: "
        f"{_listed(found)}"
    )
    return Fault("--retain", what, "Remove them from one of the two sets, or give --set allow_overlap=true")


def part_fault(forget: Sequence[Example], retain: Sequence[Example]) -> Fault | None:
    """Return a fault where a text of one set is part of a longer one of the other set.

    Texts are compared by their words; those of fewer than :data:`LEAST_SHARED` are too common to count.
    Identical texts are another fault (:func:`ngdiff.data.examples.overlap_fault`).
    """
    sets = [[example for example in part if example.kind == "text"] for part in (forget, retain)]
    found = _parts_in(*sets) + [(longer, shorter) for shorter, longer in _parts_in(*reversed(sets))]
    if not found:
        return None
    ours, theirs = found[0]
    verb = "text of the forget set has" if len(found) == 1 else "pairs of texts of the two sets have"
    what = (
        f"{len(found)} {verb} one that is a part of the other, the first: {ours.place} and {theirs.place}; "
        "it cannot be forgotten and kept"
    )
    return Fault("--retain", what, "Remove one of the two, or give --set allow_overlap=true")


def _parts_in(shorter: Sequence[Example], longer: Sequence[Example]) -> list[tuple[Example, Example]]:
    """Return the texts of one set that are part of longer ones of another, each with the first that contains
    it.

    They are found by their first words, so that the work grows linearly with the number of words.
    """
    begins: dict[tuple[str, ...], list[tuple[list[str], Example]]] = {}
    for example in shorter:
        words = _plain(example.answer).split()
        if len(words) >= LEAST_SHARED:
            begins.setdefault(tuple(words[:LEAST_SHARED]), []).append((words, example))
    found: dict[int, tuple[Example, Example]] = {}
    for example in longer if begins else ():
        words = _plain(example.answer).split()
        for place in range(len(words) - LEAST_SHARED + 1):
            for part, short in begins.get(tuple(words[place : place + LEAST_SHARED]), ()):
                if len(part) < len(words) and words[place : place + len(part)] == part:
                    found.setdefault(id(short), (short, example))
    return list(found.values())


def _first(examples: Sequence[Example], part: str) -> Mapping[str, Example]:
    found: dict[str, Example] = {}
    for example in examples:
        found.setdefault(_plain(str(getattr(example, part))), example)
    return found


def holdout_fault(
    holdout: Sequence[Example], forget: Sequence[Example], retain: Sequence[Example]
) -> Fault | None:
    """Return a fault where the holdout shares rows with what the model has learned."""
    where = {example.key: f"the retain set ({example.place})" for example in retain}
    where |= {example.key: f"the forget set ({example.place})" for example in forget}
    where.pop("", None)
    shared = [example for example in holdout if example.key in where]
    if not shared:
        return None
    verb = "1 row is" if len(shared) == 1 else f"{len(shared)} rows are"
    what = f"{verb} in another set too, the first, {shared[0].place}, in {where[shared[0].key]}"
    return Fault("--holdout", what, "Give text that the model has not seen")


COMMON = 0.02
"""Share of all rows (and at least two rows) from which a word does not identify a single one."""
REWORDED = 0.6
"""Share of an answer's identifying words that another row must contain to count as a rewording."""


def reworded(forget: Sequence[Example], retain: Sequence[Example]) -> str | None:
    """Return a note where retain rows seem to reword what is to be forgotten.

    A word of an answer that few rows contain, and its question does not, identifies what is to be forgotten.
    A retain row rewords it if it contains most of these words and the question's rarest name: its subject.
    """
    ordinary = OrdinaryWords.of(f"{example.prompt} {example.answer}" for example in retain)
    rows = [(_words(e.prompt), _words(e.answer)) for e in (*forget, *retain)]
    count = Counter(word for asked, said in rows for word in asked | said)
    most = max(2, round(COMMON * len(rows)))
    where: dict[str, set[int]] = defaultdict(set)
    for place, (asked, said) in enumerate(rows[len(forget) :]):
        for word in asked | said:
            where[word].add(place)
    found = []
    for example, (asked, said) in zip(forget, rows, strict=False):
        telling = {word for word in said - asked if count[word] <= most}
        names = _words(" ".join(identifying(example.prompt, ordinary)))
        rarest = min((count[word] for word in names), default=0)
        about = {place for word in names if count[word] == rarest for place in where.get(word, ())}
        hits = Counter(
            place for word in telling for place in where.get(word, ()) if not asked or place in about
        )
        same = [place for place, number in hits.items() if number >= REWORDED * len(telling)]
        other = next((place for place in sorted(same) if retain[place].key != example.key), None)
        if other is not None:
            found.append(f"{example.place} (see {retain[other].place})")
    if not found:
        return None
    verb = "1 row of the forget set seems" if len(found) == 1 else f"{len(found)} rows of the forget set seem"
    return f"{verb} to be reworded in the retain set, and what is kept cannot be forgotten: {_listed(found)}"


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _listed(found: Sequence[str]) -> str:
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return ", ".join(found[:MOST_NAMED]) + more


def swapped(forget: int, retain: int) -> str | None:
    """Return a note where the sizes suggest that the two sets were swapped."""
    if not forget > 2 * retain > 0:
        return None
    return f"{forget} rows to forget and {retain} to keep: check that the two are not swapped"


def small_sets(forget: int, retain: int) -> list[str]:
    """Return notes on what few rows mean for the result."""
    notes = []
    if forget < LEAST_FORGET:
        notes.append(
            f"{forget} rows to forget are few: the set counts as forgotten once none of them is left, and "
            "their means say little about other questions on the same subject"
        )
    if retain < LEAST_RETAIN:
        notes.append(
            f"{retain} rows to keep are few: what they do not show may be lost unnoticed, and every single "
            "row moves their mean. Give more, or add general text with --retain ngdiff:general"
        )
    return notes
