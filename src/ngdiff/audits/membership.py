"""model -> whether its likelihoods give away which texts were in the forget set.

Every attack of :mod:`ngdiff.evaluation.item_scores`, forget set against holdout. 0.5 tells nothing apart;
above it the forget set is still known, below it the set is recognisable because it is less known than
never-seen text.

With ``--shadow``, models that saw neither set, each item is measured against what they make of it: the
likelihood ratio attack in its offline form. With the retrained model every attack also has its s_MIA, and
with the target model, too, its place on the way from the retrained model's AUC (0) to the target's (1): below
0 is over-forgotten.

Source: Shi et al. 2024, "MUSE", arXiv 2407.06460 (PrivLeak); Carlini et al. 2022, "Membership inference
attacks from first principles", arXiv 2112.03570 (shadow models, eq. 4); Lee et al. 2026, arXiv 2605.24614
(s_MIA); the attacks' own papers are named there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from ngdiff.audits.subject import Audit, Context, Outcome, Subject
from ngdiff.data.examples import Example
from ngdiff.evaluation.result import Figure
from ngdiff.evaluation.suites import SuiteData
from ngdiff.evaluation.suites.measures import Measures
from ngdiff.inference.teacher_forced import AnswerScore
from ngdiff.system.environment import weights_hash

Logits = tuple[list[float], list[float]]
"""Of the forget set's answers and of the holdout's."""


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
    figures = measures.membership(forget, holdout, context.reference, norms)
    if context.request.shadows:
        shadows = shadow_logits(context)
        scores = likelihood_ratios((_logits(forget[1]), _logits(holdout[1])), shadows)
        figures["forget.membership.shadow"] = measures.auc(*scores)
    context.aucs[subject.role] = {
        key: figure.value
        for key, figure in figures.items()
        if figure.metric == "auc" and figure.value is not None
    }
    return {"as it is": Outcome(figures | places(context.aucs, subject))}


def places(aucs: Mapping[str, Mapping[str, float]], subject: Subject) -> dict[str, Figure]:
    """Return each attack's s_MIA and place, as far as the other models' AUCs are known."""
    retrained, target = aucs.get("reference", {}), aucs.get("target", {})
    figures = {}
    if subject.role == "audited":
        for key, value in aucs["audited"].items():
            if retrained.get(key, 0) > 0:
                figures[f"{key}.s_mia"] = Figure("s_mia", s_mia(value, retrained[key]))
            if key in retrained and key in target and target[key] != retrained[key]:
                place = (value - retrained[key]) / (target[key] - retrained[key])
                figures[f"{key}.place"] = Figure("membership_place", place)
    return figures


def s_mia(auc: float, retrained: float) -> float:
    """Return 1 - |AUC - retrained model's| / retrained model's, at least 0: 1 where the two agree."""
    return max(0.0, 1 - abs(auc - retrained) / retrained)


# ---- shadow models ----


def confidence(score: AnswerScore) -> float:
    """Return log(p / (1 - p)), p being the answer's probability, exp(-mean NLL)."""
    loss = max(score.mean_nll, 1e-12)
    return -loss - math.log(-math.expm1(-loss))


def _logits(scores: Sequence[AnswerScore]) -> list[float]:
    return [confidence(score) for score in scores]


def shadow_logits(context: Context) -> list[Logits]:
    """Return what each shadow model makes of both sets; measured once."""
    if not context.shadow_logits:
        for shadow in context.shadows:
            model = shadow.fresh_model()
            evaluator = shadow.evaluator_of(model, weights_hash(model))
            rows: Sequence[Sequence[Example]] = (context.forget, context.data.sets["holdout"])
            forget, holdout = (_logits(evaluator.score("shadow answers", part)) for part in rows)
            context.shadow_logits.append((forget, holdout))
    return context.shadow_logits


def likelihood_ratios(mine: Logits, shadows: Sequence[Logits]) -> Logits:
    """Return (logit - mean over shadow models) / deviation of each item.

    The deviation is one for all items, since few models tell little of a single one's; 1 with one model.
    """
    columns = [list(zip(*part, strict=True)) for part in zip(*shadows, strict=True)]
    means = [[fmean(values) for values in part] for part in columns]
    squares = [
        (value - mean) ** 2
        for part, centres in zip(columns, means, strict=True)
        for values, mean in zip(part, centres, strict=True)
        for value in values
    ]
    free = len(squares) * (len(shadows) - 1) / len(shadows)
    deviation = math.sqrt(math.fsum(squares) / free) if free and any(squares) else 1.0
    forget, holdout = (
        [(value - mean) / deviation for value, mean in zip(values, centres, strict=True)]
        for values, centres in zip(mine, means, strict=True)
    )
    return forget, holdout


def missing(data: SuiteData) -> str | None:
    """Return why the audit cannot run where there is nothing to compare the forget set with."""
    if "holdout" not in data.sets:
        return "no --holdout was given: text of the forget set's kind that the model never saw"
    return None


AUDIT = Audit(
    name="membership",
    summary="membership inference, forget set against text never seen",
    paper="Shi et al. 2024, arXiv 2407.06460",
    run=run,
    changes=False,
    settings=("gradient_norms", "shadows"),
    missing=missing,
    headlines=("forget.membership.min_k", "forget.membership.shadow"),
    says=("told apart", "not told apart"),
)
