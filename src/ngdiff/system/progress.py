"""a long job -> a bar on a terminal, plain lines elsewhere, events where they are requested."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from ngdiff.errors import printable
from ngdiff.system.events import log
from ngdiff.system.terminal import animated, console

__all__ = ["Meter", "console", "stop_bars", "working"]

LINE_EVERY_SECONDS = 30.0
SPEED_SECONDS = 600.0
"""Window for the estimate of the time left, long enough to include probes and checks of a run."""
ROOM_FOR_A_BAR = 60
"""Width of a terminal below which no bar is drawn, so that title, count and time left fit."""


class Meter:
    """Counts finished units of one job and shows them.

    Args:
        title: what is being done.
        total: number of units, or, with ``may_end_early``, the most units.
        may_end_early: whether the job may end before ``total``; its time left is then a bound.
    """

    def __init__(self, title: str, total: int, may_end_early: bool = False) -> None:
        self.title, self.note = printable(title), ""
        self.figures: Sequence[str] = ()
        self._may_end_early = may_end_early
        self._last_line = 0.0
        self._bar = _Bar(self, room=2 * len(str(total)) + 1)
        self._bar.add_task(self.title, total=total, left="")
        (self._task,) = self._bar.tasks

    @property
    def done(self) -> int:
        """Units finished so far."""
        return int(self._task.completed)

    @done.setter
    def done(self, count: int) -> None:
        self._task.completed = count

    @property
    def total(self) -> int:
        """The most units there can be."""
        return int(self._task.total or 0)

    @total.setter
    def total(self, count: int) -> None:
        self._task.total = count

    def __enter__(self) -> Meter:
        self._bar.reset(self._task.id, completed=self.done)
        self._last_line = time.monotonic()
        self._event("begin")
        self._bar.start()
        _open.append(self._bar)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        _open.remove(self._bar)
        told = self._told(", ")
        ending = f" ({told})" if told else ""
        seconds = self._task.elapsed or 0.0
        if self.total or self.done:
            _say(f"{self.title}: {self.done} of {self.total} in {seconds:.0f} s{ending}")
        self._event("end")

    def advance(self, count: int = 1, note: str | None = None, figures: Sequence[str] | None = None) -> None:
        """Add finished units, and optionally replace the text or the figures below the bar.

        Args:
            count: units finished since the last call.
            note: a text to show.
            figures: short texts to show, the most important first: the last ones are cut where the terminal
                is narrow.
        """
        self.note = printable(note) if note is not None else self.note
        self.figures = figures if figures is not None else self.figures
        self._bar.advance(self._task.id, count)
        self._bar.update(self._task.id, left=self.time_left())
        now = time.monotonic()
        if now - self._last_line > LINE_EVERY_SECONDS:
            self._last_line = now
            if self._bar.disable:
                parts = (f"{self.title}: {self.done} of {self.total}", self._told(", "), self.time_left())
                _say(", ".join(part for part in parts if part))
            self._event("progress")

    def time_left(self) -> str:
        """Return how long the rest will take; empty while that is not known."""
        seconds = self._task.time_remaining
        if seconds is None or self.done >= self.total:
            return ""
        return f"{'at most ' if self._may_end_early else ''}{timedelta(seconds=round(seconds))} left"

    def _told(self, between: str) -> str:
        return between.join(text for text in self.figures if text) or self.note

    def _event(self, state: str) -> None:
        seconds = self._task.elapsed or 0.0
        log.write("job", title=self.title, state=state, done=self.done, total=self.total, seconds=seconds)


class _Bar(Progress):
    """Draws a meter, with its figures or its note on a second line."""

    def __init__(self, meter: Meter, room: int) -> None:
        self.meter = meter
        bar, elapsed = BarColumn(bar_width=None), TimeElapsedColumn()
        count = MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=room))
        wide = console.width >= ROOM_FOR_A_BAR
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            *((bar, count, elapsed) if wide else (count,)),
            TextColumn("{task.fields[left]}", markup=False),
        )
        super().__init__(
            *columns,
            console=console,
            transient=True,
            refresh_per_second=8,
            speed_estimate_period=SPEED_SECONDS,
            get_time=lambda: time.monotonic(),
            disable=not animated(),
        )

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if told := self.meter._told(" · "):
            yield Text(f"  {told}", no_wrap=True, overflow="ellipsis")


_open: list[Progress] = []


def stop_bars() -> None:
    """Remove bars that an exception left, and show the cursor again."""
    while _open:
        _open.pop().stop()


def _say(text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)


@contextmanager
def working(title: str) -> Iterator[None]:
    """Show that work of unknown length is in progress."""
    started, title = time.monotonic(), printable(title)
    log.write("job", title=title, state="begin", done=None, total=None, seconds=0.0)
    if animated():
        with console.status(escape(title)):
            yield
    else:
        yield
    seconds = time.monotonic() - started
    log.write("job", title=title, state="end", done=None, total=None, seconds=seconds)
    _say(f"{title}: done in {seconds:.0f} s")
