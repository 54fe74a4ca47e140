"""a run's audit -> can it be trusted: membership inference, forget quality, doubts from the record."""

from __future__ import annotations

from collections.abc import Mapping

from ngdiff.evaluation.result import EvaluationResult, Figure
from ngdiff.report.cards import (
    Card,
    Mark,
    Status,
    foreign,
    in_words,
    items_interval,
    limit_of,
    marks_of,
    value_of,
)
from ngdiff.report.run_files import Run, dig, number, rows_of

CHANCE = 0.5


SIGNIFICANT = 0.05
"""Forget quality below which the model is distinguished from a retrained one."""

OVERSHOT = 2.0
"""Ratio of the forget NLL to that of never-seen text that counts as over-forgotten."""


def attacks(evaluation: EvaluationResult | None) -> dict[str, Figure]:
    """Return the membership attacks of an evaluation that have a value, by name."""
    prefix = "forget.membership."
    figures = {} if evaluation is None else evaluation.figures
    return {
        k.removeprefix(prefix): f for k, f in figures.items() if k.startswith(prefix) and f.value is not None
    }


def tells(figure: Figure, retrained: Figure | None) -> bool:
    """Return whether an attack distinguishes the forget set, and not only because the two sets differ.

    That is so where its 95% interval contains neither 1/2 nor, where known, its value on the retrained model,
    which saw neither set.
    """
    if figure.value is None or figure.interval is None:
        return False
    low, high = figure.interval
    apart = not low <= CHANCE <= high
    if retrained is None or retrained.value is None:
        return apart
    return apart and not low <= retrained.value <= high


def judge_trust(run: Run) -> tuple[Card, str]:
    """Return the third card and its sentence."""
    question = "Can it be trusted?"
    record_lines = _doubts(run)
    if run.evaluation is None:
        lines = [
            "Measure it: ngdiff audit, with --holdout and --reference where you have them.",
            *record_lines,
        ]
        unaudited = "No audit was made: membership inference or a retrained model may still differ."
        figure, marks = _likelihood(run)
        limit = limit_of("nll", marks)
        return Card(question, "Not audited", "unknown", figure, marks, limit, lines), unaudited
    if foreign(run):
        text = "The evaluation used other weights than this run saved, so it says nothing about this model."
        return Card(question, "Evaluation of another model", "bad", lines=[text, *record_lines]), text
    found, theirs = attacks(run.evaluation), attacks(run.reference)
    telling = {name: f for name, f in found.items() if tells(f, theirs.get(name))}
    quality = run.evaluation.figures.get("forget_quality")
    apart = quality is not None and quality.value is not None and quality.value < SIGNIFICANT
    lines = _attack_lines(found, telling) + _quality_lines(quality) + record_lines
    if not found:
        answer = "Told from a retrained model" if apart else "Partly audited"
        text = "Membership inference was not measured: no holdout was given."
        return Card(question, answer, "bad" if apart else "unknown", lines=lines), text
    name = max(telling or found, key=lambda key: abs((found[key].value or CHANCE) - CHANCE))
    strongest = found[name]
    marks = marks_of(
        ("now", "this model", strongest.value, strongest.interval),
        ("before", "target model", value_of(run.before, f"forget.membership.{name}"), None),
        ("retrained", "retrained model", value_of(run.reference, f"forget.membership.{name}"), None),
        ("chance", "chance", CHANCE, None),
    )
    figure = f"AUC of membership inference by {attack_name(name)}"
    answer, status, text = _trusted(telling, name, strongest, apart, quality)
    return Card(question, answer, status, figure, marks, 1.0, lines), text


def _likelihood(run: Run) -> tuple[str | None, list[Mark]]:
    """Return the record's own comparison: how likely the answers are, and those to never-seen text."""
    record = run.record or {}
    after, before, unseen = (
        number(dig(record, side, part, "nll"))
        for side, part in (("after", "forget"), ("before", "forget"), ("after", "never_seen"))
    )
    if after is None:
        return None, []
    marks = marks_of(
        ("now", "after unlearning", after, items_interval(run, "forget", "nll", after)),
        ("before", "before", before, None),
        ("unseen", "text never seen, after", unseen, None),
    )
    return "negative log-likelihood of the forget set, nats per token", marks


def _trusted(
    telling: Mapping[str, Figure], name: str, strongest: Figure, apart: bool, quality: Figure | None
) -> tuple[str, Status, str]:
    if telling:
        how = "still distinguishes the forget set from never-seen text"
        if (strongest.value or 0) < CHANCE:
            how = "distinguishes the forget set from never-seen text, by being less known"
        reached = f"{attack_name(name)} reaches an AUC of {in_words(strongest.value)}"
        text = f"But membership inference {how}: {reached}."
        return "No, membership inference still works", "bad", text
    if apart and quality is not None:
        figure = f"forget quality {in_words(quality.value)}"
        text = f"But its truth ratios differ from the retrained model's ({figure})."
        return "Told from a retrained model", "bad", text
    text = "Membership inference does not distinguish the forget set from never-seen text"
    if quality is not None and quality.value is not None:
        figure = f"forget quality {in_words(quality.value)}"
        text += f", and its truth ratios cannot be told from the retrained model's ({figure})"
    return "Yes, as far as measured", "good", f"{text}."


def attack_name(name: str) -> str:
    """Return an attack's name as papers print it."""
    return {"min_k": "min-k", "min_k_plus_plus": "min-k++", "gradient_norm": "gradient norm"}.get(name, name)


def _attack_lines(found: Mapping[str, Figure], telling: Mapping[str, Figure]) -> list[str]:
    if not found:
        return []
    names = ", ".join(attack_name(name) for name in telling)
    told = f": {names}" if telling else ""
    return [f"{len(telling)} of {len(found)} attacks distinguish the sets{told}."]


def _quality_lines(quality: Figure | None) -> list[str]:
    if quality is None:
        return []
    if quality.value is None:
        return [f"Forget quality: {quality.note}."] if quality.note else []
    verdict = "differs from" if quality.value < SIGNIFICANT else "is not told from"
    return [f"Forget quality {in_words(quality.value)}: the model {verdict} the retrained one."]


def _doubts(run: Run) -> list[str]:
    """Return reasons for caution from the record itself."""
    record = run.record or {}
    lines = []
    ours, unseen = (number(dig(record, "after", part, "nll")) for part in ("forget", "never_seen"))
    if ours is not None and unseen and ours > OVERSHOT * unseen:
        lines.append(
            f"Over-forgotten: the forget set's negative log-likelihood is {in_words(ours)} nats per token, "
            f"never-seen text has {in_words(unseen)}; answers may be recognisable because they are broken."
        )
    skipped = sum(1 for step in rows_of(record.get("steps")) if step.get("skipped"))
    if skipped:
        noted = any("skip" in str(note) for note in record.get("notes") or [])
        lines.append(f"{skipped} steps were skipped{'; see the notes' if noted else ''}.")
    return lines
