"""The third card is answered from the audit: what was tried, what came back, what was not tried."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ngdiff.audits import audits
from ngdiff.errors import RequestError
from ngdiff.report.page import run_page
from ngdiff.report.run_files import Given, Run, read_run
from ngdiff.report.verdict import WAYS, judge
from report_runs import RECORD, evaluation, run


def finding(audit: str, found: bool | None, **more: Any) -> dict[str, Any]:
    compared = [
        {"beside": "text never seen", "excess": 0.5, "interval": [0.4, 0.6], "p_value": 0.001},
        {"beside": "its rise", "excess": 0.25, "interval": [0.2, 0.3], "p_value": 0.01},
    ]
    return {
        "audit": audit,
        "form": "all of it",
        "figure": "forget.extraction_strength",
        "before": 0.1,
        "after": 0.75,
        "comparisons": [] if found is None else compared,
        "p_value": None if found is None else 0.01 if found else 0.4,
        "found": found,
    } | more


def audited(*findings: dict[str, Any], sha256: str = "af", **more: Any) -> Run:
    models = {"audited": {"name": "unlearned", "sha256": sha256}}
    content = {"kind": "audit", "format": 2, "findings": list(findings), "notes": []}
    return replace(run(), audit=content | {"provenance": {"models": models}}, **more)


def test_every_audit_has_its_words() -> None:
    assert list(WAYS) == list(audits())


def test_what_came_back_is_said_in_plain_words() -> None:
    verdict = judge(audited(finding("relearning", True), finding("prefix", False), finding("layers", None)))
    card = verdict.cards[2]
    assert (card.answer, card.status, verdict.status) == ("No, 1 of 2 audits found something", "bad", "mixed")
    assert verdict.sentence.endswith(
        "But training it a little on the texts again brings back what was to be forgotten."
    )
    tried, alone, came, untried = card.lines[:4]
    assert tried == f"Tried: {WAYS['prefix']}; {WAYS['relearning']}."
    assert alone == f"Tried without anything to compare with: {WAYS['layers']}."
    assert came == (
        "Found by training it a little on the texts again: extraction strength 0.750 (all of it), 0.250 "
        "beside its rise."
    )
    assert untried.startswith("Not tried: ") and WAYS["sampling"] in untried and WAYS["prefix"] not in untried


def test_nothing_came_back() -> None:
    verdict = judge(audited(finding("relearning", False), finding("prefix", False)))
    assert [card.answer for card in verdict.cards][1:] == ["Yes", "Yes, as far as tried"]
    assert verdict.status == "good"
    assert "2 ways to bring it back were tried; none showed more" in verdict.sentence
    assert "No audit was made" not in verdict.sentence


def test_an_attack_of_the_evaluation_is_not_overruled() -> None:
    found = audited(finding("prefix", False), evaluation=evaluation(0.78, (0.67, 0.87)))
    card = judge(found).cards[2]
    assert (card.answer, card.status) == ("No, membership inference still works", "bad")
    assert card.lines[0].startswith("Tried: ")


def test_without_anything_to_compare_with_nothing_follows() -> None:
    verdict = judge(audited(finding("prefix", None)))
    assert verdict.cards[2].status == "unknown" and "nothing follows from them" in verdict.sentence


def test_an_audit_of_other_weights_vouches_for_nothing() -> None:
    card = judge(audited(finding("prefix", True), sha256="other")).cards[2]
    assert card.answer == "Not audited" and "other weights" in card.lines[0]


def test_broken_answers_are_not_called_knowledge() -> None:
    assert judge(audited(finding("fluency", True))).sentence.endswith(
        "But looking for broken language in its answers finds broken answers."
    )


def test_hostile_values_stay_text() -> None:
    evil = "<script>alert(1)</script>"
    found = audited(
        finding(
            "relearning", True, form=evil, figure=evil, after=float("nan"), comparisons=[{"beside": evil}]
        ),
        finding(evil, True),
        {"audit": 3, "found": "yes"},
    )
    page = run_page(found)
    assert evil not in page and "&lt;script&gt;alert" in page
    assert judge(found).cards[2].answer == "No, 1 of 1 audits found something"
    assert judge(replace(run(), audit={"findings": "x", "notes": 3})).cards[2].status == "unknown"


def test_the_file_is_found_in_the_folder_or_named(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps(RECORD), encoding="utf-8")
    content = audited(finding("prefix", False)).audit
    (folder / "audit.json").write_text(json.dumps(content), encoding="utf-8")
    assert read_run(folder).audit == content
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**(content or {}), "notes": ["x"]}), encoding="utf-8")
    assert (read_run(folder, Given(audit=other)).audit or {})["notes"] == ["x"]
    other.write_text(json.dumps({"kind": "audit", "format": 1}), encoding="utf-8")
    with pytest.raises(RequestError, match="--audit"):
        read_run(folder, Given(audit=other))
    (folder / "audit.json").write_text(json.dumps({"kind": "audit", "format": 1}), encoding="utf-8")
    assert read_run(folder).audit is None
