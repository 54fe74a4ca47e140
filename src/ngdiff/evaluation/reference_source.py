"""what --reference names -> a retrained model's evaluation, or the model that is to be evaluated first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ngdiff.data.examples import data_hash
from ngdiff.errors import Fault, Faults, RequestError
from ngdiff.evaluation.openunlearning import read_reference
from ngdiff.evaluation.reference import Reference, reference_from_result
from ngdiff.evaluation.result import is_result, read_result
from ngdiff.evaluation.suites import SuiteData
from ngdiff.requested import FoundModel, find_model

_WHERE = "--reference"
OWN_FILE = "eval.json"


@dataclass(frozen=True)
class ReferenceSource:
    """Where the figures of the retrained model come from; one of the two is there.

    Args:
        read: its evaluation, read from a file.
        model: the model itself, and its tokenizer.
    """

    read: Reference | None = None
    model: FoundModel | None = None


def resolve_reference(
    name: str, suite: str, data: SuiteData | None, trust_remote_code: bool = False
) -> ReferenceSource:
    """Find out what a reference is, and check an evaluation against the data.

    Args:
        name: an ``eval.json`` or a log of OpenUnlearning or TOFU, a folder with one, or a model.
        suite: that is to be run.
        data: that it is to be run on, or ``None`` where that could not be read.
        trust_remote_code: whether Python code that comes with a model may be run.

    Raises:
        RequestError: there is no such thing, or it is of another suite, split, size or data.
    """
    path = Path(name).expanduser()
    is_model = any((path / file).is_file() for file in ("config.json", "adapter_config.json"))
    if path.suffix == ".json" and not path.exists():
        fix = "Give the retrained model, its eval.json, or a log of OpenUnlearning"
        raise RequestError(Fault(_WHERE, f"no such file: {path}", fix))
    if not path.exists() or is_model:
        faults = Faults()
        model = find_model(name, faults, _WHERE, trust_remote_code)
        faults.raise_any()
        return ReferenceSource(model=model)
    if path.is_dir() and (path / OWN_FILE).is_file():
        path = path / OWN_FILE
    if is_result(path):
        found = reference_from_result(read_result(path, _WHERE), name)
    else:
        found = read_reference(path, _WHERE)
    if data is not None:
        check_reference(found, suite, data)
    return ReferenceSource(read=found)


def check_reference(found: Reference, suite: str, data: SuiteData) -> None:
    """Refuse an evaluation that is not of the same data.

    Raises:
        RequestError: it is of another suite, split, size or rows, or lacks the truth ratios.
    """
    fix = "Give the retrained model itself, or its evaluation on the same data"
    if found.suite != suite:
        what = f"{found.name} is an evaluation by the suite {found.suite!r}, not {suite!r}"
        raise RequestError(Fault(_WHERE, what, fix))
    if suite == "muse" and "min_k" not in found.membership:
        what = f"{found.name} has no AUC of the membership attack min_k, from which PrivLeak is computed"
        raise RequestError(Fault(_WHERE, what, fix))
    if "forget" not in data.sets:
        return
    forget = data.sets["forget"]
    if suite == "tofu" or found.truth_ratios:
        found.forget_truth_ratios(len(forget), data.split)
    if found.forget_sha256 is not None and found.forget_sha256 != data_hash(forget):
        what = f"{found.name} was made on other rows than those of this forget set"
        raise RequestError(Fault(_WHERE, what, fix))
