"""``ngdiff validate``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ngdiff.cli.app import app
from ngdiff.cli.options import DATA, Log, Quiet, SetPairs
from ngdiff.cli.settings import gather, to_request
from ngdiff.errors import Fault, RequestError
from ngdiff.system.events import log
from ngdiff.system.terminal import console, last_line

if TYPE_CHECKING:
    from ngdiff.planning.validate import Validation
    from ngdiff.unlearn import Prepared, UnlearnRequest

GIB = 2**30
ROLES = {"forget": "to forget", "retain": "to keep", "holdout": "never seen"}


@app.command()
def validate(
    config: Annotated[Path, typer.Argument(help="YAML file for 'ngdiff unlearn --config'.")],
    set_: SetPairs = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Allow the output to exist.", rich_help_panel=DATA)
    ] = False,
    quiet: Quiet = False,
    log_format: Log = "auto",
) -> None:
    """Check a request without running it: report all errors, and estimate its cost.

    `ngdiff validate request.yaml`

    `ngdiff validate request.yaml --set batch_size=4 --set stop_at=none`

    It reads settings, data, tokenizer and configuration, but no weights, and writes nothing. To check a
    request given as flags, add --dry-run to 'ngdiff unlearn'.

    Exit code 0: the request is valid. 2: it is not.
    """
    show_plan(*checked(*gather(config, tuple(set_ or ()), {}), overwrite))


def show_plan(request: UnlearnRequest, ready: Prepared) -> None:
    """Print what a request in order would take, and what should be known before it runs."""
    from ngdiff.planning.validate import validation

    found = validation(request, ready)
    log.write("request", **asdict(found))
    _show(found)
    last_line("The request is in order; nothing was run.")


def checked(given: dict[str, Any], faults: list[Fault], overwrite: bool) -> tuple[UnlearnRequest, Prepared]:
    """Collect every fault of a request, whatever part of it is wrong or missing.

    Args:
        given: settings as :func:`ngdiff.cli.settings.gather` returns them.
        faults: what is wrong with the others.
        overwrite: whether the output may exist.

    Raises:
        RequestError: with all of them.
    """
    from ngdiff.cli.early import refuse_early

    refuse_early(given, faults, overwrite)
    from ngdiff.unlearn import prepare

    if given.get("push_to_hub") is not None:
        from ngdiff.hub.upload import push_faults

        faults += push_faults(given["push_to_hub"], bool(given.get("private")))
    missing = {fault.where for fault in faults}  # what was not given cannot be wrong as well
    request = to_request(given, overwrite)
    try:
        ready = prepare(request)
    except RequestError as error:
        faults += [fault for fault in error.faults if fault.where not in missing]
    if faults:
        raise RequestError(_once(faults))
    return request, ready


def _once(faults: list[Fault]) -> list[Fault]:
    return list(dict.fromkeys(faults))


def _show(found: Validation) -> None:
    from rich.table import Table

    table = Table("set")
    for title in ("examples", "tokens", "answer tokens", "longest", "cut", "repeated"):
        table.add_column(title, justify="right")
    for name, counts in found.sets.items():
        table.add_row(escape(ROLES.get(name, name)), *(f"{value:,}" for value in asdict(counts).values()))
    console.print(table)
    _say(f"Rows in both sets: {found.shared}.")
    seconds = found.seconds_a_step
    time = "" if seconds is None else f", roughly {seconds:.2g} s each on this machine"
    _say(f"Steps: at most {found.most_steps:,}{time}; the run ends earlier where its target is reached.")
    if found.disk_bytes is not None:
        needed, free = found.disk_bytes / GIB, found.free_bytes / GIB
        _say(f"Disk: at most {needed:.2f} GiB while it runs, {free:.1f} GiB are free.")
    for note in found.notes:
        _say(f"Note: {escape(note)}.")


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
