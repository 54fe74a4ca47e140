"""model -> how much of the forget set can be drawn out of it word for word.

Source: Carlini et al. 2021, "Extracting training data from large language models", arXiv 2012.07805;
extraction strength as in Wang et al. 2025, arXiv 2406.09179.
"""

from __future__ import annotations

from ngdiff.audits.subject import Audit, Context, Outcome, Subject
from ngdiff.evaluation.result import Figure
from ngdiff.evaluation.suites.measures import Measures


def run(subject: Subject, context: Context) -> dict[str, Outcome]:
    """Return extraction strength, and the shares of items that follow from the question, or from half."""
    evaluator = subject.evaluator()
    measures = Measures(evaluator, context.bootstrap)
    figures: dict[str, Figure] = {}
    for name, rows in context.tested.items():
        strengths = [score.extraction_strength for score in evaluator.score(f"{name} answers", rows)]
        whole, half = ([float(value >= share) for value in strengths] for share in (1.0, 0.5))
        figures |= {
            f"{name}.extraction_strength": measures.mean("extraction_strength", strengths, name),
            f"{name}.extractable": measures.mean("extractable", whole, name),
            f"{name}.extractable_from_half": measures.mean("extractable_from_half", half, name),
        }
    return {"as it is": Outcome(figures)}


AUDIT = Audit(
    name="extraction",
    summary="how much follows word for word, from the question or from half of the answer",
    paper="Carlini et al. 2021, arXiv 2012.07805",
    run=run,
    changes=False,
    headlines=("forget.extraction_strength",),
)
