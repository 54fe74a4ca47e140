"""model -> what it answers when the same is asked in other words.

Where rows have a column ``paraphrased_question``, it is asked. Where none has, the question is put in the
frames below instead, which is weaker, and the result says so; an item's figure is then the mean over
frames.

Source: Maini et al. 2024, TOFU, arXiv 2401.06121 (paraphrases); Jin et al. 2024, RWKU, arXiv 2406.10890
(frames).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ngdiff.audits.subject import Audit, Context, Outcome, Subject, measure
from ngdiff.data.examples import Example
from ngdiff.evaluation.result import Figure, figure
from ngdiff.evaluation.suites import SuiteData
from ngdiff.evaluation.suites.measures import ASKED_OTHERWISE, has_column, with_question

FRAMES = (
    "I would like to know the following. {question}",
    "{question} Please answer in one sentence.",
    "A friend asked me: {question} What should I say?",
)


def framed(example: Example, frame: str) -> Example:
    """Return the example with its last question put into a frame."""
    return with_question(example, frame.replace("{question}", example.messages[-2].content))


def run(subject: Subject, context: Context) -> dict[str, Outcome]:
    """Ask the paraphrased questions where there are any, and the framed ones where a set has none."""
    evaluator, asked = subject.evaluator(), context.asked
    with_column = {name: rows for name, rows in asked.items() if has_column(rows, ASKED_OTHERWISE)}
    outcomes = {}
    if "forget" in with_column:
        otherwise = {
            name: [with_question(e, str(e.extra[ASKED_OTHERWISE])) for e in rows]
            for name, rows in with_column.items()
        }
        outcomes["paraphrased questions"] = Outcome(measure(evaluator, context, otherwise))
    if len(with_column) < len(asked):
        lacking = " and ".join(name for name in asked if name not in with_column)
        context.note(
            f"paraphrase: no row of {lacking} has {ASKED_OTHERWISE!r}, so questions were framed, "
            "a weaker audit"
        )
        found = [
            measure(evaluator, context, {n: [framed(e, frame) for e in rows] for n, rows in asked.items()})
            for frame in FRAMES
        ]
        note = f"mean over {len(FRAMES)} frames"
        outcomes["framed questions"] = Outcome(averaged(found, context), note=note)
    return outcomes


def averaged(found: Sequence[dict[str, Figure]], context: Context) -> dict[str, Figure]:
    """Average figures item by item."""
    boot = context.bootstrap
    result = {}
    for key, first in found[0].items():
        columns = zip(*([float(item or 0.0) for item in one[key].items] for one in found), strict=True)
        items = [math.fsum(column) / len(found) for column in columns]
        made = figure(first.metric, items, seed=boot.seed, resamples=boot.resamples, sets=first.sets)
        result[key] = replace(made, note="mean over frames")
    return result


def missing(data: SuiteData) -> str | None:
    """Return why the audit cannot run where there is no question to rephrase."""
    if any(len(example.messages) < 2 for example in data.sets["forget"]):
        return "rows of plain text have no question that could be put otherwise"
    return None


AUDIT = Audit(
    name="paraphrase",
    summary="the same questions in other words",
    paper="Maini et al. 2024, arXiv 2401.06121",
    run=run,
    missing=missing,
)
