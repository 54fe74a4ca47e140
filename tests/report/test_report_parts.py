"""Parts of the page, against values worked out by hand or by scipy."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ks_2samp
from sklearn.metrics import roc_curve as sklearn_roc

from ngdiff.evaluation.result import Figure
from ngdiff.report.answers import answers as side_by_side
from ngdiff.report.answers import change, shared
from ngdiff.report.comparison import comparison, differing, pareto, tradeoff
from ngdiff.report.curves import curves
from ngdiff.report.evaluations import figure_table, ks_place, membership, roc_curve, truth_ratios
from ngdiff.report.text import INVISIBLE, embedded, visible
from report_runs import answers, evaluation, figures, items, record, run, step


def test_pareto_front() -> None:
    points = [(0.1, 0.9), (0.2, 0.95), (0.2, 0.8), (0.1, 0.9), (0.3, 0.95)]
    assert pareto(points) == [True, True, False, True, False]


def test_tradeoff_of_several_runs_draws_the_first_ones_way() -> None:
    other = replace(run(after={"forget": figures(0.5, 0.5, 1.0)}), name="worse")
    found = tradeoff([run(), other])
    assert [(end["name"], end["front"]) for end in found["ends"]] == [("unlearned", True), ("worse", False)]
    assert [point["step"] for point in found["path"]] == [0, 6, 12]
    assert found["floor"] == 0.945 and found["target"] == 0.092


def test_roc_agrees_with_sklearn() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.normal(0.5, 1, 37).round(1), rng.normal(0, 1, 23).round(1)  # ties
    false, true = roc_curve(members.tolist(), others.tolist())
    labels, scores = np.r_[np.ones(37), np.zeros(23)], np.r_[members, others]
    theirs = sklearn_roc(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(false, theirs[0])
    np.testing.assert_allclose(true, theirs[1])


def test_ks_place_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(0, 1, 40), rng.normal(0.7, 1, 31)
    found, expected = ks_place(ours.tolist(), theirs.tolist()), ks_2samp(ours, theirs)
    assert found["distance"] == pytest.approx(expected.statistic)
    assert found["x"] == pytest.approx(expected.statistic_location)


def test_membership_splits_the_items_of_the_two_sets() -> None:
    found = replace(
        run(), evaluation=evaluation(scores=([3.0, 2.0, 1.0], [0.5, 0.25])), reference=evaluation()
    )
    attack = membership(found)[0]
    assert attack["forget"] == [3.0, 2.0, 1.0] and attack["holdout"] == [0.5, 0.25]
    assert [roc["label"] for roc in attack["rocs"]] == ["this model", "retrained model"]


def test_an_evaluation_of_other_weights_is_not_drawn() -> None:
    found = replace(run(), evaluation=evaluation(sha256="other"))
    assert membership(found) == [] and truth_ratios(found) is None


def test_curves_leave_out_what_a_run_has_not() -> None:
    without = record(steps=[step(1, cosine=None, forget_norm=None, retain_norm=None)], probes=[])
    keys = [panel["key"] for panel in curves(without)["panels"]]
    assert "cosine" not in keys and "norms" not in keys and "rate" in keys
    everything = [panel["key"] for panel in curves(record())["panels"]]
    assert {
        "strength",
        "utility",
        "forget_loss",
        "retain_loss",
        "rate",
        "norms",
        "cosine",
        "weights",
        "changed",
        "nll",
        "descent",
    } == set(everything)


def test_curves_of_a_damaged_record_hold_no_odd_value() -> None:
    found = curves(record(steps=[step(1, forget_loss="NaN", weights=[1], cosine=True), "no step"]))
    assert found["steps"]["forget_loss"] == [None] and found["steps"]["cosine"] == [None]
    assert found["steps"]["retain_weight"] == [None]


def test_words_shared_with_the_truth() -> None:
    assert shared("The cat sat on the mat", "THE mat, a cat") == pytest.approx(3 / 6)  # "the" once
    assert shared("", "x") is None and shared("x", None) is None


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("a b c d", "a b c d", "same"),
        ("a b c d", "x y", "lost"),
        ("a b c d", "a b c", "partly"),
        ("x", "a b", "gained"),
        (None, "a", "unknown"),
    ],
)
def test_change(before: str | None, after: str, expected: str) -> None:
    assert change("a b c d", before, after) == expected


def test_answers_forgotten_worst_come_first() -> None:
    found = replace(run(), answers=answers([*items(1.0, name="retain"), *items(0.1, 0.9, 0.2)]))
    order = [(item["set"], item["figures_after"]["extraction_strength"]) for item in side_by_side(found)]
    assert order == [("forget", 0.9), ("forget", 0.2), ("forget", 0.1), ("retain", 1.0)]


def test_a_broken_answer_is_named() -> None:
    one, other, unasked = items(0.1, 0.2, 0.3)
    one["after"]["answer"], other["after"]["answer"], unasked["after"]["answer"] = (
        "so so so so",
        "He sat",
        None,
    )
    found = side_by_side(replace(run(), answers=answers([one, other, unasked])))
    assert {item["after"]: item["broken"] for item in found} == {
        "so so so so": "repetition",
        "He sat": None,
        None: None,
    }


def test_retrained_answers_join_by_question() -> None:
    said = [{"place": "p", "question": "Who is 0?", "truth": "the author 0 sat", "answer": "nobody"}]
    found = replace(run(), answers=answers(items(0.1)), reference=evaluation(texts={"forget": said}))
    (item,) = side_by_side(found)
    assert item["retrained"] == "nobody" and item["after"] == "a cook 0"


def test_settings_that_differ() -> None:
    second = replace(run(settings={"method": "npo"}), name="b")
    assert differing([run(), second]) == [{"name": "method", "values": ["ngdiff", "npo"]}]
    assert [row["name"] for row in comparison([run(), second])["rows"]] == ["unlearned", "b"]


def test_a_figure_of_an_older_definition_is_marked() -> None:
    known = Figure("extraction_strength", 0.25, (0.1, 0.4))
    older, today = (
        replace(evaluation(), figures={"forget.extraction_strength": replace(known, outdated=version)})
        for version in (1, None)
    )
    (row,) = figure_table(replace(run(), evaluation=older, before=today))["rows"]
    assert [cell["value"] for cell in row["cells"]] == ["0.250 (older definition)", "0.250"]
    bare = [replace(run(), record=None, evaluation=found) for found in (older, today)]
    assert [r["forget"] for r in comparison(bare)["rows"]] == ["0.250 (older definition)", "0.250"]


# ---- text ----

HOSTILE = "</script><!--<script>\u2028\u202e\u200b\ud800&"


def test_embedded_json_cannot_end_its_element() -> None:
    import json

    text = embedded({"a": HOSTILE, "b": float("nan")})
    assert not re.search(r"[<>&\u2028\u202e\ud800]", text)
    assert json.loads(text) == {"a": HOSTILE, "b": None}


def test_invisible_characters_are_written_out() -> None:
    assert visible("a\u202eb\u200bc") == "a⟨U+202E⟩b⟨U+200B⟩c"
    assert visible("tab\tand\nline") == "tab\tand\nline"
    visible(HOSTILE).encode("utf-8")


def test_page_and_python_see_the_same_invisible_characters() -> None:
    from importlib import resources

    script = (resources.files("ngdiff.report") / "static" / "dom.js").read_text(encoding="utf-8")
    pattern = re.search(r"const INVISIBLE = /(.*)/gu;", script)
    assert pattern is not None
    theirs = re.sub(r"\\u\{e(\w{4})\}", r"\\U000e\1", pattern[1])
    theirs = re.compile(theirs)
    everything = [chr(code) for code in [*range(0x30000), *range(0xE0000, 0xE0100)]]
    assert [c for c in everything if INVISIBLE.match(c)] == [c for c in everything if theirs.match(c)]


def test_no_more_are_said_to_be_asked_than_there_are() -> None:
    from ngdiff.report.page import _asked

    found = {"asked": {"forget": 12}, "of": {"forget": 4}}
    assert str(_asked(replace(run(), answers=found))).startswith("All 4 examples to forget were asked.")
    found = {"asked": {"forget": 3}, "of": {"forget": 4}}
    assert "Of the 4 examples to forget, 3 were asked" in str(_asked(replace(run(), answers=found)))


def test_notes_are_pointed_at_where_there_are_some() -> None:
    from ngdiff.report.trust import _doubts

    skipped = {"steps": [{"skipped": "non-finite"}], "notes": ["another matter"]}
    assert _doubts(replace(run(), record=skipped)) == ["1 steps were skipped."]
    skipped["notes"] = ["step 1 was skipped: a gradient is not finite"]
    assert _doubts(replace(run(), record=skipped)) == ["1 steps were skipped; see the notes."]
