"""a run's audit.json -> what was tried, what came back and what was not tried, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ngdiff.report.cards import Card, in_words
from ngdiff.report.run_files import Run, dig, number, rows_of

WAYS: dict[str, str] = {
    "extraction": "letting it complete the texts word for word",
    "membership": "telling from its confidence which texts it had learned",
    "layers": "reading its inner layers",
    "fluency": "looking for broken language in its answers",
    "paraphrase": "asking in other words",
    "prefix": "beginning its answers with compliant words",
    "worst-case": "asking in many wordings and formats and keeping the best",
    "sampling": "drawing many answers instead of one",
    "quantisation": "storing its weights in fewer bits",
    "relearning": "training it a little on the texts again",
}
"""Each audit in words for readers who do not know its name."""

SHOWN = {"membership": "tells the texts apart", "fluency": "finds broken answers"}
"""Predicate of an audit that found something, where it does not bring something back."""


@dataclass(frozen=True)
class Audited:
    """The content of an audit, as far as its file is readable.

    Args:
        tried: names of the audits that were made and compared, in the table's order.
        alone: names of those that were made with nothing to compare with.
        came_back: name of an audit to the figures by which it found something.
        untried: names of the rest.
        notes: of the audit.
    """

    tried: Sequence[str]
    alone: Sequence[str]
    came_back: Mapping[str, Sequence[Mapping[str, Any]]]
    untried: Sequence[str]
    notes: Sequence[str]


def audited(run: Run) -> Audited | None:
    """Return the run's audit; None where there is none, or where it used other weights."""
    if run.audit is None or of_other_weights(run):
        return None
    findings = rows_of(run.audit.get("findings"))
    compared = {str(one.get("audit")) for one in findings if isinstance(one.get("found"), bool)}
    made = {str(one.get("audit")) for one in findings}
    came_back = {
        name: [one for one in findings if one.get("audit") == name and one.get("found") is True]
        for name in WAYS
    }
    notes = run.audit.get("notes")
    return Audited(
        [name for name in WAYS if name in compared],
        [name for name in WAYS if name in made - compared],
        {name: found for name, found in came_back.items() if found},
        [name for name in WAYS if name not in made],
        [str(note) for note in notes] if isinstance(notes, list) else [],
    )


def of_other_weights(run: Run) -> bool:
    """Return whether the audit names other weights than the run saved."""
    theirs = dig(run.audit, "provenance", "models", "audited", "sha256")
    ours = dig(run.record, "model", "sha256_after")
    return bool(ours and theirs and ours != theirs)


def with_audit(card: Card, sentence: str, run: Run) -> tuple[Card, str]:
    """Return the third card and its sentence, answered from the audit where there is one."""
    if run.audit is not None and of_other_weights(run):
        text = "The audit used other weights than this run saved, so it says nothing about this model."
        return replace(card, lines=[text, *card.lines]), sentence
    found = audited(run)
    if found is None:
        return card, sentence
    lines = [*_lines(found), *card.lines]
    if found.came_back:
        count, of = len(found.came_back), len(found.tried)
        answer = f"No, {count} of {of} audits found something"
        first, how = next(iter(found.came_back)), "brings back what was to be forgotten"
        text = f"But {WAYS[first]} {SHOWN.get(first, how)}."
        return replace(card, answer=answer, status="bad", lines=lines), text
    if not found.tried:
        text = "Audits were made, but without anything to compare with, so nothing follows from them."
        return replace(card, lines=lines), text if card.status == "unknown" else sentence
    if card.status == "bad":
        return replace(card, lines=lines), sentence
    text = (
        f"{len(found.tried)} ways to bring it back were tried; none showed more than for text that the model "
        "never saw."
    )
    answer = "Yes, as far as tried"
    return replace(card, answer=answer, status="good", lines=lines), text


def _lines(found: Audited) -> list[str]:
    lines = [_said("Tried", found.tried), _said("Tried without anything to compare with", found.alone)]
    for name, figures in found.came_back.items():
        lines.append(f"Found by {WAYS[name]}: {'; '.join(map(_figure, figures[:3]))}.")
    if found.tried and not found.came_back:
        lines.append("No more came back than from a model that never saw the texts.")
    lines.append(_said("Not tried", found.untried))
    return [line for line in lines if line]


def _said(title: str, names: Sequence[str]) -> str:
    return f"{title}: {'; '.join(WAYS[name] for name in names)}." if names else ""


def _figure(finding: Mapping[str, Any]) -> str:
    """Format one figure with its weakest comparison."""
    key = str(finding.get("figure")).removeprefix("forget.").replace("_", " ")
    text = f"{key} {in_words(number(finding.get('after')))} ({finding.get('form')})"
    compared = sorted(rows_of(finding.get("comparisons")), key=lambda one: number(one.get("p_value")) or 0.0)
    if compared:
        text += f", {in_words(number(compared[-1].get('excess')))} beside {compared[-1].get('beside')}"
    return text
