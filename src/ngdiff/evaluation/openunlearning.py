"""result files of OpenUnlearning and of TOFU's first code -> one form of log, and references.

OpenUnlearning writes ``TOFU_EVAL.json`` and ``MUSE_EVAL.json``: metric to ``{"agg_value": number,
"value_by_index": {"0": {statistic: number or list}, ...}}``; membership attacks hold ``forget`` and
``holdout`` of that form. Beside it lies ``..._SUMMARY.json``: metric to number. TOFU's first code writes
``eval_log_aggregated.json``: part of the data to statistic to ``{"0": number or list, ...}``, without
aggregates. Source: github locuslab/open-unlearning, commit d3d7cf9; github locuslab/tofu, commit 8c49eee.

The same files are written, so that its tools and tables can read them. What is written is what this package
measured, by the definitions: OpenUnlearning's extraction strength gives 1/n where nothing is right, its truth
ratios add 1e-10 to p(right); these do not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ngdiff.errors import Fault, RequestError
from ngdiff.evaluation.reference import Reference
from ngdiff.evaluation.result import Figure
from ngdiff.system.output import finite, staged_folder
from ngdiff.system.untrusted import MOST_JSON, Unreadable, load_json, read_within

Values = NDArray[np.float64]

SPLITS = {40: "forget01", 200: "forget05", 400: "forget10"}
"""Number of questions to the part of TOFU that has so many."""

ATTACKS = {
    "mia_loss": "loss",
    "mia_zlib": "zlib",
    "mia_min_k": "min_k",
    "mia_min_k_plus_plus": "min_k_plus_plus",
    "mia_gradnorm": "gradient_norm",
    "mia_reference": "reference",
}
"""OpenUnlearning's names of membership attacks to ours."""

_COMMON = {
    "privleak": "privleak",
    "extraction_strength": "forget.extraction_strength",
    "exact_memorization": "forget.exact_memorisation",
    **{theirs: f"forget.membership.{ours}" for theirs, ours in ATTACKS.items()},
}
TOFU_FIGURES = _COMMON | {
    "forget_quality": "forget_quality",
    "model_utility": "model_utility",
    "forget_truth_ratio": "forget.truth_ratio",
    "forget_Q_A_Prob": "forget.probability",
    "forget_Q_A_ROUGE": "forget.rouge",
    "forget_Q_A_PARA_Prob": "forget.paraphrased_answer_probability",
    "forget_Q_A_PERT_Prob": "forget.perturbed_answer_probability",
    "retain_Q_A_Prob": "retain.probability",
    "retain_Q_A_ROUGE": "retain.rouge",
    "retain_Q_A_PARA_Prob": "retain.paraphrased_answer_probability",
    "retain_Q_A_PERT_Prob": "retain.perturbed_answer_probability",
    "retain_Truth_Ratio": "retain.truth_ratio",
    "ra_Q_A_Prob": "real_authors.raw_probability",
    "ra_Q_A_PERT_Prob": "real_authors.perturbed_answer_probability",
    "ra_Q_A_Prob_normalised": "real_authors.probability",
    "ra_Q_A_ROUGE": "real_authors.rouge",
    "ra_Truth_Ratio": "real_authors.truth_ratio",
    "wf_Q_A_Prob": "world_facts.raw_probability",
    "wf_Q_A_PERT_Prob": "world_facts.perturbed_answer_probability",
    "wf_Q_A_Prob_normalised": "world_facts.probability",
    "wf_Q_A_ROUGE": "world_facts.rouge",
    "wf_Truth_Ratio": "world_facts.truth_ratio",
}
"""OpenUnlearning's names of TOFU metrics to keys of figures here."""

MUSE_FIGURES = _COMMON | {
    "forget_verbmem_ROUGE": "forget.verbatim",
    "forget_knowmem_ROUGE": "forget.knowledge",
    "retain_knowmem_ROUGE": "retain.knowledge",
}
"""OpenUnlearning's names of MUSE metrics to keys of figures here."""

_FIRST_CODE = {
    "eval_log.json": "retain",
    "eval_log_forget.json": "forget",
    "eval_real_author_wo_options.json": "ra",
    "eval_real_world_wo_options.json": "wf",
}


@dataclass(frozen=True)
class Logged:
    """One metric of a log.

    Args:
        stated: the aggregate that the file states, or ``None``.
        items: statistic (``prob``, ``avg_loss``, ``score``, ``rougeL_recall``, ...) to its values by item,
            float64 of shape (items,) or (items, answers); of a membership attack ``forget`` and ``holdout``.
    """

    stated: float | None = None
    items: Mapping[str, Values] = field(default_factory=dict)


@dataclass(frozen=True)
class Log:
    """A result file of OpenUnlearning, or of TOFU's first code under OpenUnlearning's names.

    Args:
        name: the file.
        suite: ``tofu`` or ``muse``.
        metrics: OpenUnlearning's name of a metric to what the file has of it.
    """

    name: str
    suite: str
    metrics: Mapping[str, Logged]

    def values(self, metric: str, statistic: str) -> Values | None:
        """Return the per-item values of a metric, or ``None``."""
        return self.metrics[metric].items.get(statistic) if metric in self.metrics else None

    @property
    def forget_size(self) -> int | None:
        """Number of items of the forget set that have values, or ``None`` where no metric has any."""
        for metric in (
            "forget_truth_ratio",
            "forget_Q_A_PARA_Prob",
            "forget_Q_A_Prob",
            "extraction_strength",
        ):
            for values in self.metrics.get(metric, Logged()).items.values():
                return len(values)
        return None

    @property
    def split(self) -> str | None:
        """The part of TOFU that has so many questions, or ``None``."""
        return SPLITS.get(self.forget_size or 0) if self.suite == "tofu" else None


def read_log(path: Path, where: str = "--reference") -> Log:
    """Read a result file, or the one ``..._EVAL.json`` of a folder.

    Args:
        path: ``TOFU_EVAL.json``, ``MUSE_EVAL.json``, one of their summaries, ``eval_log_aggregated.json``, or
            a folder with one of them.
        where: the setting that named it, for faults.

    Raises:
        RequestError: for a file that is missing, truncated, foreign, or has values that are not finite.
    """
    path = _log_file(path, where)
    content = _parsed(path, where)
    faults: list[Fault] = []
    known = TOFU_FIGURES | MUSE_FIGURES
    if any(name in content for name in _FIRST_CODE):
        metrics = _first_code_metrics(content, f"{where} {path.name}", faults)
    else:
        found = {name: value for name, value in content.items() if name in known}
        metrics = {
            name: _logged(value, f"{where} {path.name}, {name}", faults) for name, value in found.items()
        }
    for name in set(ATTACKS) & set(metrics):
        stated = metrics[name].stated
        if stated is not None and not 0 <= stated <= 1:
            what = f"is {stated}, and an area under a ROC curve lies in [0, 1]"
            faults.append(Fault(f"{where} {path.name}, {name}", what, "Run that evaluation again"))
    if faults:
        raise RequestError(faults[:20])
    if not metrics:
        shown = ", ".join(map(repr, list(content)[:5])) or "nothing"
        what = f"{path.name} is not a result file of OpenUnlearning or TOFU (it has {shown})"
        fix = "Give a TOFU_EVAL.json, a MUSE_EVAL.json or an eval_log_aggregated.json"
        raise RequestError(Fault(where, what, fix))
    muse = set(metrics) & (set(MUSE_FIGURES) - set(TOFU_FIGURES)) or path.name.startswith("MUSE")
    return Log(str(path), "muse" if muse else "tofu", metrics)


def read_reference(path: Path, where: str = "--reference") -> Reference:
    """Read what a retrained model's log has to compare with; see ``read_log``."""
    return reference_of(read_log(path, where))


def reference_of(log: Log) -> Reference:
    """Return what other evaluations compare with, from the log of a retrained model."""
    names = MUSE_FIGURES if log.suite == "muse" else TOFU_FIGURES
    stated = {name: logged.stated for name, logged in log.metrics.items() if logged.stated is not None}
    return Reference(
        name=log.name,
        suite=log.suite,
        split=log.split,
        truth_ratios=tuple(map(float, forget_truth_ratios(log))),
        guarded_truth_ratios=tuple(map(float, _guarded_truth_ratios(log))),
        membership={ATTACKS[name]: value for name, value in stated.items() if name in ATTACKS},
        figures={names[name]: value for name, value in stated.items() if name in names},
    )


def forget_truth_ratios(log: Log) -> Values:
    """Return p(wrong)/p(right) of each item of the forget set, from the losses where the log has them.

    OpenUnlearning's own ratios have 1e-10 added to p(right), which a model that has unlearned far can reach;
    they are taken only where the losses are missing. Empty where both are.
    """
    right = log.values("forget_Q_A_PARA_Prob", "avg_loss")
    wrong = log.values("forget_Q_A_PERT_Prob", "avg_loss")
    if right is not None and wrong is not None and len(right) == len(wrong):
        ratios: Values = np.exp(np.clip(right - wrong.reshape(len(wrong), -1).mean(axis=1), -700, 700))
        return ratios
    scores = log.values("forget_truth_ratio", "score")
    return np.empty(0) if scores is None else scores


def _guarded_truth_ratios(log: Log) -> Values:
    scores = log.values("forget_truth_ratio", "score")
    return np.empty(0) if scores is None else scores


def _log_file(path: Path, where: str) -> Path:
    if path.is_dir():
        names = ("TOFU_EVAL.json", "MUSE_EVAL.json", "eval_log_aggregated.json")
        there = [path / name for name in names if (path / name).is_file()]
        if len(there) == 1:
            return there[0]
        count = "none" if not there else "several"
        raise RequestError(Fault(where, f"{path} has {count} of {', '.join(names)}", "Give the file itself"))
    return path


class _NotFinite:
    """Stands for NaN or an infinity in a file."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _parsed(path: Path, where: str) -> dict[str, Any]:
    try:
        content = load_json(read_within(path, MOST_JSON), parse_constant=_NotFinite)
    except Unreadable as error:
        raise RequestError(Fault(where, f"{path} {error.what}", "Download or compute it again")) from None
    if not isinstance(content, dict):
        what = f"{path.name} is not a result file: it holds a {type(content).__name__}, not metrics by name"
        raise RequestError(Fault(where, what, "Give a result file of OpenUnlearning or TOFU"))
    return content


def _logged(value: object, at: str, faults: list[Fault]) -> Logged:
    """Read one metric of an ``..._EVAL.json`` or of a summary."""
    if not isinstance(value, dict):
        return Logged(stated=_number(value, at, faults))
    stated = _number(value.get("agg_value"), f"{at}, agg_value", faults)
    if "value_by_index" in value:
        return Logged(stated, _by_statistic(value["value_by_index"], at, faults))
    items: dict[str, Values] = {}
    for part in ("forget", "holdout"):
        if isinstance(value.get(part), dict):
            columns = _by_statistic(value[part].get("value_by_index"), f"{at}, {part}", faults)
            items |= {part: columns["score"]} if "score" in columns else {}
    return Logged(stated, items)


def _first_code_metrics(content: dict[str, Any], at: str, faults: list[Fault]) -> dict[str, Logged]:
    """Read an ``eval_log_aggregated.json`` under OpenUnlearning's names."""
    names = {"avg_gt_loss": "Prob", "avg_paraphrased_loss": "PARA_Prob", "average_perturb_loss": "PERT_Prob"}
    metrics = {}
    for file, short in _FIRST_CODE.items():
        part = content.get(file)
        if not isinstance(part, dict):
            faults.append(Fault(at, f"lacks the part {file}", "Give the whole eval_log_aggregated.json"))
            continue
        for statistic, metric in names.items():
            values = _column(part.get(statistic), f"{at}, {file}, {statistic}", faults)
            items = {"avg_loss": values, "prob": np.exp(-values)}
            metrics[f"{short}_Q_A_{metric}"] = Logged(items=items)
        recall = _column(part.get("rougeL_recall"), f"{at}, {file}, rougeL_recall", faults)
        metrics[f"{short}_Q_A_ROUGE"] = Logged(items={"rougeL_recall": recall})
    return metrics


def _by_statistic(value: object, at: str, faults: list[Fault]) -> dict[str, Values]:
    """Turn {index: {statistic: value}} into statistic to values; texts are left out."""
    if not isinstance(value, dict) or not value or not all(isinstance(v, dict) for v in value.values()):
        faults.append(
            Fault(at, "has no values by item", "Give a whole file of an evaluation that ended well")
        )
        return {}
    first = next(iter(value.values()))
    numeric = [name for name, item in first.items() if not isinstance(item, str)]
    columns = {name: {index: row.get(name) for index, row in value.items()} for name in numeric}
    return {name: _column(column, f"{at}, {name}", faults) for name, column in columns.items()}


def _column(value: object, at: str, faults: list[Fault]) -> Values:
    """Turn {index: number or list of numbers} into an array in the order of the indices."""
    fix = "Give a whole file of an evaluation that ended well"
    if not isinstance(value, dict) or not value:
        faults.append(Fault(at, "is missing or empty", fix))
        return np.empty(0)
    try:
        rows = sorted((int(index), item) for index, item in value.items())
    except (TypeError, ValueError):
        faults.append(Fault(at, "has items whose index is not a number or occurs twice", fix))
        return np.empty(0)
    if missing := sorted(set(range(len(rows))) - {index for index, _ in rows}):
        faults.append(Fault(at, f"lacks item {missing[0]}", fix))
    for index, item in rows:
        numbers = item if isinstance(item, list) else [item]
        if bad := [n for n in numbers if not _is_finite(n)]:
            faults.append(Fault(at, f"has {repr(bad[0])[:40]} at item {index}", "Run that evaluation again"))
            return np.empty(0)
    try:
        return np.array([item for _, item in rows], dtype=np.float64)
    except ValueError:
        faults.append(Fault(at, "has lists of different lengths", fix))
        return np.empty(0)


def _number(value: object, at: str, faults: list[Fault]) -> float | None:
    if value is None:
        return None
    if not _is_finite(value):
        faults.append(Fault(at, f"is {repr(value)[:40]}, not a finite number", "Run that evaluation again"))
        return None
    return float(value)


def _is_finite(value: object) -> TypeGuard[float]:
    """Return whether a value is a number that a float holds; 1e999 parses as infinity."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -LARGEST <= value <= LARGEST


LARGEST = float(np.finfo(np.float64).max)


# ---- writing its files ----


_TRUTH_RATIOS = {
    "forget_truth_ratio": "forget",
    "retain_Truth_Ratio": "retain",
    "ra_Truth_Ratio": "real_authors",
    "wf_Truth_Ratio": "world_facts",
}


def as_log(
    suite: str,
    figures: Mapping[str, Figure],
    truth_ratios: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Lay figures out as OpenUnlearning's ``..._EVAL.json``, metrics in the order of their names.

    Args:
        suite: ``tofu`` or ``muse``.
        figures: key to figure; those that OpenUnlearning has no name for are left out, and so are those
            without a value.
        truth_ratios: ``forget``, ``retain``, ``real_authors``, ``world_facts`` to p(wrong)/p(right) of each
            item; other code compares with these. A truth ratio's own items are min(t, 1/t) or max(0, 1 - t),
            from which they cannot be had back.
    """
    log: dict[str, Any] = {}
    for name, key in (MUSE_FIGURES if suite == "muse" else TOFU_FIGURES).items():
        found = figures.get(key)
        if found is None or found.value is None:
            continue
        entry: dict[str, Any] = {"agg_value": found.value}
        if name in ATTACKS:
            entry["auc"] = found.value
        elif statistic := _statistic(name, suite):
            items: Sequence[float | None] = found.items
            if name in _TRUTH_RATIOS:
                items = (truth_ratios or {}).get(_TRUTH_RATIOS[name], ())
            if items:
                entry["value_by_index"] = {str(row): {statistic: item} for row, item in enumerate(items)}
        log[name] = entry
    return finite(dict(sorted(log.items()))) or {}


def _statistic(name: str, suite: str) -> str | None:
    """Return what OpenUnlearning calls the per-item value of a metric."""
    if name.endswith("_ROUGE"):
        return "rougeL_f1" if suite == "muse" else "rougeL_recall"
    if "_Prob" in name:
        return "prob"
    return "score" if name in {*_TRUTH_RATIOS, "extraction_strength", "exact_memorization"} else None


def write_log(
    folder: Path,
    suite: str,
    figures: Mapping[str, Figure],
    truth_ratios: Mapping[str, Sequence[float]] | None = None,
) -> tuple[Path, Path]:
    """Write ``TOFU_EVAL.json`` and ``TOFU_SUMMARY.json`` (or MUSE's) into a new folder, whole or not at all.

    Args:
        folder: the folder to make.
        suite: see ``as_log``.
        figures: see ``as_log``.
        truth_ratios: see ``as_log``.

    Returns:
        The two files.

    Raises:
        RunError: something lies in the folder already; the new one is kept beside it, and named.
    """
    log = as_log(suite, figures, truth_ratios)
    summary = {name: entry["agg_value"] for name, entry in log.items()}
    names = [f"{suite.upper()}_{kind}.json" for kind in ("EVAL", "SUMMARY")]
    with staged_folder(folder, overwrite=False) as staging:
        for name, content in zip(names, (log, summary), strict=True):
            (staging / name).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    return folder / names[0], folder / names[1]
