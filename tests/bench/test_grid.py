"""The settings that a benchmark tries, and where it looks further."""

from __future__ import annotations

from typing import Any

import pytest

from ngdiff.bench.grid import edges, values_tried, widened, with_defaults
from ngdiff.methods import Method, find_method

Tried = list[dict[str, Any]]


def method(**search: tuple[float, ...]) -> Method:
    """Return graddiff with another search range; ``alpha`` is that of its rule."""
    found = {{"alpha": "rule_settings.alpha"}.get(name, name): values for name, values in search.items()}
    kept = find_method("graddiff")
    return Method(
        kept.name, kept.forget_loss, kept.retain_loss, kept.rule, "fixed", "", "", 1e-5, search=found
    )


def rates(*values: float) -> Tried:
    return [{"learning_rate": value} for value in values]


RATES = method(learning_rate=(1e-5, 2e-5, 5e-5))


@pytest.mark.parametrize(
    ("tried", "best", "edge", "next_"),
    [
        ((1e-5, 2e-5, 5e-5), 2e-5, None, None),
        ((1e-5, 2e-5, 5e-5), 5e-5, "greatest", 1.25e-4),  # by the factor of the last two
        ((1e-5, 2e-5, 5e-5), 1e-5, "least", 5e-6),
        ((1e-5, 2e-5), 2e-5, "greatest", 5e-5),  # the range itself goes further
        ((2e-5, 5e-5), 2e-5, "least", 1e-5),
        ((1e-5, 2e-5, 5e-5, 1.25e-4), 5e-5, None, None),
        ((1e-5, 2e-5, 5e-5, 1.25e-4), 1.25e-4, "greatest", 3.13e-4),
        ((2e-5,), 2e-5, None, None),  # one value has no edge
    ],
)
def test_a_grid_grows_where_its_best_is_at_the_edge(
    tried: tuple[float, ...], best: float, edge: str | None, next_: float | None
) -> None:
    found = edges(RATES, rates(*tried), {"learning_rate": best})
    assert found == ({} if edge is None else {"learning_rate": edge})
    beyond = widened(RATES, rates(*tried), {"learning_rate": best})
    assert beyond == ([] if next_ is None else rates(next_))


def test_a_step_beyond_is_by_two_at_the_least() -> None:
    near = method(learning_rate=(4e-5, 5e-5))
    assert widened(near, rates(4e-5, 5e-5), {"learning_rate": 5e-5}) == rates(1e-4)
    assert widened(near, rates(4e-5, 5e-5), {"learning_rate": 4e-5}) == rates(2e-5)


def test_nothing_lies_beyond_nought() -> None:
    weight = method(alpha=(0.0, 1.0))
    tried: Tried = [{"rule_settings.alpha": 0.0}, {"rule_settings.alpha": 1.0}]
    assert edges(weight, tried, tried[0]) == {"rule_settings.alpha": "least"}
    assert widened(weight, tried, tried[0]) == []
    assert widened(weight, tried, tried[1]) == [{"rule_settings.alpha": 2.0}]  # 1/0 is no factor


def test_each_setting_at_an_edge_is_extended_by_itself_from_the_best() -> None:
    both = method(learning_rate=(1e-5, 2e-5), alpha=(1.0, 2.0, 5.0))
    tried: Tried = [
        {"learning_rate": 1e-5},  # the defaults: alpha is 1
        {"learning_rate": 2e-5, "rule_settings.alpha": 2.0},
        {"learning_rate": 2e-5, "rule_settings.alpha": 5.0},
    ]
    assert values_tried(both, tried) == {
        "learning_rate": [1e-5, 2e-5],
        "rule_settings.alpha": [1.0, 2.0, 5.0],
    }
    assert widened(both, tried, tried[1]) == [{"learning_rate": 4e-5, "rule_settings.alpha": 2.0}]
    assert widened(both, tried, tried[2]) == [
        {"learning_rate": 4e-5, "rule_settings.alpha": 5.0},
        {"learning_rate": 2e-5, "rule_settings.alpha": 12.5},
    ]
    assert with_defaults(both, tried[0]) == {"learning_rate": 1e-5, "rule_settings.alpha": 1.0}
    assert edges(both, tried, tried[0]) == {"learning_rate": "least", "rule_settings.alpha": "least"}
