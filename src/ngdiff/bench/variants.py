"""name in the tables -> the recipe that a trial runs: a method's own, or one that shares the default's parts.

``npo`` is the row of that name; ``npo+same`` is the default method with NPO's forget loss and rule;
``ngdiff-kl+rule=constant`` is ngdiff-kl with another rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ngdiff.methods import RATES, WEIGHTS, Method, find_method
from ngdiff.settings import DEFAULT_METHOD
from ngdiff.steps.weighting import RULES

SAME = "+same"
"""Ending of a method's name where it runs under the default method's conditions."""

ABLATED: Mapping[str, tuple[str, ...]] = {
    "rule": ("constant",),
    "forget_loss": ("negated-nll", "unlikelihood"),
    "retain_loss": ("nll",),
    "step_size": ("fixed",),
}
"""What takes the place of each part of the default in an ablation, one part at a time."""

_USUAL_RATE = RATES[0]


@dataclass(frozen=True)
class Variant:
    """The meaning of a name in the benchmark's tables.

    Args:
        method: the parts that run, with their search range; its name is the variant's.
        row: the row of the table of methods that the run itself names.
        settings: settings of the run that differ from that row.
    """

    method: Method
    row: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def find_variant(name: str) -> Variant:
    """Return the meaning of a name.

    Raises:
        RequestError: it begins with no method's name.
    """
    row, plus, change = name.partition("+")
    method = find_method(row)
    if not plus:
        return Variant(method, row)
    if plus + change == SAME:
        return _same_conditions(method)
    part, _, value = change.partition("=")
    return _changed(method, part, value)


def same_conditions(names: Sequence[str]) -> list[str]:
    """Return a name for each method under the default's conditions; none where that is the default."""
    default = _own_parts(find_method(DEFAULT_METHOD))
    found = (_same_conditions(find_method(name)).method for name in names)
    return [method.name for method in found if _own_parts(method) != default]


def _own_parts(method: Method) -> tuple[str, str, dict[str, float]]:
    """Return what a method keeps under the default's conditions."""
    return method.forget_loss, method.rule, dict(method.rule_settings)


def ablations(name: str) -> tuple[str, ...]:
    """Return a name for each part of a method that can be changed, one part at a time."""
    method = find_method(name)
    return tuple(
        f"{name}+{part}={value}"
        for part, values in ABLATED.items()
        for value in values
        if value != getattr(method, part)
    )


def _same_conditions(method: Method) -> Variant:
    """Return the default method with this one's forget loss and rule.

    Everything else is the default's: retain loss, step size, and how it stops. A method without a retain
    loss gets constant weights, since no retain loss has an effect under its own rule.
    """
    default = find_method(DEFAULT_METHOD)
    alone = method.rule == "forget-only"
    rule, own_settings = ("constant", {}) if alone else (method.rule, dict(method.rule_settings))
    # stated in full where the rule is the default's, whose settings would else fill the gaps
    rule_settings = {**RULES[rule].settings, **own_settings} if rule == default.rule else own_settings
    own = ("rule_settings.", "forget_loss_settings.")
    search = {name: values for name, values in default.search.items() if not name.startswith(own)}
    search |= {name: values for name, values in method.search.items() if name.startswith(own)}
    parts = replace(
        default,
        name=method.name + SAME,
        forget_loss=method.forget_loss,
        rule=rule,
        rule_settings=rule_settings,
        search=search,
    )
    settings = {"forget_loss": method.forget_loss, "rule": rule, "rule_settings": rule_settings}
    return Variant(parts, DEFAULT_METHOD, settings)


def _changed(method: Method, part: str, value: str) -> Variant:
    """Return a method with one part changed, and with what that part has to tune."""
    own = {"step_size": "learning_rate"}.get(part, f"{part}_settings.")
    search = {name: values for name, values in method.search.items() if not name.startswith(own)}
    changes: dict[str, Any] = {"name": f"{method.name}+{part}={value}", part: value}
    if part == "rule":
        changes["rule_settings"] = {}
        search["rule_settings.alpha"] = WEIGHTS
    if part == "step_size":
        changes["learning_rate"] = method.learning_rate or _USUAL_RATE
        search["learning_rate"] = RATES
    return Variant(replace(method, **changes, search=search), method.name, {part: value})
