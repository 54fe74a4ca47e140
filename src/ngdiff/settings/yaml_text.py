"""bytes or text of YAML -> plain settings, without code, aliases or duplicate keys."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from ngdiff.errors import Fault, RequestError
from ngdiff.system.untrusted import (
    DEEPEST,
    MOST_SETTINGS,
    Unplaced,
    Unreadable,
    decode,
    deeper_than,
    read_within,
)

_MEND = "Write one 'setting: value' per line"


class _Loader(yaml.SafeLoader):
    """Reads plain values only. With aliases, a kilobyte could expand to a billion values."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not supported", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, OverflowError) as error:  # an impossible date, a number that is not valid
            problem = f"a value cannot be read: {error}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                problem = f"the setting {key!r} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


# 1e-5 is a number, as in YAML 1.2; PyYAML alone reads it as text
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def load_yaml(text: str) -> Any:
    """Read one YAML document of plain values.

    Raises:
        Unreadable: it is not YAML, uses tags, aliases or a key twice, or is nested too deeply.
        Unplaced: for the same reasons, where the line is known.
    """
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = f"is not valid YAML ({getattr(error, 'problem', None) or error})"
        if mark is None:
            raise Unreadable(what, _MEND) from error
        raise Unplaced(mark.line + 1, what, _MEND) from error
    except RecursionError:
        raise Unreadable("is YAML nested too deeply", _MEND) from None
    if deeper_than(value, DEEPEST):
        raise Unreadable("is YAML nested too deeply", _MEND)
    return value


def load_settings(path: Path, where: str) -> dict[Any, Any]:
    """Read a file with a mapping of settings.

    Raises:
        RequestError: it is missing, not a file, too large, not YAML, or not a mapping.
    """
    try:
        loaded = load_yaml(decode(read_within(path, MOST_SETTINGS)))
    except Unplaced as error:
        raise RequestError(error.fault(f"{where} {path}, line {error.line}")) from error
    except Unreadable as error:
        raise RequestError(error.fault(f"{where} {path}")) from error
    if not isinstance(loaded, dict):
        raise RequestError(Fault(where, f"{path} is not a mapping", _MEND))
    return loaded
