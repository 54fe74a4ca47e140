"""folder -> size and SHA-256 of every file in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ngdiff.models.loading import ModelSource
from ngdiff.system.hashes import sha256_file

RECEIPT, SIGNATURE, EARLIER = "receipt.json", "receipt.sig", "receipts"
NOT_HASHED = frozenset({RECEIPT, SIGNATURE})
_OF_A_MODEL = frozenset({".safetensors", ".gguf", ".json", ".jinja", ".model", ".txt", ".py"})


def list_files(folder: Path) -> tuple[list[str], list[str]]:
    """Name everything under a folder: plain files, and what is none (pipes, broken links).

    Folders behind links are not entered, and count as no plain file. Names are relative, with ``/``.
    """
    plain: list[str] = []
    strange: list[str] = []
    for place, folders, files in os.walk(folder):
        here = Path(place)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in [*files, *links]:
            path = here / name
            (plain if path.is_file() else strange).append(path.relative_to(folder).as_posix())
    return sorted(plain), sorted(strange)


def hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size in bytes and SHA-256 of every file under a folder, its receipt left out."""
    return {name: hash_file(folder / name) for name in list_files(folder)[0] if name not in NOT_HASHED}


def hash_file(path: Path) -> dict[str, Any]:
    """Return a file's size in bytes and SHA-256."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def hash_model_files(source: ModelSource) -> dict[str, dict[str, Any]] | None:
    """Hash the files of a model where they lie in a local folder (not what lies in folders below it)."""
    if not source.is_local:
        return None
    folder = Path(source.location)
    names = [source.gguf_file] if source.gguf_file else sorted(path.name for path in folder.iterdir())
    chosen = [folder / name for name in names if Path(name).suffix in _OF_A_MODEL]
    return {path.name: hash_file(path) for path in chosen if path.is_file()}
