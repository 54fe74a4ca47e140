"""the repository's public address -> every file that names it; the README -> one that PyPI can show.

    python -m benchmarks.public_address https://github.com/OWNER/ngdiff
    python -m benchmarks.public_address https://github.com/OWNER/ngdiff --long-description v0.1.0

The first command writes the address into ``pyproject.toml``, ``CITATION.cff`` and the README's badges; given
again, it replaces the old one. The second one makes the README's relative links absolute, in place: the
release workflow runs it before it builds, and nobody commits the result.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
BADGES = "<!-- badges of the public address: python -m benchmarks.public_address -->"
NOTEBOOK = "examples/quickstart.ipynb"
_URLS = ("Repository", "Issues", "Changelog")
_ADDRESS = r"https://github\.com/[A-Za-z0-9-]+/[\w.-]+"


def project(text: str, address: str) -> str:
    """Return pyproject.toml with the project's links."""
    lines = [f'Repository = "{address}"', f'Issues = "{address}/issues"']
    lines += [f'Changelog = "{address}/blob/main/CHANGELOG.md"']
    kept = re.sub(rf"^({'|'.join(_URLS)}) = .*\n", "", text, flags=re.MULTILINE)
    return kept.replace("[project.urls]\n", "\n".join(["[project.urls]", *lines, ""]))


def citation(text: str, address: str) -> str:
    """Return CITATION.cff with the repository."""
    kept = re.sub(r"^repository-code: .*\n", "", text, flags=re.MULTILINE)
    return kept.replace("license: ", f"repository-code: {address}\nlicense: ", 1)


def badges(text: str, address: str) -> str:
    """Return the README with the badges that need an address, in the lines after the mark."""
    colab = "https://colab.research.google.com"
    path = address.removeprefix("https://github.com/")
    run = f"{address}/actions/workflows/ci.yml"
    lines = [
        f"[![CI]({run}/badge.svg?branch=main)]({run})",
        f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({colab}/github/{path}/blob/main/{NOTEBOOK})",
    ]
    kept = re.sub(r"^\[!\[(CI|Open in Colab)\].*\n", "", text, flags=re.MULTILINE)
    return kept.replace(f"{BADGES}\n", "\n".join([BADGES, *lines, ""]))


def long_description(text: str, address: str, version: str) -> str:
    """Return the README with absolute links: to pages of the repository, and to the pictures themselves."""
    relative = r"(?!https?:|mailto:|#|/)"

    def page(link: re.Match[str]) -> str:
        return f"{link[1]}{address}/blob/{version}/{link[2]}{link[3]}"

    def picture(link: re.Match[str]) -> str:
        return f"{link[1]}{address}/raw/{version}/{link[2]}{link[3]}"

    text = re.sub(rf"(!\[[^\]]*\]\(){relative}([^)\s]+)(\))", picture, text)
    text = re.sub(rf'((?:src|srcset)="){relative}([^"]+)(")', picture, text)
    text = re.sub(rf"(\]\(){relative}([^)\s]+)(\))", page, text)
    return re.sub(rf'(href="){relative}([^"]+)(")', page, text)


WRITERS = {"pyproject.toml": project, "CITATION.cff": citation, "README.md": badges}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--long-description", metavar="TAG", help="make the README's links absolute instead")
    given = parser.parse_args()
    address = given.address.rstrip("/")
    if not re.fullmatch(_ADDRESS, address):
        parser.error(f"{address!r} is not a repository's address: write https://github.com/OWNER/NAME")
    for name, write in WRITERS.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        if given.long_description is None:
            path.write_text(write(text, address), encoding="utf-8")
        elif name == "README.md":
            path.write_text(long_description(text, address, given.long_description), encoding="utf-8")


if __name__ == "__main__":
    main()
