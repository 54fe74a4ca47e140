"""text from models and data -> text and JSON that are safe on a page.

Escaping for HTML is jinja2's (autoescape) on the server's side and the browser's own (text nodes) in the
page's script; this module makes invisible characters visible and keeps JSON inside its script element.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ngdiff.system.output import finite

# controls but tab and line ends, soft hyphen, zero-width, bidi marks, embeddings, overrides and isolates,
# line and paragraph separator, invisible operators, byte order mark, tags, lone surrogates
INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: object) -> str:
    """Return text with every invisible character written out, as in ``⟨U+202E⟩``."""
    return INVISIBLE.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", str(text))


def embedded(value: Any) -> str:
    """Return JSON that can stand in a ``<script type="application/json">`` element.

    It cannot end the element or open a comment: ``<``, ``>``, ``&`` and all characters outside ASCII,
    including U+2028 and lone surrogates, are escaped. NaN and infinities become null.
    """
    text = json.dumps(finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
