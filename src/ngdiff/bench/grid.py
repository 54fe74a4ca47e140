"""a method's search range -> the settings to try, and further ones where the best lies at an edge."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ngdiff.losses import LOSSES
from ngdiff.methods import Method
from ngdiff.steps.weighting import RULES

Settings = Mapping[str, Any]
Edge = Literal["least", "greatest"]

MOST_WIDENINGS = 2
"""How often a grid is extended where its best lies at an edge."""
LEAST_FACTOR = 2.0
"""Least factor from the edge of a grid to the value beyond it."""


def candidates(method: Method, count: int) -> list[dict[str, Any]]:
    """Return the settings to try: the method's defaults, then others of its search range.

    The others are drawn at random, and ordered so that every value of every setting comes up about as often
    as any other, however few are tried. The draw depends on the method's name alone, so that more trials
    extend fewer.
    """
    defaults = {"learning_rate": method.learning_rate} if method.learning_rate is not None else {}
    if not method.search:
        return [defaults]
    names = list(method.search)
    grid = [dict(zip(names, values, strict=True)) for values in itertools.product(*method.search.values())]
    random.Random(method.name).shuffle(grid)
    usual = with_defaults(method, {})
    rest = [found for found in grid if found != usual]
    return [defaults, *_spread(rest, usual, max(1, count) - 1)]


def _spread(rest: Sequence[dict[str, Any]], first: Settings, count: int) -> list[dict[str, Any]]:
    """Draw settings, each time those whose values came up least so far; ``first`` came up already."""
    left = list(rest)
    taken: list[dict[str, Any]] = []
    seen = Counter(first.items())
    while left and len(taken) < count:
        found = min(left, key=lambda settings: sum(seen[item] for item in settings.items()))
        left.remove(found)
        taken.append(found)
        seen.update(found.items())
    return taken


def with_defaults(method: Method, settings: Settings) -> dict[str, Any]:
    """Return a value for every setting of the search range: the one given, or the method's usual one."""
    usual: dict[str, Any] = {"learning_rate": method.learning_rate}
    tables = {
        "rule_settings": {**RULES[method.rule].settings, **method.rule_settings},
        "forget_loss_settings": LOSSES[method.forget_loss].settings,
        "retain_loss_settings": LOSSES[method.retain_loss].settings,
    }
    for group, values in tables.items():
        usual |= {f"{group}.{name}": value for name, value in values.items()}
    return {name: settings.get(name, usual.get(name)) for name in method.search}


def nested(settings: Settings, method: Method) -> dict[str, Any]:
    """Turn ``rule_settings.alpha`` and its like into the dictionaries that a run takes."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        group, dot, own = name.partition(".")
        if dot:
            start = dict(method.rule_settings) if group == "rule_settings" else {}
            found.setdefault(group, start)[own] = value
        else:
            found[name] = value
    return found


def searched(method: Method, settings: Settings) -> dict[str, Any]:
    """Return the settings of a run that belong to the search range, in the form in which they were drawn."""
    found: dict[str, Any] = {}
    for name in method.search:
        group, dot, own = name.partition(".")
        values = settings.get(group, {}) if dot else settings
        if (own if dot else name) in values:
            found[name] = values[own if dot else name]
    return found


def values_tried(method: Method, tried: Sequence[Settings]) -> dict[str, list[float]]:
    """Return, for each setting of the search range, the values tried, in ascending order."""
    complete = [with_defaults(method, settings) for settings in tried]
    return {name: sorted({settings[name] for settings in complete}) for name in method.search}


def edges(method: Method, tried: Sequence[Settings], best: Settings) -> dict[str, Edge]:
    """Return the settings whose best value is the least or the greatest of several tried, and which it is."""
    found: dict[str, Edge] = {}
    chosen = with_defaults(method, best)
    for name, values in values_tried(method, tried).items():
        if len(values) > 1 and chosen[name] in (values[0], values[-1]):
            found[name] = "least" if chosen[name] == values[0] else "greatest"
    return found


def widened(method: Method, tried: Sequence[Settings], best: Settings) -> list[dict[str, Any]]:
    """Return the best settings once more for each setting at an edge, with that one a step beyond it.

    Nothing is returned for a setting whose range ends there, as at 0.
    """
    chosen, values = with_defaults(method, best), values_tried(method, tried)
    found = []
    for name, edge in edges(method, tried, best).items():
        value = _beyond(sorted({*values[name], *method.search[name]}), chosen[name], edge)
        if value is not None:
            found.append({**chosen, name: value})
    return found


def _beyond(values: Sequence[float], last: float, edge: Edge) -> float | None:
    """Return the next value of the range; past its end, go on by the factor of the last two, at least 2."""
    ordered = list(values) if edge == "greatest" else list(reversed(values))
    place = ordered.index(last)
    if place + 1 < len(ordered):
        return ordered[place + 1]
    small, large = sorted((last, ordered[place - 1]))
    if last <= 0:
        return None
    factor = max(LEAST_FACTOR, large / small) if small > 0 else LEAST_FACTOR
    return float(f"{last * factor if edge == 'greatest' else last / factor:.3g}")
