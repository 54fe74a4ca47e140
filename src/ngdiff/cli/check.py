"""``ngdiff check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ngdiff.cli.app import EXIT_TARGET_MISSED, app
from ngdiff.cli.options import DATA, METHOD, RESOURCES, Holdout, Log, Quiet, with_folders
from ngdiff.data.benchmarks import NO_FOLDERS, Folders
from ngdiff.system.events import log
from ngdiff.system.terminal import last_line


@app.command()
@with_folders
def check(
    out: Annotated[Path, typer.Argument(help="Folder made by 'ngdiff unlearn'.", show_default=False)],
    reference: Annotated[
        str | None,
        typer.Option(help="The retrained model, the best there is to compare with.", rich_help_panel=DATA),
    ] = None,
    holdout: Holdout = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="The model before unlearning. [default: the one the record names]", rich_help_panel=DATA
        ),
    ] = None,
    audits: Annotated[
        str | None,
        typer.Option(
            help="Names with commas between; see 'ngdiff ls audits'. [default: all]", rich_help_panel=METHOD
        ),
    ] = None,
    generate: Annotated[
        bool,
        typer.Option("--generate/--no-generate", help="Let the models answer too.", rich_help_panel=METHOD),
    ] = True,
    folders: Folders = NO_FOLDERS,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Sequences a forward pass.", rich_help_panel=RESOURCES)
    ] = 8,
    quiet: Quiet = False,
    log_format: Log = "auto",
) -> None:
    """Evaluate, audit and report a finished run, and give one verdict.

    `ngdiff check unlearned`

    `ngdiff check unlearned --reference retrained --holdout never-seen.jsonl`

    What was forgotten, what was kept and which model came before are read from the run's record. Everything
    goes to a folder beside it, such as unlearned.check. Interrupted, it resumes: what is there is not made
    again.

    Exit code 0: forgotten, and no audit brought knowledge back. 3: not, or nothing to compare with.
    """
    from rich.markup import escape

    from ngdiff.check import CheckRequest
    from ngdiff.check import check as run
    from ngdiff.system.environment import keep_freed_memory
    from ngdiff.system.progress import console

    keep_freed_memory()
    names = tuple(name.strip() for name in (audits or "").split(",") if name.strip())
    request = CheckRequest(out, reference, tuple(holdout or ()), target, names, folders, generate, batch_size)
    found = run(request, lambda text: console.print(escape(f"{text}:"), highlight=False))
    for card in found.verdict.cards:
        console.print(escape(f"{card.question} {card.answer}."), highlight=False, soft_wrap=True)
    console.print(f"The report is {escape(str(found.report))}", highlight=False, soft_wrap=True)
    log.conclude(output=str(request.folder), verdict=found.verdict.sentence)
    last_line(escape(found.verdict.sentence))
    if found.verdict.status != "good":
        raise typer.Exit(EXIT_TARGET_MISSED)
