"""JSON value -> the one text that is hashed and signed; folder -> size and SHA-256 of every file."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ngdiff.models.loading import ModelSource
from ngdiff.system.disk import sha256_file

BLANK = "0" * 64


def canonical(value: Any) -> bytes:
    """Return the canonical text of a JSON value.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=True) + "\n").encode()


def sha256(content: bytes) -> str:
    """Return the SHA-256 (hex) of bytes."""
    return hashlib.sha256(content).hexdigest()


def sealed(content: dict[str, Any]) -> bytes:
    """Return the canonical text with its ``seal``: the SHA-256 of that text with 64 zeros for the seal."""
    blank = canonical({**content, "seal": BLANK})
    return canonical({**content, "seal": sha256(blank)})


def seal_holds(text: bytes, seal: str) -> bool:
    """Return whether a receipt's text has the seal it states."""
    return sha256(text.replace(f'"seal": "{seal}"'.encode(), f'"seal": "{BLANK}"'.encode(), 1)) == seal


RECEIPT, SIGNATURE, EARLIER = "receipt.json", "receipt.sig", "receipts"
NOT_HASHED = frozenset({RECEIPT, SIGNATURE})
_OF_A_MODEL = frozenset({".safetensors", ".gguf", ".json", ".jinja", ".model", ".txt", ".py"})


def list_files(folder: Path) -> tuple[list[str], list[str]]:
    """List everything under a folder: regular files, and others (pipes, broken links).

    Links to folders are not followed, and are not regular files. Names are relative, with ``/``.
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
    """Return size in bytes and SHA-256 of every file under a folder, except its receipt."""
    return {name: hash_file(folder / name) for name in list_files(folder)[0] if name not in NOT_HASHED}


def hash_file(path: Path) -> dict[str, Any]:
    """Return a file's size in bytes and SHA-256."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def hash_model_files(source: ModelSource) -> dict[str, dict[str, Any]] | None:
    """Hash the files of a model in a local folder (not in folders below it)."""
    if not source.is_local:
        return None
    folder = Path(source.location)
    names = [source.gguf_file] if source.gguf_file else sorted(path.name for path in folder.iterdir())
    chosen = [folder / name for name in names if Path(name).suffix in _OF_A_MODEL]
    return {path.name: hash_file(path) for path in chosen if path.is_file()}
