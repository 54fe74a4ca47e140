"""Bars that fit, lines where no bar may be, and time left that is a bound."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from ngdiff.system import progress
from ngdiff.system.progress import Meter
from ngdiff.system.terminal import settings

FIGURES = ["extraction 0.12 → 0.05", "retain 1.234", "forget 0.012", "lr 1.2e-04", "40.1 GiB"]


def drawn(meter: Meter, width: int) -> list[str]:
    stream = io.StringIO()
    on = Console(file=stream, width=width, force_terminal=False, legacy_windows=False)
    on.print(meter._bar.get_renderable(), end="")
    return stream.getvalue().splitlines()


def test_figures_go_in_a_fixed_order(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = meter(monkeypatch, False)
    whole = "  extraction 0.12 → 0.05 · retain 1.234 · forget 0.012 · lr 1.2e-04 · 40.1 GiB"
    assert drawn(shown, 80)[1].rstrip() == whole and len(whole) <= 80
    gone: list[str] = []
    for width in range(len(whole), 0, -1):
        line = drawn(shown, width)[-1]
        assert cell_len(line) <= width
        gone += [text for text in FIGURES if text not in line and text not in gone]
    assert gone == FIGURES[::-1]
    assert drawn(shown, 24)[1].rstrip() == "  extraction 0.12 → 0.0…"
    shown.figures = ["名前名前"]
    assert drawn(shown, 7)[1].rstrip() == "  名前…"  # wide characters take two columns
    shown.figures = ["", "a"]
    assert drawn(shown, 9)[1].rstrip() == "  a"


def meter(monkeypatch: pytest.MonkeyPatch, may_end_early: bool) -> Meter:
    """A meter 40 s into 400 steps, one second each."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Meter("Unlearning", 400, may_end_early).__enter__()
    for _ in range(40):
        now[0] += 1
        shown.advance(1, figures=FIGURES)
    return shown


def test_time_left_is_a_bound_where_the_run_may_end_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert meter(monkeypatch, True).time_left() == "at most 0:06:00 left"
    assert meter(monkeypatch, False).time_left() == "0:06:00 left"
    assert Meter("Unlearning", 5).time_left() == ""  # nothing is known yet


def test_time_left_follows_the_last_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = meter(monkeypatch, False)
    start = time.monotonic()
    for number in range(1, 301):  # two seconds each from here: the first ones are forgotten in the end
        monkeypatch.setattr(progress.time, "monotonic", lambda now=start + 2 * number: now)
        shown.advance()
    assert shown.done == 340 and shown.time_left() == "0:02:00 left"


@pytest.mark.parametrize("width", [200, 80, 60, 40, 20, 8])
def test_the_bar_fits_and_keeps_what_matters(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(type(progress.console), "width", width)
    lines = drawn(meter(monkeypatch, True), width)
    assert len(lines) == 2 and max(map(cell_len, lines)) <= width
    if width >= 80:
        assert "40/400" in lines[0] and "at most 0:06:00 left" in lines[0] and "━" in lines[0]
        assert all(text in lines[1] for text in FIGURES)
    if width == 40:
        assert "━" not in lines[0] and "Unlearning" in lines[0] and "40/400" in lines[0]
        assert "extraction" in lines[1] and "GiB" not in lines[1]


def test_a_job_without_units_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    settings.reset()
    for total in (0, 1):
        with Meter("Scoring", total) as shown:
            shown.advance(total)
    assert capsys.readouterr().err.count("Scoring") == 1


def test_lines_instead_of_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    settings.reset()
    with meter(monkeypatch, True):
        pass
    shown = capsys.readouterr().err.splitlines()
    told = ", ".join(FIGURES)
    assert shown[0] == f"Unlearning: 31 of 400, {told}, at most 0:06:09 left"  # 31 s: the first after 30 s
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
