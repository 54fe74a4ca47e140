"""``ngdiff.unlearn``: names, sources and rows in; a folder and its result out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ngdiff
from commandline import questions, save_model, write_jsonl
from ngdiff.errors import RequestError

QUICK = {"method": "graddiff", "max_steps": 2, "stop_at": "none", "keep_utility": 0, "batch_size": 2}


def test_rows_and_files_make_a_result(tmp_path: Path) -> None:
    target = save_model(tmp_path / "target")
    retain = write_jsonl(tmp_path / "retain.jsonl", questions(100, 12))
    rows = questions(0, 4)
    found = ngdiff.unlearn(target, rows, retain, tmp_path / "out", lr=1e-3, answers=0, **QUICK)
    assert isinstance(found, ngdiff.Unlearned) and found.verdict
    written = json.loads((tmp_path / "out" / "record.json").read_text(encoding="utf-8"))
    assert found.record.stop == written["stop"] and written["settings"]["learning_rate"] == 1e-3
    assert written["data"]["forget"]["examples"] == 4 and found.record.cost["steps"] == 2
    assert (tmp_path / "out" / "receipt.json").is_file()
    assert not Path(written["settings"]["forget"][0]).exists()  # rows are not left behind
    ids = torch.tensor([found.tokenizer("Who is 1?").input_ids])
    assert torch.isfinite(found.model(ids).logits).all() and found.model is found.model
    page = found.report(tmp_path / "page.html")
    assert page == tmp_path / "page.html" and "<html" in page.read_text(encoding="utf-8")[:200]


def test_faults_name_parameters(tmp_path: Path) -> None:
    rows = questions(0, 4)
    with pytest.raises(RequestError) as raised:
        ngdiff.unlearn("no such", [*rows, {"question": "Who?"}], tmp_path / "no.csv", tmp_path / "o", lr=-1)
    shown = str(raised.value)
    for part in ("learning_rate: -1", "model: 'no such'", "forget forget.jsonl, line 5", "retain: there"):
        assert part in shown, shown
    assert "--" not in shown
    with pytest.raises(RequestError, match=r"Did you mean .*max_steps"):
        ngdiff.unlearn("m", rows, rows, max_step=3)
    with pytest.raises(RequestError, match=r"^forget: is neither"):
        ngdiff.unlearn("m", [1, 2], rows)
    with pytest.raises(RequestError, match=r"^model: is of type Linear"):
        ngdiff.unlearn(torch.nn.Linear(1, 1), rows, rows)  # type: ignore[arg-type]
