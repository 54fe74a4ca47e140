"""forget set -> text of its kinds that no model can have seen, and the source of the level."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np
import torch

from ngdiff.data.encoding import EncodedExample, encode_all
from ngdiff.data.examples import Example, to_examples
from ngdiff.data.sources import Row
from ngdiff.errors import Fault
from ngdiff.inference.teacher_forced import AnswerScore, extraction_strength, summarise, verbatim
from ngdiff.invented.kinds import Kind, invented_rows
from ngdiff.stopping.criterion import PERCENTILE, Guess, item_probability

ITEMS = 48
LEAST_ITEMS = 12
MOST_WORDS = 4000
"""Total words of all invented answers, unless that would make fewer items than the minimum."""
ROOM = 512
SEED = 20_250_401  # not the seed of a demonstration, whose people are learned
SHORT_TEXT = 60
"""Words from which an answer counts as running text."""
LENGTHS_APART = 2.0
KNOWN = 0.7
"""Mean answer probability from which a model knows a set."""
SIGNIFICANT = 0.05
SURE = 0.01
"""Greatest p-value at which the test shows that the model does not know a part of the retain set."""
MAILS = re.compile(r"\S@\S+\.\w|\+?\d[\d ()/-]{6,}\d")
CODE = re.compile(r"```|^\s*(def|class|import|function|return|#include|public|SELECT)\b|[;{}]\s*$", re.M)
NAMES: dict[Kind, str] = {
    "sentence": "questions about invented people",
    "yes or no": "yes/no questions about invented people",
    "one word": "questions about invented people with one-word answers",
    "contact": "invented e-mail addresses and telephone numbers",
    "code": "invented code",
    "text": "running text about invented people",
}


@dataclass(frozen=True)
class NeverSeen:
    """Text that no model has seen.

    Args:
        examples: the text, encoded.
        source: what it is, in words.
        notes: how it differs from the forget set.
    """

    examples: list[EncodedExample]
    source: str
    notes: list[str]


def kind_of(example: Example) -> Kind:
    """Return which kind of text an answer is, by simple features."""
    answer = example.answer.strip()
    said = answer.split()
    first = said[0].strip(".,!").casefold() if said else ""
    if len(said) <= 3 and first in ("yes", "no"):
        return "yes or no"
    if len(said) < SHORT_TEXT and MAILS.search(answer):
        return "contact"
    if len(CODE.findall(answer)) >= 2:
        return "code"
    if example.kind == "text" or len(said) >= SHORT_TEXT:
        return "text"
    return "one word" if len(said) <= 2 else "sentence"


def invented(like: Sequence[EncodedExample], tokenizer: Any, max_length: int) -> NeverSeen:
    """Invent text of the forget set's kinds, in the same proportions and of similar length.

    Args:
        like: the forget set.
        tokenizer: to encode the text with.
        max_length: longest sequence of the user's own text, in tokens.
    """
    by_kind: dict[Kind, list[Example]] = {}
    for encoded in like:
        by_kind.setdefault(kind_of(encoded.example), []).append(encoded.example)
    total = min(ITEMS, max(LEAST_ITEMS, round(MOST_WORDS / max(1, _words([e.example for e in like])))))
    rows: list[dict[str, str]] = []
    shares = _apportioned({kind: len(found) for kind, found in by_kind.items()}, total)
    for kind, count in shares.items():
        found = by_kind[kind]
        made = invented_rows(kind, count, round(_words(found)), SEED, _typical(found))
        plain = sum(example.kind == "text" for example in found) * 2 > len(found)
        rows += [{"text": row["answer"]} for row in made] if plain else made
    max_length = max(max_length, ROOM)  # a short limit concerns the user's own text only
    numbered = [Row(dict(row), f"invented row {number}") for number, row in enumerate(rows, start=1)]
    examples = encode_all(to_examples(numbered, "never seen"), tokenizer, max_length, "never seen")
    source = " and ".join(f"{count} {NAMES[kind]}" for kind, count in shares.items())
    notes = differences(like, examples) + ([] if is_text(like) else [STRICTER])
    return NeverSeen(examples, f"invented by NGDiff: {source}", notes)


def given(holdout: list[EncodedExample], like: Sequence[EncodedExample]) -> NeverSeen:
    """Return a holdout that the user gave."""
    return NeverSeen(holdout, f"the holdout that was given, {len(holdout)} items", differences(like, holdout))


def is_text(like: Sequence[EncodedExample]) -> bool:
    """Return whether most of a forget set is running text, in rows of the column ``text``."""
    return sum(encoded.example.kind == "text" for encoded in like) * 2 > len(like)


def missing_holdout(like: Sequence[EncodedExample]) -> str | None:
    """Return what a missing holdout means where the forget set is running text."""
    if not is_text(like):
        return None
    return (
        "--holdout is missing: the level of text never seen is measured on the retain set's held-out texts "
        "if the model does not know them, else on invented text, which is more predictable than real text, "
        "so that too little may be forgotten; give texts of the forget set's kind that the model never saw"
    )


def unknown_retain(
    held_out: list[EncodedExample],
    forget: Sequence[AnswerScore],
    retain: Sequence[AnswerScore],
    like: Sequence[EncodedExample],
) -> NeverSeen | None:
    """Return the retain set's held-out texts as never-seen text, where the model provably does not know them.

    That requires that they are running text too; that the model knows the forget set better by a one-sided
    Mann-Whitney test (p below 0.01), and the best known of them less well than the median of the forget set;
    and that greedy decoding reproduces no passage of 50 tokens of any of them.

    Args:
        held_out: the part of the retain set that no step trains on.
        forget: scores of the forget set under the starting model.
        retain: those of the held-out part.
        like: the forget set.
    """
    if len(held_out) < LEAST_ITEMS or not is_text(held_out):
        return None
    ours, theirs = ([item_probability(score) for score in part] for part in (forget, retain))
    if not all(map(math.isfinite, [*ours, *theirs])):
        return None
    p_value = _higher_p_value(ours, theirs)
    if p_value >= SURE or max(theirs) >= median(ours) or any(score.verbatim == 1 for score in retain):
        return None
    source = f"{len(held_out)} held-out pieces of the retain set, which the model does not know"
    return NeverSeen(held_out, source, differences(like, held_out))


def known_text_faults(forget: Sequence[AnswerScore], holdout: Sequence[AnswerScore]) -> list[Fault]:
    """Refuse texts as a level whose loss is no higher than the forget set's.

    Args:
        forget: scores of the forget set under the starting model.
        holdout: those of the holdout.
    """
    ours, theirs = (summarise(part)["nll"] for part in (forget, holdout))
    if not theirs <= ours:
        return []
    what = (
        f"it cannot set the level of never-seen text: the model's loss on it is {theirs:.2f} nats a "
        f"token, no higher than the {ours:.2f} of the forget set: it knows both or neither"
    )
    return [Fault("--holdout", what, "Give texts of the same kind that the model was not trained on")]


def differences(like: Sequence[EncodedExample], unseen: Sequence[EncodedExample]) -> list[str]:
    """Return how never-seen text differs from the forget set in kind, script and length."""
    ours, theirs = ([one.example for one in part] for part in (like, unseen))
    notes = []
    kinds = [Counter(map(kind_of, part)).most_common(1)[0][0] for part in (ours, theirs)]
    if kinds[0] != kinds[1]:
        notes.append(
            f"the level was measured on text of another kind than the forget set's: most answers are "
            f"{kinds[1]!r} there and {kinds[0]!r} in the forget set. {ADVICE}"
        )
    if _foreign(ours) != _foreign(theirs):
        notes.append(f"the level was measured on text of another script than the forget set's. {ADVICE}")
    lengths = [_words(part) for part in (ours, theirs)]
    if max(lengths) > LENGTHS_APART * max(1, min(lengths)):
        notes.append(
            f"the level was measured on answers of {lengths[1]:g} words (median), those of the forget set "
            f"have {lengths[0]:g}. {ADVICE}"
        )
    return notes


def known_faults(forget: Sequence[AnswerScore], holdout: Sequence[AnswerScore]) -> list[Fault]:
    """Refuse a holdout that the model knows: measured against it, everything would count as forgotten.

    Asked only where both can be measured and the starting model knows the forget set, for a model that knows
    neither has nothing to forget. The holdout is known where a one-sided Mann-Whitney test does not show that
    the forget set is known better (p above 0.05), or where its 95th percentile reaches what most forget items
    have.

    Args:
        forget: scores of the forget set under the starting model.
        holdout: those of the holdout.
    """
    ours, theirs = ([item_probability(score) for score in part] for part in (forget, holdout))
    if not fmean(ours) >= KNOWN or not all(map(math.isfinite, theirs)):
        return []
    p_value = _higher_p_value(ours, theirs)
    level = float(np.quantile(theirs, PERCENTILE, method="higher"))
    if p_value <= SIGNIFICANT and level < median(ours):
        return []
    what = (
        f"the model knows it: the mean answer probability is {fmean(theirs):.2f}, that of the forget set "
        f"{fmean(ours):.2f}, and the best-known answers ({level:.2f}) are known as well as what is to be "
        "forgotten"
    )
    fix = "Give text that the model was not trained on, or leave the holdout out"
    return [Fault("--holdout", what, fix)]


ADVICE = "Give --holdout: text of the forget set's kind that the model never saw"
STRICTER = (
    "the level was measured on invented text. Real text in the style of the retain set is often easier to "
    f"predict, so the target may ask for more than retraining would reach. {ADVICE}"
)


def _words(examples: Sequence[Example]) -> float:
    return float(median(len(example.answer.split()) for example in examples))


def _foreign(examples: Sequence[Example]) -> bool:
    """Return whether most letters are not Latin."""
    letters = [c for example in examples for c in example.answer[:2000] if c.isalpha()]
    return sum(ord(c) > 0x24F for c in letters) * 2 > len(letters)


def _typical(examples: Sequence[Example]) -> str:
    """Return an answer in the most common form: with or without full stop, e-mail address or number."""
    forms = Counter((e.answer.strip()[-1:] == ".", "@" in e.answer) for e in examples)
    most = forms.most_common(1)[0][0]
    return next(e.answer.strip() for e in examples if (e.answer.strip()[-1:] == ".", "@" in e.answer) == most)


def _apportioned(counts: dict[Kind, int], total: int) -> dict[Kind, int]:
    """Divide a total proportionally by largest remainders; shares below one item get none."""
    whole = sum(counts.values())
    exact = {kind: total * count / whole for kind, count in counts.items()}
    found = {kind: int(share) for kind, share in exact.items()}
    for kind in sorted(exact, key=lambda kind: found[kind] - exact[kind])[: total - sum(found.values())]:
        found[kind] += 1
    return {kind: count for kind, count in sorted(found.items(), key=lambda item: -item[1]) if count}


# ---- expectations and never-seen text -> how well each item could be guessed by a model without it ----


LEAST = 1e-4
"""Least probability of a token, so that no single token can make an answer's level zero."""


def guesses(
    forget: Sequence[EncodedExample], never_seen: Sequence[EncodedExample], scores: Sequence[AnswerScore]
) -> Mapping[int, Guess]:
    """Return the figures of :data:`GUESSED` of each forget item that has expectations, by row.

    Args:
        forget: with ``expected_probs``, ``typical`` and ``secret`` filled in.
        never_seen: with ``secret`` filled in.
        scores: of never-seen text, under the starting model.
    """
    known = {row: example for row, example in enumerate(forget) if example.expected_probs is not None}
    level = secret_level(never_seen, scores) if known else 0.0
    return {row: _guess(example, level) for row, example in known.items()}


def guess_errors(never_seen: Sequence[EncodedExample], scores: Sequence[AnswerScore]) -> list[float]:
    """Return log(probability / guess) of each never-seen item with known levels, in nats a token.

    Args:
        never_seen: with ``predictable`` and ``secret`` filled in.
        scores: theirs, under the starting model.
    """
    known = [pair for pair in zip(never_seen, scores, strict=True) if pair[0].predictable]
    level = secret_level(never_seen, scores) if known else 0.0
    return [
        -score.mean_nll - _mean_log(torch.tensor(example.predictable), example.secret, level)
        for example, score in known
    ]


def secret_level(never_seen: Sequence[EncodedExample], scores: Sequence[AnswerScore]) -> float:
    """Return the 95th percentile over never-seen items of their secret tokens' mean log-probability, in nats.

    Without any secret token, that of all tokens.
    """
    means = []
    for example, score in zip(never_seen, scores, strict=True):
        flags = example.secret or (False,) * len(score.log_probs)
        own = [value for value, flag in zip(score.log_probs, flags, strict=True) if flag]
        if own:
            means.append(math.fsum(own) / len(own))
    means = means or [-score.mean_nll for score in scores]
    return float(np.quantile(means, PERCENTILE, method="higher"))


def _guess(example: EncodedExample, level: float) -> Guess:
    probs = example.expected_probs
    assert probs is not None
    typical = probs[:, 0] if example.typical is None else torch.tensor(example.typical)
    probability = math.exp(_mean_log(typical, example.secret, level))
    others = probs[:, 1:].amax(dim=1) if probs.shape[1] > 1 else 1 - probs[:, 0]
    # what is not the true token's, is shared as it is expected to be
    likeliest = typical > others * (1 - typical) / (1 - probs[:, 0]).clamp_min(LEAST)
    return extraction_strength(likeliest), probability, verbatim(likeliest)


def _mean_log(probs: torch.Tensor, secret: Sequence[bool] | None, level: float) -> float:
    """Return the mean log-probability of tokens whose secret ones are at a level, in nats."""
    logs = probs.clamp_min(LEAST).log()
    if secret:
        logs = logs.masked_fill(torch.tensor(secret, dtype=torch.bool), level)
    return float(logs.mean())


def _higher_p_value(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the p-value of the one-sided Mann-Whitney test that ``ours`` are higher."""
    from scipy.stats import mannwhitneyu  # its import takes a second

    return float(mannwhitneyu(ours, theirs, alternative="greater").pvalue)
