"""Packages import downwards only, in the order that CONTRIBUTING draws."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "ngdiff"
BEGIN = "    the top floor\n"
END = "    the ground\n"


def drawn() -> dict[str, int]:
    """Return each package's floor, 0 for the ground, as CONTRIBUTING draws them."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = text.split(BEGIN)[1].split(END)[0].splitlines()
    floors = [re.split(r"\s{2,}", line.strip())[0].split(" · ") for line in reversed(lines)]
    names = [name for floor in floors for name in floor]
    assert len(names) == len(set(names)), "a package is drawn twice"
    return {name: number for number, floor in enumerate(floors) for name in floor}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and package of every import from this project: at the top, in a function, or for types."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides its floor"
            found = [str(node.module)]
            if node.module == "ngdiff":
                found = [f"ngdiff.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name.split(".")[1]) for name in found if name.startswith("ngdiff."))


def upward(package: Path, floors: dict[str, int]) -> list[str]:
    """Return the imports that lead to the importing package's own floor or above it."""
    wrong = []
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package)
        here = place.parts[0].removesuffix(".py")
        for line, there in imported(path):
            if there != here and floors.get(there, len(floors)) >= floors[here]:
                wrong.append(f"{place}:{line}: {here} imports {there}, which is not below it")
    return wrong


def test_every_package_has_its_floor() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    packages = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert set(drawn()) == modules | packages


def test_packages_import_downwards_only() -> None:
    wrong = upward(PACKAGE, drawn())
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "from ngdiff.cli.app import app",
        "import ngdiff.cli.app",
        "from ngdiff import cli",
        "def late():\n    from ngdiff.cli.app import app",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ngdiff.cli.app import app",
        "from ngdiff import UnlearningTrainer",
        "from ngdiff.models.model_files import shapes",  # the same floor
    ],
)
def test_an_import_upwards_is_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "new.py").write_text(f"from ngdiff.errors import Fault\n{text}\n")
    (found,) = upward(tmp_path, drawn())
    assert found.startswith("steps/new.py:") and "steps imports" in found
