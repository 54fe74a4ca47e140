"""``ngdiff push``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ngdiff.cli.app import EXIT_FAILED, app, print_failure
from ngdiff.cli.options import OUTPUT, Log, Quiet
from ngdiff.errors import RequestError
from ngdiff.system.events import log
from ngdiff.system.terminal import last_line

Private = Annotated[
    bool, typer.Option("--private", help="Make the repository private.", rich_help_panel=OUTPUT)
]


@app.command("push")
def push_command(
    folder: Annotated[Path, typer.Argument(help="Folder made by 'ngdiff unlearn', 'finetune' or 'merge'.")],
    name: Annotated[str, typer.Argument(help="Repository, such as me/unlearned.")],
    private: Private = False,
    include: Annotated[
        list[str] | None,
        typer.Option(
            help="Another file to push, such as answers.json, which contains the forgotten text.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    quiet: Quiet = False,
    log_format: Log = "auto",
) -> None:
    """Push a result to the model hub: model, tokenizer, card and record.

    `ngdiff push unlearned me/unlearned`

    `ngdiff push unlearned me/unlearned --private`

    Answers, reports and evaluations are not pushed, because they contain the forgotten text.
    """
    upload(folder, name, private, tuple(include or ()))


def upload(
    folder: Path, name: str, private: bool, include: tuple[str, ...] = (), after_a_run: bool = False
) -> None:
    """Push a folder; if the upload fails, print how to try again, and exit with code 1.

    Raises:
        RequestError: the request is invalid; ``after_a_run`` this is a failed upload, since a result was
            written.
    """
    import shlex

    from rich.markup import escape

    from ngdiff.hub.upload import network_errors, push
    from ngdiff.system.progress import working

    broken: tuple[type[Exception], ...] = (*network_errors(), RequestError)
    try:
        with working(f"Pushing to {name}"):
            address = push(folder, name, private, include)
    except broken as error:
        if isinstance(error, RequestError) and not after_a_run:
            raise
        words = ["ngdiff", "push", str(folder), name, *(["--private"] if private else [])]
        fix = f"{folder} is unchanged. Try again with: {shlex.join(words)}"
        print_failure(f"the result was not pushed: {str(error).rstrip('.')}", fix)
        raise typer.Exit(EXIT_FAILED) from error
    log.conclude(output=str(folder), hub=address)
    last_line(f"It is at {escape(address)}")
