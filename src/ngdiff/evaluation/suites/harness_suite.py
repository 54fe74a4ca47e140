"""The row of :mod:`ngdiff.evaluation.suites.harness` in the table of suites."""

from __future__ import annotations

from ngdiff.errors import Fault, RequestError
from ngdiff.evaluation.reference import Reference
from ngdiff.evaluation.request import EvaluateRequest
from ngdiff.evaluation.result import Bootstrap, Figure
from ngdiff.evaluation.suites import Suite, SuiteData
from ngdiff.evaluation.suites.harness import HarnessSettings, check_tasks, run_tasks
from ngdiff.inference.evaluator import Evaluator
from ngdiff.system.processes import process_count


def _read(request: EvaluateRequest) -> SuiteData:
    if process_count() > 1:
        what = "the suite lm-eval runs in one process here"
        raise RequestError(Fault("--suite lm-eval", what, "Start it without torchrun"))
    check_tasks(request.tasks)
    settings = HarnessSettings(
        limit=request.limit,
        batch_size=request.batch_size,
        max_length=request.max_length,
        seed=request.seed,
    )
    return SuiteData({}, content=(request.tasks, settings), settings={"tasks": list(request.tasks)})


def _run(
    evaluator: Evaluator, data: SuiteData, reference: Reference | None, bootstrap: Bootstrap
) -> dict[str, Figure]:
    tasks, settings = data.content
    return run_tasks(evaluator.model, evaluator.tokenizer, tasks, settings)


SUITE = Suite(
    name="lm-eval",
    summary="tasks of the Language Model Evaluation Harness, such as mmlu or wmdp",
    paper="github EleutherAI/lm-evaluation-harness",
    needs=("tasks",),
    takes=("limit",),
    read=_read,
    run=_run,
)
