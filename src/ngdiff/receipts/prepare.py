"""unlearning request -> all that its receipt needs to know beforehand, or every fault in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ngdiff.data.benchmarks import Folders
from ngdiff.data.examples import Example, overlap_fault, to_examples
from ngdiff.data.sources import read_rows
from ngdiff.errors import Fault, RequestError
from ngdiff.models.loading import ModelSource
from ngdiff.receipts.chain import link_faults, read_chain
from ngdiff.receipts.data_key import read_data_key
from ngdiff.receipts.earlier import EarlierRequest, earlier_requests, match_files, record_of
from ngdiff.receipts.files import hash_model_files
from ngdiff.receipts.receipt import ReceiptPlan
from ngdiff.receipts.schema import Read
from ngdiff.receipts.signature import read_private_key

T = TypeVar("T")


def plan_receipt(
    source: ModelSource | None,
    *,
    earlier: Sequence[str] = (),
    sign: Path | None = None,
    data_key: Path | None = None,
    folders: Folders | None = None,
    retain: Sequence[Example] = (),
    faults: list[Fault],
) -> ReceiptPlan:
    """Read keys, the starting model's receipts and the forget sets of earlier requests.

    Args:
        source: the starting model; None where it was not found.
        earlier: sources of earlier forget sets.
        sign: file of the private key to sign with.
        data_key: file of the key that hides the data's hashes.
        folders: benchmarks to folders that hold their data.
        retain: the retain set, in which nothing forgotten earlier may stand; empty to let it.
        faults: what is wrong is added here.
    """

    def attempt(work: Callable[[], T], otherwise: T) -> T:
        try:
            return work()
        except RequestError as error:
            faults.extend(error.faults)
            return otherwise

    key = None if sign is None else attempt(lambda: read_private_key(sign), None)
    secret = None if data_key is None else attempt(lambda: read_data_key(data_key, "--set data_key"), None)
    chain: list[Read] = []
    requests: list[EarlierRequest] = []
    notes: list[str] = []
    record_sha256, files = None, None
    if source is not None and not faults:  # hashing a big model takes a while
        files = hash_model_files(source)
        chain = attempt(lambda: sound_chain(source, files or {}), [])
        record = None if chain or not source.is_local else record_of(Path(source.location))
        requests = attempt(lambda: earlier_requests(chain, record[0] if record else None), [])
        record_sha256 = record[1] if record else None
        if record:
            notes.append("the starting model has a record and no receipt: the chain of receipts begins here")
    parts: list[tuple[str, list[Example]]] = attempt(lambda: _read(earlier, folders), [])
    matched: dict[int, list[Example]] = {}
    if source is not None and not faults:
        matched = attempt(lambda: match_files(requests, parts, secret), {})
    for number, examples in matched.items():
        shared = overlap_fault(examples, retain)
        if shared is not None:
            what = f"request {number} made the model forget what it should learn here: {shared.what}"
            faults.append(Fault("--earlier", what, shared.mend))
    return ReceiptPlan(chain, record_sha256, files, requests, matched, key, secret, notes)


def _read(sources: Sequence[str], folders: Folders | None) -> list[tuple[str, list[Example]]]:
    where = "--earlier"
    return [(s, to_examples(read_rows(s, where=where, folders=folders), where)) for s in sources]


def sound_chain(source: ModelSource, now: Mapping[str, Any], where: str = "--model") -> list[Read]:
    """Read a model's receipts and see that a further one may be chained to them.

    Args:
        source: the model.
        now: size and SHA-256 of its files (:func:`ngdiff.receipts.files.hash_model_files`).
        where: the setting to name in errors.

    Raises:
        RequestError: a receipt was changed or is missing, or tells of other weights than are there.
    """
    if not source.is_local or source.gguf_file:
        return []
    folder = Path(source.location)
    mend = f"Look with 'ngdiff verify {folder}'; to begin a new chain, copy the model without receipt.json"
    try:
        chain = read_chain(folder)
    except OSError as error:
        raise RequestError(
            Fault(where, f"the receipt of {source.name!r} cannot be read: {error}", mend)
        ) from error
    wrong = [(receipt.name, fault) for receipt in chain for fault in receipt.faults]
    wrong = wrong or link_faults(chain)
    if chain and not wrong:
        files = chain[-1].content["files"]
        weights = [name for name in now if name.endswith(".safetensors")]
        what = "is not the file that receipt.json names"
        wrong = [(name, what) for name in weights if files.get(name) != now[name]]
    if wrong:
        faults = [Fault(where, f"{name} of {source.name!r} {what}", mend) for name, what in wrong]
        raise RequestError(faults)
    return chain
