"""modules of the package -> CONTRIBUTING.md's map of the code, with no module missing and none that is gone.

Run it: ``python -m benchmarks.code_map``. Lines that are there stay as they are; a new module's line is the
first of its docstring, put before the modules that write things down.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "ngdiff"
BEGIN, END, ENTRY = "    src/ngdiff/\n", "\n    tests/", r"^      (\w+(?:\.py|/)) +\S"


def modules() -> dict[str, Path]:
    """Return name in the map to the file whose docstring says what it is."""
    files = {path.name: path for path in PACKAGE.glob("[!_]*.py")}
    return files | {f"{path.parent.name}/": path for path in PACKAGE.glob("*/__init__.py")}


def named(page: str) -> list[str]:
    """Return the names in the map."""
    return re.findall(ENTRY, page.split(BEGIN)[1].split(END)[0], re.MULTILINE)


def mended(page: str) -> str:
    """Return the page with missing modules in its map, and lines of lost ones taken out."""
    head, rest = page.split(BEGIN, 1)
    block, tail = rest.split(END, 1)
    there, known = named(page), modules()
    lines = block.split("\n")
    for name in set(there) - set(known):
        lines = [line for line in lines if not line.startswith(f"      {name}")]
    seen: set[str] = set()  # two branches may have told of the same module
    for line in list(lines):
        found = re.match(ENTRY, line)
        if found and found[1] in seen:
            lines.remove(line)
            continue
        seen |= {found[1]} if found else set()
    place = next((n for n, line in enumerate(lines) if line.startswith("      errors.py")), len(lines))
    for name in sorted(set(known) - set(there)):
        said = (ast.get_docstring(ast.parse(known[name].read_text(encoding="utf-8"))) or "").split("\n")[0]
        lines.insert(place, f"      {name:15} {said.rstrip('.')}")
    return head + BEGIN + "\n".join(lines) + END + tail


def main() -> int:
    path = ROOT / "CONTRIBUTING.md"
    before = path.read_text(encoding="utf-8")
    path.write_text(mended(before), encoding="utf-8")
    print("CONTRIBUTING.md: " + ("as it was" if mended(before) == before else "the map was mended"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
