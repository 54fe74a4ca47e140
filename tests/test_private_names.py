"""Modules keep their hands off each other's private names."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "ngdiff"
MOST = 20
"""Touches in all of src: of names that PyTorch, transformers and the standard library keep private."""
DOCUMENTED = {"_exit", "_replace"}
"""Names that the standard library documents for everybody, underscore or not."""


def _is_own(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def touches(text: str) -> list[tuple[int, str]]:
    """Return line and text of each use of a private attribute that the module itself does not define."""
    tree = ast.parse(text)
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    defined = {node.attr for node in attributes if _is_own(node.value)}
    defined |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return [
        (node.lineno, ast.unparse(node))
        for node in attributes
        if node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in defined | DOCUMENTED
        and not _is_own(node.value)
    ]


def test_private_names_are_touched_from_outside_at_most_so_often() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, name in touches(path.read_text(encoding="utf-8"))
    ]
    assert len(found) <= MOST, "\n".join(found)


def test_no_module_touches_a_private_name_of_the_trainer() -> None:
    for path in sorted((PACKAGE / "training").glob("*.py")):
        names = {name for _, name in touches(path.read_text(encoding="utf-8")) if "trainer._" in name}
        assert names <= {"trainer._prepare_inputs"}, path  # of transformers' own


def test_touches_are_found() -> None:
    text = "class A:\n    def go(self, other):\n        self._a = other._a + other._b + super()._c"
    assert touches(text) == [(3, "other._b")]
