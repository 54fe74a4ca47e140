"""model, tokenizer and names of tasks -> their scores by the Language Model Evaluation Harness (`lm-eval`).

The harness brings the tasks (MMLU, WMDP, GSM8K, ...), their prompts and their metrics; the model that is in
memory is handed over as it is. Source: github EleutherAI/lm-evaluation-harness.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ngdiff.errors import Fault, RequestError, unknown_name
from ngdiff.evaluation.reference import Reference
from ngdiff.evaluation.request import EvaluateRequest
from ngdiff.evaluation.result import Bootstrap, Figure
from ngdiff.evaluation.suites import Suite, SuiteData
from ngdiff.inference.evaluator import Evaluator
from ngdiff.system.processes import process_count

_WHERE = "--tasks"
_LEVEL_95 = 1.959963984540054


@dataclass(frozen=True)
class HarnessSettings:
    """How the harness asks.

    Args:
        num_fewshot: solved examples in front of each question; ``None`` for each task's own number.
        limit: most items of each task; ``None`` for all.
        batch_size: requests a forward pass.
        max_length: longest request in tokens; ``None`` for the model's own limit.
        chat_template: whether to ask through the tokenizer's chat template.
        include_path: a folder with further tasks (YAML).
        seed: for the choice of solved examples.
    """

    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 8
    max_length: int | None = None
    chat_template: bool = False
    include_path: Path | None = None
    seed: int = 0


def check_tasks(tasks: Sequence[str], include_path: Path | None = None) -> Any:
    """Look up tasks, groups, tags and patterns with ``*`` before any model is loaded.

    Returns:
        The harness's task manager.

    Raises:
        RequestError: where the harness is not installed, or has no task of a name.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        what = "the package lm-eval, which has the tasks, is not installed"
        raise RequestError(Fault("--suite lm-eval", what, "Run pip install 'ngdiff[lm-eval]'")) from None
    if include_path is not None and not include_path.is_dir():
        raise RequestError(Fault("--include-path", f"there is no folder {include_path}", "Check the path"))
    if not tasks:
        fix = "Give --tasks NAME,NAME such as wmdp,mmlu"
        raise RequestError(Fault(_WHERE, "no task is named", fix))
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise RequestError(
            [unknown_name(_WHERE, "task of lm-eval", task, manager.all_tasks) for task in unknown]
        )
    return manager


def run_tasks(
    model: Any, tokenizer: Any, tasks: Sequence[str], settings: HarnessSettings | None = None
) -> dict[str, Figure]:
    """Run tasks of the harness on a model.

    Args:
        model: a causal language model; its mode and the random states are restored.
        tokenizer: its tokenizer.
        tasks: names of tasks, groups or tags.
        settings: how to ask.

    Returns:
        ``TASK.METRIC`` to figure, in the harness's order. Intervals are 95%, normal, from the harness's own
        standard error; ``items`` are the per-item values where the harness has one a metric. Groups have no
        items. The note names the task's version, shots and direction.

    Raises:
        RequestError: see ``check_tasks``; and where a task's data cannot be had.
    """
    settings = settings or HarnessSettings()
    manager = check_tasks(tasks, settings.include_path)
    names = [name for task in tasks for name in manager.match_tasks([task])]
    with _left_as_it_was(model):
        results = _evaluate(model, tokenizer, list(dict.fromkeys(names)), manager, settings)
    return figures_of(results)


def _evaluate(
    model: Any, tokenizer: Any, names: list[str], manager: Any, settings: HarnessSettings
) -> Mapping[str, Any]:
    import datasets
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    inner = getattr(model, "module", model)  # DistributedDataParallel keeps the model there
    inner.eval()
    handed_over = HFLM(
        pretrained=inner,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=settings.batch_size,
        max_length=settings.max_length,
    )
    try:
        results: Mapping[str, Any] = lm_eval.simple_evaluate(
            model=handed_over,
            tasks=names,
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            task_manager=manager,
            apply_chat_template=settings.chat_template,
            bootstrap_iters=1000,
            random_seed=settings.seed,
            numpy_random_seed=settings.seed,
            torch_random_seed=settings.seed,
            fewshot_random_seed=settings.seed,
        )
    except (OSError, datasets.exceptions.DatasetsError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        what = f"the data of {', '.join(names)} could not be loaded ({first})"
        raise RequestError(Fault(_WHERE, what, "Check the connection, or the task's dataset_path")) from error
    return results


def figures_of(results: Mapping[str, Any]) -> dict[str, Figure]:
    """Turn what the harness returns into figures; see ``run_tasks``."""
    figures = {}
    for task, values in (results["results"] | results.get("groups", {})).items():
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, (int, float)) or not kind:
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            name = f"{task}.{metric}" if kind == "none" else f"{task}.{metric}.{kind}"
            items = _items(results.get("samples", {}).get(task, ()), metric, kind)
            note = _note(results, task, metric)
            figures[name] = Figure(f"lm-eval.{metric}", float(value), _interval(value, error), items, note)
    return figures


def _interval(value: float, error: object) -> tuple[float, float] | None:
    """Return the 95% interval from a standard error; the harness writes "N/A" where it has none."""
    if isinstance(error, bool) or not isinstance(error, (int, float)) or not math.isfinite(error):
        return None
    return value - _LEVEL_95 * error, value + _LEVEL_95 * error


def _items(samples: Sequence[Mapping[str, Any]], metric: str, kind: str) -> tuple[float | None, ...]:
    """Return a metric's value for each item in the order of the data; nothing where it is not one number."""
    mine = [sample for sample in samples if sample.get("filter", "none") == kind and metric in sample]
    values = [sample[metric] for sample in sorted(mine, key=lambda sample: sample["doc_id"])]
    if not all(isinstance(value, (int, float)) for value in values):
        return ()
    return tuple(float(value) for value in values)


def _note(results: Mapping[str, Any], task: str, metric: str) -> str:
    better = results.get("higher_is_better", {}).get(task, {}).get(metric)
    direction = {True: "higher is better", False: "lower is better"}.get(better, "no direction")
    version = results.get("versions", {}).get(task)
    parts = [f"task version {'unknown' if version is None else version}", direction]
    if task in results.get("n-shot", {}):
        parts.append(f"{results['n-shot'][task]} shots")
    if task in results.get("n-samples", {}):
        parts.append(f"{results['n-samples'][task]['effective']} items")
    return ", ".join(parts)


@contextmanager
def _left_as_it_was(model: Any) -> Iterator[None]:
    """Put back the model's mode and the random states, which the harness seeds."""
    training = model.training
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        model.train(training)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


# ---- The row of :mod:`ngdiff.evaluation.suites.harness` in the table of suites ----


def _read(request: EvaluateRequest) -> SuiteData:
    if process_count() > 1:
        what = "the suite lm-eval supports only one process"
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
