"""how an unlearning run ended -> one line that says whether it forgot, and what to do next.

The line is the same in the terminal, in ``record.json``, on the model's card and in the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["forgotten", "not forgotten", "nothing changed", "no target"]

NEXT: Mapping[str, str] = {
    "forgotten": "Test it from outside the run: 'ngdiff evaluate' measures it in full, 'ngdiff audit' tries "
    "to bring the knowledge back.",
    "nothing changed": "The model knows the forget set no better than text it never saw. If you expected it "
    "to, compare the wording and the chat template with those it was trained on.",
    "no target": "No forget target was set, so nothing decides whether this is enough. Compare the figures "
    "with those of a retrained model, or of text the model never saw.",
    "floor": "What must be kept reached its floor first. Add rows of the forget set's kind to the retain "
    "set, or lower that floor with --set floors.NAME=SHARE, and run again.",
    "end": "The run used all its steps. Continue from its result, or run again with more --epochs.",
    "stopped": "The run was stopped from outside. Continue from its result.",
    "stationary": "Both gradients are zero. Check that the model knows the forget set and that the trainable "
    "parameters reach its answers.",
    "non-finite": "Gradients were not finite. Run again with --precision fp32 or a smaller --lr.",
}
"""What to do next, by outcome and, where the set was not forgotten, by why the run ended."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on a run.

    Args:
        outcome: its short name.
        line: the outcome in capitals, and the figures that decide in brackets.
        advice: what to do next.
    """

    outcome: Outcome
    line: str
    advice: str


def verdict(stop: Mapping[str, Any], after: Mapping[str, Any]) -> Verdict:
    """Return the verdict on a run.

    Args:
        stop: ``stop`` of its record; missing values and those of another type are left out of the line.
        after: mean figures of the forget set under the weights that are kept.
    """
    outcome = _outcome(stop)
    figures = [text for text in (*_means(stop, after, outcome), _items(stop)) if text]
    if outcome == "nothing changed":
        figures = ["the model did not know this"]
    line = outcome.upper() + (f" ({'; '.join(figures)})" if figures else "")
    reason = str(stop.get("code"))
    if reason == "end" and "from outside" in str(stop.get("reason")):
        reason = "stopped"
    if outcome == "not forgotten" and reason == "end" and (advice := _forecast(stop)):
        return Verdict(outcome, line, advice)
    return Verdict(outcome, line, NEXT.get(reason if outcome == "not forgotten" else outcome, NEXT["end"]))


def _forecast(stop: Mapping[str, Any]) -> str | None:
    """Return what the record's forecast advises, as a sentence."""
    found = stop.get("forecast")
    advice = found.get("advice") if isinstance(found, Mapping) else None
    return f"At the pace of the last checks, {advice}." if isinstance(advice, str) and advice else None


def _outcome(stop: Mapping[str, Any]) -> Outcome:
    met = stop.get("target_met")
    if met is True:
        return "nothing changed" if stop.get("kept_step") == 0 else "forgotten"
    return "not forgotten" if met is False else "no target"


def _means(stop: Mapping[str, Any], after: Mapping[str, Any], outcome: Outcome) -> list[str]:
    """Return the mean figures that decide: those that missed a target, or all where none did."""
    target = stop.get("target")
    if not isinstance(target, Mapping):
        return []
    bounds = target.get("bounds")
    if not isinstance(bounds, list | tuple) or not bounds:  # a record of an early version has the mean alone
        bounds = [{"measure": target.get("measure"), "mean": target.get("value")}]
    found = []
    for bound in bounds:
        if not isinstance(bound, Mapping):
            continue
        measure, limit = bound.get("measure"), bound.get("mean")
        value = after.get(str(measure))
        if not isinstance(value, int | float) or not isinstance(limit, int | float):
            continue
        missed = value < limit if measure == "nll" else value > limit
        if missed or outcome == "forgotten":
            name = "NLL" if measure == "nll" else str(measure).replace("_", " ")
            found.append(f"{name} {value:.3f}, target {limit:.3f}")
    return found


def _items(stop: Mapping[str, Any]) -> str:
    """Return how many items are left, where the criterion counts items."""
    left, looked = stop.get("left"), stop.get("looked_at")
    of = looked.get("of") if isinstance(looked, Mapping) else None
    if not isinstance(left, list) or not isinstance(of, int) or stop.get("target_met") is None:
        return ""
    return f"{len(left)} of {of} items left"


def is_hidden(record: Mapping[str, Any]) -> bool:
    """Say whether a record's items were left out because its data are hidden under a key."""
    data, parts = record.get("data"), [record.get(when) for when in ("before", "after")]
    entries = list(data.values()) if isinstance(data, Mapping) else []
    keyed = any(isinstance(entry, Mapping) and entry.get("keyed") for entry in entries)
    return keyed and all(isinstance(part, Mapping) and "items" not in part for part in parts)
