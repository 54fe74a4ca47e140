"""words typed -> a command run, with an exit code of one table that help, guide and tests read."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ngdiff.errors import EvaluationError, Fault, Interrupted, RequestError, RunError, ended, inert
from ngdiff.system.events import log
from ngdiff.system.terminal import always, open_streams, print_last_line, quiet_libraries, settings

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_REQUEST = 2
EXIT_TARGET_MISSED = 3
EXIT_DISAGREES = 4
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

EXIT_CODES: dict[int, str] = {
    EXIT_DONE: "done",
    EXIT_FAILED: "an unexpected error, or a model that cannot be evaluated",
    EXIT_BAD_REQUEST: "the request was invalid, and nothing was written",
    EXIT_TARGET_MISSED: "the model was saved, but the forget target was not reached",
    EXIT_DISAGREES: "something differs from what a log or a receipt states",
    EXIT_INTERRUPTED: "interrupted (Ctrl-C)",
    EXIT_TERMINATED: "terminated (SIGTERM)",
}
"""Every exit code there is, with its meaning."""


def of_a_missed_target() -> int:
    """Return the exit code of a run that ended well without reaching its forget target.

    torchrun, and accelerate launch through it, turn every code but 0 into 1 and report a crash. There the
    code is 0; the command's last line and the record's ``stop.target_met`` tell.
    """
    return EXIT_DONE if "TORCHELASTIC_RUN_ID" in os.environ else EXIT_TARGET_MISSED


def as_sentence() -> str:
    """Return all exit codes on one line, for the help."""
    return "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())


NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Error numbers of a full disk."""

__all__ = [
    "EXIT_BAD_REQUEST",
    "EXIT_DISAGREES",
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_TARGET_MISSED",
    "EXIT_TERMINATED",
    "app",
    "inert",
    "main",
]


class _Commands(TyperGroup):
    """The commands; a value of the wrong type is a fault like any other."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was typed.

        Raises:
            RequestError: a value is not what its option takes.
        """
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            fault = _bad_value(error)
            if fault is None:
                raise
            raise RequestError(fault) from error


def _bad_value(error: typer.BadParameter) -> Fault | None:
    """Return a fault for a value that pydantic refused; None where the message is typer's own."""
    refused: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    param = error.param
    start, ought = "Input should be ", error.message.partition(", unable")[0]
    if not refused or param is None or not ought.startswith(start):
        return None
    flags = [name for name in param.opts if name.startswith("--")]
    ought = ought.removeprefix(start).replace("valid integer", "whole number").replace("valid ", "")
    ought = f"a number {ought}" if ought.startswith(("greater", "less")) else ought
    where = flags[0] if flags else str(param.name).upper()
    return Fault(where, f"{refused[0]['input']!r} is not a valid value", f"Give {ought}")


app = typer.Typer(
    name="ngdiff",
    cls=_Commands,
    epilog=f"**Exit codes:** {as_sentence()}.",
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
    """Make a language model forget: no learning rate to choose, and evidence that it worked.

    Try it: `ngdiff demo`

    Forget something:

    `ngdiff unlearn --model my-model --forget forget.jsonl --retain retain.jsonl --output unlearned`

    Check a request without running it: `ngdiff validate request.yaml`

    Measure what is left:

    `ngdiff evaluate unlearned --suite own --forget forget.jsonl --retain retain.jsonl --output eval.json`

    List the methods: `ngdiff ls methods`
    """


def main() -> None:
    """Run the command line; a wrong request ends with its faults and exit code 2."""
    open_streams()
    quiet_libraries()
    settings.reset()
    stdout = sys.stdout
    from ngdiff.cli import commands  # noqa: F401  (registers the commands)
    from ngdiff.system.progress import stop_bars

    code = EXIT_FAILED
    try:
        _run()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        raise
    finally:
        stop_bars()
        print_last_line()
        log.close(code)
        settings.reset()
        sys.stdout = stdout


def _run() -> None:
    from ngdiff.system.progress import stop_bars

    try:
        app()
    except RequestError as error:
        stop_bars()
        show_faults(error.faults)
        sys.exit(EXIT_BAD_REQUEST)
    except OSError as error:
        stop_bars()
        if error.errno not in NO_ROOM:
            raise
        where = f"{error.filename} cannot be written" if error.filename else "a file cannot be written"
        show_faults(
            (Fault("disk", f"{where} ({error.strerror})", "Free some space, or choose another disk"),)
        )
        sys.exit(EXIT_BAD_REQUEST)
    except EvaluationError as error:
        stop_bars()
        print_failure(str(error), "Nothing was written")
        sys.exit(EXIT_FAILED)
    except Interrupted as ending:
        stop_bars()
        for text in _stopped(ending):
            always.print(text, highlight=False, markup=False, soft_wrap=True)
        sys.exit(128 + ending.signum)
    except RunError as error:
        stop_bars()
        log.write("error", where="ngdiff", what=str(error), fix="")
        _print_error(f"{_safe(str(error))}.")
        sys.exit(EXIT_FAILED)
    except SystemExit as ending:
        if ending.code == EXIT_INTERRUPTED:  # typer's form of a KeyboardInterrupt
            stop_bars()
            always.print("Interrupted; no partial result was left behind.")
        raise


def _stopped(ending: Interrupted) -> list[str]:
    """Return how far a command got, and what resumes it."""
    if ending.step is None:
        return ["Stopped.", f"Resume with:\n  {shlex.join(['ngdiff', *sys.argv[1:]])}"]
    said = [f"Stopped after step {ending.step}."]
    if ending.checkpoint is not None:
        said.append(f"Resume from step {ending.checkpoint} with:\n  {resume_command(sys.argv[1:])}")
    return said


def resume_command(words: list[str]) -> str:
    """Return the command that resumes the run that ``words`` began."""
    kept = [word for word in words if word not in ("--overwrite", "--resume", "--no-resume")]
    return shlex.join(["ngdiff", *kept, "--resume"])


def show_faults(faults: tuple[Fault, ...]) -> None:
    """Print each fault with its fix."""
    for fault in faults:
        log.write("error", where=fault.where, what=fault.what, fix=fault.fix)
        where, what, fix = map(_safe, (fault.where, fault.what, fault.fix))
        _print_error(f"[bold]{where}[/bold]: {what}.\n  [dim]→[/dim] {ended(fix)}")


def print_failure(what: str, fix: str) -> None:
    """Print what went wrong with a valid request."""
    log.write("error", where="ngdiff", what=what, fix=fix)
    _print_error(f"{_safe(what)}.\n  {_safe(fix)}.")


def _print_error(markup: str) -> None:
    always.print(f"[red]✗[/red] {markup}", highlight=False, soft_wrap=True)


def _safe(text: str) -> str:
    from rich.markup import escape

    return escape(inert(text))
