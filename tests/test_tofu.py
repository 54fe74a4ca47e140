"""The whole of TOFU on a small folder, against the slow oracle, at several batch sizes."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

import slow_tofu
from ngdiff.data.batching import collate
from ngdiff.data.encoding import encode_all
from ngdiff.data.examples import Example
from ngdiff.errors import EvaluationError, RequestError
from ngdiff.evaluation.reference import Reference
from ngdiff.evaluation.request import EvaluateRequest
from ngdiff.evaluation.result import Bootstrap, Figure
from ngdiff.evaluation.suites import SuiteData
from ngdiff.evaluation.suites.measures import measure_reference
from ngdiff.evaluation.suites.tofu import read_tofu, run_tofu
from ngdiff.inference.evaluator import Evaluator
from tiny import tiny_llama, tiny_tokenizer
from tofu_folder import make_tofu

MOST = 12
BOOT = Bootstrap(resamples=50)


def request(folder: Path, **changes: Any) -> EvaluateRequest:
    asked = EvaluateRequest("model", "tofu", Path("eval.json"), ("forget01",), folders={"tofu": folder})
    return replace(asked, **changes)


def run(
    folder: Path, model: Any, batch_size: int = 8, reference: Reference | None = None
) -> dict[str, Figure]:
    evaluator = Evaluator(model, tiny_tokenizer(), batch_size=batch_size, max_new_tokens=MOST, quiet=True)
    return run_tofu(evaluator, read_tofu(request(folder)), reference, BOOT)


@cache
def _trained(seed: int) -> Any:
    """A tiny model that has learned some of another folder's questions, so that no figure is trivial."""
    model, tokenizer = tiny_llama(seed=seed), tiny_tokenizer()
    with TemporaryDirectory() as place:
        known = make_tofu(Path(place), forget=6)
        rows = slow_tofu.rows(known, "forget01_perturbed")[seed : 4 + seed]
        rows += slow_tofu.rows(known, "retain_perturbed") + slow_tofu.rows(known, "holdout01")[:1]
        rows += slow_tofu.rows(known, "real_authors_perturbed")
    asked = [slow_tofu.asked(one["question"], one["answer"]) for one in rows]
    batch = collate(encode_all(asked, tokenizer, 512, "here"), 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def lively(seed: int = 0) -> Any:
    """A copy, for a test that changes its weights."""
    return deepcopy(_trained(seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tofu(tmp_path_factory.mktemp("tofu"))


@pytest.fixture(scope="module")
def slow(folder: Path) -> dict[str, float]:
    return slow_tofu.evaluate_slowly(lively(), tiny_tokenizer(), folder, MOST)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_figure_is_the_slow_one(folder: Path, slow: dict[str, float], batch_size: int) -> None:
    figures = run(folder, lively(), batch_size)
    found = {key: figures[key].value for key in slow}
    assert found == pytest.approx(slow, abs=1e-6, rel=1e-6)
    for key, figure in figures.items():
        if figure.value is not None and figure.metric not in ("privleak",):
            assert figure.interval is not None, key
            assert figure.interval[0] <= figure.interval[1], key


def test_figures_vary_with_the_data(slow: dict[str, float]) -> None:
    """The oracle's figures are not all alike, or the test above would say little."""
    assert len({round(value, 6) for value in slow.values()}) > 35
    for key in ("forget.extraction_strength", "forget.exact_memorisation", "forget.rouge", "model_utility"):
        assert 0.01 < slow[key] < 0.99, key


def test_forget_quality_against_a_retrained_model(folder: Path) -> None:
    data, tokenizer = slow_tofu.rows(folder, "forget01_perturbed"), tiny_tokenizer()
    other = Evaluator(lively(1), tokenizer, batch_size=3, quiet=True)
    reference = measure_reference(other, read_tofu(request(folder)), "retrained", "tofu")
    theirs = slow_tofu.truth_ratios(lively(1), tokenizer, data)
    assert reference.truth_ratios == pytest.approx(theirs, rel=1e-5)
    figures = run(folder, lively(), reference=reference)
    ours = slow_tofu.truth_ratios(lively(), tokenizer, data)
    points = [*ours, *theirs]
    distance = max(abs(mean_at(ours, x) - mean_at(theirs, x)) for x in points)
    assert figures["ks_distance"].value == pytest.approx(distance, abs=1e-12)
    assert figures["forget_quality"].value == pytest.approx(exact_p(distance, 6, 6), abs=1e-9)
    losses = [slow_tofu.look(lively(1), tokenizer, one["question"], one["answer"]).loss for one in data]
    assert reference.forget_nll == pytest.approx(losses, rel=1e-5)


def test_openunlearnings_forget_quality_of_a_destroyed_model(folder: Path) -> None:
    data, tokenizer = slow_tofu.rows(folder, "forget01_perturbed"), tiny_tokenizer()
    reference = measure_reference(
        Evaluator(lively(1), tokenizer, quiet=True), read_tofu(request(folder)), "retrained", "tofu"
    )
    intact, broken = lively(), lively()
    for name, parameter in broken.named_parameters():  # such as gradient ascent leaves it
        parameter.data *= 30 if name == "lm_head.weight" else 1
    theirs = slow_tofu.guarded(lively(1), tokenizer, data)
    values = {}
    for name, model in (("intact", intact), ("broken", broken)):
        figures = run(folder, model, reference=reference)
        ours = slow_tofu.guarded(model, tokenizer, data)
        distance = max(abs(mean_at(ours, x) - mean_at(theirs, x)) for x in [*ours, *theirs])
        quality = figures["forget_quality_openunlearning"].value
        assert quality == pytest.approx(exact_p(distance, 6, 6), abs=1e-9)
        values[name] = figures["forget.truth_ratio_openunlearning"].value, quality
        assert figures["forget.truth_ratio"].value is not None
    assert values["broken"][0] == pytest.approx(0, abs=1e-3) and values["intact"][0] > 0.1
    assert values["broken"][1] == pytest.approx(2 / 924)  # the two samples do not overlap at all


def mean_at(values: list[float], x: float) -> float:
    return sum(value <= x for value in values) / len(values)


def exact_p(distance: float, m: int, n: int) -> float:
    """Share of all interleavings of two samples whose distance is as large: the KS test by its definition."""
    from itertools import combinations

    hits = total = 0
    for chosen in combinations(range(m + n), m):
        mine, first, second, largest = set(chosen), 0, 0, 0.0
        for place in range(m + n):
            first, second = first + (place in mine), second + (place not in mine)
            largest = max(largest, abs(first / m - second / n))
        hits, total = hits + (largest >= distance - 1e-9), total + 1
    return hits / total


def test_a_model_is_like_itself(folder: Path) -> None:
    evaluator = Evaluator(lively(), tiny_tokenizer(), batch_size=8, quiet=True)
    reference = measure_reference(evaluator, read_tofu(request(folder)), "itself", "tofu")
    figures = run(folder, lively(), reference=reference)
    assert figures["forget_quality"].value == pytest.approx(1, abs=1e-9)
    assert figures["privleak"].value == pytest.approx(0, abs=1e-9)
    # against its own losses every score of the reference attack is 0: nothing is told apart
    assert figures["forget.membership.reference"].value == pytest.approx(0.5, abs=1e-9)


def test_without_reference_and_holdout_nothing_is_made_up(tmp_path: Path) -> None:
    folder = make_tofu(tmp_path, holdout=0)
    data = read_tofu(request(folder))
    assert "membership inference and PrivLeak are left out" in data.notes[0]
    figures = run(folder, lively())
    assert figures["forget_quality"].value is None
    assert "needs --reference" in str(figures["forget_quality"].note)
    assert not [key for key in figures if "membership" in key or key == "privleak"]


def test_intervals_of_model_utility_by_drawing_items(folder: Path) -> None:
    figures = run(folder, lively())
    low, high = figures["model_utility"].interval or (math.nan, math.nan)
    assert low <= high
    parts = [
        list(figures[f"{name}.{measure}"].items)
        for name in ("retain", "real_authors", "world_facts")
        for measure in ("probability", "rouge", "truth_ratio")
    ]
    # an interval that follows the items: with every item alike in each part there is nothing to vary
    from ngdiff.evaluation.statistics import harmonic_mean_interval

    alike = {"a": [[0.5] * 4, [0.25] * 4], "b": [[0.125] * 3]}
    value, bounds = harmonic_mean_interval(alike, BOOT)
    assert value == pytest.approx(3 / (2 + 4 + 8))
    assert bounds == pytest.approx((value, value))
    assert len(parts) == 9


def test_a_retain_set_without_wrong_answers_has_no_truth_ratio(tmp_path: Path) -> None:
    whole = run(make_tofu(tmp_path), lively())
    rows = slow_tofu.rows(tmp_path, "retain_perturbed")
    plain = [{key: one[key] for key in ("question", "answer")} for one in rows]
    (tmp_path / "retain_perturbed.json").write_text("".join(json.dumps(one) + "\n" for one in plain))
    assert "no wrong answers" in read_tofu(request(tmp_path)).notes[0]
    figures = run(tmp_path, lively())
    parts = [
        whole[f"{name}.{measure}"].value or 0.0
        for name in ("retain", "real_authors", "world_facts")
        for measure in ("probability", "rouge", "truth_ratio")
        if (name, measure) != ("retain", "truth_ratio")
    ]
    assert len(parts) == 8 and min(parts) > 0
    assert figures["model_utility"].value == pytest.approx(8 / sum(1 / part for part in parts))
    assert "eight parts" in str(figures["model_utility"].note) and whole["model_utility"].note is None
    assert "retain.truth_ratio" not in figures
    # one row that has them means that the others lack them
    plain[1]["perturbed_answer"] = rows[1]["perturbed_answer"]
    (tmp_path / "retain_perturbed.json").write_text("".join(json.dumps(one) + "\n" for one in plain))
    with pytest.raises(RequestError, match="perturbed_answer"):
        read_tofu(request(tmp_path))


@pytest.mark.parametrize("column", ["perturbed_answer", "paraphrased_answer"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    folder = make_tofu(tmp_path)
    rows = slow_tofu.rows(folder, "forget01_perturbed")
    del rows[2][column]
    text = "".join(json.dumps(one) + "\n" for one in rows)
    (folder / "forget01_perturbed.json").write_text(text)
    with pytest.raises(RequestError) as caught:
        read_tofu(request(folder))
    (fault,) = caught.value.faults
    assert column in fault.what
    assert "line 3" in fault.where


@pytest.mark.parametrize("value", [[], "one text", ["a", 3], ["a", " "], {"a": "b"}])
def test_perturbed_answers_that_are_no_list_of_texts(tmp_path: Path, value: object) -> None:
    folder = make_tofu(tmp_path)
    rows = slow_tofu.rows(folder, "retain_perturbed")
    rows[0]["perturbed_answer"] = value
    (folder / "retain_perturbed.json").write_text("".join(json.dumps(one) + "\n" for one in rows))
    with pytest.raises(RequestError, match="perturbed_answer"):
        read_tofu(request(folder))


def test_faults_of_several_files_come_together(tmp_path: Path) -> None:
    folder = make_tofu(tmp_path)
    (folder / "retain_perturbed.json").unlink()
    (folder / "world_facts_perturbed.json").write_text("{}\n")
    with pytest.raises(RequestError) as caught:
        read_tofu(request(folder, holdout=(str(tmp_path / "none.jsonl"),)))
    text = str(caught.value)
    assert "retain_perturbed" in text and "world_facts" in text and "none.jsonl" in text


@pytest.mark.parametrize("split", ["forget02", "retain90", "full"])
def test_an_unknown_split(folder: Path, split: str) -> None:
    with pytest.raises(RequestError, match="forget set of TOFU"):
        read_tofu(request(folder, forget=(split,)))


@pytest.mark.parametrize("split", ["tofu:forget01", "forget01", "tofu:forget01_perturbed"])
def test_ways_to_write_the_split(folder: Path, split: str) -> None:
    assert read_tofu(request(folder, forget=(split,))).split == "forget01"


def test_a_holdout_that_shares_rows_is_refused(folder: Path) -> None:
    shared = str(folder / "forget01_perturbed.json")
    with pytest.raises(RequestError, match="--holdout"):
        read_tofu(request(folder, holdout=(shared,)))


def test_a_model_gone_nan_is_named_and_not_averaged(folder: Path) -> None:
    model = lively()
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    with pytest.raises(EvaluationError, match="line"):
        run(folder, model)


def test_the_reference_must_be_of_this_split_and_size(folder: Path) -> None:
    data: SuiteData = read_tofu(request(folder))
    assert all(isinstance(example, Example) for example in data.sets["forget"])
    short = Reference("log", "tofu", truth_ratios=(0.5,) * 5)
    with pytest.raises(RequestError, match="5 truth ratios for the 6 items"):
        run(folder, lively(), reference=short)
    other = Reference("log", "tofu", split="forget10", truth_ratios=(0.5,) * 6, forget_sha256="0" * 64)
    with pytest.raises(RequestError, match="forget10, not on forget01"):
        run(folder, lively(), reference=other)
