"""Tables of the documentation: each finds its page, and nothing else of it changes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from benchmarks import pages

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pages, "PAGES", tmp_path)
    (tmp_path / "a.md").write_text("before\n<!-- begin: One -->\nold\n<!-- end: One -->\nafter\n")
    (tmp_path / "b.md").write_text("<!-- begin: Two -->\n<!-- end: Two -->\n<!-- begin: Open -->\n")
    return tmp_path


def test_a_table_goes_between_its_marks(docs: Path) -> None:
    pages.put("One", "| new |")
    assert (docs / "a.md").read_text() == ("before\n<!-- begin: One -->\n| new |\n<!-- end: One -->\nafter\n")
    pages.put("Two", "| x |")
    assert (docs / "b.md").read_text().startswith("<!-- begin: Two -->\n| x |\n<!-- end: Two -->\n")
    assert pages.page_of("Two") == docs / "b.md" and pages.page_of("Three") is None


def test_a_table_without_a_place_of_its_own_is_refused(docs: Path) -> None:
    with pytest.raises(SystemExit, match="No page"):
        pages.put("Three", "x")
    with pytest.raises(SystemExit, match="without"):
        pages.put("Open", "x")
    (docs / "c.md").write_text("<!-- begin: One -->\n<!-- end: One -->\n")
    with pytest.raises(SystemExit, match="which is meant"):
        pages.put("One", "x")


def test_every_place_in_the_documentation_is_filled_once() -> None:
    found = re.findall(
        r"<!-- begin: (.+?) -->\n(.*?)<!-- end: (.+?) -->",
        "".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md"))),
        flags=re.DOTALL,
    )
    names = [begin for begin, _, _ in found]
    assert names == [end for _, _, end in found] and len(set(names)) == len(names) >= 13
    assert not [begin for begin, text, _ in found if not text.strip()]
    assert not any("@@@" in page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
