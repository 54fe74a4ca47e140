"""``ngdiff bench``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ngdiff.cli import completion
from ngdiff.cli.app import app
from ngdiff.cli.options import (
    DATA,
    METHOD,
    OUTPUT,
    RESOURCES,
    STOPPING,
    GradientNorms,
    Holdout,
    Log,
    Lora,
    Precision,
    Quiet,
    Report,
    SetPairs,
    TrustRemoteCode,
    with_folders,
)
from ngdiff.cli.report import report_after
from ngdiff.data.benchmarks import NO_FOLDERS, Folders
from ngdiff.errors import Fault, RequestError
from ngdiff.settings import DEFAULT_METHOD
from ngdiff.system.events import log
from ngdiff.system.terminal import last_line

if TYPE_CHECKING:
    from ngdiff.bench.summary import Row
    from ngdiff.bench.trials import BenchRequest, Stopping

bench_app = typer.Typer(no_args_is_help=True, help="Compare methods on a benchmark, all tuned the same way.")
app.add_typer(bench_app, name="bench")

WAYS_TO_STOP: dict[str, tuple[Stopping, ...]] = {
    "rule": ("rule",),
    "none": ("none",),
    "both": ("rule", "none"),
}


Model = Annotated[str, typer.Option(help="Target model, trained on all data.", rich_help_panel=DATA)]
Output = Annotated[
    Path, typer.Option(help="Output folder. An interrupted benchmark resumes there.", rich_help_panel=OUTPUT)
]
Methods = Annotated[
    str,
    typer.Option(
        help="Methods, separated by commas; see 'ngdiff ls methods'.",
        autocompletion=completion.methods,
        rich_help_panel=METHOD,
    ),
]
Reference = Annotated[
    list[str] | None,
    typer.Option(
        help="The retrained model, or its eval.json; SPLIT=PATH for several.",
        rich_help_panel=DATA,
    ),
]
Seeds = Annotated[int, typer.Option(help="Reported runs per method.", rich_help_panel=METHOD)]
Trials = Annotated[
    int, typer.Option(help="Settings to try for each method with a search range.", rich_help_panel=METHOD)
]
SameConditions = Annotated[
    bool,
    typer.Option(
        "--same-conditions",
        help="Also run each method with the default's retain loss, step size, stopping rule and floors, "
        "as NAME+same.",
        rich_help_panel=METHOD,
    ),
]
Ablate = Annotated[
    bool,
    typer.Option(
        "--ablate",
        help="Also run the default method with one part changed at a time: rule, forget loss, "
        "retain loss or step size.",
        rich_help_panel=METHOD,
    ),
]
Stop = Annotated[
    str,
    typer.Option(
        help="rule (stop at the forget target), none (run to the end), or both.", rich_help_panel=STOPPING
    ),
]
Epochs = Annotated[
    float | None,
    typer.Option(
        help="Maximum number of passes over the forget set. [default: as in unlearn]",
        rich_help_panel=STOPPING,
    ),
]
Items = Annotated[
    int | None,
    typer.Option(min=1, help="Maximum number of items per set to evaluate.", rich_help_panel=RESOURCES),
]
AlsoRetain = Annotated[
    list[str] | None,
    typer.Option(
        help="Further data to keep in every run, such as ngdiff:general. Repeatable.",
        autocompletion=completion.sources,
        rich_help_panel=DATA,
    ),
]
BatchSize = Annotated[
    int, typer.Option(help="Sequences per forward pass of evaluation.", rich_help_panel=RESOURCES)
]
KeepModels = Annotated[
    bool,
    typer.Option("--keep-models", help="Keep the weights of the reported runs.", rich_help_panel=OUTPUT),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Parallel trials; they share the cores, or use OMP_NUM_THREADS each. "
        "[default: the number of GPUs, or 1]",
        rich_help_panel=RESOURCES,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would run, without running it.", rich_help_panel=OUTPUT)
]
Retain = Annotated[
    list[str] | None,
    typer.Option(help="Data to keep.", autocompletion=completion.sources, rich_help_panel=DATA),
]
METHODS_OF_TEXT = f"{DEFAULT_METHOD},ngdiff,graddiff,npo,simnpo"
"""The usual methods of text: those that need no other answers."""


@bench_app.command()
@with_folders
def tofu(
    context: typer.Context,
    model: Model,
    output: Output,
    methods: Methods = f"{DEFAULT_METHOD},ngdiff-kl,ngdiff,graddiff,npo,simnpo,undial,rmu",
    splits: Annotated[
        str,
        typer.Option(
            help="forget01, forget05, forget10, separated by commas.",
            autocompletion=completion.splits,
            rich_help_panel=DATA,
        ),
    ] = "forget05",
    reference: Reference = None,
    seeds: Seeds = 3,
    trials: Trials = 1,
    tune_on: Annotated[
        str | None,
        typer.Option(
            help="Tune once, on as many questions as this split has, and use the settings for all splits. "
            "[default: tune for each split]",
            autocompletion=completion.splits,
            rich_help_panel=METHOD,
        ),
    ] = None,
    same_conditions: SameConditions = False,
    ablate: Ablate = False,
    stopping: Stop = "rule",
    epochs: Epochs = None,
    learned: Annotated[
        int | None,
        typer.Option(
            min=1, help="The target learned only the last N questions of TOFU.", rich_help_panel=DATA
        ),
    ] = None,
    items: Items = None,
    also_retain: AlsoRetain = None,
    set_: SetPairs = None,
    lora: Lora = False,
    folders: Folders = NO_FOLDERS,
    precision: Precision = "auto",
    batch_size: BatchSize = 8,
    paraphrases: Annotated[
        bool,
        typer.Option(
            "--paraphrases/--no-paraphrases",
            help="Also evaluate paraphrased questions.",
            rich_help_panel=METHOD,
        ),
    ] = True,
    gradient_norms: GradientNorms = False,
    keep_models: KeepModels = False,
    trust_remote_code: TrustRemoteCode = False,
    jobs: Jobs = None,
    dry_run: DryRun = False,
    report: Report = True,
    quiet: Quiet = False,
    log_format: Log = "auto",
) -> None:
    """Run methods × settings × seeds on TOFU, and tabulate the results.

    `ngdiff bench tofu --model target --reference retrained --methods ngdiff,npo --trials 9 --output DIR`

    `ngdiff bench tofu --model target --splits forget01,forget10 --seeds 5 --output DIR --dry-run`

    Methods with a search range are tuned by a fixed rule, and reported on other seeds; methods with an
    automatic learning rate need no tuning. With --reference, each row has its distance to the retrained
    model. Finished trials are skipped; failed ones are noted, and run again the next time. DIR receives
    results.md, .csv and .json, pareto.png and curves.png, and the record and evaluation of each run.
    """
    _refuse_early(context, output, {}, folders)
    request = _request(
        locals(),
        splits=_names(splits),
        tune_on=tune_on,
        learned=learned,
        items=items,
        paraphrases=paraphrases,
    )
    _dry(request) if dry_run else _run(request, report)


@bench_app.command()
@with_folders
def muse(
    model: Model,
    output: Output,
    corpus: Annotated[str, typer.Option(help="news or books.", rich_help_panel=DATA)] = "news",
    splits: Annotated[
        str,
        typer.Option(help="forget, scal_1 to scal_4, sust, separated by commas.", rich_help_panel=DATA),
    ] = "forget",
    texts: Annotated[
        int | None,
        typer.Option(
            min=1, help="The target learned only the first N texts of each set.", rich_help_panel=DATA
        ),
    ] = None,
    retain: Retain = None,
    holdout: Holdout = None,
    items: Items = None,
    methods: Methods = METHODS_OF_TEXT,
    reference: Reference = None,
    seeds: Seeds = 3,
    trials: Trials = 1,
    same_conditions: SameConditions = False,
    ablate: Ablate = False,
    stopping: Stop = "rule",
    epochs: Epochs = None,
    also_retain: AlsoRetain = None,
    set_: SetPairs = None,
    lora: Lora = False,
    folders: Folders = NO_FOLDERS,
    precision: Precision = "auto",
    batch_size: BatchSize = 8,
    gradient_norms: GradientNorms = False,
    keep_models: KeepModels = False,
    trust_remote_code: TrustRemoteCode = False,
    jobs: Jobs = None,
    dry_run: DryRun = False,
    report: Report = True,
    quiet: Quiet = False,
    log_format: Log = "auto",
) -> None:
    """Run methods × settings × seeds on MUSE, and tabulate the results.

    `ngdiff bench muse --model target --reference retrained --output DIR`

    `ngdiff bench muse --model target --splits scal_1,sust --retain muse:news/privleak/retain --output DIR`

    scal_1 to scal_4 are forget sets of increasing size; sust is four successive requests, each starting from
    the previous model, with an evaluation after each. Methods with a search range are tuned on the forget set
    itself, with another seed. Everything else is as for TOFU.
    """
    request = _request(
        locals(),
        suite="muse",
        corpus=corpus,
        splits=_names(splits),
        texts=texts,
        retain=tuple(retain or ()),
        holdout=tuple(holdout or ()),
        items=items,
    )
    _dry(request) if dry_run else _run(request, report)


@bench_app.command()
@with_folders
def own(
    context: typer.Context,
    model: Model,
    output: Output,
    forget: Annotated[
        list[str],
        typer.Option(
            help="Data to forget. Repeatable.", autocompletion=completion.sources, rich_help_panel=DATA
        ),
    ],
    retain: Annotated[
        list[str],
        typer.Option(
            help="Data to keep.",
            autocompletion=completion.sources,
            rich_help_panel=DATA,
        ),
    ],
    holdout: Holdout = None,
    methods: Methods = METHODS_OF_TEXT,
    reference: Reference = None,
    seeds: Seeds = 3,
    trials: Trials = 1,
    same_conditions: SameConditions = False,
    ablate: Ablate = False,
    stopping: Stop = "rule",
    epochs: Epochs = None,
    also_retain: AlsoRetain = None,
    set_: SetPairs = None,
    lora: Lora = False,
    folders: Folders = NO_FOLDERS,
    precision: Precision = "auto",
    batch_size: BatchSize = 8,
    gradient_norms: GradientNorms = False,
    keep_models: KeepModels = False,
    trust_remote_code: TrustRemoteCode = False,
    jobs: Jobs = None,
    dry_run: DryRun = False,
    report: Report = True,
    quiet: Quiet = False,
    log_format: Log = "auto",
) -> None:
    """Run methods × settings × seeds on your own data, and tabulate the results.

    `ngdiff bench own --model target --forget forget.jsonl --retain retain.jsonl --output DIR`

    With --reference, each row has its distance to the retrained model. Methods with a search range are tuned
    on the forget set itself, with another seed. Everything else is as for TOFU.
    """
    _refuse_early(context, output, {name: f"--{name}" for name in ("forget", "retain", "holdout")}, folders)
    request = _request(
        locals(),
        suite="own",
        splits=("own",),
        forget=tuple(forget),
        retain=tuple(retain),
        holdout=tuple(holdout or ()),
    )
    _dry(request) if dry_run else _run(request, report)


def _refuse_early(context: typer.Context, output: Path, sources: Mapping[str, str], folders: Folders) -> None:
    """Refuse what shows without a library; a folder that exists may go on, which the full check judges."""
    from ngdiff.cli.early import NUMBERS, Look, model_named, new_folder, refuse_names, right, rows_named

    own_splits = right(lambda text: set(_names(text)) <= {"forget01", "forget05", "forget10"})
    looks: dict[str, Look] = {**NUMBERS, "model": model_named(output=output), "splits": own_splits}
    looks |= {
        "output": lambda path: right(lambda place: not place.exists())(path) or new_folder()(path),
        "methods": rows_named("--methods", "method", "methods"),
    }
    refuse_names(context, looks, sources, folders)


SHARED = (
    *("model", "output", "seeds", "trials", "same_conditions", "ablate", "epochs", "lora", "folders"),
    *("trust_remote_code", "precision", "batch_size", "gradient_norms", "keep_models", "jobs"),
)
"""Options of all suites that are passed on to the request unchanged."""


def _request(given: Mapping[str, Any], **own: Any) -> BenchRequest:
    """Build the request from the options that all suites have, by their names, and from a suite's own."""
    from ngdiff.bench.trials import BenchRequest
    from ngdiff.cli.settings import parse_set

    return BenchRequest(
        methods=_names(given["methods"]),
        references=_references(given["reference"] or []),
        stopping=_stopping(given["stopping"]),
        also_retain=tuple(given["also_retain"] or ()),
        settings=parse_set(given["set_"] or []),
        **{name: given[name] for name in SHARED},
        **own,
    )


def _stopping(asked: str) -> tuple[Stopping, ...]:
    if asked not in WAYS_TO_STOP:
        raise RequestError(
            Fault("--stopping", f"{asked!r} is not a valid choice", "Choose rule, none or both")
        )
    return WAYS_TO_STOP[asked]


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _references(given: list[str]) -> dict[str, str]:
    found = {}
    for text in given:
        split, equals, path = text.partition("=")
        named = bool(equals) and split.startswith(("forget", "scal_", "sust", "own")) and "/" not in split
        found[split if named else ""] = path if named else text
    return found


def _dry(request: BenchRequest) -> None:
    from ngdiff.bench.grid import MOST_WIDENINGS
    from ngdiff.bench.request_faults import check
    from ngdiff.bench.trials import reporting, tuning

    check(request)
    trials = tuning(request)
    for trial in trials:
        typer.echo(f"tuning  {trial.place}  {trial.settings}")
    if trials:
        typer.echo(
            f"tuning  up to {MOST_WIDENINGS} times a step further, where the best value lies at an edge"
        )
    for trial in reporting(request, {}):
        typer.echo(f"reported  {trial.place}  {trial.settings}")


def _run(request: BenchRequest, report: bool) -> None:
    from rich.markup import escape

    from ngdiff.bench.picture import draw
    from ngdiff.bench.run import run
    from ngdiff.bench.summary import summarise
    from ngdiff.bench.tables import as_csv, as_json, markdown
    from ngdiff.system.output import staged_file, write_json
    from ngdiff.system.progress import console

    result = run(request)
    rows = summarise(result)
    for name, text in (("results.md", markdown(result, rows)), ("results.csv", as_csv(rows))):
        with staged_file(request.output / name) as staged:
            staged.write_text(text, encoding="utf-8")
    write_json(as_json(result, rows), request.output / "results.json")
    try:
        draw(result, rows, request.output)
    except ImportError:
        console.print("No pictures: pip install 'ngdiff[study]' brings matplotlib.", highlight=False)
    console.print(_table(rows))
    for outcome in result.failed:
        console.print(f"Failed: {escape(str(outcome.folder))} (see log.txt there)", highlight=False)
    report_after(request.output, report)
    log.conclude(output=str(request.output))
    last_line(f"The tables and pictures are in {escape(str(request.output))}")


SHOWN = ("forget.extraction_strength", "kept", "collateral")


def _table(rows: list[Row]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    from ngdiff.bench.summary import COLUMNS
    from ngdiff.bench.tables import distance_cell, number

    titles = {column.key: column.title for column in COLUMNS}
    caption = "Means over seeds, and Student's 95% t-interval of the distance; the others are in results.md"
    table = Table("split", caption=caption)
    table.add_column("method", overflow="fold")
    table.add_column("distance", no_wrap=True)
    for key in SHOWN:
        table.add_column(titles[key], justify="right")
    for row in rows:
        cells = [number(row.cells[key].value) if key in row.cells else "" for key in SHOWN]
        name = f"[bold]{escape(row.name)}[/bold]" if row.on_front else escape(row.name)
        table.add_row(row.split, name, distance_cell(row).replace(", ", "\n"), *cells)
    return table
