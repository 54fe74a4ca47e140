"""evaluator and TOFU's perturbed files -> all of TOFU's figures.

A row of ``forget10_perturbed``: ``{"question": "What does Hsiao Yun-Hwa identify as in terms of gender?",
"answer": "Hsiao Yun-Hwa is part of the LGBTQ+ community.", "paraphrased_answer": "...",
"perturbed_answer": ["...", 5 in all], "paraphrased_question": "..."}``; real authors and world facts have
three perturbed answers and no paraphrases, so the answer itself is the right one there.

Holdout: membership inference compares the forget set with text of its kind that neither model ever saw.
TOFU's 4000 questions are all in the target model's training set, so none of them serves. OpenUnlearning added
``holdout01``, ``holdout05`` and ``holdout10`` to the data set for this; the one that matches is taken where
the TOFU folder or the hub has it, unless ``--holdout`` names other text. Without any, membership inference
and PrivLeak are left out, and a note says so.

Source: Maini et al. 2024, "TOFU: a task of fictitious unlearning for LLMs" (arXiv 2401.06121).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from ngdiff.data.benchmarks import TOFU, folder_options
from ngdiff.data.examples import Example, overlap_fault, to_examples
from ngdiff.data.sources import capped, read_rows
from ngdiff.errors import Fault, Faults, RequestError, unknown_name
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
    SetScores,
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

SPLITS = ("forget01", "forget05", "forget10")
UTILITY_SETS = ("retain", "real_authors", "world_facts")
OF_OPTIONS = ("real_authors", "world_facts")
UTILITY_MEASURES = ("probability", "rouge", "truth_ratio")
NO_HOLDOUT = "there is no holdout, so membership inference and PrivLeak are left out"
NO_WRONG_ANSWERS = (
    "the retain set has no wrong answers, so its truth ratio is left out, and model utility is of eight parts"
)


def read_tofu(request: EvaluateRequest) -> SuiteData:
    """Read the four perturbed files, and the holdout where there is one.

    A retain file without any wrong answers serves, too: TOFU has them for its first 400 questions and its
    last 400 only, and a model that learned others has nothing else to be asked.

    Raises:
        RequestError: with every fault: an unknown split, a missing file, a missing column.
    """
    split = request.forget[0].removeprefix("tofu:").removesuffix("_perturbed")
    if len(request.forget) != 1 or split not in SPLITS:
        raise RequestError(unknown_name("--forget", "forget set of TOFU", ", ".join(request.forget), SPLITS))
    sources = {"forget": f"tofu:{split}_perturbed"} | {n: f"tofu:{n}_perturbed" for n in UTILITY_SETS}
    sets: dict[str, Sequence[Example]] = {}
    faults = Faults()
    notes: list[str] = []
    for name, source in sources.items():
        where = "--forget" if name == "forget" else source
        with faults.collecting():
            sets[name] = _examples(source, where, request)
            if name == "retain" and not has_column(sets[name], PERTURBED):
                notes.append(NO_WRONG_ANSWERS)
            else:
                faults += _missing_columns(sets[name], name, where)
    holdout, note = _holdout(split, request, faults)
    if "forget" in sets and (shared := overlap_fault(sets["forget"], holdout)):
        faults.append(Fault("--holdout", shared.what, "Give text that the model never saw"))
    faults.raise_any()
    sets |= {"holdout": holdout} if holdout else {}
    settings = {"paraphrases": request.paraphrases, "gradient_norms": request.gradient_norms}
    notes += [note] if note else []
    return SuiteData(sets, split, notes=tuple(notes), settings=settings)


def _holdout(split: str, request: EvaluateRequest, faults: Faults) -> tuple[list[Example], str | None]:
    """Return the requested holdout, or the split's own if available, and a note where there is none."""
    examples: list[Example] = []
    for source in request.holdout:
        with faults.collecting():
            examples += _examples(source, "--holdout", request)
    if request.holdout:
        return examples, None
    name = split.replace("forget", "holdout")
    folder = TOFU.folder(request.folders)
    if folder is not None and not (folder / f"{name}.json").is_file():
        return [], f"{NO_HOLDOUT} ({name}.json is not in the TOFU folder)"
    try:
        return _examples(f"tofu:{name}", "--holdout", request), None
    except RequestError as error:
        return [], f"{NO_HOLDOUT} ({error.faults[0].what})"


def _examples(source: str, where: str, request: EvaluateRequest) -> list[Example]:
    return to_examples(read_rows(source, where=where, folders=request.folders), where)


def _missing_columns(examples: Sequence[Example], name: str, where: str) -> list[Fault]:
    """Return the faults of the columns that a set's figures need."""
    faults = column_faults(examples, PERTURBED, where)
    if name in ("forget", "retain"):
        faults += column_faults(examples, PARAPHRASED, where)
    if has_column(examples, ASKED_OTHERWISE):
        faults += column_faults(examples, ASKED_OTHERWISE, where)
    return capped(faults, where)


def run_tofu(
    evaluator: Evaluator, data: SuiteData, reference: Reference | None, bootstrap: Bootstrap
) -> dict[str, Figure]:
    """Measure everything; see :data:`ngdiff.evaluation.metrics.METRICS`."""
    settings = data.settings or {}
    measures = Measures(evaluator, bootstrap)
    norms = attack_norms(evaluator, data)
    figures: Figures = {}
    sets = {}
    for name, examples in data.sets.items():
        if name == "holdout":
            sets[name] = Answered(examples, evaluator.score("holdout answers", examples, z_scores=True))
            continue
        paraphrased = name not in OF_OPTIONS
        sets[name] = Answered(examples, *score_set(evaluator, name, examples, name == "forget", paraphrased))
        if paraphrased and settings.get("paraphrases", True) and has_column(examples, ASKED_OTHERWISE):
            label, asked = asked_otherwise(evaluator, name, examples)
            sets[label] = asked
    said = generated(evaluator, {name: part for name, part in sets.items() if name != "holdout"})
    for name, part in sets.items():
        figures |= measures.answers(name, part.scores)
        figures |= measures.rouges(name, part.examples, said[name]) if name in said else {}
        if part.options is not None:
            figures |= measures.truth_ratios(name, part.options, forget=name == "forget")
            figures |= _option_figures(measures, name, part.options, name in OF_OPTIONS)
    figures |= model_utility(figures, bootstrap)
    figures |= measures.forget_quality(figures, reference, data.split)
    if "holdout" in sets:
        forget, holdout = ((sets[name].examples, sets[name].scores) for name in ("forget", "holdout"))
        figures |= measures.membership(forget, holdout, reference, norms)
    return figures


def _option_figures(measures: Measures, name: str, options: SetScores, normalised: bool) -> Figures:
    wrong = [sum(s.probability for s in found) / len(found) for found in options.wrong]
    figures = {f"{name}.perturbed_answer_probability": measures.mean("probability", wrong, name)}
    if normalised:
        return figures | measures.options(name, options)
    right = [score.probability for score in options.right]
    return figures | {f"{name}.paraphrased_answer_probability": measures.mean("probability", right, name)}


def model_utility(figures: Mapping[str, Figure], bootstrap: Bootstrap) -> Figures:
    """Return the harmonic mean of the parts that were measured, with an interval over the items of the sets.

    There are nine; eight where the retain set has no wrong answers (see :data:`NO_WRONG_ANSWERS`).
    """
    measured = {
        name: [f"{name}.{measure}" for measure in UTILITY_MEASURES if f"{name}.{measure}" in figures]
        for name in UTILITY_SETS
    }
    parts = {name: [values_of(figures, key) for key in keys] for name, keys in measured.items()}
    value, bounds = harmonic_mean_interval(parts, bootstrap)
    note = NO_WRONG_ANSWERS if "retain.truth_ratio" not in figures else None
    return {"model_utility": Figure("model_utility", value, bounds, note=note, sets=UTILITY_SETS)}


SUITE = Suite(
    name="tofu",
    summary="questions on invented authors: forget quality, model utility with its nine parts, and audits",
    paper="Maini et al. 2024, arXiv 2401.06121",
    needs=("forget",),
    takes=("holdout", "reference", *folder_options()),
    read=read_tofu,
    run=run_tofu,
    refer=partial(measure_reference, suite="tofu"),
)
