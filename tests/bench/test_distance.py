"""The distance to the retrained model: by hand, and what must hold for any figures."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngdiff.bench.distance import FORGET, LEAST, NLLS, PARTS, SHARES, VITAL, distance

TARGET = {
    "forget.probability": 0.9,
    "forget.extraction_strength": 1.0,
    "forget.rouge": 0.95,
    "forget.truth_ratio": 0.4,
    "retain.probability": 0.98,
    "retain.rouge": 0.96,
    "retain.truth_ratio": 0.5,
    "real_authors.probability": 0.4,
    "real_authors.rouge": 0.2,
    "real_authors.truth_ratio": 0.5,
    "world_facts.probability": 0.5,
    "world_facts.rouge": 0.3,
    "world_facts.truth_ratio": 0.6,
    "general_nll": 4.0,
    "holdout.nll": 3.0,
}
RETRAINED = TARGET | {
    "forget.probability": 0.1,
    "forget.extraction_strength": 0.05,
    "forget.rouge": 0.35,
    "forget.truth_ratio": 0.6,
}


def test_every_part_by_hand() -> None:
    model = RETRAINED | {
        "forget.probability": 0.3,  # 0.2 of 0.8
        "forget.extraction_strength": 0.24,  # 0.19 of 0.95
        "forget.rouge": 0.2,  # 0.15 of 0.6, below the retrained model's
        "forget.truth_ratio": 0.66,  # 0.06 of 0.2
        "retain.probability": 0.882,  # a tenth is gone
        "retain.rouge": 1.0,  # better than before
        "real_authors.rouge": 0.1,  # a half
        "general_nll": 4.4,
        "holdout.nll": 3.6,
    }
    found = distance(model, TARGET, RETRAINED)
    assert found is not None
    expected = dict.fromkeys(PARTS, 0.0) | {
        "forget.probability": 0.25,
        "forget.extraction_strength": 0.2,
        "forget.rouge": 0.25,
        "forget.truth_ratio": 0.3,
        "retain.probability": 0.1,
        "real_authors.rouge": 0.5,
        "general_nll": 0.1,
        "holdout.nll": 0.2,
    }
    assert found.parts == pytest.approx(expected)
    assert found.value == pytest.approx(0.5) and found.part == "real_authors.rouge" and found.missing == ()


def test_the_target_is_at_one_and_the_retrained_model_at_zero() -> None:
    target, retrained = (distance(model, TARGET, RETRAINED) for model in (TARGET, RETRAINED))
    assert target is not None and target.value == 1.0
    assert retrained is not None and retrained.value == 0.0
    weaker = distance(
        RETRAINED | {"world_facts.rouge": 0.27}, TARGET, RETRAINED | {"world_facts.rouge": 0.27}
    )
    assert weaker is not None and weaker.value == pytest.approx(0.1)  # retain terms are held to the target


def test_small_denominators_do_not_make_noise_large() -> None:
    close = RETRAINED | {"forget.truth_ratio": 0.401}  # the target is at 0.4
    found = distance(close | {"forget.truth_ratio": 0.426}, TARGET, close)
    assert found is not None and found.parts["forget.truth_ratio"] == pytest.approx(0.025 / LEAST)
    rare = TARGET | {"real_authors.rouge": 0.01}
    found = distance(RETRAINED | {"real_authors.rouge": 0.0}, rare, RETRAINED)
    assert found is not None and found.parts["real_authors.rouge"] == pytest.approx(0.01 / LEAST)


def test_parts_that_cannot_be_compared_are_named() -> None:
    log = {key: value for key, value in RETRAINED.items() if key != "forget.truth_ratio"}
    target = {key: value for key, value in TARGET.items() if key != "holdout.nll"}
    found = distance(RETRAINED, target, log)
    assert found is not None and found.missing == ("forget.truth_ratio", "holdout.nll")
    assert set(found.parts) == set(PARTS) - set(found.missing)
    assert distance(TARGET, TARGET, {}) is None  # no retrained model
    assert distance(TARGET, {}, RETRAINED) is None


@pytest.mark.parametrize("key", PARTS)
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_figure_that_the_model_lacks_is_infinitely_far(key: str, value: float | None) -> None:
    model = {**RETRAINED, key: value} if value is not None else {k: RETRAINED[k] for k in PARTS if k != key}
    found = distance(model, TARGET, RETRAINED)  # type: ignore[arg-type]
    assert found is not None and found.value == math.inf and found.part == key and not found.missing


@pytest.mark.parametrize(
    ("key", "value", "destroyed"),
    [
        ("retain.probability", 0.5, False),
        ("retain.probability", 0.48, True),
        ("retain.rouge", 0.4, True),
        ("general_nll", 4.6, False),
        ("general_nll", 4.7, True),  # exp(-0.7) is less than a half
        ("world_facts.rouge", 0.1, False),
    ],
)
def test_a_model_that_lost_half_of_what_is_vital_is_destroyed(
    key: str, value: float, destroyed: bool
) -> None:
    found = distance(RETRAINED | {key: value}, TARGET, RETRAINED)
    assert found is not None and math.isinf(found.value) == destroyed and found.part == key
    if destroyed:  # what was lost is named, however far off the forget set may be
        found = distance(RETRAINED | {key: value, "forget.truth_ratio": 1.0}, TARGET, RETRAINED)
        assert (
            found is not None and found.part == key and found.parts["forget.truth_ratio"] == pytest.approx(2)
        )


SHARE = st.floats(0.0, 1.0)
MODELS = st.fixed_dictionaries(
    dict.fromkeys(FORGET + SHARES, SHARE) | dict.fromkeys(NLLS, st.floats(0.0, 12.0))
)


@given(MODELS, MODELS, MODELS, st.sampled_from(PARTS), st.floats(0.0, 3.0))
def test_further_off_is_never_nearer(
    model: dict[str, float], target: dict[str, float], retrained: dict[str, float], key: str, by: float
) -> None:
    if key in FORGET:
        worse = model[key] + (by if model[key] >= retrained[key] else -by)
    else:
        worse = model[key] + (by if key in NLLS else -by)
    found, other = (distance(one, target, retrained) for one in (model, model | {key: worse}))
    assert found is not None and other is not None
    assert found.value <= other.value and found.value >= 0
    assert found.value == math.inf or found.value == max(found.parts.values()) == found.parts[found.part]


@given(MODELS, MODELS, MODELS, MODELS, st.sampled_from(VITAL), st.floats(0.0, 0.49))
def test_a_destroyed_model_never_ranks_above_an_intact_one(
    ruin: dict[str, float],
    intact: dict[str, float],
    target: dict[str, float],
    retrained: dict[str, float],
    key: str,
    left: float,
) -> None:
    target |= {name: max(target[name], 2 * LEAST) for name in VITAL}
    ruin |= {key: target[key] + 1 if key in NLLS else left * target[key]}
    intact |= {name: target[name] for name in VITAL}
    found, other = (distance(one, target, retrained) for one in (ruin, intact))
    assert found is not None and other is not None and found.value > other.value
