"""unlearning request, record and files of a run -> receipt.json, signed where a key is given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ngdiff.data.benchmarks import Folders
from ngdiff.data.examples import Example, overlap_fault, to_examples
from ngdiff.data.sources import read_rows
from ngdiff.errors import Fault, Faults, RequestError
from ngdiff.evaluation.result import Bootstrap
from ngdiff.models.loading import ModelSource
from ngdiff.outcome import is_hidden
from ngdiff.receipts.chain import copy_chain, link_faults, read_chain
from ngdiff.receipts.data_key import read_data_key
from ngdiff.receipts.earlier import EarlierRequest, earlier_requests, looked_at_again, match_files, record_of
from ngdiff.receipts.hashes import RECEIPT, SIGNATURE, hash_files, hash_model_files, sealed
from ngdiff.receipts.schema import FORMAT, Read
from ngdiff.receipts.set_figures import figures_of_sets
from ngdiff.receipts.signature import ALGORITHM, public_hex, read_private_key
from ngdiff.record import RunRecord
from ngdiff.settings.identity import NOT_COUNTED, request_hash
from ngdiff.system.environment import code_hash
from ngdiff.system.output import RECORD, staged_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

LEVEL = 0.95
IN_MEMORY = (
    "the starting model was given as a loaded model: the SHA-256 of its weights is stated, its files and the "
    "receipts of earlier requests are not"
)
PROVES = (
    "The files named here, under their SHA-256, are those that stood beside it when it was written.",
    "The software named here states that it ran the request with these settings, on data and on a starting "
    "model with these hashes, and that it measured these figures. Whoever has data, starting model and "
    "software can run it again and compare.",
    "The figures follow from the values of the single items in record.json; 'ngdiff verify' recomputes them.",
    "A chained receipt cannot be changed or left out without changing every receipt after it.",
    "A signature shows that the holder of the private key signed exactly this text.",
)
HIDDEN_ITEMS = (
    "The figures are those of record.json, which leaves out the values of single items, since the data are "
    "hidden under a key: they cannot be recomputed."
)
DOES_NOT_PROVE = (
    "That the model has forgotten: only what was run, and what this software measured by the tests named "
    "here. Other questions, languages and attacks, or further training, may still bring things out.",
    "That copies of the starting model, of its training data or of earlier checkpoints were deleted.",
    "That the model in use anywhere is this one: compare the SHA-256 of its files.",
    "That the figures were measured and not made up: only somebody with the data can measure them again.",
    "When it was done: the time is that of the machine's own clock.",
    "Without a signature, a later receipt or a copy kept elsewhere: that nobody wrote a new one.",
)


@dataclass(frozen=True)
class ReceiptPlan:
    """What a receipt needs to know before its run.

    Args:
        chain: receipts of the starting model, oldest first.
        previous_record: SHA-256 of the starting model's record, where it has one and no receipt.
        starting_files: size and SHA-256 of the starting model's files, where they are local.
        requests: what the starting model has been through.
        earlier: forget sets of earlier requests, by number, as far as their files were given.
        key: to sign with.
        data_key: to hide the data's hashes with.
        notes: for the record.
    """

    chain: Sequence[Read] = ()
    previous_record: str | None = None
    starting_files: Mapping[str, Any] | None = None
    requests: Sequence[EarlierRequest] = ()
    earlier: Mapping[int, list[Example]] = field(default_factory=dict)
    key: Ed25519PrivateKey | None = None
    data_key: bytes | None = None
    notes: Sequence[str] = ()


def statement(record: Mapping[str, Any], not_counted: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the part of a receipt that follows from ``record.json``.

    Args:
        record: of the run.
        not_counted: the settings that the request's hash leaves out, as the receipt itself lists them.

    Raises:
        KeyError, TypeError, ValueError: it is not a complete record of an unlearning run.
    """
    model, settings, bootstrap = dict(record["model"]), dict(record["settings"]), Bootstrap()
    began = model["sha256_before"] or model["sha256_before_quantised"]
    hashes = {role: said["sha256"] for role, said in record["data"].items()}
    left_out = sorted(NOT_COUNTED if not_counted is None else not_counted)
    return {
        "time": record["finished"],
        "request": {
            "sha256": request_hash(settings, hashes, began, left_out),
            "settings": settings,
            "not_counted": left_out,
        },
        "data": record["data"],
        "model": model,
        "versions": record["versions"],
        "stop": record["stop"],
        "figures": {
            "level": LEVEL,
            "resamples": bootstrap.resamples,
            "seed": bootstrap.seed,
            "before": figures_of_sets(record["before"]),
            "after": figures_of_sets(record["after"]),
        },
        "earlier": record["earlier"],
    }


def complete_record(record: RunRecord, plan: ReceiptPlan) -> None:
    """Add the time, and the state of earlier requests, to the record of a finished run."""
    record.finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record.earlier, notes = looked_at_again(plan.requests, record.after)
    for note in (*plan.notes, *notes):
        record.note(note)


def write_receipt(folder: Path, plan: ReceiptPlan) -> None:
    """Write the receipt of a run, whose folder is otherwise complete; the record is read from there."""
    copy_chain(plan.chain, folder)
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    said = statement(record)
    versions = said["versions"]
    content = {
        "kind": "receipt",
        "format": FORMAT,
        **said,
        "starting_files": plan.starting_files,
        "files": hash_files(folder),
        "code": {"version": versions["ngdiff"], "commit": versions.get("git"), "sha256": code_hash()},
        "previous": _previous(plan),
        "signer": None
        if plan.key is None
        else {"algorithm": ALGORITHM, "public_key": public_hex(plan.key.public_key())},
        "proves": proves(is_hidden(record)),
        "does_not_prove": list(DOES_NOT_PROVE),
    }
    text = sealed(content)
    with staged_file(folder / RECEIPT) as staging:
        staging.write_bytes(text)
    if plan.key is not None:
        with staged_file(folder / SIGNATURE) as staging:
            staging.write_bytes(plan.key.sign(text))


def proves(without_items: bool) -> list[str]:
    """Return what the receipt of a run says that it proves.

    Args:
        without_items: whether the record leaves out the values of single items.
    """
    return [HIDDEN_ITEMS if without_items and text is PROVES[2] else text for text in PROVES]


def _previous(plan: ReceiptPlan) -> dict[str, Any] | None:
    if plan.chain:
        return {"sha256": plan.chain[-1].sha256, "record_sha256": None, "count": len(plan.chain)}
    if plan.previous_record is not None:
        return {"sha256": None, "record_sha256": plan.previous_record, "count": 0}
    return None


# ---- unlearning request -> what its receipt needs to know in advance, or every fault in it ----


T = TypeVar("T")


def plan_receipt(
    source: ModelSource | None,
    *,
    earlier: Sequence[str] = (),
    sign: Path | None = None,
    data_key: Path | None = None,
    folders: Folders | None = None,
    retain: Sequence[Example] = (),
    in_memory: bool = False,
    faults: Faults,
) -> ReceiptPlan:
    """Read keys, the starting model's receipts and the forget sets of earlier requests.

    Args:
        source: the starting model; None where it was not found.
        earlier: sources of earlier forget sets.
        sign: file of the private key to sign with.
        data_key: file of the key that hides the data's hashes.
        folders: benchmarks to folders that hold their data.
        retain: the retain set, which may not contain anything forgotten earlier; empty to allow that.
        in_memory: the starting model was given loaded, so it has no files to hash.
        faults: of the whole request.
    """

    attempt = faults.attempt
    key = None if sign is None else attempt(lambda: read_private_key(sign), None)
    secret = None if data_key is None else attempt(lambda: read_data_key(data_key, "--set data_key"), None)
    chain: list[Read] = []
    requests: list[EarlierRequest] = []
    notes: list[str] = []
    record_sha256, files = None, None
    if in_memory:
        notes.append(IN_MEMORY)
    elif source is not None and not faults:  # hashing a big model takes a while
        files = hash_model_files(source)
        chain = attempt(lambda: sound_chain(source, files or {}), [])
        record = None if chain or not source.is_local else record_of(Path(source.location))
        requests = attempt(lambda: earlier_requests(chain, record[0] if record else None), [])
        record_sha256 = record[1] if record else None
        if record:
            notes.append("the starting model has a record but no receipt: the chain of receipts begins here")
    parts: list[tuple[str, list[Example]]] = attempt(lambda: _read(earlier, folders), [])
    matched: dict[int, list[Example]] = {}
    if source is not None and not faults:
        matched = attempt(lambda: match_files(requests, parts, secret), {})
    for number, examples in matched.items():
        shared = overlap_fault(examples, retain)
        if shared is not None:
            what = f"request {number} made the model forget what it should learn here: {shared.what}"
            faults.append(Fault("--earlier", what, shared.fix))
    return ReceiptPlan(chain, record_sha256, files, requests, matched, key, secret, notes)


def _read(sources: Sequence[str], folders: Folders | None) -> list[tuple[str, list[Example]]]:
    where = "--earlier"
    return [(s, to_examples(read_rows(s, where=where, folders=folders), where)) for s in sources]


def sound_chain(source: ModelSource, now: Mapping[str, Any], where: str = "--model") -> list[Read]:
    """Read a model's receipts and check that another one may be chained to them.

    Args:
        source: the model.
        now: size and SHA-256 of its files (:func:`ngdiff.receipts.hashes.hash_model_files`).
        where: the setting to name in errors.

    Raises:
        RequestError: a receipt was changed or is missing, or states other weights than the model's.
    """
    if not source.is_local or source.gguf_file:
        return []
    folder = Path(source.location)
    fix = f"Check with 'ngdiff verify {folder}'; to begin a new chain, copy the model without receipt.json"
    try:
        chain = read_chain(folder)
    except OSError as error:
        raise RequestError(
            Fault(where, f"the receipt of {source.name!r} cannot be read: {error}", fix)
        ) from error
    wrong = [(receipt.name, fault) for receipt in chain for fault in receipt.faults]
    wrong = wrong or link_faults(chain)
    if chain and not wrong:
        files = chain[-1].content["files"]
        weights = [name for name in now if name.endswith(".safetensors")]
        what = "is not the file that receipt.json names"
        wrong = [(name, what) for name in weights if files.get(name) != now[name]]
    if wrong:
        faults = [Fault(where, f"{name} of {source.name!r} {what}", fix) for name, what in wrong]
        raise RequestError(faults)
    return chain
