"""folder with a model and its receipt -> a finding for each claim: agrees, differs, or was not checked.

Nothing in the folder is trusted: names in a receipt are compared with the files that are there and never
opened, and whatever cannot be read is a finding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngdiff.data.examples import Example
from ngdiff.inference.teacher_forced import summarise_items
from ngdiff.models.loading import ModelSource
from ngdiff.outcome import is_hidden
from ngdiff.receipts.chain import link_faults, read_chain
from ngdiff.receipts.data_key import matches, rows_found
from ngdiff.receipts.hashes import NOT_HASHED, RECEIPT, hash_file, list_files
from ngdiff.receipts.receipt import DOES_NOT_PROVE, proves, statement
from ngdiff.receipts.schema import Read
from ngdiff.receipts.set_figures import MEASURES
from ngdiff.receipts.signature import INSTALL, available, holds, public_from_hex, public_hex
from ngdiff.receipts.starting import recomputed_weights_hash, starting_findings
from ngdiff.system.environment import code_hash
from ngdiff.system.output import ANSWERS, RECORD, REPORT, is_left_over
from ngdiff.system.untrusted import MOST_JSON, Unreadable, load_json, read_within

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

NEAR = {"rel_tol": 1e-9, "abs_tol": 1e-9}
KEPT_AT_HOME = frozenset({ANSWERS})
"""Files of a run that 'ngdiff push' leaves out, since they contain the text to forget."""
OF_THE_HUB = (".gitattributes", ".git/", ".cache/huggingface/")
"""Files that the hub and its client add to a pushed and downloaded model."""
_SHOWN = 300
_NO_RECORD = (Unreadable, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class Finding:
    """The finding for one claim.

    Args:
        what: the file, data set or part of the receipt concerned.
        agrees: None where it was not checked.
        text: what was found, in words.
    """

    what: str
    agrees: bool | None
    text: str


@dataclass(frozen=True)
class Evidence:
    """What an auditor has besides the folder.

    Args:
        data: examples by role (``forget``, ``retain``, ``holdout``).
        data_key: the key that hides the data's hashes.
        public_key: the key of the expected signer.
        starting_model: the model before it forgot.
        whole_chain: check every earlier receipt, not only the previous one.
    """

    data: Mapping[str, Sequence[Example]]
    data_key: bytes | None = None
    public_key: Ed25519PublicKey | None = None
    starting_model: ModelSource | None = None
    whole_chain: bool = False


def verify(folder: Path, evidence: Evidence) -> list[Finding]:
    """Compute every hash again and compare it with the receipt.

    Raises:
        OSError: the folder or its receipt cannot be read at all.
    """
    chain = read_chain(folder)
    receipt = chain[-1]
    found = [Finding(RECEIPT, False, fault) for fault in receipt.faults]
    if not receipt.content:
        return found
    if not found:
        found.append(Finding(RECEIPT, True, f"complete and in its canonical form (SHA-256 {receipt.sha256})"))
    found += wording_findings(receipt.content)
    found += signature_findings(receipt, evidence.public_key)
    files = file_findings(folder, receipt.content["files"])
    found += files
    found += record_findings(folder, receipt.content)
    unchanged = all(finding.agrees is not False for finding in files)
    found.append(weights_finding(folder, receipt.content["model"]["sha256_after"], unchanged))
    found += _code_findings(receipt.content)
    found += data_findings(receipt.content["data"], evidence)
    found += [
        Finding("starting model", agrees, text)
        for agrees, text in starting_findings(receipt.content, evidence.starting_model)
    ]
    found += chain_findings(folder, chain, evidence)
    return found


def wording_findings(receipt: Mapping[str, Any]) -> list[Finding]:
    """Compare the receipt's statement of what it proves with that of every receipt."""
    keyed = any(entry.get("keyed") for entry in receipt["data"].values())
    known = [proves(False), proves(True)] if keyed else [proves(False)]
    wrong = [] if receipt["proves"] in known else ["proves"]
    wrong += [] if receipt["does_not_prove"] == list(DOES_NOT_PROVE) else ["does_not_prove"]
    return [
        Finding(f"{part} in the receipt", False, "differs from the text of every receipt") for part in wrong
    ]


def signature_findings(receipt: Read, trusted: Ed25519PublicKey | None) -> list[Finding]:
    """Check the signature beside a receipt, and that it is the trusted signer's, if one is named."""
    signer, what = receipt.content["signer"], f"signature of {receipt.name}"
    if signer is None:
        if receipt.signature is not None:
            return [Finding(what, False, "exists, but the receipt says that it is not signed")]
        return [Finding(what, None if trusted is None else False, "is not signed")]
    if not available():
        return [Finding(what, None, f"was not checked: the package cryptography is missing ({INSTALL})")]
    try:
        key = public_from_hex(signer["public_key"])
    except ValueError:
        return [Finding(what, False, "the public key in the receipt is not valid")]
    if receipt.signature is None:
        return [Finding(what, False, "is missing")]
    if not holds(key, receipt.signature, receipt.text):
        return [Finding(what, False, "does not match this text and the key in the receipt")]
    if trusted is None:
        text = f"is valid for the key {signer['public_key']}; its owner was not checked (--public-key)"
        return [Finding(what, True, text)]
    if public_hex(trusted) != signer["public_key"]:
        return [Finding(what, False, "was made with a different key than the one given")]
    return [Finding(what, True, "was made with the key given")]


def file_findings(folder: Path, stated: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Compare every file of the folder with the receipt."""
    plain, strange = list_files(folder)
    found = [Finding(name, False, "is not a regular file") for name in strange]
    for name in sorted({*plain, *stated} - NOT_HASHED):
        if name not in plain:
            found += [] if name in strange else [_missing(name)]
        elif name not in stated:
            found.append(_added(folder, name))
        else:
            found.append(_file_finding(folder, name, stated[name]))
    return found


def _added(folder: Path, name: str) -> Finding:
    if name == REPORT:
        return Finding(name, *_page_finding(folder))
    if is_left_over(name, REPORT):
        return Finding(name, None, "was left behind by a killed command and can be deleted")
    harmless = name.startswith(OF_THE_HUB)
    return Finding(name, None if harmless else False, "is not in the receipt: it was added afterwards")


def _page_finding(folder: Path) -> tuple[bool | None, str]:
    """Return whether the page in a folder is the one made from its other files."""
    from ngdiff.report.page import is_page_of  # which reads receipts itself

    agrees = is_page_of(folder)
    if agrees:
        return True, "is the page that 'ngdiff report' makes of this folder"
    if agrees is False and not _lacks_answers(folder):
        why = "it says that this version made it from this folder alone, so it or the folder was changed"
        return False, f"is not the page that 'ngdiff report' makes of this folder: {why}"
    why = "it was made with other files or by another version, or forged; to rely on it, make it again"
    return None, f"is not in the receipt, nor the page that 'ngdiff report' makes of this folder: {why}"


def _lacks_answers(folder: Path) -> bool:
    """Return whether answers were left out, so that no page can be made with them."""
    return not (folder / ANSWERS).is_file()


def _missing(name: str) -> Finding:
    """Report a missing file: a fault, except for files that 'ngdiff push' leaves out."""
    if name not in KEPT_AT_HOME:
        return Finding(name, False, "is missing")
    return Finding(
        name, None, "is not here; 'ngdiff push' leaves such files out, and the model needs none of them"
    )


def _file_finding(folder: Path, name: str, stated: Mapping[str, Any]) -> Finding:
    try:
        now = hash_file(folder / name)
    except OSError as error:
        return Finding(name, False, f"cannot be read ({error.strerror})")
    if now == stated:
        return Finding(name, True, f"unchanged ({now['bytes']} bytes)")
    return Finding(name, False, f"was changed: SHA-256 {now['sha256']}, the receipt has {stated['sha256']}")


def record_findings(folder: Path, receipt: Mapping[str, Any]) -> list[Finding]:
    """Check the receipt's statements on the run, and the request's hash, against the record."""
    if not (folder / RECORD).is_file():
        return [Finding(RECORD, False, "is needed to check the receipt, but is not a file here")]
    try:
        record = load_json(read_within(folder / RECORD, MOST_JSON))
        said = _statement_as(receipt, record)
        followed = [] if is_hidden(record) else figures_follow(record)
    except _NO_RECORD as error:
        return [Finding(RECORD, False, f"is not a complete record of a run ({type(error).__name__})")]
    found = [
        Finding(f"{part} in the receipt", same(receipt[part], value), _agreement(receipt[part], value))
        for part, value in said.items()
    ]
    stated = record.get("request_sha256")
    if stated not in (None, said["request"]["sha256"]):
        text = "is not the hash of its settings, data and starting model"
        found.append(Finding(f"request_sha256 in {RECORD}", False, text))
    if is_hidden(record):
        text = "not checked: the values of single items were left out, since the data are hidden under a key"
        return [*found, Finding(f"figures in {RECORD}", None, text)]
    wrong = [f"{when} {name}" for when, name, follows in followed if not follows]
    text = f"do not follow from the items: {', '.join(wrong)}" if wrong else "follow from the items"
    found.append(Finding(f"figures in {RECORD}", not wrong, text))
    return found


def _statement_as(receipt: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record's statement, with the receipt's own list of settings that do not count."""
    listed = receipt["request"].get("not_counted")
    said = statement(record, listed)
    if listed is None:  # a receipt of an early version, which used the software's list
        del said["request"]["not_counted"]
    return said


def _agreement(stated: Any, found: Any) -> str:
    if same(stated, found):
        return f"follows from {RECORD}"
    return f"does not follow from {RECORD}: {difference(stated, found)}"


def same(stated: Any, found: Any) -> bool:
    """Compare JSON values; numbers within 1e-9, relative or absolute."""
    return difference(stated, found) is None


def difference(stated: Any, found: Any, at: str = "") -> str | None:
    """Return the first place where two JSON values differ."""
    if isinstance(stated, Mapping) and isinstance(found, Mapping):
        for key in sorted({*stated, *found}):
            if key not in stated or key not in found:
                return f"{at}{key} is in only one of them"
            if (differs := difference(stated[key], found[key], f"{at}{key}.")) is not None:
                return differs
        return None
    if isinstance(stated, list) and isinstance(found, list) and len(stated) == len(found):
        parts = (difference(a, b, f"{at}{n}.") for n, (a, b) in enumerate(zip(stated, found, strict=True)))
        return next((part for part in parts if part is not None), None)
    if _is_number(stated) and _is_number(found) and math.isclose(stated, found, **NEAR):
        return None
    if type(stated) is type(found) and stated == found:
        return None
    return f"{at.rstrip('.') or 'it'} is {_short(stated)} in the receipt and {_short(found)} by the record"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def figures_follow(record: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Say of each set of a record, before and after, whether its mean figures follow from its items.

    Those of :data:`MEASURES` do; a record may hold others, which a receipt does not state.
    """
    found = []
    for when in ("before", "after"):
        for name, columns in record[when]["items"].items():
            stated = {key: value for key, value in record[when][name].items() if key in MEASURES}
            found.append((when, name, same(stated, summarise_items(columns))))
    return found


def weights_finding(folder: Path, stated: str, unchanged: bool) -> Finding:
    """Compute the hash of the model's weights again."""
    what = "weights"
    found = recomputed_weights_hash(folder, stated, unchanged)
    if found is None:
        return Finding(what, None, "not computed: the hash of an adapter covers base and adapter together")
    if found == stated:
        return Finding(what, True, f"have the SHA-256 of the receipt ({found})")
    return Finding(what, False, f"have the SHA-256 {found}, the receipt has {stated}")


def _code_findings(receipt: Mapping[str, Any]) -> list[Finding]:
    mine, its = code_hash(), receipt["code"]["sha256"]
    text = "the same software as this one" if mine == its else f"differs from this one ({its})"
    return [Finding("software that ran", None, text)]


def data_findings(stated: Mapping[str, Mapping[str, Any]], evidence: Evidence) -> list[Finding]:
    """Compare the data sets given with the hashes in the receipt."""
    found = []
    for role in sorted({*stated, *evidence.data}):
        what = f"{role} data"
        if role not in evidence.data:
            found.append(Finding(what, None, f"not checked: --{role} was not given"))
        elif role not in stated:
            found.append(Finding(what, False, "the receipt has none"))
        else:
            found.append(_set_finding(what, stated[role], evidence.data[role], evidence.data_key))
    return found


def _set_finding(
    what: str, stated: Mapping[str, Any], examples: Sequence[Example], key: bytes | None
) -> Finding:
    agrees = matches(stated, examples, key)
    if agrees is None:
        return Finding(what, None, "its hash was made with a key: give it with --data-key")
    if agrees:
        return Finding(what, True, f"the {len(examples)} examples of the receipt")
    text = f"is not the set used: {stated['examples']} examples in the receipt, {len(examples)} given"
    if key is not None and stated.get("rows"):
        places = rows_found(stated, examples, key)
        known = [str(place + 1) for place in places if place is not None]
        if known and len(known) == len(examples):
            rows = "row" if len(known) == 1 else "rows"
            return Finding(
                what, True, f"part of the set used: {rows} {', '.join(known)} of {stated['examples']}"
            )
        text += f"; {len(known)} of these are in it"
    return Finding(what, False, text)


def chain_findings(folder: Path, chain: Sequence[Read], evidence: Evidence) -> list[Finding]:
    """Check the chain to earlier receipts: the last one, or all of them."""
    before = chain[:-1]
    if not before:
        previous = chain[-1].content["previous"]
        text = "a record without a receipt" if previous else "the first request"
        return [Finding("receipts before", None, f"none: this is {'chained to ' * bool(previous)}{text}")]
    looked = before if evidence.whole_chain else before[-1:]
    names = {receipt.name for receipt in (*looked, chain[-1])}
    found = [Finding(r.name, False, fault) for r in looked for fault in r.faults]
    found += [Finding(name, False, text) for name, text in link_faults(chain) if name in names]
    if evidence.whole_chain:
        for receipt in looked:
            found += signature_findings(receipt, evidence.public_key) if receipt.content else []
    if not any(finding.agrees is False for finding in found):
        text = f"the {len(looked)} before it match" if evidence.whole_chain else "the one before it fits"
        rest = len(before) - len(looked)
        text += f"; {rest} more were not checked (--chain)" if rest else ""
        found.append(Finding("receipts before", True, text))
    return found
