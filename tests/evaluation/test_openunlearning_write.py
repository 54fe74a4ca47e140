from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ngdiff.evaluation.openunlearning import as_log, read_log, read_reference, write_log
from ngdiff.evaluation.recompute import recompute
from ngdiff.evaluation.result import Figure


def figures() -> dict[str, Figure]:
    ratios = [0.5, 2.0, 4.0] * 13 + [1.0]
    return {
        "forget.probability": Figure("probability", 0.25, (0.2, 0.3), (0.125, 0.375) * 20),
        "forget.rouge": Figure("rougeL_recall", 0.5, None, (0.25, 0.75) * 20),
        "forget.truth_ratio": Figure(
            "truth_ratio", sum(min(t, 1 / t) for t in ratios) / 40, None, tuple(min(t, 1 / t) for t in ratios)
        ),
        "forget.membership.min_k": Figure("auc", 0.75, (0.6, 0.9), (1.0, 2.0)),
        "privleak": Figure("privleak", -50.0, None, ()),
        "forget_quality": Figure("forget_quality", None, None, (), "needs --reference"),
        "forget.of_our_own": Figure("nll", 1.0, None, (1.0,)),
    }


RATIOS = {"forget": [0.5, 2.0, 4.0] * 13 + [1.0]}


def test_what_is_written_reads_back_as_a_reference(tmp_path: Path) -> None:
    whole, summary = write_log(tmp_path / "out", "tofu", figures(), RATIOS)
    assert (whole.name, summary.name) == ("TOFU_EVAL.json", "TOFU_SUMMARY.json")
    reference = read_reference(whole)
    assert list(reference.forget_truth_ratios(40, "forget01")) == RATIOS["forget"]
    assert reference.membership_auc("min_k") == 0.75
    assert all(r.agrees in (True, None) for r in recompute(read_log(whole)).values())
    assert recompute(read_log(whole))["forget.truth_ratio"].agrees
    expected = {
        "forget_Q_A_Prob": 0.25,
        "forget_Q_A_ROUGE": 0.5,
        "forget_truth_ratio": figures()["forget.truth_ratio"].value,
        "mia_min_k": 0.75,
        "privleak": -50.0,
    }
    assert json.loads(summary.read_text()) == expected


def test_layout_is_the_one_that_openunlearning_reads() -> None:
    log = as_log("tofu", figures(), RATIOS)
    assert list(log) == sorted(log)
    assert log["forget_Q_A_ROUGE"]["value_by_index"]["1"] == {"rougeL_recall": 0.75}
    # Its forget quality reads value_by_index[...]["score"], its PrivLeak agg_value.
    assert [item["score"] for item in log["forget_truth_ratio"]["value_by_index"].values()] == RATIOS[
        "forget"
    ]
    assert log["mia_min_k"] == {"agg_value": 0.75, "auc": 0.75}
    assert "forget_quality" not in log  # a figure without a value is no figure


def test_truth_ratios_are_not_made_up_from_folded_items() -> None:
    assert "value_by_index" not in as_log("tofu", figures())["forget_truth_ratio"]


def test_muse_keeps_f1() -> None:
    log = as_log("muse", {"forget.verbatim": Figure("rougeL_f1", 0.5, None, (0.25, 0.75))})
    rows = {"0": {"rougeL_f1": 0.25}, "1": {"rougeL_f1": 0.75}}
    assert log == {"forget_verbmem_ROUGE": {"agg_value": 0.5, "value_by_index": rows}}


def test_nothing_that_is_no_json(tmp_path: Path) -> None:
    bad = {"forget.probability": Figure("probability", 0.5, None, (math.nan, 1.0))}
    whole, _ = write_log(tmp_path / "out", "tofu", bad)
    assert json.loads(whole.read_text(), parse_constant=pytest.fail)
