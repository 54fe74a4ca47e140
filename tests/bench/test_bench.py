"""The benchmark: what it plans, how it chooses and compares, and that it goes on where it stopped."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ngdiff.bench.run
import ngdiff.bench.worker
from commandline import Cli, save_model
from ngdiff.bench.data import evaluated_files, evaluation_folder
from ngdiff.bench.distance import destroyed
from ngdiff.bench.grid import candidates, nested
from ngdiff.bench.inputs import Hashes, Inputs
from ngdiff.bench.picture import pareto, together
from ngdiff.bench.run import BenchResult, Outcome
from ngdiff.bench.summary import COLUMNS, Cell, Row, mark_front, over_runs, row_from_json, summarise
from ngdiff.bench.tables import as_csv, table, tuning_table
from ngdiff.bench.trial_figures import shares_of
from ngdiff.bench.trials import BenchRequest, reporting, selection_score, tuning
from ngdiff.bench.variants import find_variant
from ngdiff.bench.worker import SPEC
from ngdiff.bench.worker import main as work
from ngdiff.evaluation.metrics import METRICS
from ngdiff.evaluation.openunlearning import read_reference
from ngdiff.evaluation.statistics import harmonic_mean
from ngdiff.methods import METHODS, find_method
from ngdiff.runs.signals import StopWish
from ngdiff.runs.workplace import Workplace
from ngdiff.steps.weighting import RULES
from ngdiff.system.lock import alone_in
from published_logs import tofu_log
from tofu_folder import make_whole_tofu

# ---- what is planned ----


def request(**changes: Any) -> BenchRequest:
    usual: dict[str, Any] = {"methods": ("ngdiff", "graddiff"), "splits": ("forget01",), "seeds": 2}
    usual |= {"model": "target", "output": Path("out")}
    return BenchRequest(**{**usual, **changes})


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_range_names_settings_that_exist(name: str) -> None:
    from ngdiff.steps.gen import START
    from ngdiff.training.config import UnlearningConfig

    method = find_method(name)
    assert bool(method.search) == (method.step_size == "fixed")
    for settings in candidates(method, 500):
        config = UnlearningConfig(
            output_dir="x", use_cpu=True, report_to="none", method=name, **nested(settings, method)
        )
        begins = START if method.step_size == "gen" else None  # where the search begins
        assert config.learning_rate == settings.get("learning_rate", begins)


def test_candidates_begin_with_the_defaults_and_never_repeat() -> None:
    method = find_method("graddiff")
    found = candidates(method, 100)
    assert found[0] == {"learning_rate": 1e-5}
    grid = {tuple(one.values()) for one in found[1:]}
    assert len(found) == 20 and len(grid) == 19  # 5 rates × 4 weights, of which one is the default
    assert (1e-5, 1) not in grid and (5e-5, 10) in grid
    assert candidates(method, 4) == found[:4]
    assert candidates(find_method("ngdiff"), 9) == [{}]


@pytest.mark.parametrize("name", ["graddiff", "npo", "simnpo", "undial", "rmu"])
def test_few_trials_try_as_many_values_of_every_setting_as_there_is_room_for(name: str) -> None:
    method = find_method(name)
    for count in range(1, 7):
        found = candidates(method, count)
        for setting, values in method.search.items():
            tried = Counter(settings[setting] for settings in found[1:])
            assert len(tried) >= min(count, len(values)) - 1, f"{setting}: {tried}"


def test_settings_tuned_on_one_split_serve_the_others() -> None:
    asked = request(splits=("forget05", "forget10"), trials=2, tune_on="forget05")
    assert {trial.split for trial in tuning(asked)} == {"tuning-forget05"}
    reported = reporting(asked, {("tuning-forget05", "graddiff"): {"learning_rate": 3e-5}})
    assert {t.settings["learning_rate"] for t in reported if t.method == "graddiff"} == {3e-5}
    assert {trial.split for trial in tuning(request(splits=("forget01", "forget10"), trials=2))} == {
        "tuning-forget01",
        "tuning-forget10",
    }


def test_settings_of_parts_are_put_together() -> None:
    simnpo = find_method("simnpo")
    settings = {"learning_rate": 2e-5, "rule_settings.gamma": 0.25, "forget_loss_settings.beta": 3.5}
    assert nested(settings, simnpo) == {
        "learning_rate": 2e-5,
        "rule_settings": {"gamma": 0.25},
        "forget_loss_settings": {"beta": 3.5},
    }


def test_an_untuned_method_runs_once_a_seed_and_a_tuned_one_on_other_seeds() -> None:
    asked = request(trials=3, stopping=("rule", "none"), epochs=2.0)
    tuned = tuning(asked)
    assert [(trial.method, trial.label) for trial in tuned] == [("graddiff", f"tune-{n}") for n in range(3)]
    assert not any(trial.evaluate for trial in tuned)
    chosen = {("tuning-forget01", "graddiff"): {"learning_rate": 3e-5, "rule_settings.alpha": 5}}
    reported = reporting(asked, chosen)
    assert len(reported) == 2 * 2 * 2 and len({trial.place for trial in [*tuned, *reported]}) == 11
    for trial in reported:
        assert trial.evaluate and trial.settings["num_train_epochs"] == 2.0
        assert ("stop_at" in trial.settings) == (trial.stopping == "none")
        assert ("learning_rate" in trial.settings) == (trial.method == "graddiff")
    assert not {trial.settings["seed"] for trial in tuned} & {trial.settings["seed"] for trial in reported}


def test_the_key_of_a_trial_follows_what_decides_it() -> None:
    (trial, *_) = reporting(request(), {})
    same = Hashes("model", "rows", "evaluated", "reference")
    changed = [replace(same, **{name: "another"}) for name in asdict(same)]
    asked = [request(), request(paraphrases=False), request(gradient_norms=True), request(lora=True)]
    keys = {trial.key(one, same) for one in asked} | {trial.key(asked[0], other) for other in changed}
    assert len(keys) == 8
    assert trial.key(request(model="moved", learned=9, items=3), same) == trial.key(request(), same)
    (tune, *_) = tuning(request(trials=2))
    without = {tune.key(request(), other) for other in changed}
    assert len(without - {tune.key(request(), same)}) == 2  # no evaluation: model and rows learned decide


def test_the_key_of_a_trial_follows_what_its_methods_name_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Hashes("model", "rows", "evaluated")
    trials = {trial.method: trial for trial in reporting(request(), {})}
    before = {name: trial.key(request(), inputs) for name, trial in trials.items()}
    monkeypatch.setitem(METHODS, "ngdiff", replace(METHODS["ngdiff"], forget_loss="unlikelihood"))
    assert trials["ngdiff"].key(request(), inputs) != before["ngdiff"]
    assert trials["graddiff"].key(request(), inputs) == before["graddiff"]
    constant = RULES["constant"]
    monkeypatch.setitem(RULES, "constant", replace(constant, settings={**constant.settings, "alpha": 9.0}))
    assert trials["graddiff"].key(request(), inputs) != before["graddiff"]


def test_inputs_are_known_by_what_they_hold(tmp_path: Path) -> None:
    save_model(tmp_path / "target")
    make_whole_tofu(tmp_path / "tofu")
    reference = tmp_path / "eval.json"
    reference.write_text("{}")
    asked = request(
        model=str(tmp_path / "target"),
        output=tmp_path / "out",
        references={"": str(reference)},
        folders={"tofu": tmp_path / "tofu"},
        items=4,
    )
    before = Inputs(asked).of("forget01")
    shutil.copytree(tmp_path / "target", tmp_path / "moved")
    assert Inputs(replace(asked, model=str(tmp_path / "moved"))).of("forget01") == before
    (tmp_path / "target" / "record.json").write_text("{}")  # written beside a model, and not of it
    assert Inputs(asked).of("forget01") == before
    save_model(tmp_path / "target", seed=5)
    reference.write_text("{ }")
    after = Inputs(asked).of("forget01")
    assert after.model != before.model and after.reference != before.reference
    assert (after.learned, after.evaluated) == (before.learned, before.evaluated)
    fewer = Inputs(replace(asked, items=3)).of("forget01")
    assert fewer.evaluated != before.evaluated and fewer.learned == before.learned
    more = Inputs(replace(asked, also_retain=("ngdiff:general",))).of("forget01")
    assert more.learned != before.learned and more.evaluated == before.evaluated
    place = next((tmp_path / "tofu").glob("forget01.json*"))
    first, *others = place.read_text().splitlines(keepends=True)
    place.write_text("".join([json.dumps({**json.loads(first), "answer": "Another."}) + "\n", *others]))
    assert Inputs(asked).of("forget01").learned != before.learned


def test_a_figure_defined_anew_is_measured_anew_and_an_added_one_changes_no_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (trial, *_) = reporting(request(), {})
    inputs = Hashes("model", "rows", "evaluated")
    today = trial.key(request(), inputs)
    known = METRICS["extraction_strength"]
    monkeypatch.setitem(METRICS, "added", replace(known, name="added", version=1))
    assert trial.key(request(), inputs) == today
    monkeypatch.setitem(METRICS, known.name, replace(known, version=known.version + 1))
    assert trial.key(request(), inputs) != today


# ---- how it chooses and compares ----


Pair = tuple[float, float]


def record(forget: Pair, retain: Pair, unseen: Pair, known: Pair = (0.9, 0.2)) -> Any:
    """Return what of a record the selection reads; ``known`` is the forget set's answer probability."""

    def part(place: int) -> dict[str, Any]:
        return {
            "forget": {"extraction_strength": forget[place], "probability": known[place]},
            "retain": {"probability": retain[place]},
            "never_seen": {"extraction_strength": 0.1, "probability": unseen[place]},
        }

    return {"before": part(0), "after": part(1)}


def test_the_selection_score_by_hand() -> None:
    assert selection_score(record((0.9, 0.1), (0.8, 0.8), (0.2, 0.2))) == pytest.approx(1.0)
    assert selection_score(record((0.9, 0.05), (0.8, 0.9), (0.2, 0.3))) == pytest.approx(
        1.0
    )  # no more counts
    assert selection_score(record((0.9, 0.9), (0.8, 0.8), (0.2, 0.2))) == 0.0
    found = selection_score(record((0.9, 0.5), (0.8, 0.6), (0.2, 0.05)))
    assert found == pytest.approx(3 / (1 / 0.5 + 1 / 0.75 + 1 / 0.25))
    # extraction strength is at its level, answer probability a quarter of the way to 0.2
    still_probable = record((0.9, 0.1), (0.8, 0.8), (0.2, 0.2), known=(0.8, 0.65))
    assert selection_score(still_probable) == pytest.approx(3 / (1 / 0.25 + 2))
    assert harmonic_mean([0.5, 0.0]) == 0.0


TARGET = {
    "forget.extraction_strength": 0.9,
    "holdout.extraction_strength": 0.1,
    "holdout.probability": 0.2,
    "real_authors.probability": 0.4,
    "world_facts.probability": 0.5,
    "model_utility": 0.6,
    "general_nll": 1.0,
}


def test_shares_by_hand() -> None:
    assert shares_of(TARGET, TARGET, {}) == {"forgotten": 0.0, "kept": 1.0, "collateral": 1.0}
    model = {
        **TARGET,
        "forget.extraction_strength": 0.3,
        "model_utility": 0.45,
        "world_facts.probability": 0.4,
    }
    assert shares_of(model, TARGET, {}) == pytest.approx({"forgotten": 0.75, "kept": 0.75, "collateral": 0.8})
    with_retrained = shares_of(model, TARGET, {"forget.extraction_strength": 0.4})
    assert with_retrained["forgotten"] == 1.0
    ruined = shares_of({**model, "general_nll": 3.0}, TARGET, {})
    assert ruined["collateral"] == pytest.approx(0.1353352832)  # e^-2


def test_intervals_over_runs() -> None:
    one = over_runs([(0.5, (0.4, 0.6))])
    assert (one.value, one.low, one.high) == (0.5, 0.4, 0.6)
    several = over_runs([(x, (0.0, 1.0)) for x in (1.0, 2.0, 3.0)])
    # Student's t with two degrees of freedom at 97.5%: 4.302653; standard error 1/sqrt(3)
    assert several.value == 2.0
    assert several.high == pytest.approx(2.0 + 4.302652729911275 / 3**0.5)


def row(name: str, *shares: float) -> Row:
    cells = zip(("forgotten", "kept", "collateral"), map(Cell, shares), strict=False)
    return Row("forget01", name, dict(cells))


def test_how_a_run_ended_is_text_in_every_table() -> None:
    """``stop.code`` comes from a record, which anybody may have edited."""
    for code in ("=HYPERLINK('http://x')", "+1", "-1", "@x", "\t=1"):
        found = row("a", 1.0)
        found.ended[code] = 1
        line = next(csv.DictReader(as_csv([found]).splitlines()))
        assert not line["ended"].startswith(("=", "+", "-", "@", "\t"))
    found = row("a", 1.0)
    found.ended["<b>x</b> | [l](http://x) |"] = 1
    lines = table([found]).splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "<b>" not in lines[2] and "[l](" not in lines[2]
    tried = {"split": "forget01", "method": "a", "settings": {}, "chosen": False, "ended": "<b>x</b> |"}
    assert "<b>" not in tuning_table([tried])


def test_intervals_stay_where_the_figure_can_be() -> None:
    columns = {column.key: column for column in COLUMNS}
    shares = [(value, (None, None)) for value in (1.0, 0.9, 1.0)]
    assert over_runs(shares).high > 1.0  # type: ignore[operator]
    kept = over_runs(shares, columns["kept"])
    assert kept.high == 1.0 and kept.low == over_runs(shares).low
    quality = over_runs([(value, (None, None)) for value in (1e-1, 1e-3, 1e-2)], columns["forget_quality"])
    assert quality.value == pytest.approx(1e-2)
    # Student's t of two degrees of freedom is 4.3027; the logarithms' standard deviation is ln 10
    assert quality.low == pytest.approx(1e-2 * 10 ** (-4.3027 / 3**0.5), rel=1e-3)
    assert quality.high == 1.0 or quality.high == pytest.approx(1e-2 * 10 ** (4.3027 / 3**0.5), rel=1e-3)
    assert over_runs([(-90.0, (None, None)), (-80.0, (None, None))], columns["privleak"]).low < -100  # type: ignore[operator]


def test_a_trial_of_which_nothing_can_be_said_is_not_chosen() -> None:
    figures = {"extraction_strength": 0.9, "probability": 0.9}
    sets = {name: dict(figures) for name in ("forget", "retain", "never_seen")}
    assert selection_score({"before": sets, "after": sets}) is not None
    broken = {**sets, "retain": {**figures, "probability": None}}  # a NaN, as records write it
    assert selection_score({"before": sets, "after": broken}) is None


def test_the_front_against_every_pair() -> None:
    rows = [
        row("a", 1.0, 0.5, 0.5),
        row("b", 0.9, 0.6, 0.5),
        row("c", 0.9, 0.5, 0.5),
        row("d", 1.0, 0.5, 0.5),
    ]
    rows += [row("half", 1.0), row("e", 0.5, 0.0, 0.6), row("idle", 0.49, 1.0, 1.0)]
    mark_front(rows)
    assert [one.name for one in rows if one.on_front] == ["a", "b", "d", "e"]
    assert [row_from_json(json.loads(json.dumps(asdict(one)))) for one in rows] == rows
    assert pareto([(1, 0), (0, 1), (0, 0), (0.5, 0.5), (0.4, 0.5), (1, 0)]) == [(1, 0), (0, 1), (0.5, 0.5)]


def test_a_destroyed_model_never_stands_above_an_intact_one() -> None:
    rows = [row("ruin", 1.0, 1.0, 1.0), row("a", 0.9, 0.6, 0.5)]
    rows[0].destroyed = True
    mark_front(rows)
    assert [one.name for one in rows if one.on_front] == ["a"]
    assert "ruin (destroyed)" in table(rows) and "**ruin" not in table(rows)
    target = {"retain.probability": 0.9, "retain.rouge": 0.8, "general_nll": 1.0}
    assert destroyed(target, target) == []
    assert destroyed({**target, "retain.probability": 0.45}, target) == ["retain.probability"]
    assert destroyed({**target, "general_nll": 1.7}, target) == ["general_nll"]  # e^-0.7 is below a half
    assert destroyed({"retain.probability": 0.9, "retain.rouge": 0.41}, target) == ["general_nll"]


def test_destroyed_rows_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    from ngdiff.bench import summary

    figures = {"ga": 0.1, "b": 0.9, "target": 0.9}
    monkeypatch.setattr(
        summary, "figures_of", lambda one, base: {"retain.probability": (figures[one.name], (None, None))}
    )
    outcomes = [
        SimpleNamespace(split="forget01", name=n, trial=None, error=None, read=lambda f: ENDED)
        for n in figures
    ]
    result: Any = SimpleNamespace(
        request=SimpleNamespace(splits=["forget01"], tuned_on=lambda split: split),
        compared=[outcomes[2]],
        reported=outcomes[:2],
        tuned=[],
    )
    assert [one.name for one in summary.summarise(result)] == ["target", "b", "ga"]


ENDED = {"stop": {"code": "target", "target": None}}


def test_labels_of_points_that_lie_on_one_another_are_written_together() -> None:
    points = [("a", (1.0, 1.0)), ("b", (0.2, 0.5)), ("c", (0.99, 1.01)), ("d", (0.95, 1.0))]
    found = together(points)
    assert found == [(["a", "c"], (1.0, 1.0)), (["b"], (0.2, 0.5)), (["d"], (0.95, 1.0))]


# ---- the command ----


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Have the trials run in this process, which has everything imported; return where they ran."""
    ran: list[Path] = []

    def run(self: Any, folder: Path, gpu: int) -> int:
        ran.append(folder)
        with (folder / "log.txt").open("a") as log, monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["worker", str(folder)])
            try:
                work()
            except Exception as error:
                log.write(f"{type(error).__name__}: {error}")
                return 1
        return 0

    monkeypatch.setattr(ngdiff.bench.run._Workers, "_process", run)
    return ran


def words(tmp_path: Path, *more: object) -> list[object]:
    target = tmp_path / "target"
    if not target.exists():
        save_model(target)
        save_model(tmp_path / "retrained", seed=1)
        make_whole_tofu(tmp_path / "tofu")
    return [
        *("bench", "tofu", "--model", target, "--reference", tmp_path / "retrained"),
        *("--splits", "forget01", "--tofu-dir", tmp_path / "tofu", "--output", tmp_path / "out"),
        *("--set", "max_steps=1", "--set", "stop_at=none", "--no-paraphrases", *more),
    ]


def test_a_benchmark_runs_goes_on_and_lays_out_what_came(
    cli: Cli, tmp_path: Path, here: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(ngdiff.bench.run, "MOST_WIDENINGS", 0)
    asked = words(tmp_path, "--methods", "ngdiff,graddiff", "--trials", 2, "--seeds", 2, "--items", 4)
    answer = cli(*asked)
    assert answer.code == 0, answer.err
    out = tmp_path / "out"
    labels = sorted(str(folder.relative_to(out)) for folder in here)
    assert labels == sorted(
        [
            *(f"models/forget01/{name}" for name in ("retrained", "target")),
            *(f"trials/tuning-forget01/graddiff/{label}" for label in ("tune-0", "tune-1")),
            *(f"trials/forget01/graddiff/{label}" for label in ("seed-0", "seed-1")),
            *(f"trials/forget01/ngdiff/{label}" for label in ("seed-0", "seed-1")),
        ]
    )
    assert here[0].name == "retrained"  # the others are compared with it
    rows = {line["method"]: line for line in csv.DictReader((out / "results.csv").read_text().splitlines())}
    assert list(rows) == ["retrained", "target", "ngdiff", "graddiff"]
    for line in rows.values():
        for key in ("forget.extraction_strength", "model_utility", "real_authors.probability", "general_nll"):
            assert float(line[key]) >= 0
    evaluation = json.loads((out / "trials/forget01/ngdiff/seed-0/evaluation.json").read_text())
    other = json.loads((out / "trials/forget01/ngdiff/seed-1/evaluation.json").read_text())
    values = [one["figures"]["forget.probability"]["value"] for one in (evaluation, other)]
    assert float(rows["ngdiff"]["forget.probability"]) == pytest.approx(sum(values) / 2)
    page = (out / "results.md").read_text()
    assert "| target |" in page and "fixed before any trial ran" in page and "learning_rate=" in page
    result = json.loads((out / "results.json").read_text())
    tried = result["tuning"]
    assert len(tried) == 2 and [one["chosen"] for one in tried].count(True) == 1
    assert max(tried, key=lambda one: one["score"])["chosen"]
    assert rows["graddiff"]["tried"] == "2" and rows["graddiff"]["runs"] == "2"
    spent = sum(one["seconds"] for one in tried)
    assert (
        float(rows["graddiff"]["tuning_seconds"]) == pytest.approx(spent)
        and not rows["ngdiff"]["tuning_seconds"]
    )
    (best,) = (one["settings"] for one in tried if one["chosen"])
    assert f"**learning_rate={best['learning_rate']:g}" in page.partition("## Tuning")[2]
    assert (out / "pareto.png").stat().st_size > 1000 and (out / "curves.png").stat().st_size > 1000
    assert not list(out.rglob("*.safetensors"))  # weights are not kept unless asked for
    here.clear()
    assert cli(*asked).code == 0 and here == []  # everything already exists
    (out / "trials/forget01/ngdiff/seed-1/trial.json").unlink()
    assert cli(*asked).code == 0 and [folder.name for folder in here] == ["seed-1"]
    here.clear()
    assert cli(*asked, "--items", 2).code == 0  # another evaluation: the tuning trials stand
    assert not [folder for folder in here if folder.name.startswith("tune")] and len(here) == 6


def test_a_retrained_model_given_by_its_evaluation_is_compared_with_like_one_given_itself(
    cli: Cli, tmp_path: Path, here: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    more = ("--methods", "ngdiff", "--seeds", 1, "--items", 4)
    assert cli(*words(tmp_path, *more)).code == 0
    found = tmp_path / "out/models/forget01/retrained/evaluation.json"
    here.clear()
    answer = cli(*words(tmp_path, *more, "--reference", found, "--output", tmp_path / "again"))
    assert answer.code == 0, answer.err
    assert [folder.name for folder in here] == ["target", "seed-0"]
    first, second = (
        {row["name"]: row["cells"] for row in json.loads((out / "results.json").read_text())["rows"]}
        for out in (tmp_path / "out", tmp_path / "again")
    )
    assert list(second) == ["retrained", "target", "ngdiff"]
    costs = {"steps", "seconds", "peak_gib"}
    for name in second:
        assert second[name].keys() == first[name].keys() and "general_nll" in second[name]
        for key in second[name].keys() - costs:
            assert second[name][key]["value"] == pytest.approx(first[name][key]["value"], abs=1e-6), key
    log = words(tmp_path, "--reference", tmp_path / "TOFU_EVAL.json", "--output", tmp_path / "other")
    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps(tofu_log(0, forget=50)))
    answer = cli(*log, "--methods", "ngdiff", "--seeds", 1, "--items", 4)  # another number of items
    assert answer.code == 2 and "50 truth ratios for the 4 items" in answer.err


def test_a_failure_is_recorded_and_stops_nothing(
    cli: Cli, tmp_path: Path, here: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    broken = ngdiff.bench.worker._unlearn

    def unlearn(model: str, step: dict[str, list[str]], spec: dict[str, Any], output: Path) -> None:
        if spec["settings"]["method"] == "ga":
            raise MemoryError("no room <b>at all</b>")
        broken(model, step, spec, output)

    with monkeypatch.context() as patch:
        patch.setattr(ngdiff.bench.worker, "_unlearn", unlearn)
        asked = words(tmp_path, "--methods", "ga,graddiff")
        answer = cli(*asked, "--seeds", 1)
    assert answer.code == 0 and "Failed" in answer.err
    page = (tmp_path / "out" / "results.md").read_text()
    assert "1 failed" in page and "MemoryError: no room" in page
    assert "| graddiff |" in page.replace("**", "")
    here.clear()
    answer = cli(*asked, "--seeds", 1)  # and what failed is tried again
    assert [str(folder.parent.name) for folder in here] == ["ga"]
    assert "failed" not in (tmp_path / "out" / "results.md").read_text().lower()


def learned_sixty(tmp_path: Path) -> BenchRequest:
    return request(learned=60, folders={"tofu": tmp_path / "tofu"}, output=tmp_path / "out")


def test_a_target_that_learned_the_end_of_tofu(cli: Cli, tmp_path: Path, here: list[Path]) -> None:
    answer = cli(*words(tmp_path, "--methods", "ngdiff", "--learned", 60, "--dry-run"))
    assert answer.code == 0 and here == []
    assert "trials/forget01/ngdiff/seed-0" in answer.out
    assert not (tmp_path / "out").exists()  # nothing is written
    parts = {
        name.removesuffix(".json"): [json.loads(line)["question"] for line in text.splitlines()]
        for name, text in evaluated_files(learned_sixty(tmp_path), "forget01").items()
    }
    whole = (tmp_path / "tofu" / "full.json").read_text().splitlines()
    full = [json.loads(line)["question"] for line in whole]
    assert set(parts["retain_perturbed"]) <= set(full[-60:-40])
    assert parts["holdout01"] == full[:40]


def test_where_tofu_has_no_wrong_answers_the_plain_questions_are_asked(
    cli: Cli, tmp_path: Path, here: list[Path]
) -> None:
    asked = words(tmp_path, "--methods", "ngdiff", "--learned", 60, "--dry-run")
    for name in ("retain_perturbed", "forget10_perturbed"):  # none of what is learned and kept
        rows = (tmp_path / "tofu" / "forget01_perturbed.json").read_text()
        (tmp_path / "tofu" / f"{name}.json").write_text(rows)
    assert cli(*asked).code == 0
    folder = evaluation_folder(learned_sixty(tmp_path), "forget01")
    assert folder is not None and folder.parent == tmp_path / "out" / "data"
    assert evaluation_folder(learned_sixty(tmp_path), "forget01") == folder
    kept = [json.loads(line) for line in (folder / "retain_perturbed.json").read_text().splitlines()]
    whole = [json.loads(line) for line in (tmp_path / "tofu" / "full.json").read_text().splitlines()]
    assert [row["question"] for row in kept] == [row["question"] for row in whole[-60:-40]]
    assert all("perturbed_answer" not in row for row in kept)


def test_data_that_cannot_be_evaluated_ends_before_anything_runs(
    cli: Cli, tmp_path: Path, here: list[Path]
) -> None:
    asked = words(tmp_path, "--methods", "ngdiff")
    (tmp_path / "tofu" / "world_facts_perturbed.json").write_text(
        '{"question": "Where?", "answer": "There."}\n'
    )
    answer = cli(*asked)
    assert answer.code == 2 and here == []
    assert "perturbed_answer" in answer.err
    (tmp_path / "tofu" / "forget01_perturbed.json").unlink()
    answer = cli(*asked)
    assert answer.code == 2 and here == []
    assert any(where.startswith("--splits") and "forget01" in where for where, _ in answer.faults)


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--methods", "ngdif"], "no method called 'ngdif'"),
        (["--methods", "dpo"], "no preferred answers"),
        (["--methods", ","], "--methods: is empty"),
        (["--splits", "forget02"], "no forget set of TOFU called 'forget02'"),
        (["--seeds", "0"], "--seeds: is 0"),
        (["--trials", "0"], "--trials: is 0"),
        (["--stopping", "never"], "'never' is not a valid choice"),
        (["--reference", "gone.json"], "no such file: gone.json"),
        (["--model", "./gone", "--methods", "ngdiff"], "neither a folder nor a hub name"),
        (["--set", "max_stepz=1"], "max_stepz"),
        (["--set", "check_every=0"], "0 is too small"),
        (["--set", "seed=3"], "--set seed: is decided by the benchmark"),
        (["--set", "method=ga"], "--set method: is decided by the benchmark"),
        (["--set", "num_train_epochs=3", "--epochs", "2"], "num_train_epochs: is decided"),
        (["--stopping", "both"], "--set stop_at: is decided by the benchmark"),
        (["--methods", "graddiff", "--set", "learning_rate=1e-4"], "'graddiff' takes it from its range"),
        (["--methods", "npo", "--set", "rule_settings={alpha: 3}"], "'npo' takes it from its range"),
        (["--methods", "ngdiff", "--set", "rule_settings={alpha: 3}"], "no setting called alpha"),
        (["--learned", "40"], "leaves nothing to keep"),
        (["--learned", "3999"], "nothing that was never seen"),
        (["--precision", "fp8"], "no precision called 'fp8'"),
    ],
)
def test_bad_requests_end_before_anything_runs(
    cli: Cli, tmp_path: Path, here: list[Path], more: list[str], what: str
) -> None:
    answer = cli(*words(tmp_path, *more))
    assert answer.code == 2 and here == []
    assert any(what in f"{where}" for where, _ in answer.faults), answer.err
    assert not (tmp_path / "out").exists()


def test_where_the_retrained_model_cannot_be_evaluated_the_rest_goes_on_without_it(
    cli: Cli, tmp_path: Path, here: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = ngdiff.bench.worker._evaluate

    def fails(model: str, spec: dict[str, Any], folder: Path) -> None:
        if folder.name == "retrained":
            raise MemoryError("no room")
        evaluate(model, spec, folder)

    asked = words(tmp_path, "--methods", "ngdiff", "--seeds", 1, "--items", 4)
    with monkeypatch.context() as patch:
        patch.setattr(ngdiff.bench.worker, "_evaluate", fails)
        answer = cli(*asked)
    assert answer.code == 0 and "Failed" in answer.err
    rows = {
        row["name"]: row["cells"] for row in json.loads((tmp_path / "out/results.json").read_text())["rows"]
    }
    assert rows["retrained"] == {} and "forget.probability" in rows["ngdiff"]
    assert "forget_quality" not in rows["ngdiff"]
    here.clear()
    assert cli(*asked).code == 0  # now that it can be, all is compared with it
    assert [folder.name for folder in here] == ["retrained", "target", "seed-0"]
    rows = {
        row["name"]: row["cells"] for row in json.loads((tmp_path / "out/results.json").read_text())["rows"]
    }
    assert "forget_quality" in rows["ngdiff"] and "forget.probability" in rows["retrained"]


def test_a_tuned_method_is_reported_while_others_still_run(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two at a time, a slow run that needs no tuning keeps nobody waiting."""
    began, waited = threading.Event(), []
    ran: list[str] = []

    def run(self: Any, folder: Path, gpu: int) -> int:
        ran.append(f"{folder.parent.name}/{folder.name}")
        if ran[-1] == "ngdiff/seed-0":
            waited.append(began.wait(timeout=60))
        if ran[-1] == "graddiff/seed-0":
            began.set()
        (folder / "log.txt").write_text("no such thing\n")
        return 1

    monkeypatch.setattr(ngdiff.bench.run._Workers, "_process", run)
    asked = words(tmp_path, "--methods", "ngdiff,graddiff", "--trials", 2, "--seeds", 2, "--jobs", 2)
    assert cli(*asked, "--items", 4).code == 0
    assert waited == [True]
    assert ran.index("graddiff/seed-0") > max(ran.index(f"graddiff/tune-{n}") for n in (0, 1))
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["retrained", "target", "ngdiff", "graddiff"]
    assert (
        result["rows"][-1]["tried"] == 0
        and "no trial ran to its end" in (tmp_path / "out/results.md").read_text()
    )


def test_models_that_are_to_be_kept_are_made_where_they_are_gone(
    cli: Cli, tmp_path: Path, here: list[Path]
) -> None:
    asked = words(tmp_path, "--methods", "ngdiff", "--seeds", 1, "--items", 4)
    assert cli(*asked).code == 0 and not list((tmp_path / "out").rglob("*.safetensors"))
    here.clear()
    assert cli(*asked, "--keep-models").code == 0
    assert [folder.name for folder in here] == ["seed-0"]
    assert (tmp_path / "out/trials/forget01/ngdiff/seed-0/model/model.safetensors").is_file()


def test_one_benchmark_at_a_time_works_in_a_folder(cli: Cli, tmp_path: Path, here: list[Path]) -> None:
    with alone_in(tmp_path / "out"):
        answer = cli(*words(tmp_path, "--methods", "ngdiff"))
    assert answer.code == 2 and here == []
    assert any("another process is using" in where for where, _ in answer.faults)


@pytest.mark.parametrize(("given", "threads"), [({}, 2), ({"OMP_NUM_THREADS": "1"}, 1)])
def test_trials_share_the_cores_unless_told_otherwise(
    given: dict[str, str], threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    tell = "import os; print(os.environ['OMP_NUM_THREADS'])"
    monkeypatch.setattr(ngdiff.bench.run, "_command", lambda _: [sys.executable, "-c", tell])
    workers = ngdiff.bench.run._Workers(request(jobs=2), Inputs(request()), StopWish())
    assert workers._process(tmp_path, -1) == 0
    assert int((tmp_path / "log.txt").read_text()) == threads


def test_a_worker_is_a_process_of_its_own(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    answer = cli(*words(tmp_path, "--methods", "ngdiff", "--seeds", 1, "--items", 2, "--jobs", 2))
    assert answer.code == 0, answer.err
    folder = tmp_path / "out" / "trials" / "forget01" / "ngdiff" / "seed-0"
    assert json.loads((folder / "trial.json").read_text())["error"] is None
    assert json.loads((folder / SPEC).read_text())["unlearn"]["settings"]["method"] == "ngdiff"
    assert (folder / "evaluation.json").is_file() and (folder / "general.json").is_file()


PRETENDS = """
import os, pathlib, signal, stat, sys, time
folder = pathlib.Path(sys.argv[1])
def end(*_):
    (folder / "ended").write_text("")
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
own = os.getsid(0) == os.getpid() and stat.S_ISFIFO(os.fstat(0).st_mode)
(folder / ("began" if own else "shares a session, or has no pipe")).write_text("")
time.sleep(100)
"""


def test_a_benchmark_that_is_asked_to_end_ends_its_workers_and_can_be_resumed(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = words(tmp_path, "--methods", "ngdiff", "--seeds", 1, "--items", 2)
    folder = tmp_path / "out" / "models" / "forget01" / "retrained"

    def ask() -> None:
        until = time.monotonic() + 60
        while not (folder / "began").exists() and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        pretends = [sys.executable, "-c", PRETENDS]
        patch.setattr(ngdiff.bench.run, "_command", lambda folder: [*pretends, str(folder)])
        threading.Thread(target=ask).start()
        answer = cli(*asked)
    assert answer.code == 128 + signal.SIGTERM
    assert "Stopped." in answer.err and f"Resume with:\n  ngdiff bench tofu --model {tmp_path}" in answer.err
    assert (folder / "ended").exists()
    assert json.loads((folder / "trial.json").read_text())["error"] == "it was interrupted"
    assert not (tmp_path / "out" / "results.md").exists()


def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / SPEC)  # which the worker waits to read
    start = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:], stdin=-1, start_new_session=True)"
    start += "; print(p.pid, flush=True); p.wait()"
    command = [sys.executable, "-c", start, *ngdiff.bench.run._command(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        writer = os.open(tmp_path / SPEC, os.O_WRONLY)  # returns once the worker reads, which waits as long
        parent.kill()
    until = time.monotonic() + 60
    while _runs(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(worker)
    os.close(writer)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")  # a zombie whom nobody has waited for runs no more
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_an_unfinished_trial_with_other_settings_makes_room(
    cli: Cli, tmp_path: Path, here: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = words(tmp_path, "--methods", "ngdiff", "--seeds", 1, "--items", 2)
    trial = tmp_path / "out" / "trials" / "forget01" / "ngdiff" / "seed-0"
    begun = Workplace(trial / "model").folder
    (begun / "run" / "checkpoint-1").mkdir(parents=True)
    (begun / "run" / "checkpoint-1" / "complete.json").write_text("{}")
    (trial / "trial.json").write_text(json.dumps({"key": "of other settings", "error": "it was interrupted"}))
    answer = cli(*asked)
    assert answer.code == 0, answer.err
    assert not begun.exists() and json.loads((trial / "trial.json").read_text())["error"] is None


def test_what_a_trial_with_other_settings_left_is_removed(tmp_path: Path) -> None:
    for name in ("record.json", "evaluation.json", "general.json", "trial.json", "log.txt"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "evaluation.texts.json").write_text("what was to be forgotten")
    ngdiff.bench.run._clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["results.md", "results.csv", "pareto.png"])
def test_a_file_that_no_benchmark_wrote_is_not_replaced(
    cli: Cli, tmp_path: Path, here: list[Path], name: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    answer = cli(*words(tmp_path))
    assert answer.code == 2 and here == [] and f"contains {name} but no trials" in answer.err
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_every_run_keeps_what_is_named_beside_the_retain_set(
    cli: Cli, tmp_path: Path, here: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = words(tmp_path, "--methods", "ngdiff,graddiff", "--seeds", 1, "--items", 2)
    wrong = cli(*asked, "--also-retain", "ngdiff:generl")
    assert wrong.code == 2 and "--also-retain" in wrong.err and here == []
    answer = cli(*asked, "--also-retain", "ngdiff:general[:5]")
    assert answer.code == 0, answer.err
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").rglob("record.json"))]
    kept = len((tmp_path / "tofu" / "retain99.json").read_text().splitlines())
    assert [found["data"]["retain"]["examples"] for found in records] == [kept + 5] * 2
    assert "ngdiff:general" in (tmp_path / "out" / "results.md").read_text()


def test_a_variant_unlearns_with_the_parts_that_its_name_says(
    cli: Cli, tmp_path: Path, here: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for measure in ("_evaluate", "_general"):
        monkeypatch.setattr(ngdiff.bench.worker, measure, lambda *_: None)
    answer = cli(*words(tmp_path, "--methods", "rmu", "--seeds", 1, "--same-conditions"))
    assert answer.code == 0 and "Failed" not in answer.err, answer.err
    parts = ("forget_loss", "retain_loss", "rule", "step_size", "learning_rate")
    ran = 0
    for path in (tmp_path / "out" / "trials" / "forget01").glob("*/seed-0/record.json"):
        used = json.loads(path.read_text())["settings"]
        method = find_variant(path.parent.parent.name).method
        assert {part: used[part] for part in parts} == {part: getattr(method, part) for part in parts}
        ran += 1
    assert ran == 2  # rmu and rmu+same


def test_code_that_comes_with_the_target_runs_only_where_asked_for(
    cli: Cli, tmp_path: Path, here: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = words(tmp_path, "--methods", "ngdiff", "--seeds", 1, "--items", 2)
    config = tmp_path / "target" / "config.json"
    own = json.loads(config.read_text()) | {"auto_map": {"AutoModelForCausalLM": "odd.OddForCausalLM"}}
    config.write_text(json.dumps({**own, "model_type": "odd"}))
    answer = cli(*asked)
    assert answer.code == 2 and "--trust-remote-code" in answer.err and here == []
    told = []
    monkeypatch.setattr(
        ngdiff.bench.worker, "_unlearn", lambda *given: told.append(given[2]["trust_remote_code"])
    )
    monkeypatch.setattr(ngdiff.bench.run, "check", lambda request: None)
    cli(*asked, "--trust-remote-code")
    specs = [json.loads((folder / SPEC).read_text()) for folder in here]
    assert told == [True] and [spec["evaluate"]["trust_remote_code"] for spec in specs] == [True] * 3


def test_a_log_of_others_stands_for_the_retrained_model_with_the_figures_that_it_has(tmp_path: Path) -> None:
    path = tmp_path / "TOFU_EVAL.json"
    path.write_text(json.dumps(tofu_log(0)))
    target = tmp_path / "target"
    target.mkdir()
    figures = {"forget.extraction_strength": {"value": 0.9}, "model_utility": {"value": 0.5}}
    (target / "evaluation.json").write_text(json.dumps({"figures": figures}))
    compared = [
        Outcome("retrained", "forget01", tmp_path, given=path),
        Outcome("target", "forget01", target),
    ]
    request = BenchRequest(model="m", output=tmp_path, methods=["ngdiff"], splits=["forget01"])
    retrained, known = summarise(BenchResult(request, compared=compared))
    expected = read_reference(path).figures
    assert retrained.cells["forget.probability"].value == expected["forget.probability"]
    assert retrained.cells["forget.probability"].low is None and "steps" not in retrained.cells
    assert known.cells["forgotten"].value == 0.0 and known.cells["kept"].value == 1.0
