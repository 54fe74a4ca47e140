"""a file -> the hash of what it holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

_CHUNK = 2**20


def sha256_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's content, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
