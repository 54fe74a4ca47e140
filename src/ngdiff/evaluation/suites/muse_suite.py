"""The row of :mod:`ngdiff.evaluation.suites.muse` in the table of suites."""

from __future__ import annotations

from ngdiff.data.examples import Example, to_examples
from ngdiff.evaluation.reference import Reference
from ngdiff.evaluation.request import EvaluateRequest
from ngdiff.evaluation.result import Bootstrap, Figure
from ngdiff.evaluation.suites import Suite, SuiteData
from ngdiff.evaluation.suites.muse import measure_privacy, passage_examples, read_muse, run_muse
from ngdiff.inference.evaluator import Evaluator


def _read(request: EvaluateRequest) -> SuiteData:
    corpus = read_muse(str(request.data), folders=request.folders)
    sets = {"passages": passage_examples(corpus.passages)}
    sets |= {f"{part}_questions": to_examples(rows, "--data") for part, rows in corpus.questions.items()}
    sets |= {
        f"{part}_texts": [Example((), str(row.values["text"]), "text", row.place) for row in rows]
        for part, rows in corpus.texts.items()
    }
    return SuiteData(sets, content=corpus)


def _run(
    evaluator: Evaluator, data: SuiteData, reference: Reference | None, bootstrap: Bootstrap
) -> dict[str, Figure]:
    return run_muse(evaluator, data.content, reference, seed=bootstrap.seed, resamples=bootstrap.resamples)


def _refer(evaluator: Evaluator, data: SuiteData, name: str) -> Reference:
    found = measure_privacy(evaluator, data.content, None, Bootstrap(resamples=2))
    prefix = "forget.membership."
    membership = {
        key.removeprefix(prefix): figure.value
        for key, figure in found.items()
        if key.startswith(prefix) and figure.value is not None
    }
    return Reference(name, "muse", membership=membership)


SUITE = Suite(
    name="muse",
    summary="news or books: verbatim and knowledge memorisation, PrivLeak, utility",
    paper="Shi et al. 2024, arXiv 2407.06460",
    needs=("data",),
    takes=("reference", "muse_dir"),
    read=_read,
    run=_run,
    refer=_refer,
    max_length=2048,
)
