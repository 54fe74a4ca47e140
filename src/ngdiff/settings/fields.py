"""source text of the settings' classes -> the names that a request may set, without importing them."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from importlib import resources
from pathlib import Path


@cache
def setting_names() -> frozenset[str]:
    """Return the fields of ``UnlearningConfig`` that its constructor takes.

    They are read from the source text, since importing ``transformers.TrainingArguments`` takes seconds.
    """
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.origin is not None
    theirs = (Path(spec.origin).parent / "training_args.py").read_text(encoding="utf-8")
    ours = resources.files("ngdiff.training").joinpath("config.py").read_text(encoding="utf-8")
    return frozenset(_fields(theirs, "TrainingArguments") | _fields(ours, "UnlearningConfig"))


def _fields(source: str, name: str) -> set[str]:
    """Return the names of a dataclass's fields that its constructor takes."""
    classes = [one for one in ast.parse(source).body if isinstance(one, ast.ClassDef) and one.name == name]
    return {
        line.target.id
        for one in classes
        for line in one.body
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and "ClassVar" not in ast.unparse(line.annotation)
        and not _is_set_later(line.value)
    }


def _is_set_later(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Call) and any(
        word.arg == "init" and isinstance(word.value, ast.Constant) and word.value.value is False
        for word in value.keywords
    )
