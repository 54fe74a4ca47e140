"""A benchmark whose trials are played: where tuning looks, what is compared, and how far each is off."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import t as student

import ngdiff.bench.run
from commandline import Cli, make_cli, save_model
from ngdiff.bench.data import sources
from ngdiff.bench.distance import FORGET
from ngdiff.bench.summary import row_from_json
from ngdiff.bench.trials import TUNING, BenchRequest
from ngdiff.bench.variants import ablations
from ngdiff.bench.worker import EVALUATION, GENERAL, RECORD, SPEC
from ngdiff.settings import DEFAULT_METHOD
from test_distance import RETRAINED, TARGET
from tofu_folder import make_whole_tofu

Figures = dict[str, float]
Came = Callable[[dict[str, Any]], Figures]
"""Settings of a trial to the figures that it comes to."""


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return make_cli(capsys)


class Play:
    """Writes down what each trial would have come to, by its settings alone."""

    def __init__(self) -> None:
        self.ran: list[Path] = []
        self.came: Came = lambda settings: RETRAINED

    def run(self, folder: Path) -> int:
        self.ran.append(folder)
        spec = json.loads((folder / SPEC).read_text())
        figures = {"target": TARGET, "retrained": RETRAINED}.get(folder.name) or self.came(
            spec["unlearn"]["settings"]
        )
        if spec["unlearn"] is not None:
            (folder / RECORD).write_text(json.dumps(_record(figures)))
        if spec["evaluate"] is not None:
            found = {key: {"value": value} for key, value in figures.items() if key != "general_nll"}
            (folder / EVALUATION).write_text(json.dumps({"figures": found}))
            (folder / GENERAL).write_text(json.dumps({"nll": figures["general_nll"]}))
        return 0


def _record(figures: Figures) -> dict[str, Any]:
    def part(source: Figures) -> dict[str, Any]:
        known = {name: source[f"forget.{name}"] for name in ("extraction_strength", "probability")}
        never = {"extraction_strength": 0.05, "probability": 0.1}
        return {"forget": known, "retain": {"probability": source["retain.probability"]}, "never_seen": never}

    cost = {"steps": 10, "seconds": 2.0, "peak_memory_gib": {"process": 1.0}}
    return {
        "before": part(TARGET),
        "after": part(figures),
        "stop": {"code": "target", "target": {"value": 0.05}, "left": [{"row": 3}, {"row": 7}]},
        "cost": cost,
        "steps": [],
    }


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    found = Play()
    monkeypatch.setattr(ngdiff.bench.run._Workers, "_process", lambda self, folder, gpu: found.run(folder))
    return found


def words(tmp_path: Path, *more: object) -> list[object]:
    if not (tmp_path / "target").exists():
        save_model(tmp_path / "target")
        save_model(tmp_path / "retrained", seed=1)
        make_whole_tofu(tmp_path / "tofu")
    return [
        *("bench", "tofu", "--model", tmp_path / "target", "--reference", tmp_path / "retrained"),
        *("--splits", "forget01", "--tofu-dir", tmp_path / "tofu", "--output", tmp_path / "out"),
        *("--no-report", *more),
    ]


def results(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "out" / "results.json").read_text())
    return found


# ---- tuning ----


@pytest.mark.parametrize(
    ("learned", "tune_on", "split", "forget", "retain"),
    [
        (None, None, "forget01", "tofu:full[-440:-400]", "tofu:full[:-440]"),
        (None, None, "forget05", "tofu:full[-600:-400]", "tofu:full[:-600]"),
        (None, "forget01", "forget10", "tofu:full[-440:-400]", "tofu:full[:-440]"),
        (1200, None, "forget10", "tofu:full[-800:-400]", "tofu:full[-1200:-800]"),
    ],
)
def test_tuning_sees_no_author_of_a_reported_split(
    learned: int | None, tune_on: str | None, split: str, forget: str, retain: str
) -> None:
    splits = ("forget01", "forget05", "forget10")
    request = BenchRequest("m", Path("out"), (), splits, learned=learned, tune_on=tune_on)
    assert sources(request, request.tuned_on(split)) == (forget, retain)
    rows = list(range(4000))
    reported = {row for size in (40, 200, 400) for row in rows[-size:]}
    tuned = [eval(f"rows[{source.partition('[')[2]}", {"rows": rows}) for source in (forget, retain)]
    assert not reported & {row for part in tuned for row in part}
    assert not set(tuned[0]) & set(tuned[1]) and {len(part) % 20 for part in tuned} == {0}


def test_smaller_reported_splits_leave_more_to_tune_on() -> None:
    request = BenchRequest("m", Path("out"), (), ("forget01",), learned=200)
    assert sources(request, TUNING + "forget01") == ("tofu:full[-80:-40]", "tofu:full[-200:-80]")


def test_a_target_that_learned_too_little_cannot_be_tuned_on(cli: Cli, tmp_path: Path, play: Play) -> None:
    asked = words(tmp_path, "--methods", "graddiff", "--learned", 60)
    answer = cli(*asked, "--trials", 2)
    assert answer.code == 2 and play.ran == []
    assert any("60 leaves nothing to keep: the last 80" in where for where, _ in answer.faults), answer.err
    assert cli(*asked, "--trials", 1, "--dry-run").code == 0
    answer = cli(*words(tmp_path, "--methods", "graddiff", "--splits", "forget05", "--trials", 2))
    assert answer.code == 2 and any("leaves none of 120 rows" in where for where, _ in answer.faults)


def by_rate(peak: float) -> Came:
    """Return trials that forget the more, the nearer their rate is to ``peak``."""

    def came(settings: dict[str, Any]) -> Figures:
        left = min(1.0, 0.1 * abs(math.log(settings["learning_rate"] / peak)))
        return RETRAINED | {"forget.extraction_strength": 0.05 + 0.95 * left, "forget.probability": 0.1}

    return came


@pytest.mark.parametrize(
    ("peak", "best", "edge", "rounds"),
    [(1e-2, 2e-4, "greatest", 2), (1e-4, 1e-4, None, 2), (1e-5, 1e-5, None, 1), (1e-9, 2.5e-6, "least", 2)],
)
def test_tuning_goes_beyond_an_edge_twice_and_says_where_it_ended(
    cli: Cli, tmp_path: Path, play: Play, peak: float, best: float, edge: str | None, rounds: int
) -> None:
    play.came = by_rate(peak)
    asked = words(tmp_path, "--methods", "graddiff", "--trials", 9, "--seeds", 1)
    assert cli(*asked).code == 0
    tuned = [folder for folder in play.ran if folder.name.startswith("tune-")]
    assert {folder.parent.parent.name for folder in tuned} == {"tuning-forget01"}
    wider = {folder.name.split("-")[2] for folder in tuned if "wider" in folder.name}
    assert wider >= {str(number + 1) for number in range(rounds)} and "3" not in wider
    (step,) = json.loads((tuned[0] / SPEC).read_text())["unlearn"]["steps"]
    assert (step["forget"], step["retain"]) == (["tofu:full[-80:-40]"], ["tofu:full[:-80]"])
    found = results(tmp_path)
    (rate,) = [row for row in found["grids"] if row["setting"] == "learning_rate"]
    assert rate["best"] == pytest.approx(best) and rate["edge"] == edge and best in rate["tried"]
    assert {1e-5, 2e-5, 3e-5, 4e-5, 5e-5} <= set(rate["tried"])
    (row,) = [row for row in found["rows"] if row["name"] == "graddiff"]
    assert row["settings"]["learning_rate"] == best and row["edges"].get("learning_rate") == edge
    assert row["tried"] == len(tuned) == len(found["tuning"]) and row["cells"]["tuning_seconds"][
        "value"
    ] == 2 * len(tuned)
    page = (tmp_path / "out" / "results.md").read_text()
    assert "tuning-forget01: forget `tofu:full[-80:-40]`, keep `tofu:full[:-80]`" in page
    assert (f"| {best:g} | yes, the {edge} |" if edge else f"| {best:g} | no |") in page
    reported = json.loads((tmp_path / "out/trials/forget01/graddiff/seed-0" / SPEC).read_text())
    assert reported["unlearn"]["settings"]["learning_rate"] == best
    play.ran.clear()
    assert cli(*asked).code == 0 and play.ran == []  # the same trials are found again


# ---- what is compared with what ----


def test_the_same_conditions_and_the_ablation_run_and_are_laid_out(
    cli: Cli, tmp_path: Path, play: Play
) -> None:
    def came(settings: dict[str, Any]) -> Figures:
        step = 0.02 * settings["seed"]
        if settings["method"] == DEFAULT_METHOD:  # and its variants
            return RETRAINED | {"forget.rouge": 0.41 + step, "general_nll": 4.2}
        return RETRAINED | {"retain.probability": 0.3 if settings["seed"] == 1 else 0.9}

    play.came = came
    asked = words(
        tmp_path, "--methods", f"ga,{DEFAULT_METHOD}", "--same-conditions", "--ablate", "--seeds", 3
    )
    dry = cli(*asked, "--dry-run")
    assert dry.code == 0 and "ga+same/seed-2" in dry.out and "rule=constant/seed-0" in dry.out
    answer = cli(*asked)
    assert answer.code == 0, answer.err
    names = ["ga", DEFAULT_METHOD, "ga+same", *ablations(DEFAULT_METHOD)]
    found = results(tmp_path)
    destroyed = {row["name"]: row["destroyed"] for row in found["rows"]}
    assert destroyed["ga"] and not destroyed[DEFAULT_METHOD]
    ordered = sorted(names, key=lambda name: destroyed[name])  # they come last
    assert [row["name"] for row in found["rows"]] == ["retrained", "target", *ordered]
    spec = json.loads((tmp_path / "out/trials/forget01/ga+same/seed-0" / SPEC).read_text())
    same = {"method": DEFAULT_METHOD, "forget_loss": "negated-nll", "rule": "constant", "rule_settings": {}}
    assert spec["unlearn"]["settings"] == {**same, "seed": 0}
    constant = json.loads((tmp_path / f"out/trials/forget01/{names[3]}/seed-0" / SPEC).read_text())
    assert constant["unlearn"]["settings"] == {"method": DEFAULT_METHOD, "rule": "constant", "seed": 0}
    rows = {row["name"]: row_from_json(row) for row in found["rows"]}
    # ROUGE is off by 0.06, 0.08, 0.10 of 0.6, the NLL by 0.2 of 4
    near = rows[DEFAULT_METHOD]
    off = [0.06 / 0.6, 0.08 / 0.6, 0.10 / 0.6]
    half = student.ppf(0.975, 2) * (off[1] - off[0]) / math.sqrt(3)
    cell = near.cells["distance"]
    assert cell.value == pytest.approx(off[1]) and cell.values == pytest.approx(off)
    assert cell.high == pytest.approx(off[1] + half) and cell.low == pytest.approx(off[1] - half)
    assert near.cells["items_left"].value == 2
    assert near.decides == {"forget.rouge": 3} and near.parts["general_nll"] == pytest.approx(0.05)
    assert rows["target"].cells["distance"].value == 1 and rows["retrained"].cells["distance"].value == 0
    assert rows["ga"].cells["distance"].value == math.inf and rows["ga"].cells["distance"].low is None
    assert found["rows"][-1]["cells"]["distance"]["value"] is None  # JSON has no infinity
    lines = {
        line["method"]: line
        for line in csv.DictReader((tmp_path / "out/results.csv").read_text().splitlines())
    }
    assert (
        lines[DEFAULT_METHOD]["distance_part"] == "forget.rouge"
        and float(lines["ga"]["distance"]) == math.inf
    )
    page = (tmp_path / "out" / "results.md").read_text()
    ranked = page.partition("### Distance, forget01")[2].partition("### Ablation")[0]
    order = [line.split(" | ")[0].strip("| ") for line in ranked.splitlines() if line.startswith("|")][2:]
    assert order[0] == "retrained" and order[-2:] == ["target", "ga"]
    assert "| ∞ |" in ranked and "**0.133**" in ranked and "retain P" in ranked
    ablation = page.partition("### Ablation, forget01")[2]
    assert "| **constant** |" in ablation and "| **fixed** |" in ablation and "forget ROUGE" in ablation
    assert "ga+same" not in ablation and f"| {DEFAULT_METHOD} |" in ablation
    shown = " ".join(answer.err.replace("│", " ").split())
    assert "Student's 95% t-interval" in shown and "0.133 (0.051–0.216)" in shown and "∞" in shown


def test_parts_that_a_given_log_lacks_are_named(cli: Cli, tmp_path: Path, play: Play) -> None:
    assert cli(*words(tmp_path, "--methods", "ga", "--seeds", 1)).code == 0
    folder = tmp_path / "out/models/forget01/retrained"
    found = json.loads((folder / EVALUATION).read_text())
    del found["figures"]["forget.truth_ratio"]
    (folder / EVALUATION).write_text(json.dumps(found))
    assert cli(*words(tmp_path, "--methods", "ga", "--seeds", 1)).code == 0
    rows = {row["name"]: row for row in results(tmp_path)["rows"]}
    assert rows["ga"]["missing"] == ["forget.truth_ratio"]
    assert set(FORGET) - set(rows["ga"]["parts"]) == {"forget.truth_ratio"}
    assert "forget truth ratio missing" in (tmp_path / "out" / "results.md").read_text()


def test_without_a_retrained_model_there_is_no_distance(cli: Cli, tmp_path: Path, play: Play) -> None:
    asked = words(tmp_path, "--methods", "ga", "--seeds", 1)
    place = asked.index("--reference")
    assert cli(*asked[:place], *asked[place + 2 :]).code == 0
    assert all("distance" not in row["cells"] for row in results(tmp_path)["rows"])
    assert "### Distance" not in (tmp_path / "out" / "results.md").read_text()


def test_what_a_variant_decides_cannot_be_set_for_all(cli: Cli, tmp_path: Path, play: Play) -> None:
    asked = words(tmp_path, "--methods", "npo", "--same-conditions", "--set", "forget_loss=simnpo")
    answer = cli(*asked)
    assert answer.code == 2 and play.ran == []
    assert any("forget_loss: 'npo+same' decides it" in where for where, _ in answer.faults), answer.err
    answer = cli(*words(tmp_path, "--methods", "npo", "--ablate", "--set", "learning_rate=1e-4"))
    assert answer.code == 2 and any("takes it from its range" in where for where, _ in answer.faults)
