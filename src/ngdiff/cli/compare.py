"""``ngdiff compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ngdiff.cli.app import app
from ngdiff.cli.options import Log, Quiet
from ngdiff.errors import Fault, RequestError
from ngdiff.system.events import log
from ngdiff.system.terminal import last_line


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders made by 'ngdiff unlearn', or eval.json files.", show_default=False),
    ],
    output: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("compare.html"),
    quiet: Quiet = False,
    log_format: Log = "auto",
) -> None:
    """Compare runs on one HTML page: figures, curves, Pareto front and differing settings.

    `ngdiff compare run-a run-b run-c --output compare.html`
    """
    from rich.markup import escape

    from ngdiff.report.page import write_comparison

    if len(runs) < 2:
        raise RequestError(Fault("RUN", "only one was given", "Give two or more, or use ngdiff report"))
    written = write_comparison(runs, output)
    log.conclude(output=str(written))
    last_line(f"The comparison is {escape(str(written))}")
