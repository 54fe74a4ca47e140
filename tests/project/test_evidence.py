"""Figures of studies as CSV: what is read back is what was written, and the pages show nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks import bench_table, beside_openunlearning, evidence, muse_table, tofu_table
from benchmarks.pages import page_of

from ngdiff.bench.summary import Row, row_from_json
from ngdiff.bench.tables import grid_table, table, tuning_table
from ngdiff.evaluation.result import EvaluationResult, Figure, figure

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def cell(value: float | None, low: float | None = None, *, values: list[float | None]) -> dict[str, Any]:
    return {"value": value, "low": low, "high": low and low + 0.25, "values": values}


def results(runs: int) -> dict[str, Any]:
    """Return a results.json with a destroyed model, settings at an edge and a trial that failed."""
    rows = [
        {
            "split": "forget01",
            "name": "npo",
            "cells": {
                "forget.extraction_strength": cell(0.1 * runs, 0.125, values=[0.1, 0.3][:runs]),
                "forgotten": cell(0.75, values=[0.75] * runs),
                "kept": cell(0.5, values=[0.5] * runs),
                "collateral": cell(1.0, values=[1.0] * runs),
                "distance": cell(None, values=[None, 0.5][:runs]),
            },
            "settings": {"rule_settings.alpha": 2},
            "edges": {"rule_settings.alpha": "least"},
            "parts": {"forget.probability": None, "general_nll": 0.25},
            "decides": {"forget.probability": runs},
            "missing": ["retain.rouge"],
            "tried": 4,
            "runs": runs,
            "ended": {"target": runs},
            "failed": 1,
            "on_front": True,
            "destroyed": True,
        },
        {"split": "forget01", "name": "rmu", "cells": {"kept": cell(0.25, values=[0.25])}},
    ]
    tuning = [
        {"split": "forget01", "method": "npo", "settings": {"beta": 0.5}, "score": 0.5, "chosen": True}
        | {"steps": 50, "seconds": 1.5, "ended": "end"},
        {"split": "forget01", "method": "npo", "settings": {"beta": 1}, "score": None, "chosen": False},
    ]
    grids = [
        {"split": "forget01", "method": "npo", "setting": "beta", "tried": [0.5, 1], "best": 0.5}
        | {"edge": edge}
        for edge in ("least", None)
    ]
    request = {"model": str(Path.home() / "target"), "seeds": runs, "lora": False}
    return {"request": request, "rows": rows, "tuning": tuning, "grids": grids}


@pytest.mark.parametrize("runs", [1, 2])
def test_a_benchmark_is_read_back_as_it_was(runs: int, tmp_path: Path) -> None:
    written = results(runs)
    evidence.keep_bench(written, tmp_path)
    read = evidence.read_bench(tmp_path)
    rows: list[Row] = [row_from_json(row) for row in written["rows"]]
    assert [row_from_json(row) for row in read["rows"]] == rows
    assert table([row_from_json(row) for row in read["rows"]]) == table(rows)
    assert tuning_table(read["tuning"]) == tuning_table(written["tuning"])
    assert grid_table(read["grids"]) == grid_table(written["grids"])


def test_the_request_is_written_without_the_users_folders(tmp_path: Path) -> None:
    evidence.keep_bench(results(1), tmp_path)
    request = {line["setting"]: line["value"] for line in evidence.read_csv(tmp_path / "request.csv")}
    assert request == {"model": "~/target", "seeds": "1", "lora": "false"}


def test_an_evaluations_figures_are_read_back_without_its_items(tmp_path: Path) -> None:
    found = {
        "forget.probability": figure("probability", [0.1, 0.2, 0.6], sets=("forget",)),
        "privleak": Figure("privleak", None, note="no reference"),
    }
    where = {"seed": 0, "machine": {"threads": 1, "system": "a name"}, "cached": {}, "versions": {}}
    evidence.keep_figures({"target": EvaluationResult("own", found, where)}, tmp_path)
    read = evidence.read_figures(tmp_path)["target"]
    mine = found["forget.probability"]
    assert mine.value == pytest.approx((0.1 + 0.2 + 0.6) / 3)
    assert read["forget.probability"] == Figure("probability", mine.value, mine.interval)
    assert read["privleak"] == Figure("privleak", None)
    assert "a name" not in (tmp_path / "provenance.csv").read_text(encoding="utf-8")
    assert '"threads": 1' in evidence.read_csv(tmp_path / "provenance.csv")[-1]["value"]


def on_the_page(title: str) -> str:
    page = page_of(title)
    assert page is not None, title
    text = page.read_text(encoding="utf-8")
    return text.partition(f"<!-- begin: {title} -->\n")[2].partition(f"\n<!-- end: {title} -->")[0]


@pytest.mark.parametrize(
    ("module", "titles"),
    [
        (tofu_table, ["TOFU figures"]),
        (muse_table, ["MUSE", "MUSE requests"]),
        (beside_openunlearning, ["Beside OpenUnlearning"]),
    ],
    ids=["tofu", "muse", "openunlearning"],
)
def test_the_pages_show_the_figures_of_the_evaluations(
    module: Any, titles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put: dict[str, str] = {}
    monkeypatch.setattr(module, "put", put.__setitem__)
    if module is beside_openunlearning:
        put["Beside OpenUnlearning"] = module.table()
    else:
        module.write_tables()
    assert list(put) == titles
    assert put == {title: on_the_page(title) for title in titles}


@pytest.mark.parametrize("name", ["tuned01", "tuned05", "tuned10"])
def test_the_pages_show_the_figures_of_the_benchmarks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put: dict[str, str] = {}
    monkeypatch.setattr(bench_table, "put", put.__setitem__)
    monkeypatch.setattr("sys.argv", ["bench_table", "--name", name])
    bench_table.main()
    assert f"Bench, {name}" in put
    assert put == {title: on_the_page(title) for title in put}
