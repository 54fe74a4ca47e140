"""untrusted files and text -> bytes and values within bounds, and harmless text.

What comes from data, models and earlier results is not trusted: only ordinary files of plausible
size are read, JSON only to a plausible depth, and text is shown so that neither a terminal nor a page of
Markdown interprets it.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ngdiff.errors import Fault, RequestError, printable

MIB = 2**20
MOST_DATA = 1024 * MIB
"""Largest data file that is read, in bytes: about a thousand books."""
MOST_SETTINGS = MIB
"""Largest file of settings, in bytes."""
MOST_JSON = 512 * MIB
"""Largest configuration, index, log or result, in bytes."""
MOST_DIGITS = 300
"""Longest whole number in JSON; a float ends at 308 digits."""
DEEPEST = 100
"""Deepest nesting of lists and objects; beyond it, Python's own functions fail."""


class Unreadable(Exception):
    """A file or a text that is not read, with what is wrong and what to do about it."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.fix = what, fix

    def fault(self, where: str) -> Fault:
        """Return it as a fault of the setting or file ``where``."""
        return Fault(where, self.what, self.fix)


class Unplaced(Unreadable):
    """A text that is not read because of an error in a line, counted from 1."""

    def __init__(self, line: int, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.line = line


# ---- files ----

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_within(path: Path, most: int) -> bytes:
    """Read an ordinary file of at most ``most`` bytes; links to such a file are followed.

    Raises:
        Unreadable: it is missing, a folder, a pipe or a device, too large, or the system refuses.
    """
    try:
        _ordinary(path.stat().st_mode)
        with path.open("rb") as file:
            _ordinary(os.fstat(file.fileno()).st_mode)  # it may have been replaced meanwhile
            size = os.fstat(file.fileno()).st_size
            raw = file.read(most + 1) if size <= most else b""
    except FileNotFoundError as error:
        what = "is a broken link" if path.is_symlink() else "does not exist"
        raise Unreadable(what, "Check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise Unreadable(f"cannot be read: {reason}", "Check the file and its permissions") from error
    if size > most or len(raw) > most:
        what = f"is larger than {most / MIB:.0f} MiB, the limit for such a file"
        raise Unreadable(what, "Split it into smaller files, or check that it is the right file")
    return raw


def check_ordinary(path: Path) -> None:
    """Check that a path is that of an ordinary file, or of a link to one.

    Raises:
        Unreadable: it is something else; ``what`` says what.
        OSError: its type cannot be read.
    """
    _ordinary(path.stat().st_mode)


def _ordinary(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for fits, name in _KINDS if fits(mode)), "something else")
        raise Unreadable(f"is {kind}, not a file", "Give a regular file")


# ---- text ----

_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_SEEN = 4096  # enough bytes to show whether every other one is NUL


def decode(raw: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Raises:
        Unreadable: it is UTF-16, UTF-32, some other encoding, or holds a NUL; ``what`` begins with the line.
    """
    check_encoding(raw)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts from after a byte order mark, in its own copy of the bytes.
        line = error.object.count(b"\n", 0, error.start) + 1
        offset = error.start + len(raw) - len(error.object)
        what = f"is not UTF-8 (byte 0x{error.object[error.start]:02x} at offset {offset})"
        raise Unplaced(line, what, "Save the file as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise Unplaced(line, "contains a NUL byte", "Save the file as UTF-8 text without NUL bytes")
    return text


def check_encoding(raw: bytes) -> None:
    """Refuse UTF-16 and UTF-32, with a byte order mark or, for Latin text, without one.

    Raises:
        Unreadable: it is one of these.
    """
    marked = next((name for mark, name in _MARKS if raw.startswith(mark)), None)
    head = raw[: min(_SEEN, len(raw) // 2 * 2)]
    half = len(head) // 2
    # most letters of Latin text have a NUL as one of their two bytes, and always the same one
    bare = half > 1 and any(
        2 * head[at::2].count(0) > half and head[1 - at :: 2].count(0) == 0 for at in (0, 1)
    )
    if marked or bare:
        raise Unreadable(f"is {marked or 'UTF-16'}, not UTF-8", "Save the file as UTF-8")


# ---- JSON ----


def load_json(raw: bytes | str, **how: Any) -> Any:
    """Parse untrusted JSON.

    Args:
        raw: the text; bytes are decoded by :func:`decode`.
        how: further arguments of ``json.loads``; hooks may raise :class:`Unreadable`.

    Raises:
        Unreadable: it is not JSON, has numbers of thousands of digits, or is deeper than :data:`DEEPEST`.
    """
    text = decode(raw) if isinstance(raw, bytes) else raw
    how.setdefault("parse_int", _whole_number)
    try:
        value = json.loads(text, **how)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise Unreadable(f"is not valid JSON ({error.msg} at {at})", "Write it again") from None
    except RecursionError:
        raise Unreadable(*_TOO_DEEP) from None
    except ValueError as error:  # a number of thousands of digits
        first = str(error).split(";")[0]
        raise Unreadable(f"is JSON that cannot be parsed ({first})", "Write it again") from None
    if deeper_than(value, DEEPEST):
        raise Unreadable(*_TOO_DEEP)
    return value


def _whole_number(text: str) -> int:
    """Parse a whole number that a float can hold; computations with larger ones would fail."""
    if len(text) > MOST_DIGITS:
        raise Unreadable(f"is JSON that cannot be parsed (a number of {len(text)} digits)", "Write it again")
    return int(text)


_TOO_DEEP = ("is JSON nested too deeply", "Write plain rows, or the right file")


def deeper_than(value: object, most: int) -> bool:
    """Return whether lists and mappings are nested more than ``most`` levels deep."""
    level: list[object] = [value]
    for _ in range(most + 1):
        level = [inside for item in level for inside in _inside(item)]
        if not level:
            return False
    return True


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values() or (None,)
    return (value or (None,)) if isinstance(value, (list, tuple)) else ()


def load_object(path: Path, where: str, fix: str) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        RequestError: the file is missing, too large, not JSON or not an object; it names ``where`` and the
            file.
    """
    try:
        content = load_json(read_within(path, MOST_JSON))
    except Unplaced as error:
        raise RequestError(Fault(where, f"{path}, line {error.line}, {error.what}", fix)) from error
    except Unreadable as error:
        raise RequestError(Fault(where, f"{path} {error.what}", fix)) from error
    if not isinstance(content, dict):
        raise RequestError(Fault(where, f"{path} does not contain a JSON object", fix))
    return content


# ---- showing ----


def inert_lines(text: str) -> str:
    """Escape control characters, but keep line breaks."""
    return "\n".join(printable(line) for line in text.split("\n"))


_MARKDOWN = "\\`*_{}[]<>()#+!|~&"


def markdown_cell(text: str) -> str:
    """Put untrusted text on one line of Markdown, where it makes no markup, link, tag or column."""
    return "".join(f"\\{c}" if c in _MARKDOWN else c for c in printable(text))


def first_line(error: BaseException) -> str:
    """Return an exception's first line without its full stop, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return (lines[0].strip() if lines else type(error).__name__).rstrip(".")


# ---- seconds -> a block of code that is interrupted after them ----


class OutOfTime(BaseException):
    """Not an ``Exception``, so that no handler on the way catches it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after some seconds; only in the main thread, and not on Windows.

    Raises:
        OutOfTime: the block took longer.
    """
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield
        return

    def stop(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
