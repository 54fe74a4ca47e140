"""evaluator, a forget and a retain set -> the same figures for data of one's own.

Rows of any form (see :mod:`ngdiff.data.examples`). Where they carry ``perturbed_answer`` (a list of wrong
answers) there is a truth ratio, against ``paraphrased_answer`` where that is there too, else against the
answer itself; with a reference model also forget quality. With a holdout there is membership inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from ngdiff.data.benchmarks import folder_options
from ngdiff.data.examples import Example, overlap_fault
from ngdiff.data.sources import capped
from ngdiff.errors import Fault, Faults
from ngdiff.evaluation.reference import Reference
from ngdiff.evaluation.request import EvaluateRequest
from ngdiff.evaluation.result import Bootstrap, Figure
from ngdiff.evaluation.statistics import harmonic_mean_interval
from ngdiff.evaluation.suites import Suite, SuiteData
from ngdiff.evaluation.suites.measures import (
    ASKED_OTHERWISE,
    PARAPHRASED,
    PERTURBED,
    Answered,
    Figures,
    Measures,
    asked_otherwise,
    attack_norms,
    column_faults,
    generated,
    has_column,
    measure_reference,
    score_set,
    values_of,
)
from ngdiff.inference.evaluator import Evaluator
from ngdiff.requested import read_sets

NO_HOLDOUT = "no --holdout was given, so membership inference and PrivLeak are left out"


def read_own(request: EvaluateRequest) -> SuiteData:
    """Read forget set, retain set and, where given, the holdout.

    Raises:
        RequestError: with every fault of all of them.
    """
    faults = Faults()
    named = {"forget": request.forget, "retain": request.retain, "holdout": request.holdout}
    read = read_sets(named, request.folders, faults)
    sets = {name: examples for name, examples in read.items() if examples}
    for name in ("forget", "retain"):
        faults += _column_faults(sets.get(name, ()), f"--{name}")
    if "forget" in sets and "retain" in sets and (overlap := overlap_fault(sets["forget"], sets["retain"])):
        faults.append(Fault(overlap.where, overlap.what, "Take them out of one of the two"))
    if "forget_quality" in request.require and "forget" in sets and not has_column(sets["forget"], PERTURBED):
        what = f"forget quality needs the column {PERTURBED!r}, a list of wrong answers, which no row has"
        faults.append(Fault("--forget", what, "Add the column, or do not ask for forget_quality"))
    faults.raise_any()
    notes = () if request.holdout else (NO_HOLDOUT,)
    return own_data(sets, request.paraphrases, request.gradient_norms, notes)


def own_data(
    sets: Mapping[str, Sequence[Example]],
    paraphrases: bool = True,
    gradient_norms: bool = True,
    notes: tuple[str, ...] = (),
) -> SuiteData:
    """Return sets that are in memory as the suite wants them."""
    settings = {"paraphrases": paraphrases, "gradient_norms": gradient_norms}
    return SuiteData(sets, notes=notes, settings=settings)


def _column_faults(examples: Sequence[Example], where: str) -> list[Fault]:
    present = [c for c in (PERTURBED, PARAPHRASED, ASKED_OTHERWISE) if has_column(examples, c)]
    return capped([f for column in present for f in column_faults(examples, column, where)], where)


def run_own(
    evaluator: Evaluator, data: SuiteData, reference: Reference | None, bootstrap: Bootstrap
) -> dict[str, Figure]:
    """Measure what the data allows."""
    settings = data.settings or {}
    measures = Measures(evaluator, bootstrap)
    norms = attack_norms(evaluator, data)
    sets = {}
    figures: Figures = {}
    for name, examples in data.sets.items():
        if name == "holdout":
            sets[name] = Answered(examples, evaluator.score("holdout answers", examples, z_scores=True))
            continue
        attacked = "holdout" in data.sets and name == "forget"
        found = score_set(evaluator, name, examples, attacked, has_column(examples, PARAPHRASED))
        sets[name] = Answered(examples, *found)
        if settings.get("paraphrases", True) and has_column(examples, ASKED_OTHERWISE):
            label, asked = asked_otherwise(evaluator, name, examples)
            sets[label] = asked
    said = generated(evaluator, {name: part for name, part in sets.items() if name != "holdout"})
    for name, part in sets.items():
        figures |= measures.answers(name, part.scores)
        if name != "holdout":
            figures |= _answered(measures, name, part.examples, said.get(name))
        if part.options is not None:
            figures |= measures.truth_ratios(name, part.options, forget=name == "forget")
    if "retain" in data.sets:
        figures |= _utility(figures, bootstrap)
    figures |= _forget_quality(measures, figures, reference)
    if "holdout" in data.sets:
        forget, holdout = ((sets[name].examples, sets[name].scores) for name in ("forget", "holdout"))
        figures |= measures.membership(forget, holdout, reference, norms)
    return figures


def _answered(
    measures: Measures, name: str, examples: Sequence[Example], answers: Sequence[str] | None
) -> Figures:
    if answers is not None:
        return measures.rouges(name, examples, answers)
    note = "rows of plain text have no prompt to answer"
    return {f"{name}.rouge": Figure("rougeL_recall", None, note=note)}


def _utility(figures: Figures, bootstrap: Bootstrap) -> Figures:
    keys = [f"retain.{measure}" for measure in ("probability", "rouge", "truth_ratio")]
    there = [key for key in keys if key in figures and figures[key].value is not None]
    value, bounds = harmonic_mean_interval({"retain": [values_of(figures, key) for key in there]}, bootstrap)
    note = f"of {', '.join(there)}"
    return {"utility": Figure("utility", value, bounds, note=note, sets=("retain",))}


def _forget_quality(measures: Measures, figures: Figures, reference: Reference | None) -> Figures:
    if "forget.log_truth_ratio" in figures:
        return measures.forget_quality(figures, reference, None)
    note = f"the forget set has no column {PERTURBED!r}"
    return {"forget_quality": Figure("forget_quality", None, note=note)}


SUITE = Suite(
    name="own",
    summary="your own forget and retain sets: the same measures",
    paper="own data",
    needs=("forget", "retain"),
    takes=("holdout", "reference", *folder_options()),
    read=read_own,
    run=run_own,
    refer=partial(measure_reference, suite="own"),
    splits=True,
)
