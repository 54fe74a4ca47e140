"""``ngdiff.unlearn``: names, sources and rows in; a folder and its result out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

import ngdiff
from commandline import make_cli, questions, save_model, write_jsonl
from ngdiff.errors import RequestError
from ngdiff.receipts.receipt import IN_MEMORY
from ngdiff.system.environment import weights_hash
from tiny import tiny_llama, tiny_tokenizer

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
        ngdiff.unlearn(torch.nn.Linear(1, 1), rows, rows)


def test_a_loaded_model_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, rows, retain = tiny_llama(), questions(0, 4), questions(100, 12)
    began = weights_hash(model)
    found = ngdiff.unlearn(
        model, rows, retain, tmp_path / "out", tokenizer=tiny_tokenizer(), lr=1e-3, answers=0, **QUICK
    )
    assert weights_hash(model) == began == found.record.model["sha256_before"]
    assert weights_hash(found.model) == found.record.model["sha256_after"] != began
    assert found.record.model["name"] == found.record.settings["model"] == "LlamaForCausalLM from memory"
    assert IN_MEMORY in found.record.notes
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text(encoding="utf-8"))
    assert receipt["starting_files"] is None and receipt["previous"] is None
    page = found.report().read_text(encoding="utf-8")
    assert "--model MODEL" in page and "ngdiff-" not in receipt["model"]["name"]
    target = save_model(tmp_path / "target")
    same = ngdiff.unlearn(target, rows, retain, tmp_path / "named", lr=1e-3, answers=0, **QUICK)
    assert same.record.request_sha256 == found.record.request_sha256
    cli = make_cli(capsys)
    assert cli("verify", tmp_path / "out", "--model", target).code == 0
    checked = cli("check", tmp_path / "out")
    assert checked.code == 2 and "--target" in checked.err and "from memory" in checked.err


def test_what_a_loaded_model_cannot_be(tmp_path: Path) -> None:
    model, rows, retain = tiny_llama(), questions(0, 4), questions(100, 12)
    out = tmp_path / "out"
    with pytest.raises(RequestError, match=r"^tokenizer: is missing, and the model does not say"):
        ngdiff.unlearn(model, rows, retain, out)
    with pytest.raises(RequestError, match=r"^tokenizer: belongs to a loaded model"):
        ngdiff.unlearn("smollm2", rows, retain, out, tokenizer=tiny_tokenizer())
    with pytest.raises(RequestError, match=r"^lora: makes adapters"):
        ngdiff.unlearn(model, rows, retain, out, tokenizer=tiny_tokenizer(), lora=True)
    with pytest.raises(RequestError, match=r"^retain: .*1 row"):
        ngdiff.unlearn(model, rows, [*retain, rows[0]], out, tokenizer=tiny_tokenizer())
    adapted = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(RequestError, match=r"^model: is a loaded model with adapters"):
        ngdiff.unlearn(adapted, rows, retain, out, tokenizer=tiny_tokenizer())
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(RequestError, match=r"^model: is a loaded model whose weights are quantised"):
        ngdiff.unlearn(model, rows, retain, out, tokenizer=tiny_tokenizer())
    assert not out.exists()
