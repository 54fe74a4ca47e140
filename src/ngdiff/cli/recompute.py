"""``ngdiff recompute``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ngdiff.cli.app import EXIT_DISAGREES, app

if TYPE_CHECKING:
    from ngdiff.evaluation.recompute import Recomputed


@app.command()
def recompute(
    log: Annotated[
        Path,
        typer.Argument(help="TOFU_EVAL.json, MUSE_EVAL.json or eval_log_aggregated.json, or its folder."),
    ],
    reference: Annotated[
        Path | None, typer.Option(help="Likewise of the retrained model, for forget quality and PrivLeak.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file to write the figures to.")] = None,
) -> None:
    """Work out a published evaluation's figures again from its per-item values.

    `ngdiff recompute TOFU_EVAL.json --reference retrained/TOFU_EVAL.json`

    Exit code 4: a stated figure does not follow from the items.
    """
    from dataclasses import asdict

    from ngdiff.errors import Faults
    from ngdiff.evaluation.openunlearning import read_log
    from ngdiff.evaluation.recompute import recompute as work_out
    from ngdiff.system.output import check_new_file, unless_in_the_way, write_json

    faults = Faults([] if output is None else check_new_file(output))
    logs = []
    for path, where in ((log, "LOG"), (reference, "--reference")):
        with faults.collecting():
            logs.append(None if path is None else read_log(path, where))
    faults.raise_any()
    read, retrained = logs
    assert read is not None
    found = work_out(read, retrained)
    _show(found)
    if output is not None:
        figures = {key: asdict(value) | {"agrees": value.agrees} for key, value in found.items()}
        content = {"log": str(log), "reference": reference and str(reference), "figures": figures}
        content |= {"kind": "recomputation", "suite": read.suite, "split": read.split}
        unless_in_the_way(output, check_new_file, lambda place: write_json(content, place))
    if any(value.agrees is False for value in found.values()):
        raise typer.Exit(EXIT_DISAGREES)


def _show(found: Mapping[str, Recomputed]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ngdiff.system.progress import console

    table = Table("figure", "stated", "from its items", "by definition", "agrees")
    for key, value in found.items():
        numbers = ("-" if n is None else f"{n:.6g}" for n in (value.stated, value.as_stated, value.exact))
        word = {True: "yes", False: "[red]no[/red]", None: "-"}[value.agrees]
        table.add_row(key, *numbers, word)
    Console(width=None if Console().is_terminal else 110).print(table, highlight=False)
    told = [value.agrees for value in found.values() if value.agrees is not None]
    console.print(f"{sum(told)} of {len(told)} stated figures follow from their items.", highlight=False)
    if any(value.stated is not None and value.as_stated is None for value in found.values()):
        console.print("Give --reference, the retrained model's log, to check the others.", highlight=False)
