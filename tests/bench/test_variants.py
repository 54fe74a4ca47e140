"""What the names in a benchmark's tables stand for: conditions shared with the default, and its ablation."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import ngdiff.bench.variants
from ngdiff.bench.grid import candidates, nested
from ngdiff.bench.inputs import Hashes
from ngdiff.bench.trials import BenchRequest, reporting, tuning
from ngdiff.bench.variants import ABLATED, SAME, ablations, find_variant, same_conditions
from ngdiff.methods import METHODS, RATES, WEIGHTS, find_method
from ngdiff.settings import DEFAULT_METHOD
from ngdiff.steps.weighting import RULES
from ngdiff.training.config import UnlearningConfig

PARTS = ("forget_loss", "retain_loss", "rule", "step_size")
DEFAULT = find_method(DEFAULT_METHOD)


def request(**changes: Any) -> BenchRequest:
    usual: dict[str, Any] = {"methods": ("graddiff", DEFAULT_METHOD), "splits": ("forget01",), "seeds": 1}
    return BenchRequest(**{"model": "target", "output": Path("out"), **usual, **changes})


def config(name: str, **more: Any) -> UnlearningConfig:
    """Return the settings with which a trial of a variant's first candidate runs."""
    variant = find_variant(name)
    own = {**variant.settings, **nested(candidates(variant.method, 1)[0], variant.method), **more}
    return UnlearningConfig(output_dir="x", use_cpu=True, report_to="none", method=variant.row, **own)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_under_the_same_conditions_all_but_forget_loss_and_rule_are_the_default_s(name: str) -> None:
    own, same, default = config(name), config(name + SAME), config(DEFAULT_METHOD)
    of_their_own = {"forget_loss", "forget_loss_settings", "rule", "rule_settings", "retain_loss_settings"}
    for setting in {field.name for field in fields(default) if field.init} - of_their_own:
        assert getattr(same, setting) == getattr(default, setting), setting
    assert same.forget_loss == own.forget_loss
    if own.rule == "forget-only":  # under which no retain loss has an effect
        assert same.rule == "constant" and same.rule_settings == {}
    else:
        usual = RULES[own.rule].settings
        assert same.rule == own.rule and {**usual, **same.rule_settings} == {**usual, **own.rule_settings}
    method = find_variant(name + SAME).method
    assert {part: getattr(method, part) for part in PARTS} == {part: getattr(same, part) for part in PARTS}
    assert ("learning_rate" in method.search) == (DEFAULT.step_size == "fixed")
    assert not [setting for setting in method.search if setting.startswith("retain_loss")]
    for found in candidates(method, 500):
        config(name + SAME, **nested(found, method))


def test_what_is_the_default_then_is_not_run_twice() -> None:
    assert same_conditions([DEFAULT_METHOD]) == []
    assert same_conditions(["graddiff", DEFAULT_METHOD, "npo"]) == ["graddiff+same", "npo+same"]
    twins = [
        name for name, m in METHODS.items() if (m.forget_loss, m.rule) == (DEFAULT.forget_loss, DEFAULT.rule)
    ]
    assert same_conditions(twins) == []


def test_the_ablation_changes_one_part_at_a_time() -> None:
    names = ablations(DEFAULT_METHOD)
    changed = []
    for name in names:
        method, ours = find_variant(name).method, config(name)
        (part,) = [part for part in PARTS if getattr(method, part) != getattr(DEFAULT, part)]
        assert {part: getattr(ours, part) for part in PARTS} == {p: getattr(method, p) for p in PARTS}
        changed.append((part, getattr(method, part)))
    everything = [(part, value) for part, values in ABLATED.items() for value in values]
    assert changed == [(part, value) for part, value in everything if getattr(DEFAULT, part) != value]
    assert len(set(names)) == len(names) >= 4
    assert {part for part, _ in changed} == set(PARTS)


def test_the_ablation_follows_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(DEFAULT, name="another", forget_loss="unlikelihood", retain_loss="nll", rule="ngdiff")
    monkeypatch.setitem(METHODS, "another", row)
    monkeypatch.setattr(ngdiff.bench.variants, "DEFAULT_METHOD", "another")
    assert ablations("another") == (
        "another+rule=constant",
        "another+forget_loss=negated-nll",
        "another+step_size=fixed",
    )
    assert find_variant("npo+same").method.retain_loss == "nll" and find_variant("npo+same").row == "another"


def test_a_part_that_has_something_to_tune_brings_its_range() -> None:
    rate = find_variant(f"{DEFAULT_METHOD}+step_size=fixed").method
    assert rate.search["learning_rate"] == RATES
    assert candidates(rate, 9)[0] == {"learning_rate": DEFAULT.learning_rate or RATES[0]}
    assert config(rate.name).learning_rate == (DEFAULT.learning_rate or RATES[0])
    weights = find_variant(f"{DEFAULT_METHOD}+rule=constant").method
    assert weights.search == {"rule_settings.alpha": WEIGHTS} and len(candidates(weights, 9)) == len(WEIGHTS)
    assert find_variant("npo+same").method.search == {
        name: values for name, values in METHODS["npo"].search.items() if name != "learning_rate"
    }


def test_what_is_asked_for_decides_what_is_run() -> None:
    assert request().variants == ("graddiff", DEFAULT_METHOD)
    assert request(same_conditions=True).variants == ("graddiff", DEFAULT_METHOD, "graddiff+same")
    ablated = request(methods=("npo",), ablate=True).variants
    assert ablated == ("npo", DEFAULT_METHOD, *ablations(DEFAULT_METHOD))
    asked = request(same_conditions=True, ablate=True, trials=3)
    assert [trial.method for trial in reporting(asked, {})] == list(asked.variants)
    assert {trial.method for trial in tuning(asked)} == {
        name for name in asked.variants if find_variant(name).method.search
    }
    assert len({trial.place for trial in reporting(asked, {})}) == len(asked.variants)


def test_the_key_of_a_variant_follows_the_default_s_row(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, inputs = request(same_conditions=True), Hashes("model", "rows", "evaluated")
    trials = {trial.method: trial for trial in reporting(asked, {})}
    before = {name: trial.key(asked, inputs) for name, trial in trials.items()}
    assert len(set(before.values())) == 3
    other = "kl" if DEFAULT.retain_loss == "nll" else "nll"
    monkeypatch.setitem(METHODS, DEFAULT_METHOD, replace(DEFAULT, retain_loss=other))
    after = {name: trial.key(asked, inputs) for name, trial in trials.items()}
    assert after["graddiff"] == before["graddiff"]
    assert after["graddiff+same"] != before["graddiff+same"]
