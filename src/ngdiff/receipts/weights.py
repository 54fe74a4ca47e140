"""folder of a model -> the hash of its weights, worked out from its files again, a tensor at a time."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ngdiff.errors import RequestError
from ngdiff.models.loading import load_model, resolve_model
from ngdiff.system.environment import update_with, weights_hash

UNREADABLE = "unreadable"


def recomputed_weights_hash(folder: Path, stated: str, unchanged: bool) -> str | None:
    """Return what :func:`ngdiff.system.environment.weights_hash` gives for a model as it lies in a folder.

    For most models the names in the files are those of the parameters, and no model is built. Where they are
    others, the model is loaded, but only if its files are those of the receipt.

    Args:
        folder: the model.
        stated: the hash that it should have.
        unchanged: whether every file is the one that the receipt tells of.

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
            if not file.is_file():  # a pipe would keep its reader waiting for ever
                return UNREADABLE
            tensors = stack.enter_context(safe_open(str(file), framework="pt"))
            places |= dict.fromkeys(tensors.keys(), tensors)
        for name in sorted(places):
            update_with(digest, name, places[name].get_tensor(name))
    return digest.hexdigest()
