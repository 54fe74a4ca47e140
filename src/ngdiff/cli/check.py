"""``ngdiff check``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ngdiff.cli.app import EXIT_TARGET_MISSED, app
from ngdiff.cli.options import DATA, METHOD, RESOURCES, Holdout, Log, Quiet, with_folders
from ngdiff.data.benchmarks import NO_FOLDERS, Folders
from ngdiff.data.sources import is_local, path_fault
from ngdiff.system.events import log
from ngdiff.system.terminal import last_line


@app.command()
@with_folders
def check(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="Folder made by 'ngdiff unlearn'.", show_default=False)],
    reference: Annotated[
        str | None,
        typer.Option(help="The retrained model, the best comparison.", rich_help_panel=DATA),
    ] = None,
    holdout: Holdout = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="The model before unlearning. [default: the one in the record]", rich_help_panel=DATA
        ),
    ] = None,
    audits: Annotated[
        str | None,
        typer.Option(
            help="Audits to run, separated by commas; see 'ngdiff ls audits'. [default: all]",
            rich_help_panel=METHOD,
        ),
    ] = None,
    generate: Annotated[
        bool,
        typer.Option("--generate/--no-generate", help="Also generate answers.", rich_help_panel=METHOD),
    ] = True,
    folders: Folders = NO_FOLDERS,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Sequences per forward pass.", rich_help_panel=RESOURCES)
    ] = 8,
    quiet: Quiet = False,
    log_format: Log = "auto",
) -> None:
    """Evaluate, audit and report a finished run, and give one verdict.

    `ngdiff check unlearned`

    `ngdiff check unlearned --reference retrained --holdout never-seen.jsonl`

    The data and the starting model are read from the run's record. Results go to a folder beside the run,
    such as unlearned.check. An interrupted check resumes.

    Exit code 0: forgotten, and no audit recovered anything. 3: not forgotten, or nothing to compare with.
    """
    from rich.markup import escape

    from ngdiff.cli.early import NUMBERS, model_named, refuse_names, right, rows_named
    from ngdiff.report.run_files import read_record
    from ngdiff.system.output import RECORD

    record = read_record(out / RECORD, "OUT")
    looks = {"target": model_named("--target"), "reference": model_named("--reference")}
    looks |= {"out": right(lambda _: _is_there(record))}
    looks |= {**NUMBERS, "audits": rows_named("--audits", "audit", "audits")}
    refuse_names(context, looks, {"holdout": "--holdout"}, folders)
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


def _is_there(record: Mapping[str, Any]) -> bool:
    """Return whether the files that a run was given to forget and to keep are still there."""
    settings = record.get("settings")
    named = settings if isinstance(settings, Mapping) else {}
    lists = {f"--{name}": named.get(name) for name in ("forget", "retain")}
    sources = [(one, flag) for flag, given in lists.items() if isinstance(given, list) for one in given]
    return not any(path_fault(one, flag) for one, flag in sources if isinstance(one, str) and is_local(one))
