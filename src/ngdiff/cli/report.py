"""``ngdiff report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ngdiff.cli.app import app
from ngdiff.cli.options import Log, Quiet
from ngdiff.errors import RequestError, inert
from ngdiff.system.events import log
from ngdiff.system.terminal import last_line


@app.command()
def report(
    out: Annotated[
        Path,
        typer.Argument(
            help="Folder made by 'ngdiff unlearn', bench or demo, or an eval.json.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="HTML file to write. [default: report.html in OUT]")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="eval.json of the unlearned model. [default: OUT/eval.json]")
    ] = None,
    reference_evaluation: Annotated[
        Path | None, typer.Option(help="eval.json of the retrained model. [default: OUT/retrained.json]")
    ] = None,
    before_evaluation: Annotated[
        Path | None, typer.Option(help="eval.json of the target model. [default: OUT/target.json]")
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(help="audit.json of the unlearned model. [default: OUT/audit.json]")
    ] = None,
    other: Annotated[list[Path] | None, typer.Option(help="Another run to compare with. Repeatable.")] = None,
    quiet: Quiet = False,
    log_format: Log = "auto",
) -> None:
    """Write an HTML report: what was forgotten, what it cost, and how far to trust it.

    `ngdiff report unlearned --evaluation eval.json --reference-evaluation retrained.json`

    The report needs no network. It quotes the data, so protect it as you protect the data.
    """
    from rich.markup import escape

    from ngdiff.report.page import write_report
    from ngdiff.report.run_files import Given

    given = Given(evaluation, reference_evaluation, before_evaluation, audit)
    written = write_report(out, output, given, other or [])
    log.conclude(output=str(written))
    last_line(f"The report is {escape(str(written))}")


def report_after(out: Path, wanted: bool) -> None:
    """Write the page at the end of another command, in its first process, unless it was disabled."""
    from rich.markup import escape

    from ngdiff.report.page import write_report
    from ngdiff.system.processes import is_first_process
    from ngdiff.system.terminal import console

    if wanted and is_first_process():
        try:
            written = write_report(out)
        except (OSError, RequestError) as error:  # the result is complete; a page can be made at any time
            why = getattr(error, "strerror", None) or inert(str(error))
            text = f"No report: {why}. Make one later: ngdiff report {out}"
            console.print(escape(text), highlight=False, soft_wrap=True)
            return
        console.print(f"The report is {escape(str(written))}", highlight=False, soft_wrap=True)
