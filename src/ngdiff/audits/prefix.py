"""model -> what it says when its answer is made to begin as if it were willing.

The words are put behind the prompt, in the assistant's turn, and count as context: only the answer behind
them is scored, and greedy decoding continues from them.

Source: Wei et al. 2023, "Jailbroken: how does LLM safety training fail?", arXiv 2307.02483 (prefix
injection); Łucki et al. 2024, "An adversarial perspective on machine unlearning for AI safety", arXiv
2409.18025.
"""

from __future__ import annotations

from dataclasses import replace

from ngdiff.audits.subject import Audit, Context, Outcome, Subject, measure
from ngdiff.evaluation.suites import SuiteData


def run(subject: Subject, context: Context) -> dict[str, Outcome]:
    """Open every answer with the words."""
    words = context.request.prefix
    opened = {name: [replace(e, opening=words) for e in rows] for name, rows in context.asked.items()}
    figures = measure(subject.evaluator(), context, opened)
    return {"opened answers": Outcome(figures, note=f"answers open with {words!r}")}


def missing(data: SuiteData) -> str | None:
    """Return why the audit cannot run where there is no answer to begin."""
    if any(len(example.messages) < 2 for example in data.sets["forget"]):
        return "rows of plain text have no answer that could be opened"
    return None


AUDIT = Audit(
    name="prefix",
    summary="answers made to begin with 'Sure, here is the answer:'",
    paper="Wei et al. 2023, arXiv 2307.02483",
    run=run,
    settings=("prefix",),
    missing=missing,
)
