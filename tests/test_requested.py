from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ngdiff.data.examples import Example, Message
from ngdiff.errors import Fault, Faults, RequestError
from ngdiff.requested import check_folder, encode_sets, find_model, find_source, shared_setting_faults
from tiny import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def row(question: str, answer: str, **extra: Any) -> Example:
    turns = (Message("user", question), Message("assistant", answer))
    return Example(turns, None, "qa", "row 1", extra)


def told(faults: list[Fault]) -> list[str]:
    return [f"{fault.where}: {fault.what}" for fault in faults]


@dataclass
class Asked:
    precision: str = "fp32"
    seed: int = 0
    long_text: str = "split"
    batch_size: int = 8
    max_length: int | None = None


def test_shared_settings_are_checked_together_and_none_is_no_count() -> None:
    assert shared_setting_faults(Asked(), ("batch_size", "max_length")) == []
    wrong = Asked("fp8", -1, "fold", 0, 0)
    found = told(shared_setting_faults(wrong, ("batch_size", "max_length")))
    assert [line.partition(":")[0] for line in found] == [
        "--precision",
        "--batch-size",
        "--max-length",
        "--seed",
        "long_text",
    ]


def test_a_missing_tokenizer_is_a_fault_of_the_option_that_names_the_model(
    model: Path, tmp_path: Path
) -> None:
    faults = Faults()
    tiny_llama().save_pretrained(tmp_path / "bare")
    found = find_model(str(tmp_path / "bare"), faults, "--reference")
    assert found is not None and found[1] is None
    assert [fault.where for fault in faults] == ["--reference"]
    assert find_source(str(tmp_path / "bare"), Faults()) is not None
    assert find_model(str(tmp_path / "nowhere" / "x"), faults, "--target") is None
    assert [fault.where for fault in faults] == ["--reference", "--target"]


def test_every_set_that_can_be_encoded_is_and_each_fault_names_its_set(model: Path) -> None:
    faults = Faults()
    found = find_model(str(model), faults)
    assert found is not None
    sets = {"forget": [row("Who?", "She.")], "retain": [row("why " * 60, "So.")]}
    encoded, notes = encode_sets(sets, found, 48, faults)
    assert list(encoded) == ["forget"] and notes == []
    assert [fault.where for fault in faults] == ["--retain row 1"]


def test_tokens_without_embeddings_are_found_in_rows_and_in_further_columns(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["zyxgroup"])
    tokenizer.save_pretrained(tmp_path)
    tiny_llama().save_pretrained(tmp_path)
    sets = {"forget": [row("Who?", "She.", perturbed_answer=["He.", "the zyxgroup"])]}
    for columns, count in (((), 0), (("perturbed_answer",), 1)):
        faults = Faults()
        found = find_model(str(tmp_path), faults)
        assert found is not None
        encode_sets(sets, found, 64, faults, columns=columns, where="--target")
        assert len(faults) == count
    assert faults[0].where == "--target" and "zyxgroup" in faults[0].what


def test_a_result_may_not_lie_in_its_model_nor_in_its_data(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "out" / "rows.jsonl"
    data.parent.mkdir()
    data.write_text("{}\n", encoding="utf-8")
    faults = Faults()
    source = find_source(str(model), faults)
    sizes: list[int] = []

    def room(weights: int) -> int:
        sizes.append(weights)
        return 0

    check_folder(model / "in", True, source, room, {}, {}, faults)
    check_folder(data.parent, True, source, room, {"--forget": [str(data)]}, {}, faults)
    assert [size > 4 * 320 * 32 for size in sizes] == [True, True]
    assert "is inside the model" in faults[0].what
    assert any("which --forget reads" in fault.what for fault in faults)


def test_a_fault_found_twice_is_reported_once() -> None:
    faults = Faults([Fault("--model", "is missing", "Give it")] * 2)
    with pytest.raises(RequestError) as caught:
        faults.raise_any()
    assert len(caught.value.faults) == 1
