"""this process's standard streams -> streams that accept any text, and a console that survives its reader."""

from __future__ import annotations

import codecs
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from ngdiff.system.untrusted import inert_lines

LogFormat = Literal["auto", "lines", "json"]
PLAIN = {
    "✗": "x",
    "→": "->",
    "×": "x",
    "·": "-",
    "≤": "<=",
    "≥": ">=",
    "–": "-",
    "…": "...",
    "↑": "^",
    "↓": "v",
}
"""Replacements of our own signs on a terminal without UTF-8."""


class KeptConsole(Console):
    """A console that survives the loss of its reader, so that a long run does not end with its terminal."""

    def on_broken_pipe(self) -> None:
        """Fall silent."""
        self.quiet = True

    def render_str(self, text: str, **how: Any) -> Text:
        """Escape control characters, also in tables, so that no terminal acts on the name of a file."""
        return super().render_str(inert_lines(text), **how)


console = KeptConsole(stderr=True)
"""Progress for people. Silent under ``--quiet``, JSON lines, and in all processes but the first."""

always = KeptConsole(stderr=True)
"""For errors and a command's last line, also under ``--quiet``."""


@dataclass
class Settings:
    """How this process reports."""

    log_format: LogFormat = "auto"
    quiet: bool = False
    last_line: str | None = None

    def reset(self) -> None:
        """Talk as by default."""
        self.log_format, self.quiet, self.last_line = "auto", False, None
        self.apply()

    def apply(self) -> None:
        """Apply this to the consoles."""
        console.quiet = self.quiet or self.log_format == "json" or not is_first()
        always.quiet = not is_first()


settings = Settings()


def is_first() -> bool:
    """Return whether this is the only process, or the first that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") in ("", "0")


def animated() -> bool:
    """Return whether a bar may be drawn: on a real terminal that is not being logged."""
    stream = sys.stderr
    return (
        settings.log_format == "auto"
        and not console.quiet
        and stream is not None
        and stream.isatty()
        and not console.is_dumb_terminal
        and os.environ.get("CI", "").lower() in ("", "0", "false")
    )


def last_line(text: str) -> None:
    """Print a command's last line: its result and where it is; ``text`` is markup.

    Under ``--quiet`` only the last of several lines is printed, at the end.
    """
    settings.last_line = text
    console.print(text, highlight=False, soft_wrap=True)


def print_last_line() -> None:
    """Print the command's last line under ``--quiet``."""
    if settings.quiet and settings.log_format != "json" and settings.last_line is not None:
        always.print(settings.last_line, highlight=False, soft_wrap=True)
    settings.last_line = None


def open_streams() -> None:
    """Reopen closed standard streams, and use encodings that accept any text.

    The next file that is opened would get a closed stream's number, and a library's message would go into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    codecs.register_error("ngdiff", _plain)
    for stream in (sys.stdout, sys.stderr):
        encoding = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "")
        if encoding != "utf8" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="ngdiff")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks: our own signs by similar ones, others by their code."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(PLAIN.get(c, c.encode("ascii", "backslashreplace").decode()) for c in missing), error.end


def quiet_libraries() -> None:
    """Silence other libraries' bars and notices; warnings of this package stay."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loaded = sys.modules.get("transformers.utils.logging")
    if loaded is not None:  # it has already read the environment
        loaded.disable_progress_bar()
    for name in ("transformers", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
