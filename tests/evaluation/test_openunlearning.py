from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ks_2samp

from ngdiff.errors import RequestError
from ngdiff.evaluation.openunlearning import read_log, read_reference
from ngdiff.evaluation.recompute import recompute
from published_logs import Json, first_code_log, ks_statistic, muse_log, pairs_auc, summary, tofu_log


def written(folder: Path, content: Any, name: str = "TOFU_EVAL.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=4))
    return path


def scores(log: Json, metric: str = "forget_truth_ratio") -> list[float]:
    return [row["score"] for row in log[metric]["value_by_index"].values()]


def only_fault(error: pytest.ExceptionInfo[RequestError]) -> str:
    assert len(error.value.faults) == 1
    return str(error.value.faults[0])


# --- recomputing -----------------------------------------------------------------------------------------


def test_recomputes_what_a_tofu_log_states(tmp_path: Path) -> None:
    log = tofu_log(0)
    found = recompute(read_log(written(tmp_path, log)))
    assert {key: r.agrees for key, r in found.items() if not r.agrees} == {}
    names = {"forget.probability": "forget_Q_A_Prob", "model_utility": "model_utility"}
    names |= {"forget.truth_ratio": "forget_truth_ratio", "world_facts.probability": "wf_Q_A_Prob_normalised"}
    names |= {"real_authors.truth_ratio": "ra_Truth_Ratio", "forget.membership.min_k": "mia_min_k"}
    for key, name in names.items():
        assert found[key].stated == log[name]["agg_value"]
        assert found[key].as_stated == pytest.approx(log[name]["agg_value"], rel=1e-12)
        assert found[key].exact == pytest.approx(log[name]["agg_value"], rel=1e-6)
    assert "forget_quality" not in found and "privleak" not in found  # never a default number


def test_forget_quality_and_privleak_against_a_retrained_log(tmp_path: Path) -> None:
    model, retrained = tofu_log(1, gap=2.0), tofu_log(2, gap=0.1)
    log = read_log(written(tmp_path, model))
    found = recompute(log, read_log(written(tmp_path, retrained, "other.json")))
    # The p-value of the exact two-sided test is a function of the distance alone.
    distance = ks_statistic(scores(model), scores(retrained))
    shifted = [float(i) for i in range(40)], [i + round(distance * 40) - 0.5 for i in range(40)]
    assert ks_statistic(*shifted) == pytest.approx(distance)
    assert found["forget_quality"].exact == pytest.approx(float(ks_2samp(*shifted).pvalue), rel=1e-9)
    assert found["forget_quality"].as_stated == found["forget_quality"].exact
    s, r = 1 - model["mia_min_k"]["agg_value"], 1 - retrained["mia_min_k"]["agg_value"]
    assert found["privleak"].exact == pytest.approx(100 * (s - r) / r, rel=1e-9)


def test_a_changed_item_disagrees_with_what_is_stated(tmp_path: Path) -> None:
    log = tofu_log(0)
    log["retain_Q_A_ROUGE"]["value_by_index"]["3"]["rougeL_recall"] += 0.01
    found = recompute(read_log(written(tmp_path, log)))
    assert {key for key, r in found.items() if r.agrees is False} == {"retain.rouge", "model_utility"}


def test_exact_figures_survive_probabilities_near_the_constant(tmp_path: Path) -> None:
    log = tofu_log(0)
    for name in ("forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob"):
        for row in log[name]["value_by_index"].values():
            many = isinstance(row["avg_loss"], list)
            row["avg_loss"] = [x + 100 for x in row["avg_loss"]] if many else row["avg_loss"] + 100
    before = recompute(read_log(written(tmp_path, tofu_log(0))))["forget.truth_ratio"]
    after = recompute(read_log(written(tmp_path, log)))["forget.truth_ratio"]
    assert after.exact == pytest.approx(before.exact, rel=1e-9)  # a ratio: both sides fell alike


def test_recomputes_a_muse_log(tmp_path: Path) -> None:
    log, retrained = muse_log(0), muse_log(1, gap=0.0)
    other = read_log(written(tmp_path, retrained, "retrained.json"))
    found = recompute(read_log(written(tmp_path, log, "MUSE_EVAL.json")), other)
    stated = ["forget.verbatim", "forget.knowledge", "retain.knowledge", "forget.membership.min_k"]
    assert [found[key].agrees for key in stated] == [True] * 4
    assert "forget_quality" not in found and found["privleak"].exact is not None


def test_the_first_code_gives_the_same_exact_figures(tmp_path: Path) -> None:
    log = tofu_log(3)
    new = recompute(read_log(written(tmp_path, log)))
    old_log = read_log(written(tmp_path, first_code_log(log), "eval_log_aggregated.json"))
    old = recompute(old_log)
    for key in ("model_utility", "forget.truth_ratio", "forget.probability", "world_facts.probability"):
        assert old[key].exact == pytest.approx(new[key].exact, rel=1e-12)
        assert old[key].stated is None and old[key].agrees is None
    assert old_log.split == "forget01"


def test_the_first_codes_truth_ratio_takes_the_pass_that_it_calls_paraphrased(tmp_path: Path) -> None:
    old = first_code_log(tofu_log(3))
    part = old["eval_real_author_wo_options.json"]
    part["avg_paraphrased_loss"] = {i: loss + 0.25 for i, loss in part["avg_gt_loss"].items()}
    scores = []
    for i, right in part["avg_paraphrased_loss"].items():
        wrong = part["average_perturb_loss"][i]
        scores.append(max(0.0, 1 - math.exp(right - sum(wrong) / len(wrong))))
    found = recompute(read_log(written(tmp_path, old, "eval_log_aggregated.json")))
    assert found["real_authors.truth_ratio"].exact == pytest.approx(sum(scores) / len(scores), rel=1e-12)


# --- references ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "split"), [(40, "forget01"), (200, "forget05"), (400, "forget10"), (41, None)]
)
def test_split_follows_from_the_number_of_items(tmp_path: Path, size: int, split: str | None) -> None:
    reference = read_reference(written(tmp_path, tofu_log(0, forget=size)))
    assert (reference.split, len(reference.truth_ratios)) == (split, size)


def test_reference_holds_truth_ratios_in_order_aucs_and_figures(tmp_path: Path) -> None:
    log = tofu_log(0)
    rows = log["forget_Q_A_PARA_Prob"]["value_by_index"]
    log["forget_Q_A_PARA_Prob"]["value_by_index"] = dict(sorted(rows.items()))  # 0, 1, 10, 11, ...
    reference = read_reference(written(tmp_path, log))
    assert reference.forget_truth_ratios(40, "forget01") == pytest.approx(scores(log), rel=1e-6)
    members = [row["score"] for row in log["mia_min_k"]["forget"]["value_by_index"].values()]
    others = [row["score"] for row in log["mia_min_k"]["holdout"]["value_by_index"].values()]
    assert reference.membership_auc("min_k") == pytest.approx(pairs_auc(members, others))
    assert reference.figures["forget.extraction_strength"] == log["extraction_strength"]["agg_value"]


def test_reference_from_scores_alone_and_from_a_folder(tmp_path: Path) -> None:
    log = tofu_log(0)
    bare = {name: log[name] for name in ("forget_truth_ratio", "mia_min_k")}
    written(tmp_path, bare)
    assert list(read_reference(tmp_path).truth_ratios) == scores(log)


def test_other_split_other_size_and_missing_metric(tmp_path: Path) -> None:
    reference = read_reference(written(tmp_path, tofu_log(0)))
    with pytest.raises(RequestError) as error:
        reference.forget_truth_ratios(400, "forget10")
    assert "was evaluated on forget01, not on forget10" in only_fault(error)
    with pytest.raises(RequestError) as error:
        reference.forget_truth_ratios(39)
    assert "has 40 truth ratios for the 39 items" in only_fault(error)
    with pytest.raises(RequestError) as error:
        reference.membership_auc("zlib")
    assert "no AUC of the membership attack zlib" in only_fault(error) and "loss, min_k" in only_fault(error)
    of_summary = read_reference(written(tmp_path, summary(tofu_log(0)), "TOFU_SUMMARY.json"))
    assert of_summary.membership_auc("min_k") == tofu_log(0)["mia_min_k"]["agg_value"]
    with pytest.raises(RequestError) as error:
        of_summary.forget_truth_ratios(40, "forget01")
    assert "has no truth ratios" in only_fault(error)


def test_a_log_of_as_many_items_serves_a_forget_set_that_was_thinned(tmp_path: Path) -> None:
    reference = read_reference(written(tmp_path, tofu_log(0, forget=40)))
    assert reference.split == "forget01"  # by its size alone
    assert len(reference.forget_truth_ratios(40, "forget05")) == 40
    with pytest.raises(RequestError) as error:
        replace(reference, forget_sha256="0" * 64).forget_truth_ratios(40, "forget05")
    assert "was evaluated on forget01, not on forget05" in only_fault(error)


# --- files that cannot be used ---------------------------------------------------------------------------


def broken(**changes: Any) -> Json:
    return tofu_log(0) | changes


BAD = {
    "truncated": (json.dumps(tofu_log(0))[:5000], "not valid JSON"),
    "empty": ("", "not valid JSON"),
    "a list": ([1, 2], "holds a list"),
    "foreign": ({"accuracy": 0.5, "loss": 1}, "'accuracy', 'loss'"),
    "interrupted": (broken(forget_truth_ratio={"agg_value": 0.5, "value_by_index": {}}), "no values by item"),
    "a stated text": (broken(model_utility={"agg_value": "high"}), "model_utility, agg_value: is 'high'"),
    "a gap": (
        broken(
            extraction_strength={"agg_value": 1.0, "value_by_index": {"0": {"score": 1}, "2": {"score": 1}}}
        ),
        "extraction_strength, score: lacks item 1",
    ),
    "an index that is none": (
        broken(extraction_strength={"agg_value": 1.0, "value_by_index": {"first": {"score": 1}}}),
        "index is not a number",
    ),
    "lists of different lengths": (
        broken(ra_Q_A_PERT_Prob={"value_by_index": {"0": {"prob": [0.1, 0.2]}, "1": {"prob": [0.1]}}}),
        "lists of different lengths",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, name: str) -> None:
    content, said = BAD[name]
    with pytest.raises(RequestError) as error:
        read_log(written(tmp_path, content))
    assert said in str(error.value)


def test_nan_is_named_by_metric_and_item(tmp_path: Path) -> None:
    log = tofu_log(0)
    log["forget_truth_ratio"]["value_by_index"]["7"]["score"] = math.nan
    with pytest.raises(RequestError) as error:
        read_log(written(tmp_path, log))
    assert "forget_truth_ratio, score: has NaN at item 7" in only_fault(error)


def test_part_missing_from_the_first_codes_file(tmp_path: Path) -> None:
    old = first_code_log(tofu_log(0))
    del old["eval_log_forget.json"]["average_perturb_loss"], old["eval_real_world_wo_options.json"]
    with pytest.raises(RequestError) as error:
        read_log(written(tmp_path, old, "eval_log_aggregated.json"))
    said = [str(fault) for fault in error.value.faults]
    assert len(said) == 2
    assert any("lacks the part eval_real_world_wo_options.json" in line for line in said)
    assert any("average_perturb_loss: is missing" in line for line in said)


def test_missing_file_and_ambiguous_folder(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        read_log(tmp_path / "none.json")
    with pytest.raises(RequestError, match="has none of"):
        read_log(tmp_path)
    written(tmp_path, tofu_log(0))
    written(tmp_path, muse_log(0), "MUSE_EVAL.json")
    with pytest.raises(RequestError, match="has several of"):
        read_log(tmp_path)
