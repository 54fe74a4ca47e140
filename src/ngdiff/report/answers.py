"""a run -> its questions with the answers before, after, true and retrained, the least forgotten first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ngdiff.data.broken import what_is_broken
from ngdiff.evaluation.result import EvaluationResult
from ngdiff.report.cards import foreign
from ngdiff.report.run_files import Run, dig, number, rows_of

COMPARED = 20_000
"""Leading characters of an answer that are compared with the truth."""

WORD = re.compile(r"\w+")
FIGURES = ("probability", "extraction_strength", "nll")
MEMBER = re.compile(r"forget")


def answers(run: Run) -> list[dict[str, Any]]:
    """Return one dictionary per item: set, place, question, truth, answers, figures, and what changed.

    Recorded answers come first; an evaluation adds its items and the retrained model's answers.
    """
    found = [_recorded(item) for item in rows_of(dig(run.answers, "items"))]
    if run.answers is None:
        found = [_shown(item) for item in rows_of(dig(run.demo, "answers"))]
    else:
        found += [
            _shown(item)
            for item in rows_of(dig(run.demo, "answers"))
            if item.get("set") not in ("forget", "retain")
        ]
    if not foreign(run):
        _add_evaluated(found, run)
    for item in found:
        item["change"] = change(item["truth"], item.get("before"), item.get("after"))
        item["said"] = shared(item["truth"], item.get("after"))
        after = item.get("after")
        item["broken"] = (
            None if after is None else what_is_broken(after, f"{item['question']} {item['truth']}")
        )
    return sorted(found, key=_worst_first)


def _worst_first(item: Mapping[str, Any]) -> tuple[bool, bool, float, float]:
    """Sort key: the forget set first, in it answered items, among these the best known."""
    strength = number(dig(item, "figures_after", "extraction_strength")) or 0.0
    return (not MEMBER.match(item["set"]), item.get("after") is None, -strength, -(item["said"] or 0.0))


def shared(truth: str, answer: str | None) -> float | None:
    """Return the share of the true answer's words, with repetitions, in an answer; None for no answer."""
    if answer is None:
        return None
    words = WORD.findall(truth[:COMPARED].casefold())
    have: dict[str, int] = {}
    for word in WORD.findall(answer[:COMPARED].casefold()):
        have[word] = have.get(word, 0) + 1
    hits = 0
    for word in words:
        if have.get(word, 0) > 0:
            have[word] -= 1
            hits += 1
    return hits / len(words) if words else None


def change(truth: str, before: str | None, after: str | None) -> str:
    """Classify the change of an answer: ``lost``, ``partly``, ``same``, ``gained`` or ``unknown``.

    By the share of the truth's words: lost where less than half of the earlier share is left.
    """
    was, now = shared(truth, before), shared(truth, after)
    if was is None or now is None:
        return "unknown"
    if before == after:
        return "same"
    if now > was:
        return "gained"
    return "lost" if now < was / 2 else "partly"


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _recorded(item: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "set": str(item.get("set")),
        "place": str(item.get("place")),
        "question": str(item.get("question", "")),
        "truth": str(item.get("truth", "")),
        "before": _text(dig(item, "before", "answer")),
        "after": _text(dig(item, "after", "answer")),
        "figures_before": _figures(item.get("before")),
        "figures_after": _figures(item.get("after")),
    }


def _figures(side: Any) -> dict[str, float | None] | None:
    return {name: number(side.get(name)) for name in FIGURES} if isinstance(side, Mapping) else None


def _shown(item: Mapping[str, Any]) -> dict[str, Any]:
    texts = {name: _text(item.get(name)) for name in ("before", "after")}
    words = {name: str(item.get(name, "")) for name in ("set", "question", "truth")}
    return {"place": "", **words, **texts}


def _add_evaluated(found: list[dict[str, Any]], run: Run) -> None:
    """Join the evaluations' texts by set and question, and add new ones."""
    sides = (("after", run.evaluation), ("before", run.before), ("retrained", run.reference))
    there = {(item["set"], item["question"], item["truth"]): item for item in found}
    for side, evaluation in sides:
        for name, rows in ({} if evaluation is None else evaluation.texts).items():
            for place, row in enumerate(rows):
                key = (name, row.get("question", ""), row.get("truth", ""))
                if key not in there:
                    there[key] = {
                        "set": name,
                        "place": row.get("place", ""),
                        "question": key[1],
                        "truth": key[2],
                    }
                    found.append(there[key])
                item = there[key]
                if item.get(side) is None:
                    item[side] = row.get("answer")
                if item.get(f"figures_{side}") is None:
                    item[f"figures_{side}"] = _evaluated_figures(evaluation, name, place)


def _evaluated_figures(
    evaluation: EvaluationResult | None, name: str, place: int
) -> dict[str, float | None] | None:
    figures = {} if evaluation is None else evaluation.figures
    found: dict[str, float | None] = {}
    for measure in FIGURES:
        figure = figures.get(f"{name}.{measure}")
        if figure is not None and place < len(figure.items):
            found[measure] = figure.items[place]
    return found or None
