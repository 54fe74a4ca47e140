"""``ngdiff demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ngdiff.cli.app import app
from ngdiff.cli.options import Log, Quiet, Report
from ngdiff.cli.report import report_after
from ngdiff.system.events import log
from ngdiff.system.terminal import last_line


@app.command()
def demo(
    output: Annotated[
        Path | None, typer.Option(help="Folder to write to. [default: a new one under runs/]")
    ] = None,
    people: Annotated[
        int | None,
        typer.Option(
            min=6, max=200, help="Number of invented people. [default: up to 25, as many as fit in the time]"
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Approximate time limit in minutes.")] = 5.0,
    model: Annotated[str, typer.Option(help="Model: a folder, a hub name, or 'smollm2'.")] = "smollm2",
    seed: Annotated[int, typer.Option(help="Random seed; another one invents other people.")] = 0,
    report: Report = True,
    quiet: Quiet = False,
    log_format: Log = "auto",
) -> None:
    """Demonstrate unlearning: a real model learns about invented people, then forgets some of them.

    `ngdiff demo`

    `ngdiff demo --people 12 --minutes 3 --output my-demo`
    """
    from rich.markup import escape

    from ngdiff.demo import DemoRequest, run_demo
    from ngdiff.errors import RequestError
    from ngdiff.settings.faults import positive_fault, seed_fault
    from ngdiff.system.environment import keep_freed_memory
    from ngdiff.system.output import check_output

    keep_freed_memory()
    folder = output or _fresh(Path("runs"))
    found = (positive_fault("--minutes", minutes, "such as 5"), seed_fault(seed))
    faults = [fault for fault in found if fault is not None]
    faults += check_output(folder, overwrite=False, needed_bytes=3 * 2**30)
    if faults:
        raise RequestError(faults)
    run_demo(DemoRequest(folder, people, minutes, model, seed))
    report_after(folder, report)
    log.conclude(output=str(folder))
    last_line(f"Everything is in {escape(str(folder.absolute()))}")


def _fresh(parent: Path) -> Path:
    """Return the first of ``demo``, ``demo-2``, ``demo-3``... that does not exist."""
    number = 1
    while (folder := parent / (f"demo-{number}" if number > 1 else "demo")).exists():
        number += 1
    return folder
