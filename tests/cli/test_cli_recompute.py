from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from commandline import Cli
from ngdiff.evaluation.recompute import recompute
from published_logs import first_code_log, tofu_log


def save(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_figures_that_follow(cli: Cli, tmp_path: Path) -> None:
    log = save(tmp_path / "model" / "TOFU_EVAL.json", tofu_log(0))
    retrained = save(tmp_path / "retrained" / "TOFU_EVAL.json", tofu_log(1))
    answer = cli("recompute", log, "--reference", retrained.parent, "--output", tmp_path / "out.json")
    assert answer.code == 0
    assert "model_utility" in answer.out and "forget_quality" in answer.out
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["split"], written["suite"]) == ("forget01", "tofu")
    utility = written["figures"]["model_utility"]
    assert utility["stated"] == tofu_log(0)["model_utility"]["agg_value"] and utility["agrees"] is True
    assert written["figures"]["forget_quality"]["stated"] is None  # this log states none
    assert 0 <= written["figures"]["forget_quality"]["exact"] <= 1


def test_an_output_that_exists_is_kept(cli: Cli, tmp_path: Path) -> None:
    log, there = save(tmp_path / "TOFU_EVAL.json", tofu_log(0)), save(tmp_path / "out.json", {"mine": 1})
    answer = cli("recompute", log, "--output", there)
    assert answer.code == 2 and "exists" in answer.err
    assert json.loads(there.read_text()) == {"mine": 1}


def test_an_output_that_appears_meanwhile_is_kept_and_the_figures_are_shown(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def appear(*words: Any) -> Any:
        save(tmp_path / "out.json", {"mine": 1})
        return recompute(*words)

    monkeypatch.setattr("ngdiff.evaluation.recompute.recompute", appear)
    log = save(tmp_path / "TOFU_EVAL.json", tofu_log(0))
    answer = cli("recompute", log, "--output", tmp_path / "out.json")
    assert answer.code == 1 and "exists, so it was not replaced" in answer.err and "out-2.json" in answer.err
    assert "model_utility" in answer.out and (tmp_path / "out-2.json").is_file()
    assert json.loads((tmp_path / "out.json").read_text()) == {"mine": 1}


def test_a_stated_figure_that_does_not_follow(cli: Cli, tmp_path: Path) -> None:
    log = tofu_log(0)
    log["model_utility"]["agg_value"] += 0.01
    answer = cli("recompute", save(tmp_path / "TOFU_EVAL.json", log))
    assert answer.code == 4
    told = len(tofu_log(0)) - 2  # forget quality and PrivLeak are stated as null
    assert f"{told - 1} of {told} stated figures follow" in answer.err
    row = next(line for line in answer.out.splitlines() if "model_utility" in line)
    assert row.rstrip(" │").endswith("no")


def test_without_reference_the_first_codes_log_says_what_it_can(cli: Cli, tmp_path: Path) -> None:
    answer = cli("recompute", save(tmp_path / "eval_log_aggregated.json", first_code_log(tofu_log(0))))
    assert answer.code == 0
    assert "0 of 0 stated" in answer.err
    assert "forget_quality" not in answer.out


def test_reference_of_another_split(cli: Cli, tmp_path: Path) -> None:
    log = save(tmp_path / "a.json", tofu_log(0))
    other = save(tmp_path / "b.json", tofu_log(1, forget=200))
    answer = cli("recompute", log, "--reference", other)
    assert answer.code == 2
    assert len(answer.faults) == 1 and "was evaluated on forget05, not on forget01" in answer.faults[0][0]


def test_hostile_file_name_and_content(cli: Cli, tmp_path: Path) -> None:
    bad = save(tmp_path / "[red]x.json", {"[bold]\u001b[31m": 1})
    answer = cli("recompute", bad)
    assert answer.code == 2
    assert "\u001b" not in answer.err and "[red]x.json" in answer.err
