"""Rows that set a stopping target and rows that audits compare with never meet."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import secretive
from commandline import write_jsonl
from forgetful import examples
from ngdiff.audits.audit import prepare
from ngdiff.audits.audit_request import AuditRequest
from ngdiff.data.datasets import LEAST_HALF, for_auditing, for_stopping, stops
from ngdiff.data.examples import Example, data_hash
from ngdiff.unlearn import UnlearnRequest, unlearn


@dataclass(frozen=True)
class Encoded:
    example: Example


ROWS = examples(secretive.people(60, seed=9))


def test_two_commands_agree_on_the_halves_without_meeting() -> None:
    stopping, note = for_stopping([Encoded(row) for row in ROWS])
    auditing, left_out = for_auditing(list(reversed(ROWS)), split=True, same=False)
    used, free = {row.example.key for row in stopping}, {row.key for row in auditing}
    assert used | free == {row.key for row in ROWS} and not used & free
    assert 20 <= len(used) <= 40
    assert note is not None and f"{len(used)} rows" in note
    assert left_out is not None and f"{len(used)} rows" in left_out
    assert {row.key for row in for_auditing(ROWS[:30], split=True, same=False)[0]} <= free


def test_a_small_holdout_is_not_split_and_not_compared_with() -> None:
    few = ROWS[: LEAST_HALF + 2]
    assert for_stopping([Encoded(row) for row in few]) == ([Encoded(row) for row in few], None)
    kept, note = for_auditing(few, split=False, same=True)
    assert kept == [] and note is not None and "nothing is compared" in note
    kept, note = for_auditing(few, split=False, same=False)
    assert kept == few and note is not None and "another holdout" in note


def test_a_row_goes_by_its_text_alone() -> None:
    one, two = (
        examples([{"question": " Where  is KALO? ", "answer": "Oslo"}]),
        examples([{"question": "where is kalo?", "answer": "oslo", "paraphrased_question": "x"}]),
    )
    assert stops(one[0]) == stops(two[0])


@pytest.mark.parametrize(
    ("notes", "hashed", "left"),
    [
        (["holdout: split by content: 30 rows set the target, 30 are left for audits"], "other", "half"),
        ([], "same", "none"),
        ([], "other", "all"),
        (None, "", "all"),
    ],
)
def test_an_audit_leaves_out_what_the_record_names(
    tmp_path: Path, notes: list[str] | None, hashed: str, left: str
) -> None:
    model = secretive.saved(secretive.new_model(), tmp_path / "model")
    paths = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", getattr(secretive, name))
        for name in ("FORGET", "RETAIN")
    }
    holdout = write_jsonl(tmp_path / "holdout.jsonl", secretive.people(60, seed=9))
    if notes is not None:
        sha256 = data_hash(ROWS) if hashed == "same" else "0" * 64
        record = {"data": {"holdout": {"examples": 60, "sha256": sha256}}, "notes": notes}
        (model / "record.json").write_text(json.dumps(record), encoding="utf-8")
    sources = [(str(path),) for path in (paths["FORGET"], paths["RETAIN"], holdout)]
    data = prepare(AuditRequest(str(model), tmp_path / "a.json", *sources, audits=("extraction",))).data
    kept = data.sets.get("holdout", [])
    assert len(kept) == {"half": sum(not stops(row) for row in ROWS), "none": 0, "all": 60}[left]
    assert any("holdout" in note for note in data.notes) is (notes is not None)


def test_a_run_stops_by_one_half_and_its_audit_gets_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = secretive.saved(secretive.target(), tmp_path / "model")
    for name in ("FORGET", "RETAIN"):
        write_jsonl(tmp_path / f"{name}.jsonl", getattr(secretive, name))
    write_jsonl(tmp_path / "HOLDOUT.jsonl", secretive.people(60, seed=9))
    sources: Any = {
        name: (str(tmp_path / f"{name.upper()}.jsonl"),) for name in ("forget", "retain", "holdout")
    }
    settings = {"max_steps": 1, "floors": {}, "method": "ngdiff"}
    record = unlearn(
        UnlearnRequest(model=str(model), output=tmp_path / "out", settings=settings, answers=0, **sources)
    )
    used = sum(map(stops, ROWS))
    assert any(note.startswith("holdout: split") and f"{used} rows set" in note for note in record.notes)
    assert f"{used} items" in json.dumps(record.as_json())
    request = AuditRequest(str(tmp_path / "out"), tmp_path / "a.json", audits=("extraction",), **sources)
    assert len(prepare(request).data.sets["holdout"]) == 60 - used
