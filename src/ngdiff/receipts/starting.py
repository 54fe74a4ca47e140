"""receipt and an auditor's copy of the starting model -> whether they match; hash of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ngdiff.errors import RequestError
from ngdiff.models.loading import ModelSource, load_model, resolve_model
from ngdiff.receipts.chain import read_chain
from ngdiff.receipts.earlier import record_of
from ngdiff.receipts.hashes import RECEIPT, hash_model_files
from ngdiff.system.environment import update_with, weights_hash
from ngdiff.system.output import RECORD

UNREADABLE = "unreadable"


def recomputed_weights_hash(folder: Path, stated: str, unchanged: bool) -> str | None:
    """Return :func:`ngdiff.system.environment.weights_hash` of the model in a folder.

    For most models the names in the files are those of the parameters, and no model is built. Where they
    differ, the model is loaded, but only if its files are those of the receipt.

    Args:
        folder: the model.
        stated: the hash that it should have.
        unchanged: whether every file is the one in the receipt.

    Returns:
        The hash; :data:`UNREADABLE`; None for an adapter, whose hash is that of adapter and base together.
    """
    if (folder / "adapter_config.json").is_file():
        return None
    try:
        found = _hash_of_files(folder)
        if found == stated or not unchanged:
            return found
        return weights_hash(load_model(resolve_model(str(folder))))
    except (RequestError, SafetensorError, OSError):
        return UNREADABLE


def _hash_of_files(folder: Path) -> str:
    digest = hashlib.sha256()
    with ExitStack() as stack:
        places: dict[str, Any] = {}
        for file in sorted(folder.glob("*.safetensors")):
            if not file.is_file():  # a pipe would block its reader forever
                return UNREADABLE
            tensors = stack.enter_context(safe_open(str(file), framework="pt"))
            places |= dict.fromkeys(tensors.keys(), tensors)
        for name in sorted(places):
            update_with(digest, name, places[name].get_tensor(name))
    return digest.hexdigest()


Findings = list[tuple[bool | None, str]]
"""Whether a claim agrees (None: not checked), and what was found, in words."""


def starting_findings(receipt: Mapping[str, Any], source: ModelSource | None) -> Findings:
    """Compare a model's files, weights and own receipt with what a receipt says of its starting model.

    Args:
        receipt: its content.
        source: the starting model; None where it was not given.
    """
    if source is None:
        return [(None, "not checked: --model was not given")]
    files = _files(receipt, source)
    if any(agrees is False for agrees, _ in files):
        return files
    return [*files, *_weights(receipt, source), *_before(receipt, source)]


def _files(receipt: Mapping[str, Any], source: ModelSource) -> Findings:
    stated, now = receipt["starting_files"], hash_model_files(source)
    if stated is None or now is None:
        return [(None, "its files are not compared: they are not on this machine, or the receipt lists none")]
    wrong = sorted(name for name in {*stated, *now} if stated.get(name) != now.get(name))
    if wrong:
        return [(False, f"is a different model: {', '.join(wrong)} differ")]
    return [(True, f"its {len(now)} files are those of the receipt")]


def _weights(receipt: Mapping[str, Any], source: ModelSource) -> Findings:
    stated = receipt["model"]["sha256_before"]
    if stated is None:
        return [(None, "its weights are not compared: the run held them in 4 bits")]
    found = _weights_hash(source, stated)
    if found == stated:
        return [(True, f"its weights have the SHA-256 of the receipt ({found})")]
    return [(False, f"is a different model: its weights have the SHA-256 {found}, the receipt has {stated}")]


def _weights_hash(source: ModelSource, stated: str) -> str:
    if source.is_local and not source.adapter and not source.gguf_file:
        return recomputed_weights_hash(Path(source.location), stated, unchanged=True) or UNREADABLE
    try:
        return weights_hash(load_model(source))
    except RequestError:
        return UNREADABLE


def _before(receipt: Mapping[str, Any], source: ModelSource) -> Findings:
    """Compare the receipt or record beside the starting model with the one that is chained to."""
    if not source.is_local or source.gguf_file:
        return []
    folder, previous = Path(source.location), receipt["previous"] or {}
    chain, record = read_chain(folder), record_of(folder)
    if chain:
        name, key, found = RECEIPT, "sha256", chain[-1].sha256
    elif record is not None:
        name, key, found = RECORD, "record_sha256", record[1]
    elif previous:
        return [(None, "contains neither the receipt nor the record that this receipt is chained to")]
    else:
        return []
    if previous.get(key) == found:
        return [(True, f"its {name} is what this receipt is chained to")]
    return [(False, f"has a {name} that this receipt is not chained to (SHA-256 {found})")]
