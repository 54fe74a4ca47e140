"""``ngdiff ls``: the tables of available names."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Annotated

import typer

from ngdiff.cli import completion
from ngdiff.cli.app import app
from ngdiff.errors import RequestError, unknown_name

Listing = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Titles of the columns, and the rows."""


def _settings(settings: Mapping[str, float | str]) -> str:
    values = {name: value if isinstance(value, str) else f"{value:g}" for name, value in settings.items()}
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "-"


def _range(name: str, values: Sequence[float]) -> str:
    short = "lr" if name == "learning_rate" else name.rpartition(".")[2]
    return f"{short} {{{', '.join(f'{value:g}' for value in values)}}}"


def methods() -> Listing:
    """List the named recipes, each with its four parts, its defaults and its search range."""
    from ngdiff.methods import METHODS
    from ngdiff.steps.gen import START

    rows: list[tuple[str, ...]] = []
    for method in METHODS.values():
        parts = (method.forget_loss, method.retain_loss, method.rule, method.step_size)
        rate = {} if method.learning_rate is None else {"lr": method.learning_rate}
        if method.step_size == "gen":
            rate = {"lr": START}
        search = "; ".join(_range(name, values) for name, values in method.search.items())
        defaults = _settings({**rate, **method.rule_settings, **method.run})
        cells = (" × ".join(parts), defaults, search or "-", method.summary, method.paper)
        rows.append((method.name, *cells))
    parts_title = "forget loss × retain loss × rule × step size"
    return ("method", parts_title, "defaults", "search range", "summary", "paper"), rows


def losses() -> Listing:
    """List the losses, each with the set it is meant for."""
    from ngdiff.losses import LOSSES

    rows: list[tuple[str, ...]] = [
        (loss.name, loss.task, f"per {loss.per}", _settings(loss.settings), loss.summary, loss.paper)
        for loss in LOSSES.values()
    ]
    return ("loss", "for", "averaged", "settings", "summary", "paper"), rows


def rules() -> Listing:
    """List the weighting rules, each with its settings."""
    from ngdiff.steps.weighting import RULES

    rows: list[tuple[str, ...]] = []
    for rule in RULES.values():
        rows.append((rule.name, _settings(rule.settings), rule.summary, rule.paper))
    return ("rule", "settings", "summary", "paper"), rows


def datasets() -> Listing:
    """List the named data sets, and the forms that own data can have."""
    from ngdiff.data.benchmarks import BENCHMARKS
    from ngdiff.data.files import COLUMN_FORMS, READERS
    from ngdiff.data.layouts import LAYOUTS
    from ngdiff.data.sources import SHIPPED

    rows: list[tuple[str, ...]] = [
        (f"{row.name}:{part}", summary, row.paper)
        for row in BENCHMARKS.values()
        for part, summary in row.parts.items()
    ]
    rows += [(f"ngdiff:{name}", summary, "comes with NGDiff") for name, summary in SHIPPED.items()]
    rows += [
        (f"FILE{ending}", "a file of rows; a slice may follow, as in FILE[:100]", "own data")
        for ending in READERS
    ]
    rows.append(("FOLDER", f"a folder of such files ({', '.join(READERS)})", "own data"))
    rows.append(
        ("ORG/NAME:CONFIG@SPLIT", "a data set on the hub; config and split may be left out", "own data")
    )
    rows += [("/".join(form), f"columns of a row: {' and '.join(form)}", "own data") for form in COLUMN_FORMS]
    rows += [
        ("/".join(columns), f"columns of a row, as {name} has them", "own data")
        for name, columns in LAYOUTS.items()
    ]
    return ("data set", "summary", "paper"), rows


def suites() -> Listing:
    """List the evaluation suites, each with its options."""
    from ngdiff.evaluation.suites import suites as table

    rows: list[tuple[str, ...]] = []
    for suite in table().values():
        options = [f"--{name}" for name in suite.needs]
        options += [f"[--{name.replace('_', '-')}]" for name in suite.takes]
        rows.append((suite.name, " ".join(options), suite.summary, suite.paper))
    return ("suite", "options", "summary", "paper"), rows


def metrics() -> Listing:
    """List the figures that suites compute, each with its better direction and version."""
    from ngdiff.evaluation.metrics import METRICS

    words = {True: "higher is better", False: "lower is better", None: "-"}
    rows: list[tuple[str, ...]] = []
    for row in METRICS.values():
        rows.append((row.name, words[row.higher_is_better], str(row.version), row.summary, row.source))
    return ("metric", "on what should be known", "version", "summary", "source"), rows


def audits() -> Listing:
    """List the audits, each with its settings."""
    from ngdiff.audits import audits as table

    rows: list[tuple[str, ...]] = []
    for row in table().values():
        options = " ".join(f"[--{name.replace('_', '-')}]" for name in row.settings)
        rows.append((row.name, options or "-", row.summary, row.paper))
    return ("audit", "options", "summary", "paper"), rows


TABLES: dict[str, Callable[[], Listing]] = {
    "methods": methods,
    "losses": losses,
    "rules": rules,
    "datasets": datasets,
    "suites": suites,
    "metrics": metrics,
    "audits": audits,
}


def _tables() -> Listing:
    summaries = ((make.__doc__ or "").removeprefix("List ").rstrip(".") for make in TABLES.values())
    return ("table", "what it lists"), list(zip(TABLES, summaries, strict=True))


LISTINGS = "listings.json"
"""All tables as written to a file, which is read without torch."""


def written(table: str) -> Listing:
    """Return a table as ``python -m benchmarks.listings`` wrote it; a test compares it with the table."""
    text = resources.files("ngdiff.cli").joinpath(LISTINGS).read_text(encoding="utf-8")
    titles, *rows = (tuple(row) for row in json.loads(text)[table])
    return titles, rows


@app.command("ls")
def ls(
    table: Annotated[
        str | None,
        typer.Argument(
            help=f"{', '.join(TABLES)}; leave it out to list these.", autocompletion=completion.tables
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Argument(help="One row of the table, such as ngdiff, to print all of it.")
    ] = None,
) -> None:
    """List the available methods, losses, rules, data sets, suites, metrics and audits.

    Example: `ngdiff ls methods`

    All about one of them: `ngdiff ls methods ngdiff`

    When piped, it prints one line per row: `ngdiff ls methods | grep ngdiff`
    """
    if table is not None and table not in TABLES:
        raise RequestError(unknown_name("ls", "table", table, TABLES))
    titles, rows = _tables() if table is None else written(table)
    if name is not None:
        _print_row(titles, _row(rows, name, str(table)))
    elif sys.stdout.isatty():
        _print_short(titles, rows)
        if table is not None:
            print(f"\nAll about one of them: ngdiff ls {table} NAME")
    else:
        _print_lines(rows)


def _row(rows: list[tuple[str, ...]], name: str, table: str) -> tuple[str, ...]:
    found = {row[0]: row for row in rows}
    if name not in found:
        raise RequestError(unknown_name(f"ls {table}", "row", name, found))
    return found[name]


def _print_row(titles: tuple[str, ...], row: tuple[str, ...]) -> None:
    """Print one complete row, one line per column."""
    width = max(map(len, titles))
    for title, cell in zip(titles, row, strict=True):
        print(f"{title.ljust(width)}  {cell}")


def _print_short(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print name and summary of each row, on at most two lines unless the terminal is very narrow."""
    summary = titles.index("summary") if "summary" in titles else 1
    margin = min(24, max(len(row[0]) for row in rows) + 2)
    room = max(20, shutil.get_terminal_size().columns - margin)
    for row in rows:
        lines = textwrap.wrap(row[summary], room, max_lines=2, placeholder=" …")
        if len(row[0]) + 2 > margin:  # the name takes the first line
            lines = ["", textwrap.shorten(row[summary], room, placeholder=" …")]
        print(row[0].ljust(margin) + lines[0])
        for line in lines[1:]:
            print(" " * margin + line)


def _print_lines(rows: list[tuple[str, ...]]) -> None:
    """Print one complete line per row, with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
