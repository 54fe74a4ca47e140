"""What the starting model says: the same from disk as from the model, and nothing asked twice."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import ngdiff.preparation.starting_predictions
from ngdiff.data.batching import collate, collate_for_loss
from ngdiff.data.datasets import as_encoded
from ngdiff.errors import RequestError, RunError
from ngdiff.models.logprobs import labelled_tokens
from ngdiff.preparation.starting_predictions import FOLDER, StartingStates, starting_states
from tiny import tiny_llama, tiny_tokenizer

torch.set_num_threads(1)
TOKENIZER = tiny_tokenizer()
EXAMPLES = as_encoded(
    [{"question": f"Who is {n}?", "answer": "the author " * (1 + n % 3)} for n in range(7)],
    TOKENIZER,
    256,
    "x",
)
SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 1,
}


def ask(model: Any, folder: Path, rows: list[int], layer: int | None = None, **more: Any) -> StartingStates:
    return starting_states(
        model,
        EXAMPLES,
        rows,
        layer=layer,
        tokenizer=TOKENIZER,
        pad_id=1,
        batch_size=2,
        folder=folder,
        precision="fp32",
        **more,
    )


def capped() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = Gemma2Config(**SMALL, final_logit_softcapping=0.5, attn_implementation="eager")
    return Gemma2ForCausalLM(config).float().eval()


def scaled() -> GraniteForCausalLM:
    torch.manual_seed(0)
    return GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0)).float().eval()


def scaled_up() -> CohereForCausalLM:
    torch.manual_seed(0)
    settings = {name: value for name, value in SMALL.items() if name != "head_dim"}
    return CohereForCausalLM(CohereConfig(**settings, logit_scale=3.0)).float().eval()


@pytest.mark.parametrize("make", [tiny_llama, capped, scaled, scaled_up])
def test_predictions_are_worked_out_again_exactly(tmp_path: Path, make: Any) -> None:
    model = make()
    rows = [5, 0, 3]
    states = ask(model, tmp_path, rows)
    data = states.attach(EXAMPLES)
    assert [row for row, e in enumerate(data) if e.reference_states is not None] == sorted(rows)
    with torch.no_grad():
        expected = labelled_tokens(model.eval(), collate([EXAMPLES[0], EXAMPLES[3]], 1)).logits
        for parameter in model.parameters():
            parameter.add_(1.0)  # the model moves on; the head as it was is on disk
    batch = collate_for_loss([data[0], data[3]], 1)
    found = states.head(torch.device("cpu"))(batch["reference_states"])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class Bent(LlamaForCausalLM):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.abs()
        return output


def test_a_model_that_does_more_with_its_logits_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Bent(LlamaConfig(**SMALL)).float()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    with pytest.raises(RequestError, match=r"does more with its logits.*--retain-loss nll"):
        ask(model, tmp_path, [0])
    assert not list(tmp_path.rglob("*.safetensors"))


def test_nothing_is_asked_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    first = ask(model, tmp_path, [0, 1], layer=1)
    with monkeypatch.context() as patch:
        patch.setattr(ngdiff.preparation.starting_predictions, "_work_out", None)
        assert ask(model, tmp_path, [0, 1], layer=1) == first
    others = [
        ask(model, tmp_path, [0, 2], layer=1),
        ask(model, tmp_path, [0, 1], layer=0),
        ask(tiny_llama(seed=1), tmp_path, [0, 1], layer=1),
    ]
    assert len({first.path, *(other.path for other in others)}) == 4


def test_another_folder_serves_where_the_cache_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, run = tiny_llama(), tmp_path / "run"
    run.mkdir()
    (tmp_path / "file").write_text("no folder")
    other = run / "model.safetensors"  # not ours to tidy up
    other.write_bytes(b"somebody's")
    os.utime(other, (0, 0))
    monkeypatch.setattr(ngdiff.preparation.starting_predictions, "MOST_KEPT", 0)
    for layer in (None, 1):
        states = ask(model, tmp_path / "file", [0], layer, otherwise=run)
        assert states.path.parent == run and states.attach(EXAMPLES)[0].reference_states is not None
    assert other.exists()
    with pytest.raises(RunError, match=r"could not be kept in .* \(Not a directory\)"):
        ask(model, tmp_path / "file", [0])
    # room: what the file takes, and no byte less
    size = ask(model, tmp_path / "a", [0]).path.stat().st_size
    for free, place in ((size, tmp_path / "b" / FOLDER), (size // 2, run)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert ask(model, tmp_path / "b", [0], otherwise=run).path.parent == place
        shutil.rmtree(tmp_path / "b")


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    files = [ask(model, tmp_path, [row]).path for row in range(5)]
    for place, age in enumerate((5, 4, 3, 0.5)):
        os.utime(files[place], (time.time() - age * 86400,) * 2)
    sizes = [file.stat().st_size for file in files]
    monkeypatch.setattr(ngdiff.preparation.starting_predictions, "MOST_KEPT", sum(sizes) - sizes[1])
    ask(model, tmp_path, [0])  # used again: the second is the oldest now
    assert [file.exists() for file in files] == [True, False, True, True, True]
    monkeypatch.setattr(ngdiff.preparation.starting_predictions, "MOST_KEPT", 0)
    ask(model, tmp_path, [4])
    assert [file.exists() for file in files] == [True, False, False, True, True]  # none of today's


@pytest.mark.parametrize("damage", [b"", b"no safetensors at all"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: bytes) -> None:
    model = tiny_llama()
    states = ask(model, tmp_path, [0, 1])
    before = states.path.read_bytes()
    states.path.write_bytes(damage)
    assert ask(model, tmp_path, [0, 1]).path.read_bytes() == before


@pytest.mark.parametrize("how", ["zeroed", "one bit", "cut", "no digest"])
def test_a_file_with_other_numbers_in_it_is_made_again(tmp_path: Path, how: str) -> None:
    model = tiny_llama()
    path = ask(model, tmp_path, [0, 1]).path
    before = path.read_bytes()
    header = 8 + int.from_bytes(before[:8], "little")
    spoilt = {
        "zeroed": before[:header] + bytes(len(before) - header),
        "one bit": before[:-1] + bytes([before[-1] ^ 1]),
        "cut": before[: len(before) // 2],
        "no digest": before.replace(b"sha256", b"sha257"),
    }[how]
    path.unlink()  # not in place: what has been mapped stays as it was
    path.write_bytes(spoilt)
    assert ask(model, tmp_path, [0, 1]).path.read_bytes() == before


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("fsync"), fsync(file))[1])
    monkeypatch.setattr(Path, "replace", lambda *paths: (done.append("rename"), replace(*paths))[1])
    ask(tiny_llama(), tmp_path, [0, 1])
    assert done == ["fsync", "rename", "fsync"]


def test_a_copy_outlives_the_file(tmp_path: Path) -> None:
    states = ask(tiny_llama(), tmp_path, [0, 1])
    content, known = states.path.read_bytes(), states.read()
    states.path.unlink()
    assert states.copy_to(tmp_path / "copy", known).path.read_bytes() == content
    with pytest.raises(FileNotFoundError):
        states.copy_to(tmp_path / "other")


def test_it_is_small_beside_the_predictions_and_a_second_model(tmp_path: Path) -> None:
    model = tiny_llama(vocab_size=2000, hidden=16, layers=8)
    states = ask(model, tmp_path, list(range(len(EXAMPLES))))
    tokens = sum(label >= 0 for example in EXAMPLES for label in example.labels)
    head = 4 * 2000 * 16
    assert states.path.stat().st_size == pytest.approx(4 * tokens * 16 + head, abs=1000)
    assert 4 * tokens * 16 < 4 * tokens * 2000 / 100
