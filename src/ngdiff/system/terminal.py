"""This process's standard streams -> streams that take any text, and a console that no lost reader ends."""

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
"""What stands for our own signs on a terminal that has no UTF-8."""


class KeptConsole(Console):
    """A console whose reader may go: a run of hours does not end because nobody watches any more."""

    def on_broken_pipe(self) -> None:
        """Fall silent."""
        self.quiet = True

    def render_str(self, text: str, **how: Any) -> Text:
        """Write control characters out, of a table's cells too: no terminal acts on what a file is called."""
        return super().render_str(inert_lines(text), **how)


console = KeptConsole(stderr=True)
"""For people: what is going on. Silent under ``--quiet``, JSON lines, and in all processes but the first."""

always = KeptConsole(stderr=True)
"""For errors and a command's last line, which ``--quiet`` leaves."""


@dataclass
class Settings:
    """How this process talks."""

    log_format: LogFormat = "auto"
    quiet: bool = False
    last_line: str | None = None

    def reset(self) -> None:
        """Talk as by default."""
        self.log_format, self.quiet, self.last_line = "auto", False, None
        self.apply()

    def apply(self) -> None:
        """Let the consoles follow."""
        console.quiet = self.quiet or self.log_format == "json" or not is_first()
        always.quiet = not is_first()


settings = Settings()


def is_first() -> bool:
    """Say whether this is the only process, or the first of those that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") in ("", "0")


def animated() -> bool:
    """Say whether a bar may be drawn: on a real terminal, where no log is being kept of it."""
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
    """Print a command's last line: what it made, and where; ``text`` is markup.

    Under ``--quiet`` it waits for the end, where only the last of several is printed.
    """
    settings.last_line = text
    console.print(text, highlight=False, soft_wrap=True)


def print_last_line() -> None:
    """Print, under ``--quiet``, the line that the command ended with."""
    if settings.quiet and settings.log_format != "json" and settings.last_line is not None:
        always.print(settings.last_line, highlight=False, soft_wrap=True)
    settings.last_line = None


def open_streams() -> None:
    """Give standard streams that were closed a place to go, and encodings that take any text.

    A closed stream's number would go to the next file opened, and a library's message into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number free is this one
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
    """Replace what an encoding lacks: our own signs by look-alikes, all else by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(PLAIN.get(c, c.encode("ascii", "backslashreplace").decode()) for c in missing), error.end


def quiet_libraries() -> None:
    """Keep other libraries' bars and notices out of ours; warnings of this package stay."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loaded = sys.modules.get("transformers.utils.logging")
    if loaded is not None:  # it read the environment before us
        loaded.disable_progress_bar()
    for name in ("transformers", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
