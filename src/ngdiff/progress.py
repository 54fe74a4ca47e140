"""A long job -> a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)
LINE_EVERY_SECONDS = 30.0


def _bar() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
    )


class Meter:
    """Counts finished units of one job and shows them."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done, self.note = escape(title), total, 0, ""
        self._progress: Progress | None = None
        self._task: Any = None
        self._last_line = 0.0
        self._started = time.monotonic()

    def __enter__(self) -> Meter:
        if console.is_terminal:
            self._progress = _bar()
            self._progress.start()
            self._task = self._progress.add_task(self.title, total=self.total, note="")
        self._last_line = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
        seconds = time.monotonic() - self._started
        ending = f" ({self.note})" if self.note else ""
        console.print(
            f"{self.title}: {self.done} of {self.total} in {seconds:.0f} s{ending}", highlight=False
        )

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Add finished units, and optionally replace the text beside the bar."""
        self.done += count
        self.note = note if note is not None else self.note
        if self._progress is not None:
            self._progress.update(self._task, completed=self.done, note=self.note)
        elif time.monotonic() - self._last_line > LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            console.print(f"{self.title}: {self.done} of {self.total} {self.note}", highlight=False)


@contextmanager
def working(title: str) -> Iterator[None]:
    """Show that something of unknown length goes on."""
    started, title = time.monotonic(), escape(title)
    if console.is_terminal:
        with console.status(title):
            yield
    else:
        yield
    console.print(f"{title}: done in {time.monotonic() - started:.0f} s", highlight=False)
