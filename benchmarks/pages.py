"""a table -> between its two marks in that page of the documentation which has them."""

from __future__ import annotations

from pathlib import Path

PAGES = Path("docs")


def put(title: str, text: str) -> None:
    """Replace what stands between a table's two marks, ``<!-- begin: TITLE -->`` and ``<!-- end: TITLE -->``.

    Raises:
        SystemExit: no page has them, or several have.
    """
    begin, end = f"<!-- begin: {title} -->", f"<!-- end: {title} -->"
    page = page_of(title)
    if page is None:
        raise SystemExit(f"No page of {PAGES} has {begin} ... {end}: where should the table go?")
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not closed:
        raise SystemExit(f"{page} has {begin} without {end}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def page_of(title: str) -> Path | None:
    """Return the page that has a place for a table, where one has."""
    mark = f"<!-- begin: {title} -->"
    found = [page for page in sorted(PAGES.glob("*.md")) if mark in page.read_text(encoding="utf-8")]
    if len(found) > 1:
        raise SystemExit(f"{' and '.join(map(str, found))} have {mark}: which is meant?")
    return found[0] if found else None


def shows(picture: str) -> bool:
    """Say whether a page shows a picture of ``docs/images``."""
    return any(f"images/{picture})" in page.read_text(encoding="utf-8") for page in PAGES.glob("*.md"))
