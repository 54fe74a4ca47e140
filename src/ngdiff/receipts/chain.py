"""folder of a model -> the receipts of all requests that made it, oldest first.

``receipt.json`` is the newest. Exact copies of the earlier ones are in ``receipts/``,
numbered from 001; each receipt names the SHA-256 of the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ngdiff.receipts.hashes import EARLIER, RECEIPT, SIGNATURE
from ngdiff.receipts.schema import Read, read_receipt


def earlier_name(number: int) -> str:
    """Return the path of an earlier receipt's copy in the folder of a later one."""
    return f"{EARLIER}/{number:03d}.json"


def read_chain(folder: Path) -> list[Read]:
    """Read ``receipt.json`` and the copies before it, oldest first; empty where there is no receipt.

    A copy that is missing is a receipt without content, with a fault that says so.

    Raises:
        OSError: a file cannot be read.
    """
    newest = folder / RECEIPT
    if not newest.is_file():
        return []
    last = read_receipt(newest, RECEIPT, folder / SIGNATURE)
    previous = last.content.get("previous")
    count = previous["count"] if previous and previous["sha256"] else 0
    uncounted = _uncounted(folder, count)
    if uncounted and last.content:
        fault = f"counts {count} receipts before it, but {', '.join(uncounted)} is there too"
        last = replace(last, faults=(*last.faults, fault))
    return [*_copies(folder, min(count, _most(folder))), last]


def _uncounted(folder: Path, count: int) -> list[str]:
    """List copies of receipts that the newest receipt does not count."""
    counted = {earlier_name(number) for number in range(1, min(count, _most(folder)) + 1)}
    copies = sorted(f"{EARLIER}/{path.name}" for path in (folder / EARLIER).glob("*.json"))
    return [name for name in copies if name not in counted]


def _most(folder: Path) -> int:
    """Return a bound on the number of receipts: one more than the files, so that a lost one is reported."""
    place = folder / EARLIER
    return 1 + (sum(1 for _ in place.iterdir()) if place.is_dir() else 0)


def _copies(folder: Path, count: int) -> list[Read]:
    found = []
    for number in range(1, count + 1):
        name = earlier_name(number)
        path = folder / name
        if path.is_file():
            found.append(read_receipt(path, name, path.with_suffix(".sig")))
        else:
            found.append(Read(name, b"", {}, ("is missing",)))
    return found


def link_faults(chain: Sequence[Read]) -> list[tuple[str, str]]:
    """Return mismatches between consecutive receipts, as (file, what)."""
    faults = []
    for place, receipt in enumerate(chain):
        if not receipt.content:
            continue
        previous = receipt.content["previous"]
        count = previous["count"] if previous and previous["sha256"] else 0
        if count != place:
            faults.append((receipt.name, f"counts {count} receipts before it, but there are {place}"))
        if place == 0 or not chain[place - 1].text:
            continue
        before = chain[place - 1]
        if previous is None or previous["sha256"] != before.sha256:
            faults.append((before.name, f"is not the receipt that {receipt.name} was chained to"))
        elif before.content and not _continues(before, receipt):
            what = f"names another starting model than the one that {before.name} produced"
            faults.append((receipt.name, what))
    return faults


def _continues(before: Read, after: Read) -> bool:
    """Return whether a run began with the weights that the receipt before it states."""
    began, left = after.content["starting_files"], before.content["files"]
    if after.content["model"]["sha256_before"] == before.content["model"]["sha256_after"]:
        return True
    weights = [name for name in left if name.endswith(".safetensors") and "/" not in name]
    return began is not None and bool(weights) and all(began.get(name) == left[name] for name in weights)


def copy_chain(chain: Sequence[Read], folder: Path) -> None:
    """Copy the receipts of a starting model to the folder of the model made from it."""
    if chain:
        (folder / EARLIER).mkdir()
    for number, receipt in enumerate(chain, start=1):
        path = folder / earlier_name(number)
        path.write_bytes(receipt.text)
        if receipt.signature is not None:
            path.with_suffix(".sig").write_bytes(receipt.signature)
