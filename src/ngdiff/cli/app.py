"""words typed -> a command run, with an exit code.

Exit codes: 0 done; 1 an unexpected failure, or a model that cannot be evaluated; 2 the request was wrong and
nothing was written; 3 the run ended and its model was saved, but the forget target was not reached; 4 a log's
figures do not follow from its items; 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from importlib import metadata
from typing import Annotated

import typer

from ngdiff.errors import EvaluationError, RequestError

EXIT_FAILED = 1
EXIT_BAD_REQUEST = 2
EXIT_TARGET_MISSED = 3
EXIT_DISAGREES = 4
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="ngdiff",
    help="Make a language model forget: no learning rate to choose, and evidence that it worked.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ngdiff {metadata.version('ngdiff')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Keep sub-commands even where there is only one."""


def main() -> None:
    """Run the command line; a wrong request ends with its faults and exit code 2."""
    quiet_libraries()
    from ngdiff.cli import commands  # noqa: F401  (registers the commands)
    from ngdiff.progress import console

    try:
        app()
    except RequestError as error:
        from rich.markup import escape

        for fault in error.faults:
            where, what, mend = (escape(inert(text)) for text in (fault.where, fault.what, fault.mend))
            console.print(
                f"[red]✗[/red] [bold]{where}[/bold]: {what}.\n  [dim]→[/dim] {mend}.",
                highlight=False,
                soft_wrap=True,
            )
        sys.exit(EXIT_BAD_REQUEST)
    except EvaluationError as error:
        from rich.markup import escape

        text = escape(inert(str(error)))
        console.print(f"[red]✗[/red] {text}.\n  Nothing was written.", highlight=False, soft_wrap=True)
        sys.exit(EXIT_FAILED)
    except SystemExit as ending:
        if ending.code == EXIT_INTERRUPTED:  # what typer makes of a KeyboardInterrupt
            console.print("Interrupted; nothing half-written was left behind.")
        raise


def inert(text: str) -> str:
    """Put text from outside on one line, with control characters written out: no terminal acts on it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.splitlines())).rstrip(".")


def quiet_libraries() -> None:
    """Keep other libraries' bars and notices out of ours; warnings of this package stay."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("transformers", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
