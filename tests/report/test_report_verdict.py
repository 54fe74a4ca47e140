"""What the first screen says, for every way a run can end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ngdiff.report.cards import Verdict, items_interval
from ngdiff.report.trust import tells
from ngdiff.report.verdict import judge
from report_runs import answers, evaluation, figures, items, run

KEPT = "; the best state above the floor, of step {}, was kept."


def told(verdict: Verdict) -> list[str]:
    return [card.answer for card in verdict.cards]


def test_forgotten_and_kept_but_not_audited() -> None:
    verdict = judge(run())
    assert told(verdict) == ["Forgotten", "Yes", "Not audited"]
    assert verdict.status == "mixed"
    assert verdict.sentence == (
        "FORGOTTEN (extraction strength 0.065, target 0.092). "
        "Test it from outside the run: 'ngdiff evaluate' measures it in full, 'ngdiff audit' tries to bring "
        "the knowledge back. "
        "The extraction strength of the forget set went from 1.000 to 0.065, and the target was 0.092. "
        "Kept: 99.4% of the retain set's answer probability is left. "
        "No audit was made: membership inference or a retrained model may still differ."
    )


@pytest.mark.parametrize(
    ("code", "kept", "says"),
    [
        ("floor", 6, "missed; the run ended because a floor was met" + KEPT.format(6)),
        ("floor", 0, "missed; the run ended because a floor was met; the model is unchanged."),
        ("non-finite", 6, "missed; the run ended because gradients were not finite" + KEPT.format(6)),
        ("stationary", 6, "missed; the run ended because both gradients were zero" + KEPT.format(6)),
        ("end", 12, "missed; all steps were used" + KEPT.format(12)),
    ],
)  # fmt: skip
def test_target_missed(code: str, kept: int, says: str) -> None:
    verdict = judge(
        run(
            stop={"code": code, "kept_step": kept, "target_met": False},
            after={"forget": figures(0.8, 0.4, 1)},
        )
    )
    assert verdict.status == "bad"
    assert told(verdict)[0] == "Not forgotten"
    assert (
        "The extraction strength of the forget set went from 1.000 to 0.400, "
        "and the target of 0.092 was " + says in verdict.sentence
    )
    assert verdict.sentence.startswith("NOT FORGOTTEN (extraction strength 0.400, target 0.092). ")


LEFT = [
    {"row": n, "place": f"f.jsonl, line {n}", "extraction_strength": 1.0, "probability": 0.9, "whole": True}
    for n in range(1, 15)
]
BOUNDS = {"measure": "extraction_strength", "value": 0.092, "bounds": [], "share": 0.05}


def test_items_that_are_left_are_named_though_the_mean_is_met() -> None:
    """The mean is where it should be, and 14 items are said word for word: no contradiction, and no yes."""
    price = "each further 10 steps would bring about 2.0 items down and cost about 1.0% of general facts"
    stop = {
        **{"code": "end", "target_met": False, "target": BOUNDS, "left": LEFT, "price": price},
        "looked_at": {"rows": 200, "of": 200},
    }
    verdict = judge(run(stop=stop))
    assert told(verdict)[0] == "Not forgotten"
    assert "but 14 of 200 items are left above their thresholds" in verdict.sentence
    lines = verdict.cards[0].lines
    assert "Items above their thresholds: 14 of 200." in lines
    assert "Left: f.jsonl, line 1; " in "".join(lines) and "f.jsonl, line 12; and 2 more." in "".join(lines)
    assert f"By the last checks, {price}." in lines


def test_every_floor_is_on_the_second_card() -> None:
    floors = {
        "retain": {"share": 0.98, "start": 0.995, "least": 0.97, "end": 0.989},
        "general.facts": {"share": 0.98, "start": 0.8, "least": 0.784, "end": 0.7},
    }
    verdict = judge(run(stop={"floors": floors}))
    lines = verdict.cards[1].lines
    assert "retain: 0.995 → 0.989, floor 0.970." in lines
    assert "general.facts: 0.800 → 0.700, floor 0.784 (broken)." in lines
    assert told(verdict)[1] == "No" and "general.facts ended under the floor" in verdict.sentence
    floors["general.facts"]["end"] = 0.79
    assert told(judge(run(stop={"floors": floors})))[1] == "Yes"


@pytest.mark.parametrize("wrong", [None, 3, "x", [1], {"a": 1}, {"a": {"end": "x"}}])
def test_a_record_of_any_form_is_read(wrong: Any) -> None:
    stop = {"floors": wrong, "left": wrong, "looked_at": wrong, "price": wrong, "target": BOUNDS}
    assert judge(run(stop=stop)).cards


def test_met_at_the_start() -> None:
    found = run(stop={"kept_step": 0, "step": 0}, before={"forget": figures(0.07, 0.065, 4.6)})
    verdict = judge(found)
    assert told(verdict)[0] == "Nothing changed"
    assert "the model is unchanged" in verdict.sentence
    assert verdict.sentence.startswith("NOTHING CHANGED (the model did not know this). ")
    assert "FORGOTTEN" not in verdict.sentence


def test_no_target() -> None:
    verdict = judge(run(stop={"target": None, "target_met": None, "code": "end"}))
    assert told(verdict)[0] == "No target was set"
    assert verdict.status == "unknown"


def test_figures_that_are_not_finite_are_never_a_success() -> None:
    broken: Any = dict.fromkeys(figures(0, 0, 0))  # JSON has no NaN: write_json makes it null
    verdict = judge(run(after={"forget": broken, "retain": broken, "never_seen": broken}))
    assert verdict.status == "bad"
    assert told(verdict)[:2] == ["Cannot be judged", "Cannot be judged"]


def test_a_record_that_contradicts_itself_is_not_believed() -> None:
    verdict = judge(run(after={"forget": figures(0.9, 0.8, 0.1)}))  # target_met stays true
    assert told(verdict)[0] == "Contradictory" and "FORGOTTEN" not in verdict.sentence
    assert verdict.status == "bad"


def test_utility_under_the_floor_is_not_kept() -> None:
    verdict = judge(run(after={"retain": figures(0.9, 0.9, 0.1)}))
    assert told(verdict)[:2] == ["Forgotten", "No"]
    assert verdict.status == "bad"
    assert (
        "Not kept: 90.5% of the retain set's answer probability is left, under the floor of 0.945."
        in verdict.sentence
    )


def test_damage_to_never_seen_text_is_said() -> None:
    verdict = judge(run(after={"never_seen": figures(0.02, 0.01, 9.0)}))
    assert told(verdict)[1] == "Yes, with damage nearby"
    assert "never-seen text of the same kind lost 60%" in verdict.sentence


def test_over_forgetting_is_said() -> None:
    verdict = judge(run(after={"forget": figures(0.0, 0.0, 96.0)}))
    assert any("Over-forgotten" in line for line in verdict.cards[2].lines)


def test_nll_targets_are_met_from_below() -> None:
    target = {"target": {"measure": "nll", "value": 3.7}}
    assert told(judge(run(stop=target)))[0] == "Forgotten"
    missed = judge(run(stop=target | {"target_met": False}, after={"forget": figures(0.1, 0.0, 2.0)}))
    assert told(missed)[0] == "Not forgotten"


def test_an_interval_past_the_target_is_said() -> None:
    found = replace(run(), answers=answers(items(0.0, 0.13, 0.13, 0.0)))
    card = judge(found).cards[0]
    assert card.marks[0].bounds is not None and card.marks[0].bounds[1] > 0.092
    assert any("beyond the target" in line for line in card.lines)


def test_items_whose_mean_is_another_figure_give_no_interval() -> None:
    found = replace(run(), answers=answers(items(0.5, 0.9)))
    assert items_interval(found, "forget", "extraction_strength", 0.065) is None


# ---- trust ----


def test_an_attack_that_tells_is_said() -> None:
    found = replace(run(), evaluation=evaluation(0.78, (0.67, 0.87)))
    verdict = judge(found)
    assert told(verdict)[2] == "No, membership inference still works"
    assert (
        "But membership inference still distinguishes the forget set from never-seen text: "
        "min-k reaches an AUC of 0.780." in verdict.sentence
    )


def test_an_attack_that_tells_by_too_little_knowledge_is_said() -> None:
    found = replace(run(), evaluation=evaluation(0.2, (0.1, 0.3)))
    assert "by being less known" in judge(found).sentence


def test_no_attack_tells() -> None:
    found = replace(run(), evaluation=evaluation(quality=0.4))
    verdict = judge(found)
    assert told(verdict) == ["Forgotten", "Yes", "Yes, as far as measured"]
    assert verdict.status == "good"


def test_forget_quality_tells_the_model_from_a_retrained_one() -> None:
    found = replace(run(), evaluation=evaluation(quality=0.001))
    assert told(judge(found))[2] == "Told from a retrained model"


def test_an_attack_that_reaches_as_much_on_the_retrained_model_tells_nothing() -> None:
    ours, theirs = (evaluation(0.7, (0.6, 0.8)).figures["forget.membership.min_k"] for _ in range(2))
    assert tells(ours, None)
    assert not tells(ours, theirs)


def test_an_evaluation_of_other_weights_vouches_for_nothing() -> None:
    found = replace(run(), evaluation=evaluation(quality=0.9, sha256="other"))
    verdict = judge(found)
    assert told(verdict)[2] == "Evaluation of another model"
    assert verdict.status == "mixed"
    assert not any("Evaluated" in line for card in verdict.cards for line in card.lines)


def test_an_evaluation_alone_is_held_against_the_retrained_model() -> None:
    found = replace(
        run(), record=None, evaluation=evaluation(strength=0.06), reference=evaluation(strength=0.05)
    )
    assert told(judge(found))[0] == "Yes, as if retrained"
    worse = replace(found, evaluation=evaluation(strength=0.5))
    assert told(judge(worse))[0] == "More is left than in the retrained model"
    alone = replace(found, reference=None)
    assert told(judge(alone))[0] == "Nothing to compare with"


def test_without_an_audit_the_record_s_own_likelihoods_are_shown() -> None:
    card = judge(run()).cards[2]
    assert [(mark.kind, mark.value) for mark in card.marks] == [
        ("now", 4.6),
        ("before", 0.01),
        ("unseen", 3.8),
    ]
    assert card.limit == pytest.approx(1.1 * 4.6)
