"""``ngdiff evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ngdiff.cli import completion
from ngdiff.cli.app import app
from ngdiff.cli.options import (
    DATA,
    METHOD,
    OUTPUT,
    RESOURCES,
    CacheDir,
    GradientNorms,
    Holdout,
    Log,
    LongText,
    MaxNewTokens,
    Overwrite,
    Precision,
    Quiet,
    Report,
    Resamples,
    TrustRemoteCode,
    with_folders,
)
from ngdiff.cli.report import report_after
from ngdiff.data.benchmarks import NO_FOLDERS, Folders
from ngdiff.system.events import log
from ngdiff.system.terminal import last_line

if TYPE_CHECKING:
    from ngdiff.evaluation.result import EvaluationResult, Figure
    from ngdiff.models.loading import Precision as PrecisionName

MAIN_FIGURES = ("forget_quality", "model_utility", "utility", "privleak")


@app.command()
@with_folders
def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model: a folder, a hub name, or 'smollm2'.")],
    suite: Annotated[
        str,
        typer.Option(
            help="Suite: tofu, muse, own or lm-eval; see 'ngdiff ls suites'.",
            autocompletion=completion.suites,
            rich_help_panel=METHOD,
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="JSON file to write, such as eval.json.", rich_help_panel=OUTPUT)
    ],
    forget: Annotated[
        list[str] | None,
        typer.Option(
            help="tofu: forget01, forget05 or forget10; own: file, folder or hub data set to forget.",
            autocompletion=completion.forget_sets,
            rich_help_panel=DATA,
        ),
    ] = None,
    retain: Annotated[
        list[str] | None,
        typer.Option(help="own: file, folder or hub data set to keep.", rich_help_panel=DATA),
    ] = None,
    holdout: Holdout = None,
    data: Annotated[
        str | None,
        typer.Option(help="muse: news, books, or a folder in the same layout.", rich_help_panel=DATA),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="lm-eval: tasks, separated by commas.", rich_help_panel=METHOD)
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="lm-eval: maximum number of items per task.", rich_help_panel=METHOD),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="The retrained model, its eval.json, or its log (TOFU_EVAL.json, MUSE_EVAL.json).",
            rich_help_panel=DATA,
        ),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            help="Fail early if this cannot be computed: forget_quality, privleak or membership. Repeatable.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    folders: Folders = NO_FOLDERS,
    batch_size: Annotated[
        int, typer.Option(help="Sequences per forward pass.", rich_help_panel=RESOURCES)
    ] = 8,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Maximum sequence length in tokens. [default: 512; muse: 2048]", rich_help_panel=RESOURCES
        ),
    ] = None,
    long_text: LongText = "split",
    max_new_tokens: MaxNewTokens = 200,
    seed: Annotated[
        int, typer.Option(help="Random seed of the bootstrap intervals.", rich_help_panel=METHOD)
    ] = 0,
    resamples: Resamples = 2000,
    paraphrases: Annotated[
        bool,
        typer.Option(
            "--paraphrases/--no-paraphrases",
            help="Also evaluate paraphrased questions.",
            rich_help_panel=METHOD,
        ),
    ] = True,
    gradient_norms: GradientNorms = True,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache/--no-cache",
            help="Cache the results of single items, so that an interrupted evaluation resumes.",
            rich_help_panel=RESOURCES,
        ),
    ] = True,
    cache_dir: CacheDir = None,
    precision: Precision = "auto",
    openunlearning: Annotated[
        Path | None,
        typer.Option(
            help="Also write TOFU_EVAL.json or MUSE_EVAL.json, in OpenUnlearning's layout, to this folder.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
    report: Report = True,
    quiet: Quiet = False,
    log_format: Log = "auto",
) -> None:
    """Measure how well a model forgot, and what it still knows.

    `ngdiff evaluate unlearned --suite tofu --forget forget10 --reference retrained --output eval.json`

    `ngdiff evaluate unlearned --suite own --forget forget.jsonl --retain retain.jsonl --output eval.json`

    To resume an interrupted evaluation, run the same command again.
    """
    _refuse_early(context, suite, overwrite, bool(forget and retain), folders)
    from ngdiff.evaluation.evaluate import evaluate as run
    from ngdiff.evaluation.request import EvaluateRequest
    from ngdiff.system.environment import keep_freed_memory
    from ngdiff.system.processes import is_first_process

    keep_freed_memory()
    request = EvaluateRequest(
        model=model,
        suite=suite,
        output=output,
        forget=tuple(forget or ()),
        retain=tuple(retain or ()),
        holdout=tuple(holdout or ()),
        data=data,
        tasks=tuple(name.strip() for name in (tasks or "").split(",") if name.strip()),
        limit=limit,
        reference=reference,
        require=tuple(require or ()),
        folders=folders,
        batch_size=batch_size,
        max_length=max_length,
        long_text=long_text,
        max_new_tokens=max_new_tokens,
        seed=seed,
        resamples=resamples,
        paraphrases=paraphrases,
        gradient_norms=gradient_norms,
        cache=cache,
        cache_dir=cache_dir,
        precision=cast("PrecisionName", precision),  # checked with all the rest
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        openunlearning=openunlearning,
    )
    result = run(request, show)
    if is_first_process():
        report_after(output, report)
        close(result, output)


def _refuse_early(context: typer.Context, suite: str, overwrite: bool, whole: bool, folders: Folders) -> None:
    """Refuse what shows without a library; the data of a benchmark's suite do not."""
    from ngdiff.cli.early import NUMBERS, Look, exists, model_named, refuse_names, right, rows_named
    from ngdiff.cli.listing import written
    from ngdiff.evaluation.result import check_results

    looks: dict[str, Look] = {**NUMBERS, "model": model_named(), "reference": right(exists)}
    looks |= {
        "suite": rows_named("--suite", "suite", "suites"),
        "output": lambda path: check_results(path, overwrite),
    }
    if suite == "own" and whole:
        refuse_names(context, looks, {name: f"--{name}" for name in ("forget", "retain", "holdout")}, folders)
    elif suite == "tofu":
        splits = {"forget01", "forget05", "forget10"}
        refuse_names(context, {**looks, "forget": right(lambda given: set(given) <= splits)}, folders=folders)
    elif suite not in [row[0] for row in written("suites")[1]]:
        anything = right(lambda _: True)  # nobody knows what an unknown suite takes
        refuse_names(
            context, {**looks, **dict.fromkeys(("forget", "retain", "holdout"), anything)}, folders=folders
        )


def show(result: EvaluationResult) -> None:
    """Print the figures with their intervals and directions, and the notes."""
    from rich.markup import escape

    from ngdiff.system.progress import console

    console.print(figure_table(result))
    for key, found in result.figures.items():
        if found.value is None:
            console.print(f"{escape(key)}: {escape(found.note or 'no value')}.", highlight=False)
    for note in result.notes:
        log.note(note)
        console.print(f"Note: {escape(note)}.", highlight=False)
    console.print("↑ higher is better, ↓ lower; 95% bootstrap intervals over items.", highlight=False)


def close(result: EvaluationResult, output: Path) -> None:
    """Print where the result is."""
    from rich.markup import escape

    from ngdiff.evaluation.result import texts_file
    from ngdiff.system.progress import console

    log.conclude(output=str(output))
    if result.texts:
        beside = escape(str(texts_file(output)))
        console.print(f"Questions and answers are in {beside}: protect it like the data.", soft_wrap=True)
    last_line(f"The result is in {escape(str(output))}")


def figure_table(result: EvaluationResult) -> Any:
    """Build the table of figures, aggregates first."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("figure", "", title=None)
    for title in ("value", "95% interval", "items"):
        table.add_column(title, justify="right")
    first = [key for key in MAIN_FIGURES if key in result.figures]
    for key in [*first, *(key for key in result.figures if key not in first)]:
        found = result.figures[key]
        if found.value is not None:
            count = str(len(found.items)) if found.items else ""
            table.add_row(escape(key), _arrow(key, found), _number(found.value), _interval(found), count)
    return table


def _arrow(key: str, found: Figure) -> str:
    from ngdiff.evaluation.metrics import higher_is_better

    return {True: "↑", False: "↓", None: ""}[higher_is_better(key, found.metric)]


def _number(value: float) -> str:
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"


def _interval(found: Figure) -> str:
    if found.interval is None:
        return ""
    low, high = found.interval
    return f"{_number(low)} – {_number(high)}"
