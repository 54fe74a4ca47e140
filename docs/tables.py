"""tables of the package -> directives of the site, so that no page can say what the code does not.

``{listing} methods`` shows what ``ngdiff ls methods`` shows; ``{metric} probability`` one row of the table of
figures; ``{commands}`` the options of every command.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ngdiff.cli import listing
from ngdiff.evaluation.metrics import FORGET_SETS, METRICS, Metric, higher_is_better


def _cell(text: str, literal: bool = False) -> nodes.entry:
    words: nodes.Node = nodes.literal(text, text) if literal else nodes.Text(text)
    return nodes.entry("", nodes.paragraph("", "", words))


def table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> nodes.table:
    """Return a table whose first column is literal text."""
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in titles), cols=len(titles))
    head = nodes.row("", *(_cell(title) for title in titles))
    group += nodes.thead("", head)
    body = nodes.tbody("")
    for row in rows:
        body += nodes.row("", *(_cell(text, literal=not place) for place, text in enumerate(row)))
    group += body
    return nodes.table("", group)


class Listing(SphinxDirective):
    """One of the tables of ``ngdiff ls``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        return [table(*listing.TABLES[self.arguments[0]]())]


_WORDS = {True: "higher is better", False: "lower is better", None: "neither direction is better"}


def direction(metric: Metric) -> str:
    """Say which way a figure should go, on the retain set and, where that differs, on the forget set."""
    known = higher_is_better(f"retain.{metric.name}", metric.name)
    forget = higher_is_better(f"{FORGET_SETS[0]}.{metric.name}", metric.name)
    if known == forget:
        return _WORDS[known]
    level = "down to" if forget is False else "up to"
    return (
        f"{_WORDS[known]} on what is to be known; {_WORDS[forget]} on the forget set, "
        f"{level} the level of a model that never saw it"
    )


class MetricEntry(SphinxDirective):
    """Definition, direction, version and source of one figure."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the facts as a list of fields."""
        metric = METRICS[self.arguments[0]]
        facts = (
            ("Definition", metric.summary),
            ("Direction", direction(metric)),
            ("Source", f"{metric.source} (version {metric.version} of the code)"),
        )
        fields = nodes.field_list()
        for name, text in facts:
            body = nodes.field_body("", nodes.paragraph("", text))
            fields += nodes.field("", nodes.field_name("", name), body)
        return [fields]


class Commands(SphinxDirective):
    """Every command with its help and its options, as the program itself knows them."""

    def run(self) -> list[nodes.Node]:
        """Return a section a command."""
        import typer

        from ngdiff.cli import commands  # noqa: F401  (registers them)
        from ngdiff.cli.app import app

        group: Any = typer.main.get_command(app)
        return [_command(name, group.commands[name]) for name in sorted(group.commands)]


def _command(name: str, command: Any) -> nodes.section:
    section = nodes.section(ids=[nodes.make_id(f"ngdiff {name}")], names=[f"ngdiff {name}"])
    section += nodes.title("", "", nodes.literal("", f"ngdiff {name}"))
    for text in (command.help or "").split("\n\n"):
        section += nodes.paragraph("", "", *_inline(" ".join(text.split())))
    rows = [
        (", ".join([*option.opts, *option.secondary_opts]), getattr(option, "help", None) or "")
        for option in command.params
        if option.name not in ("help", "install_completion", "show_completion")
    ]
    section += table(("option", "what it is"), rows)
    return section


def _inline(text: str) -> list[nodes.Node]:
    """Return text whose parts between backticks are literal."""
    parts = text.split("`")
    return [nodes.literal("", part) if place % 2 else nodes.Text(part) for place, part in enumerate(parts)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("listing", Listing)
    app.add_directive("metric", MetricEntry)
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
