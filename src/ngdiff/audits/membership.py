"""model -> whether its likelihoods give away which texts were in the forget set.

Every attack of :mod:`ngdiff.evaluation.membership`, forget set against holdout. 0.5 tells nothing apart;
both above and below it is a trace.

Source: Shi et al. 2024, "MUSE", arXiv 2407.06460 (PrivLeak); the attacks' own papers are named there.
"""

from __future__ import annotations

from ngdiff.audits.row import Audit, Outcome
from ngdiff.audits.subject import Context, Subject
from ngdiff.evaluation.suites import SuiteData
from ngdiff.evaluation.suites.measures import Measures


def run(subject: Subject, context: Context) -> dict[str, Outcome]:
    """Return the AUC of each attack, and PrivLeak where the retrained model is known."""
    evaluator = subject.evaluator()
    forget, holdout = context.forget, context.data.sets["holdout"]
    sides = [
        (examples, evaluator.score(f"{name} answers", examples, z_scores=True))
        for name, examples in (("forget", forget), ("holdout", holdout))
    ]
    measures = Measures(evaluator, context.bootstrap)
    gradients = context.request.gradient_norms
    return {"as it is": Outcome(measures.membership(sides[0], sides[1], context.reference, gradients))}


def missing(data: SuiteData) -> str | None:
    """Say so where there is nothing to compare the forget set with."""
    if "holdout" not in data.sets:
        return "no --holdout was given: text of the forget set's kind that the model never saw"
    return None


AUDIT = Audit(
    name="membership",
    summary="membership inference, forget set against text never seen",
    paper="Shi et al. 2024, arXiv 2407.06460",
    run=run,
    changes=False,
    settings=("gradient_norms",),
    missing=missing,
)
