"""a file -> its hash; an error from writing one -> whether the disk caused it, and why.

Python's own writing raises ``OSError``. safetensors wraps the system's error in its own; on a full disk,
torch only notices that its file is too short.
"""

from __future__ import annotations

import errno
import hashlib
import re
from pathlib import Path

from safetensors import SafetensorError

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""A full disk, a quota, and a limit on the size of a file."""
_TORCH = re.compile(r"PytorchStreamWriter|inline_container\.cc")


def is_disk_error(error: BaseException) -> bool:
    """Return whether an error came from the disk."""
    text = str(error)
    if isinstance(error, SafetensorError):
        return "I/O" in text or "IoError" in text or "os error" in text
    return isinstance(error, OSError) or (isinstance(error, RuntimeError) and bool(_TORCH.search(text)))


def is_no_room(error: BaseException) -> bool:
    """Return whether something could not be written for lack of space, where a smaller file might fit."""
    if isinstance(error, OSError):
        return error.errno in NO_ROOM
    if isinstance(error, SafetensorError):
        found = re.search(r"\(os error (\d+)\)", str(error))
        return found is not None and int(found[1]) in NO_ROOM
    return is_disk_error(error)  # torch does not say why its file is short


def disk_reason(error: BaseException) -> str:
    """Return why something could not be written."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, SafetensorError):
        found = re.search(r"([A-Z][\w ]+) \(os error", str(error))
        return found[1] if found else str(error)
    return "the disk did not take all of it"


# ---- a file -> the hash of its content ----


_CHUNK = 2**20


def sha256_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's content, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
