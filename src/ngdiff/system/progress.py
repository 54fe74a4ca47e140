"""A long job -> a bar on a terminal, plain lines elsewhere, events where those were asked for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ngdiff.errors import printable
from ngdiff.system.events import log
from ngdiff.system.terminal import animated, console

__all__ = ["Meter", "Part", "clock", "console", "fit", "stop_bars", "working"]

LINE_EVERY_SECONDS = 30.0
RECENT = 20
"""Units that the time left is judged by: two probes and two checks of a run are among them."""
LEAST_BAR, MOST_BAR = 10, 40


class Part(NamedTuple):
    """A piece of a line; where room is short, the highest ``rank`` goes first."""

    text: str
    rank: int


def fit(parts: Sequence[Part], width: int, between: str = " · ") -> str:
    """Join as many parts as ``width`` columns hold, in their order; the last one left is cut."""
    left = [part for part in parts if part.text]
    while len(left) > 1 and _wide(left, between) > width:
        left.remove(max(left, key=lambda part: part.rank))
    line = between.join(part.text for part in left)
    return line if cell_len(line) <= width else set_cell_size(line, max(0, width - 1)) + "…" * (width > 0)


def _wide(parts: Sequence[Part], between: str) -> int:
    return sum(cell_len(part.text) for part in parts) + cell_len(between) * (len(parts) - 1)


def clock(seconds: float) -> str:
    """Return 75 as 1:15 and 3675 as 1:01:15."""
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class Meter:
    """Counts finished units of one job and shows them.

    Args:
        title: what is being done.
        total: units there are, or, with ``may_end_early``, units there are at the most.
        may_end_early: whether the job can end by itself before ``total``; its time left is then a bound.
    """

    def __init__(self, title: str, total: int, may_end_early: bool = False) -> None:
        self.title, self.total, self.done, self.note = printable(title), total, 0, ""
        self.figures: Sequence[Part] = ()
        self._may_end_early = may_end_early
        self._live: Live | None = None
        self._last_line = 0.0
        self._started = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT + 1)

    def __enter__(self) -> Meter:
        self._started = self._last_line = time.monotonic()
        self._recent.append((self._started, self.done))
        self._event("begin")
        if animated():
            self._live = Live(_Bar(self), console=console, transient=True, refresh_per_second=8)
            self._live.start()
            _open.append(self._live)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            _open.remove(self._live)
        told = self._told()
        ending = f" ({told})" if told else ""
        seconds = time.monotonic() - self._started
        _say(f"{self.title}: {self.done} of {self.total} in {seconds:.0f} s{ending}")
        self._event("end")

    def advance(self, count: int = 1, note: str | None = None, figures: Sequence[Part] | None = None) -> None:
        """Add finished units, and optionally replace the text or the figures beside the bar."""
        now = time.monotonic()
        self.done += count
        self.note = printable(note) if note is not None else self.note
        self.figures = figures if figures is not None else self.figures
        self._recent.append((now, self.done))
        if now - self._last_line > LINE_EVERY_SECONDS:
            self._last_line = now
            if self._live is None:
                parts = (f"{self.title}: {self.done} of {self.total}", self._told(), self.time_left())
                _say(", ".join(part for part in parts if part))
            self._event("progress")

    def time_left(self) -> str:
        """Say how long it will take from here; empty while nothing is known."""
        if not self._recent:
            return ""
        (since, before), (_, done) = self._recent[0], self._recent[-1]
        if done <= before or self.done >= self.total:
            return ""
        seconds = (time.monotonic() - since) / (done - before) * (self.total - self.done)
        return f"{'at most ' if self._may_end_early else ''}{clock(seconds)} left"

    def elapsed(self) -> float:
        """Return seconds since the job began."""
        return time.monotonic() - self._started

    def _told(self) -> str:
        return ", ".join(part.text for part in self.figures if part.text) or self.note

    def _event(self, state: str) -> None:
        seconds = time.monotonic() - self._started
        log.write("job", title=self.title, state=state, done=self.done, total=self.total, seconds=seconds)


class _Bar:
    """Draws a meter in two lines, each as wide as the terminal at most."""

    def __init__(self, meter: Meter) -> None:
        self.meter, self.spinner = meter, Spinner("dots")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        meter, width = self.meter, options.max_width
        head = Part(meter.title, 0)
        tail = [
            Part(f"{meter.done}/{meter.total}", 1),
            Part(clock(meter.elapsed()), 3),
            Part(meter.time_left(), 2),
        ]
        room = width - 2 - _wide([part for part in (head, *tail) if part.text], " · ") - 1
        if room >= LEAST_BAR:
            line = Table.grid(padding=(0, 1, 0, 0))
            bar = ProgressBar(total=max(1, meter.total), completed=meter.done, width=min(MOST_BAR, room))
            line.add_row(self.spinner, Text(head.text), bar, Text(fit(tail, width)))
        else:
            line = Table.grid(padding=(0, 1, 0, 0))
            line.add_row(self.spinner, Text(fit([head, *tail], max(1, width - 2))))
        yield line
        figures = meter.figures or [Part(meter.note, 0)]
        if meter.figures or meter.note:
            yield Text(f"  {fit(figures, max(1, width - 2))}", no_wrap=True)


_open: list[Live] = []


def stop_bars() -> None:
    """Take down bars that an exception left, and give the terminal its cursor back."""
    while _open:
        _open.pop().stop()


def _say(text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)


@contextmanager
def working(title: str) -> Iterator[None]:
    """Show that something of unknown length goes on."""
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
