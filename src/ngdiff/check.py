"""a run's folder -> its evaluations, its audit and its report in one folder beside it.

Data and starting model are read from the run's record, so nothing has to be named again. Each part is a file,
which is kept as long as it is of the same models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ngdiff.audits.audit import audit
from ngdiff.audits.audit import prepare as prepare_audit
from ngdiff.audits.audit_request import AuditRequest
from ngdiff.data.benchmarks import Folders
from ngdiff.errors import Fault, RequestError
from ngdiff.evaluation.evaluate import evaluate
from ngdiff.evaluation.evaluate import prepare as prepare_evaluation
from ngdiff.evaluation.request import EvaluateRequest
from ngdiff.evaluation.result import is_result
from ngdiff.models.model_names import name_fault
from ngdiff.report.cards import Verdict
from ngdiff.report.page import write_report
from ngdiff.report.run_files import CHECK, Given, Run, dig, is_audit, read_json, read_record, read_run
from ngdiff.report.verdict import judge
from ngdiff.system.output import RECORD

OWN, TARGET, RETRAINED, AUDIT, PAGE = (
    "eval.json",
    "target.json",
    "retrained.json",
    "audit.json",
    "report.html",
)
TOFU_SPLITS = frozenset(f"tofu:forget{share}" for share in ("01", "05", "10"))


@dataclass(frozen=True)
class CheckRequest:
    """What ``ngdiff check`` needs to know.

    Args:
        out: folder made by ``ngdiff unlearn``.
        reference: the retrained model, where there is one.
        holdout: text of the forget set's kind that the model never saw; empty for the run's own.
        target: the model before unlearning; ``None`` for the one that the record names.
        audits: names of audits; empty for all.
        folders: benchmarks, such as ``tofu``, to folders that hold their data.
        generate: also let the models answer.
        batch_size: sequences a forward pass.
    """

    out: Path
    reference: str | None = None
    holdout: tuple[str, ...] = ()
    target: str | None = None
    audits: tuple[str, ...] = ()
    folders: Folders = field(default_factory=dict)
    generate: bool = True
    batch_size: int = 8

    @property
    def folder(self) -> Path:
        """Folder of the evidence: beside the run's folder, which its receipt covers."""
        return Path(f"{self.out}{CHECK}")


@dataclass(frozen=True)
class Checked:
    """The evidence on one run.

    Args:
        verdict: the report's first screen.
        report: the page.
        run: all that the verdict was computed from.
    """

    verdict: Verdict
    report: Path
    run: Run


def check(request: CheckRequest, tell: Callable[[str], None] = lambda _: None) -> Checked:
    """Evaluate, audit and report; what already exists is not made again.

    Args:
        request: which run, and what to compare it with.
        tell: called with the name of each part before it is made.

    Raises:
        RequestError: something is wrong with the request, the record or the data it names; nothing was run.
        EvaluationError: a model gives an item no finite likelihood.
    """
    record = read_record(request.out / RECORD, "OUT")
    evaluations = [part for part in _evaluations(request, record) if not _is_made(part.output, record)]
    audits = [part for part in [_audit(request, record)] if not _is_made(part.output, record)]
    faults = [fault for part in evaluations for fault in _faults(prepare_evaluation, part)]
    faults += [fault for part in audits for fault in _faults(prepare_audit, part)]
    if faults:
        raise RequestError(list(dict.fromkeys(faults)))
    request.folder.mkdir(parents=True, exist_ok=True)
    for evaluation in evaluations:
        tell(f"Evaluating {evaluation.model}")
        evaluate(evaluation)
    for audited in audits:
        tell(f"Auditing {audited.model}")
        audit(audited)
    given = Given(*(_existing(request.folder / name) for name in (OWN, RETRAINED, TARGET, AUDIT)))
    page = write_report(request.out, request.folder / PAGE, given)
    run = read_run(request.out, given)
    return Checked(judge(run), page, run)


def _is_made(path: Path, record: Mapping[str, Any]) -> bool:
    """Return whether a part exists, is intact, and is of the weights that the record names."""
    if not (is_result(path) or is_audit(path)):
        return False
    try:
        models = dig(read_json(path, "OUT"), "provenance")
    except RequestError:
        return False
    measured = {
        OWN: (dig(models, "model", "sha256"), "sha256_after"),
        TARGET: (dig(models, "model", "sha256"), "sha256_before"),
        AUDIT: (dig(models, "models", "audited", "sha256"), "sha256_after"),
    }
    found, expected = measured.get(path.name, (None, ""))
    wanted = dig(record, "model", expected)
    return not found or not wanted or found == wanted


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _faults(prepare: Callable[[Any], Any], part: Any) -> Sequence[Fault]:
    """Return the faults of a part; a reference that is about to be evaluated is not missing."""
    try:
        prepare(part)
    except RequestError as error:
        return [fault for fault in error.faults if not _made_on_the_way(fault, part)]
    return []


def _made_on_the_way(fault: Fault, part: Any) -> bool:
    path = Path(str(getattr(part, "reference", None)))
    return fault.where == "--reference" and path.name == RETRAINED and not path.exists()


def _evaluations(request: CheckRequest, record: Mapping[str, Any]) -> list[EvaluateRequest]:
    """Return the evaluations to make, in order: the retrained model's is what the others compare with."""
    common = _of_the_record(request, record)
    found = []
    reference = None
    if request.reference is not None:
        reference = str(request.folder / RETRAINED)
        found.append(EvaluateRequest(model=request.reference, output=Path(reference), **common))
    for model, name in ((_target(request, record), TARGET), (str(request.out), OWN)):
        found.append(
            EvaluateRequest(model=model, output=request.folder / name, reference=reference, **common)
        )
    return found


def _audit(request: CheckRequest, record: Mapping[str, Any]) -> AuditRequest:
    common = _of_the_record(request, record)
    return AuditRequest(
        model=str(request.out),
        output=request.folder / AUDIT,
        target=_target(request, record),
        reference=request.reference,
        audits=request.audits,
        generate=request.generate,
        **common,
    )


def _target(request: CheckRequest, record: Mapping[str, Any]) -> str:
    name = request.target or dig(record, "settings", "model")
    if not isinstance(name, str) or not name:
        what = f"{request.out / RECORD} does not name the model before unlearning"
        raise RequestError(Fault("--target", what, "Give it"))
    if request.target is None and name_fault(name) is not None:
        what = f"{request.out / RECORD} calls the model before unlearning {name!r}, which is not there"
        raise RequestError(Fault("--target", what, "Give that model"))
    return name


def _of_the_record(request: CheckRequest, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data and settings that evaluations and audit share.

    Raises:
        RequestError: the record does not name the data.
    """
    settings = dig(record, "settings") or {}
    sources = {name: _sources(dig(settings, name)) for name in ("forget", "retain", "holdout")}
    if not sources["forget"] or not sources["retain"]:
        what = f"{request.out / RECORD} does not name the data that were forgotten and kept"
        raise RequestError(Fault("OUT", what, "Give a folder made by ngdiff unlearn"))
    shared = {"folders": request.folders, "batch_size": request.batch_size, "overwrite": True}
    holdout = request.holdout or sources["holdout"]
    if len(sources["forget"]) == 1 and sources["forget"][0] in TOFU_SPLITS:
        split = sources["forget"][0].removeprefix("tofu:")
        return {"suite": "tofu", "forget": (split,), "holdout": holdout, **shared}
    length = dig(settings, "max_length")
    length = length if isinstance(length, int) and not isinstance(length, bool) and length > 0 else 512
    own = {"suite": "own", "forget": sources["forget"], "retain": sources["retain"], "holdout": holdout}
    return {**own, **shared, "max_length": length}


def _sources(value: Any) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list | tuple) else ()
