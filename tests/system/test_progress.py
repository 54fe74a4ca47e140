"""Bars that fit, lines where no bar may be, and time left that is a bound."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from ngdiff.system import progress
from ngdiff.system.progress import Meter, Part, clock, fit
from ngdiff.system.terminal import settings

PARTS = [
    *(Part("forget 0.012", 2), Part("retain 1.234", 1), Part("extraction 0.12 → 0.05", 0)),
    *(Part("lr 1.2e-04", 3), Part("40.1 GiB", 4)),
]


def test_fields_go_in_a_fixed_order() -> None:
    whole = "forget 0.012 · retain 1.234 · extraction 0.12 → 0.05 · lr 1.2e-04 · 40.1 GiB"
    assert fit(PARTS, 78) == whole
    assert len(whole) <= 78  # what 80 columns leave
    gone = []
    for width in range(len(whole), 0, -1):
        line = fit(PARTS, width)
        assert len(line) <= width
        gone += [part.rank for part in PARTS if part.text.split()[0] not in line and part.rank not in gone]
    assert gone[:4] == [4, 3, 2, 1]
    assert fit(PARTS, 22) == "extraction 0.12 → 0.05"
    assert fit(PARTS, 10) == "extractio…"
    assert fit([Part("名前名前", 0)], 5) == "名前…"  # wide characters take two columns
    assert fit([Part("", 0), Part("a", 1)], 9) == "a"
    assert fit(PARTS, 0) == ""


def test_clock() -> None:
    assert [clock(s) for s in (0, 9.6, 75, 3599.6, 3675, 360000)] == [
        *("0:00", "0:10", "1:15", "1:00:00", "1:01:15", "100:00:00")
    ]


def meter(monkeypatch: pytest.MonkeyPatch, may_end_early: bool) -> Meter:
    """A meter 40 s into 400 steps, one second each."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Meter("Unlearning", 400, may_end_early).__enter__()
    for _ in range(40):
        now[0] += 1
        shown.advance(1, figures=PARTS)
    return shown


def test_time_left_is_a_bound_where_the_run_may_end_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert meter(monkeypatch, True).time_left() == "at most 6:00 left"
    assert meter(monkeypatch, False).time_left() == "6:00 left"
    assert Meter("Unlearning", 5).time_left() == ""  # nothing is known yet


def test_time_left_follows_the_last_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = meter(monkeypatch, False)
    for _ in range(progress.RECENT):
        shown._recent.append((shown._recent[-1][0] + 2, shown._recent[-1][1] + 1))
    shown.done = shown._recent[-1][1]
    monkeypatch.setattr(progress.time, "monotonic", lambda: shown._recent[-1][0])
    assert shown.time_left() == f"{clock(2 * (400 - shown.done))} left"


@pytest.mark.parametrize("width", [200, 80, 60, 40, 20, 8])
def test_the_bar_fits_and_keeps_what_matters(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=False, legacy_windows=False)
    console.print(progress._Bar(meter(monkeypatch, True)), end="")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 and max(map(len, lines)) <= width
    if width >= 80:
        assert "40/400" in lines[0] and "at most 6:00 left" in lines[0] and "━" in lines[0]
        assert all(part.text in lines[1] for part in PARTS)
    if width == 40:
        assert "━" not in lines[0] and "Unlearning" in lines[0] and "40/400" in lines[0]
        assert "extraction" in lines[1] and "GiB" not in lines[1]


def test_lines_instead_of_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    settings.reset()
    with meter(monkeypatch, True):
        pass
    shown = capsys.readouterr().err.splitlines()
    told = "forget 0.012, retain 1.234, extraction 0.12 → 0.05, lr 1.2e-04, 40.1 GiB"
    assert shown[0] == f"Unlearning: 31 of 400, {told}, at most 6:09 left"  # 31 s: the first after 30 s
    assert "\x1b" not in "".join(shown) and "\r" not in "".join(shown)


BAR = """
import time
from ngdiff.system.progress import Meter, working
from ngdiff.system.terminal import settings
settings.apply()
with Meter("Going [on]", 3) as meter:
    for _ in range(3):
        time.sleep(0.05)
        meter.advance(note="half-way")
with working("Thinking"):
    pass
"""


def on_a_terminal(**more: str) -> str:
    """Run BAR with a pseudo-terminal as its standard error."""
    ours, theirs = pty.openpty()
    environment = {
        key: value for key, value in os.environ.items() if key not in ("CI", "NO_COLOR", "COLUMNS")
    }
    environment |= {"TERM": "xterm-256color", "LANG": "C.UTF-8", **more}
    child = subprocess.Popen(
        [sys.executable, "-c", BAR], stderr=theirs, stdout=subprocess.DEVNULL, env=environment
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # the other end has closed
            break
        if not read:
            break
        shown += read
    os.close(ours)
    assert child.wait(60) == 0
    return shown.decode()


def test_a_terminal_gets_a_bar_in_colour_and_its_cursor_back() -> None:
    shown = on_a_terminal()
    assert "━" in shown and "3/3" in shown and "\x1b[3" in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") > -1
    assert "Going [on]: 3 of 3" in shown and "Thinking: done" in shown


def test_no_colour_where_none_is_wanted() -> None:
    shown = on_a_terminal(NO_COLOR="1")
    assert "━" in shown
    assert not [
        code for code in shown.split("\x1b[")[1:] if code[:1] in "39" and code[1:3].rstrip("m").isdigit()
    ]


@pytest.mark.parametrize("more", [{"TERM": "dumb"}, {"CI": "true"}], ids=["dumb", "ci"])
def test_lines_on_a_dumb_terminal_and_in_ci(more: dict[str, str]) -> None:
    shown = on_a_terminal(**more)
    assert "━" not in shown and "\x1b[?25l" not in shown
    assert [line.split(":")[0] for line in shown.splitlines()] == ["Going [on]", "Thinking"]


def test_a_pipe_gets_lines_even_where_colour_is_forced(tmp_path: Path) -> None:
    environment = {**os.environ, "FORCE_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "━" not in done.stderr and "\x1b[?25l" not in done.stderr
    assert done.stderr.count("\n") == 2
