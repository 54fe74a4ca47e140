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
    sets = {"forget": context.forget, "holdout": context.data.sets["holdout"]}
    norms = None
    if context.request.gradient_norms:  # first, since these passes show how well the answers are known, too
        mine, theirs = (evaluator.gradient_norms(f"{name} gradients", sets[name]) for name in sets)
        norms = mine, theirs
    forget, holdout = (
        (examples, evaluator.score(f"{name} answers", examples, z_scores=True))
        for name, examples in sets.items()
    )
    measures = Measures(evaluator, context.bootstrap)
    return {"as it is": Outcome(measures.membership(forget, holdout, context.reference, norms))}


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
    headlines=("forget.membership.min_k",),
)
