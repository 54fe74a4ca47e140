"""a report -> the pictures of it in the documentation.

``python -m benchmarks.screenshots runs/demo/report.html`` writes into docs/images those of report-light.png,
report-dark.png, report-phone.png, report-answers.png and report-curves.png that a page shows; with
``--output FOLDER`` it writes all of them there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.browser import chromium
from benchmarks.pages import shows

IMAGES = Path("docs/images")
WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}
SHOTS: tuple[tuple[str, str, dict[str, int], str | None], ...] = (
    ("light", "light", WIDE, None),
    ("dark", "dark", WIDE, None),
    ("phone", "light", PHONE, None),
    ("answers", "light", WIDE, "#answers"),
    ("curves", "dark", WIDE, "#curves"),
)
"""Name, colours, window, and the section to show; the first screen where there is none."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    folder = asked.output or IMAGES
    shots = [shot for shot in SHOTS if asked.output or shows(f"report-{shot[0]}.png")]
    with chromium() as browser:
        for name, scheme, window, section in shots:
            context = browser.new_context(viewport=window, color_scheme=scheme)
            page = context.new_page()
            page.goto(asked.page.absolute().as_uri())
            show(page, section)
            place = folder / f"report-{name}.png"
            page.screenshot(path=place)
            print(place)
            context.close()


def show(page: Any, section: str | None) -> None:
    """Scroll to a section and wait until its charts are drawn."""
    if section is not None:
        page.evaluate(
            "section => document.querySelector(section)?.scrollIntoView({behavior: 'instant'})", section
        )
    page.wait_for_timeout(600)


if __name__ == "__main__":
    main()
