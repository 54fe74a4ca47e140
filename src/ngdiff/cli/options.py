"""options that several commands share: names, panels, help and completion."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
import typer.core

from ngdiff.cli import completion
from ngdiff.data.benchmarks import BENCHMARKS, Folders, folders_of
from ngdiff.errors import Fault, RequestError
from ngdiff.system.events import log
from ngdiff.system.terminal import LogFormat, is_first, settings

DATA, METHOD, STOPPING = "Data", "Method", "Stopping"
RESOURCES, OUTPUT, LOGS = "Resources", "Output", "Logs and trackers"


def with_folders(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each benchmark's folder, where it takes ``folders``: all those given."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name != "folders":
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        for row in BENCHMARKS.values():
            option = typer.Option(
                help=f"Folder that holds {row.title}. [default: ${row.variable}, else the hub]",
                rich_help_panel=DATA,
            )
            kind = Annotated[Path | None, option]
            named = inspect.Parameter(f"{row.name}_dir", parameter.kind, default=None, annotation=kind)
            parameters.append(named)

    @functools.wraps(command)
    def called(**given: Any) -> None:
        folders: Folders = folders_of(given)
        own = {name: value for name, value in given.items() if name in hints}
        command(**own, folders=folders)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del called.__wrapped__
    return called


class SettingsCommand(typer.core.TyperCommand):
    """A command with ``--set``, which says so where a setting without a flag is given as one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command line.

        Raises:
            RequestError: a word is the name of a setting that has no flag.
        """
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            word = str(getattr(error, "option_name", ""))
            fault = _set_instead(word.lstrip("-").replace("-", "_"), word)
            if fault is None:
                raise
            raise RequestError(fault) from None


def _set_instead(name: str, word: str) -> Fault | None:
    from ngdiff.cli.settings import REPLACED, known_settings

    if name not in known_settings() | REPLACED.keys():
        return None
    fix = REPLACED.get(name, f"Give it as --set {name}=VALUE, or in the file of --config")
    return Fault(word, "is not a flag of this command", fix)


def _use_quiet(context: typer.Context, asked: bool) -> bool:
    if not context.resilient_parsing:
        settings.quiet = asked
        settings.apply()
    return asked


def _use_log_format(context: typer.Context, name: str) -> str:
    if context.resilient_parsing:
        return name
    if name not in get_args(LogFormat):
        raise RequestError(
            Fault("--log-format", f"{name!r} is not a log format", "Choose auto, lines or json")
        )
    settings.log_format = name  # type: ignore[assignment]
    settings.apply()
    if name == "json" and not log.is_open:
        if is_first():
            log.open(sys.stdout, context.info_name or "", few=settings.quiet)
        sys.stdout = sys.stderr  # other output goes there, since standard output is for events only
    return name


# `--quiet` is declared, and so parsed, before `--log-format`, which reads it
Quiet = Annotated[
    bool,
    typer.Option(
        *("--quiet", "-q"),
        help="Print only errors and the last line.",
        callback=_use_quiet,
        is_eager=True,
        envvar="NGDIFF_QUIET",
        show_envvar=False,
        rich_help_panel=LOGS,
    ),
]
Log = Annotated[
    str,
    typer.Option(
        "--log-format",
        help="auto (a progress bar on a terminal, otherwise lines), lines, or json (one object per line on "
        "standard output).",
        callback=_use_log_format,
        envvar="NGDIFF_LOG_FORMAT",
        show_envvar=False,
        autocompletion=completion.log_formats,
        rich_help_panel=LOGS,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help="Numerical precision: auto, bf16 or fp32.",
        autocompletion=completion.precisions,
        rich_help_panel=RESOURCES,
    ),
]
LongText = Annotated[
    str,
    typer.Option(
        help="split long texts into several examples, or cut them at the maximum length.",
        autocompletion=completion.long_texts,
        rich_help_panel=DATA,
    ),
]
GradientNorms = Annotated[
    bool,
    typer.Option(
        "--gradient-norms/--no-gradient-norms",
        help="Run the membership attack by gradient norm.",
        rich_help_panel=METHOD,
    ),
]
MaxNewTokens = Annotated[
    int, typer.Option(help="Maximum length of generated answers in tokens.", rich_help_panel=METHOD)
]
Resamples = Annotated[
    int, typer.Option(help="Number of bootstrap resamples for the intervals.", rich_help_panel=METHOD)
]
CacheDir = Annotated[
    Path | None,
    typer.Option(help="Cache folder. [default: ~/.cache/ngdiff]", rich_help_panel=RESOURCES),
]
Lora = Annotated[
    bool, typer.Option("--lora", help="Train and save LoRA adapters only.", rich_help_panel=RESOURCES)
]
GradientCheckpointing = Annotated[
    bool,
    typer.Option(
        "--gradient-checkpointing",
        help="Recompute activations in the backward pass: less memory, more time.",
        rich_help_panel=RESOURCES,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier result.", rich_help_panel=OUTPUT)
]
SaveSteps = Annotated[
    int | None,
    typer.Option(min=1, help="Write a checkpoint every N steps.", rich_help_panel=OUTPUT),
]
SaveMinutes = Annotated[
    float | None,
    typer.Option(
        help="Write a checkpoint every N minutes; 0 disables it. [default: 15]", rich_help_panel=OUTPUT
    ),
]
Resume = Annotated[
    bool | None,
    typer.Option(
        "--resume/--no-resume",
        help="Resume the unfinished run of this output, or start over. "
        "[default: resume if the request is the same]",
        rich_help_panel=OUTPUT,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code from the model's repository. Read it first.",
        rich_help_panel=RESOURCES,
    ),
]
Holdout = Annotated[
    list[str] | None,
    typer.Option(
        help="Data like the forget set that the model has never seen.",
        autocompletion=completion.sources,
        rich_help_panel=DATA,
    ),
]
SetPairs = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Any other setting, as name=value. Repeatable.",
        autocompletion=completion.set_pairs,
        rich_help_panel=METHOD,
    ),
]
Report = Annotated[
    bool,
    typer.Option(
        "--report/--no-report",
        help="Write an HTML report at the end; see 'ngdiff report --help'.",
        rich_help_panel=OUTPUT,
    ),
]
