"""How large documentation and data may be, and how wide a table."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_WORDS, MOST_COLUMNS = 20_000, 8
MOST_STUDY, MOST_CHECKOUT = 2_000_000, 6_000_000
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "reference").glob("*.md")),
]


def test_the_documentation_can_be_read() -> None:
    """Count all words, those of code and tables too; the bars between a table's cells are none."""
    counts = {path.name: len(re.findall(r"\S*\w\S*", path.read_text(encoding="utf-8"))) for path in PAGES}
    assert sum(counts.values()) <= MOST_WORDS, counts


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_fit_a_page(page: Path) -> None:
    heads = re.findall(r"^(\|.*\|)\n\|[-:| ]+\|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert all(len(re.findall(r"(?<!\\)\|", head)) - 1 <= MOST_COLUMNS for head in heads)


def tracked(*folders: str) -> int:
    """Return the bytes of the files that git knows."""
    command = ["git", "ls-files", "-z", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return sum(path.stat().st_size for path in paths if path.is_file())


def test_data_of_studies_stay_small() -> None:
    assert tracked("docs/study") <= MOST_STUDY


def test_the_checkout_stays_small() -> None:
    assert tracked() <= MOST_CHECKOUT


def test_every_picture_is_shown() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert not [path.name for path in (ROOT / "docs" / "images").iterdir() if path.name not in text]


def test_studies_are_published_as_tables_and_receipts_only() -> None:
    others = [path for path in (ROOT / "docs/study").rglob("*") if path.is_file() and path.suffix != ".csv"]
    assert {path.parent.parent.name for path in others} == {"sequence"}
    assert all("seal" in json.loads(path.read_bytes()) for path in others)


def test_the_headline_is_that_of_the_studies() -> None:
    rows: dict[str, list[dict[str, str]]] = {}
    for split in ("01", "05", "10"):
        path = ROOT / "docs/study/bench" / f"tuned{split}" / "results.csv"
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                rows.setdefault(row["name"], []).append(row)
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Results")[1]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*", text, re.M)
    ]
    assert lines[0][1:4] == ["forget01", "forget05", "forget10"]
    names = ("target", "retrained", "ngdiff-selective-kl", "npo", "graddiff")
    for (title, *cells), name in zip(lines[2:], names, strict=True):
        assert name in title.lower()
        strengths = [f"{float(row['forget.extraction_strength']):.3f}" for row in rows[name]]
        assert cells == [*strengths, f"{min(float(row['collateral']) for row in rows[name]):.2f}"]
