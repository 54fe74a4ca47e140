"""JSON value -> the one text that is hashed and signed; bytes and files -> SHA-256.

The canonical text: keys sorted by code point, one space of indent a level, ``": "`` and ``","`` + newline
between items, everything outside ASCII written as ``\\uXXXX``, no NaN or infinity, one newline at the end,
UTF-8. It is what Python's ``json.dumps(value, sort_keys=True, indent=1)`` gives. A receipt lies on disk in
exactly this form, so its SHA-256 is that of the file and its signature is over the file: nobody has to
write JSON to check either.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

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
    """Say whether a receipt's text has the seal it states."""
    return sha256(text.replace(f'"seal": "{seal}"'.encode(), f'"seal": "{BLANK}"'.encode(), 1)) == seal
