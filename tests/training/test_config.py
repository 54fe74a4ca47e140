"""Settings: what a method sets, what overrides it, and which faults are found together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ngdiff.errors import Fault, RequestError
from ngdiff.methods import METHODS, RUN
from ngdiff.settings import DEFAULT_METHOD
from ngdiff.settings.values import SettingError, in_python
from ngdiff.steps.gen import START
from ngdiff.steps.weighting import RULES
from ngdiff.training.config import UnlearningConfig, sources


def config(tmp_path: Path, **settings: Any) -> UnlearningConfig:
    return UnlearningConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **settings)


def faults(tmp_path: Path, **settings: Any) -> list[str]:
    with pytest.raises(SettingError) as caught:
        config(tmp_path, **settings)
    assert all(fault.what and fault.fix for fault in caught.value.faults)
    assert not any("--" in str(fault) for fault in caught.value.faults)  # flags are the command line's
    assert len(caught.value.faults) == len(caught.value.flags)
    return [fault.where for fault in caught.value.flags]


def own_settings(method: str) -> dict[str, float]:
    """A method's settings of its rule; what is drawn at random is drawn by the run's seed."""
    seed = {"seed": 0} if "seed" in RULES[METHODS[method].rule].settings else {}
    return {**seed, **METHODS[method].rule_settings}


def test_only_the_folder_is_needed(tmp_path: Path) -> None:
    settings = UnlearningConfig(output_dir=str(tmp_path))
    assert (settings.forget_loss, settings.retain_loss, settings.rule) == (
        "counterfactual",
        "kl",
        "ngdiff",
    )
    assert settings.automatic
    assert settings.learning_rate is None
    assert settings.stop_at == "auto"
    assert settings.hold_general


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_builds(tmp_path: Path, method: Any) -> None:
    settings = config(tmp_path, method=method.name)
    assert settings.forget_loss == method.forget_loss
    assert settings.retain_loss == method.retain_loss
    assert settings.rule == method.rule
    assert settings.rule_settings == own_settings(method.name)
    assert settings.step_size == method.step_size and settings.automatic == (method.step_size != "fixed")
    assert settings.learning_rate == (START if method.step_size == "gen" else method.learning_rate)
    found = {name: getattr(settings, name) for name in RUN}
    assert found == {**RUN, **method.run}
    # a fixed step size without a rate would leave nothing to step with
    assert settings.automatic or settings.learning_rate


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rule", RULES)
def test_any_rule_with_any_method(tmp_path: Path, method: str, rule: str) -> None:
    settings = config(tmp_path, method=method, rule=rule)
    assert settings.rule == rule
    assert settings.forget_loss == METHODS[method].forget_loss
    assert settings.step_size == METHODS[method].step_size
    if rule == METHODS[method].rule:
        assert settings.rule_settings == own_settings(method)


@pytest.mark.parametrize("method", METHODS)
def test_a_learning_rate_fixes_the_step_size(tmp_path: Path, method: str) -> None:
    settings = config(tmp_path, method=method, learning_rate=3e-4)
    assert not settings.automatic
    assert settings.learning_rate == 3e-4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step_size", ["auto", "gen"])
def test_an_automatic_rate_begins_at_the_one_given(tmp_path: Path, method: str, step_size: str) -> None:
    settings = config(tmp_path, method=method, step_size=step_size, learning_rate=1e-6)
    assert settings.step_size == step_size and settings.automatic
    assert settings.learning_rate == 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_any_method_takes_an_automatic_rate(tmp_path: Path, method: str) -> None:
    settings = config(tmp_path, method=method, step_size="auto")
    assert settings.step_size == "auto" and settings.automatic and settings.learning_rate is None


@pytest.mark.parametrize("method", METHODS)
def test_any_method_takes_gens_rate_from_its_usual_one(tmp_path: Path, method: str) -> None:
    settings = config(tmp_path, method=method, step_size="gen")
    assert settings.step_size == "gen" and settings.automatic
    assert settings.learning_rate == (METHODS[method].learning_rate or START)
    assert config(tmp_path, method=method, step_size="gen", learning_rate=3e-6).learning_rate == 3e-6


PAPER = {
    "forget_loss": "negated-nll",
    "retain_loss": "nll",
    "rule": "ngdiff",
    "step_size": "gen",
    "learning_rate": 1e-5,
    "stop_at": "none",
    "keep_utility": 0.0,
    "num_train_epochs": 5.0,
    "probe_every": 10,
}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"stop_at": "auto"},
        {"keep_utility": 0.95},
        {"num_train_epochs": 20.0},
        {"step_size": "auto"},
        {"step_size": "gen", "learning_rate": 1e-6},
        {"learning_rate": 1e-6},
        {"retain_loss": "kl"},
        {"stop_at": "auto", "step_size": "auto", "keep_utility": 0.9},
    ],
)
def test_ngdiff_is_the_papers_and_each_part_of_ours_can_be_switched_on(
    tmp_path: Path, given: dict[str, Any]
) -> None:
    settings = config(tmp_path, method="ngdiff", **given)
    implied: dict[str, Any] = {"step_size": "fixed"} if "learning_rate" in given else {}
    if given.get("step_size") == "auto":
        implied = {"learning_rate": None}
    expected = {**PAPER, **implied, **given}
    assert {name: getattr(settings, name) for name in expected} == expected


def test_the_sources_say_what_is_of_a_paper_and_what_is_ours(tmp_path: Path) -> None:
    papers = sources(config(tmp_path, method="ngdiff"))
    assert set(papers) == {"forget_loss", "retain_loss", "rule", "step_size"}
    assert not any("own" in source for source in papers.values())
    assert "2410.22086" in papers["rule"] and "2407.02772" in papers["step_size"]
    ours = sources(config(tmp_path, method="ngdiff", step_size="auto", stop_at="auto", keep_utility=0.9))
    assert {name for name, source in ours.items() if "own" in source} == {
        *("step_size", "stop_at", "keep_utility", "pace")
    }
    # an automatic rate is held to a pace by the way to a target: no target, no pace
    assert "pace" not in sources(config(tmp_path, method="ngdiff", step_size="auto"))
    assert "pace" not in sources(config(tmp_path, method="ngdiff", stop_at="auto"))


@pytest.mark.parametrize("method", METHODS)
def test_a_fixed_step_size_needs_a_rate(tmp_path: Path, method: str) -> None:
    assert config(tmp_path, method=method, step_size="fixed", learning_rate=1e-4).learning_rate == 1e-4
    if METHODS[method].step_size == "fixed":
        found = config(tmp_path, method=method, step_size="fixed")
        assert not found.automatic and found.learning_rate == METHODS[method].learning_rate
    else:
        assert faults(tmp_path, method=method, step_size="fixed") == ["--set step_size"]


@pytest.mark.parametrize(
    "settings",
    [
        {"step_size": "automatic"},
        {"step_size": "automatic", "learning_rate": 1e-5},
        {"step_size": 3},
    ],
)
def test_step_sizes_that_cannot_be(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert faults(tmp_path, method="graddiff", **settings) == ["--set step_size"]


def test_one_setting_of_a_rule_leaves_the_methods_others(tmp_path: Path) -> None:
    assert config(tmp_path, method="simnpo").rule_settings == {"gamma": 0.125}
    assert config(tmp_path, method="simnpo", rule_settings={"alpha": 2.0}).rule_settings == {
        "gamma": 0.125,
        "alpha": 2.0,
    }
    assert config(tmp_path, method="simnpo", rule_settings={"gamma": 1.0}).rule_settings == {"gamma": 1.0}


def test_what_is_drawn_at_random_is_drawn_by_the_runs_seed(tmp_path: Path) -> None:
    assert config(tmp_path, method="rlw", seed=5).rule_settings == {"seed": 5}
    assert config(tmp_path, method="rlw", seed=5, rule_settings={"seed": 2}).rule_settings == {"seed": 2}
    assert config(tmp_path, method="rmu", seed=5).forget_loss_settings == {"seed": 5}
    assert config(tmp_path, method="npo", seed=5).forget_loss_settings == {}


def test_one_layer_is_steered_and_held(tmp_path: Path) -> None:
    forget = config(tmp_path, method="rmu", forget_loss_settings={"layer": 5})
    assert forget.retain_loss_settings == {"layer": 5} and forget.forget_loss_settings["layer"] == 5
    retain = config(tmp_path, method="rmu", retain_loss_settings={"layer": 4})
    assert retain.forget_loss_settings["layer"] == 4
    both = {"forget_loss_settings": {"layer": 5}, "retain_loss_settings": {"layer": 4}}
    assert config(tmp_path, method="rmu", **both).forget_loss_settings["layer"] == 5
    assert config(tmp_path, method="rmu", **both).retain_loss_settings == {"layer": 4}
    assert config(tmp_path, method="rmu", retain_loss="nll").retain_loss_settings == {}


def test_rule_settings_of_the_callers_own(tmp_path: Path) -> None:
    settings = config(tmp_path, method="graddiff", rule_settings={"alpha": 2.0})
    assert settings.rule_settings == {"alpha": 2.0}
    first, second = config(tmp_path), config(tmp_path)
    first.rule_settings["x"] = 1.0
    assert second.rule_settings == METHODS[DEFAULT_METHOD].rule_settings == {"retain": 4.0}
    assert METHODS["ngdiff"].rule_settings == {}


def test_unknown_names_are_reported_together(tmp_path: Path) -> None:
    found = faults(
        tmp_path,
        method="ngdif",
        rule="constnt",
        stop_at="soon",
        forget_loss="nope",
        retain_loss="negated-nll",
        keep_utility=2.0,
    )
    assert found == ["--method", "--forget-loss", "--retain-loss", "--rule", "--stop-at", "--keep-utility"]


def test_python_is_told_the_names_of_parameters(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        config(tmp_path, learning_rate=-1.0, trainable="[", per_device_train_batch_size=0)
    assert [str(fault.where) for fault in caught.value.faults] == [
        "learning_rate",
        "per_device_train_batch_size",
        "trainable",
    ]
    shared = Fault("--retain", "1 row is shared", "Take it out, or pass --set allow_overlap=true; see --help")
    assert [str(fault) for fault in in_python([shared])] == [
        "retain_dataset: 1 row is shared. Take it out, or pass allow_overlap=True; see --help."
    ]


def test_near_names_are_suggested(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"Did you mean .*ngdiff"):
        config(tmp_path, method="ngdif")


@pytest.mark.parametrize(
    ("flag", "settings"),
    [
        ("--lr", {"learning_rate": 0.0}),
        ("--lr", {"learning_rate": -1e-5}),
        ("--lr", {"learning_rate": float("inf")}),
        ("--lr", {"learning_rate": float("nan")}),
        ("--lr", {"step_size": "auto", "learning_rate": 0.0}),
        ("--lr", {"step_size": "gen", "learning_rate": float("nan")}),
        ("--keep-utility", {"keep_utility": -0.1}),
        ("--keep-utility", {"keep_utility": 95}),
        ("--set floors", {"floors": {"general": 98}}),
        ("--set floors", {"floors": {"general": float("nan")}}),
        ("--set floors", {"floors": {"general": "most"}}),
        ("--set floors", {"floors": ["general"]}),
        ("--keep-utility", {"keep_utility": float("nan")}),
        ("--set probe_every", {"probe_every": 0}),
        ("--set check_every", {"check_every": 0}),
        ("--set max_steps", {"max_steps": 0}),
        ("--set max_steps", {"max_steps": -2}),
        ("--max-length", {"max_length": 7}),
        ("--rule", {"rule": "ngdiff", "rule_settings": {"alpha": 1.0}}),
        ("--stop-at", {"stop_at": "probability=2"}),
        ("fp16", {"fp16": True}),
    ],
)
def test_out_of_range(tmp_path: Path, flag: str, settings: dict[str, Any]) -> None:
    assert faults(tmp_path, **settings) == [flag]


def test_edges_that_are_fine(tmp_path: Path) -> None:
    for keep in (0, 1):
        assert config(tmp_path, keep_utility=keep).keep_utility == keep
    assert config(tmp_path, probe_every=1, check_every=1, max_length=8, max_steps=1)
