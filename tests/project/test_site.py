"""The documentation site builds without a warning, loads nothing from other hosts, and leaves nothing out."""

from __future__ import annotations

import re
import warnings
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from ngdiff.evaluation.metrics import METRICS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

pytest.importorskip("sphinx")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site in this process, where the package is imported already."""
    from sphinx.application import Sphinx

    folder = tmp_path_factory.mktemp("site")
    said = StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Sphinx and its parts; its own warnings end up in ``said``
        app = Sphinx(DOCS, DOCS, folder, folder / ".doctrees", "html", status=None, warning=said)
        app.build()
    # other packages log while the reference imports them; what Sphinx finds names a document
    found = [line for line in said.getvalue().splitlines() if "WARNING" in line or "ERROR" in line]
    assert not found, "\n".join(found)
    return folder


class Page(HTMLParser):
    """What a page links to, loads and can be linked at."""

    LOADS = frozenset(
        {("script", "src"), ("img", "src"), ("link", "href"), ("source", "src"), ("iframe", "src")}
    )

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name in ("id", "name"):
                self.anchors.add(value)
            if (tag, name) in self.LOADS:
                self.loads.append(value)
            elif name == "href":
                self.links.append(value)


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_every_link_inside_the_site_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or link.startswith(("data:", "//")):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file() or not target.is_relative_to(site):
                broken.append(f"{path.name}: {link}")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                broken.append(f"{path.name}: {link} (no such anchor)")
    assert not broken


def test_no_page_loads_anything_from_another_host(site: Path, pages: dict[Path, Page]) -> None:
    elsewhere = [
        f"{p.name}: {x}" for p, page in pages.items() for x in page.loads if re.match(r"(\w+:)?//", x)
    ]
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not elsewhere
    assert not re.findall(r"(?:@import|url\()\s*['\"]?(?:\w+:)?//[^)]*", styles)


def test_evidence_is_not_copied_into_the_site(site: Path) -> None:
    assert not list(site.rglob("record.json"))
    assert sum(path.stat().st_size for path in site.rglob("*") if path.suffix != ".doctree") < 15e6


def test_every_metric_has_its_traps() -> None:
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    shown = re.findall(r"^## (\w+)\n\n```\{metric\} (\w+)\n```\n\n(?=- )", text, re.MULTILINE)
    assert [name for name, _ in shown] == [name for _, name in shown] == list(METRICS)


def test_metrics_page_says_what_the_table_says(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "metrics.html").read_text(encoding="utf-8"))
    import html

    text = html.unescape(text)
    assert all(metric.summary in text and metric.source in text for metric in METRICS.values())


def test_every_command_and_option_is_on_its_page(site: Path) -> None:
    import typer

    from ngdiff.cli import commands  # noqa: F401
    from ngdiff.cli.app import app

    text = (site / "commands.html").read_text(encoding="utf-8")
    for name, command in typer.main.get_command(app).commands.items():
        assert f'id="ngdiff-{name}"' in text
        assert all(option.opts[0] in text for option in command.params)
