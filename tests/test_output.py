"""Folders and files written whole or not at all, what keeps them from being so, and a weights hash."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from ngdiff.errors import Fault, RunError
from ngdiff.system.environment import weights_hash
from ngdiff.system.output import (
    RECORD,
    check_output,
    in_the_way,
    staged_file,
    staged_folder,
    unless_in_the_way,
    write_json,
)


def contents(folder: Path) -> dict[str, str]:
    """Every file below, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def names(folder: Path) -> list[str]:
    """Everything in it, hidden ones too."""
    return sorted(p.name for p in folder.iterdir())


OURS = '{"kind": "finetune", "files": ["old"]}'


def earlier_result(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(OURS)
    (folder / "old").write_text("old")


# --- staged folders --------------------------------------------------------------------------------------


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "result"
    with staged_folder(target) as folder:
        (folder / "a").write_text("1")
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_text("2")
        assert not target.exists()
        assert folder.parent == target.parent, "on the same disk, so that it can be renamed"
    assert contents(tmp_path) == {"deep/result/a": "1", "deep/result/sub/b": "2"}
    assert names(target.parent) == ["result"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_success_replaces_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "result"
    earlier_result(target)
    with staged_folder(target) as folder:
        (folder / "new").write_text("new")
        assert (target / "old").read_text() == "old"
    assert contents(tmp_path) == {"result/new": "new"}
    assert names(tmp_path) == ["result"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("existed", [True, False])
def test_an_exception_leaves_everything_as_it_was(
    tmp_path: Path, error: type[BaseException], existed: bool
) -> None:
    target = tmp_path / "result"
    if existed:
        earlier_result(target)
    before = contents(tmp_path)
    with pytest.raises(error), staged_folder(target) as folder:
        (folder / "new").write_text("half")
        raise error
    assert contents(tmp_path) == before
    assert names(tmp_path) == (["result"] if existed else [])


def test_a_failing_move_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "result"
    earlier_result(target)
    rename = Path.rename

    def fails_into_place(self: Path, to: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError("no")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fails_into_place)
    with pytest.raises(OSError, match="no"), staged_folder(target) as folder:
        (folder / "new").write_text("new")
    assert contents(tmp_path) == {f"result/{RECORD}": OURS, "result/old": "old"}
    assert names(tmp_path) == ["result"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path, overwrite: bool) -> None:
    target = tmp_path / "result"
    with pytest.raises(RunError) as error, staged_folder(target, overwrite) as folder:
        (folder / "new").write_text("new")
        target.mkdir()
        (target / "thesis").write_text("mine")
    (kept,) = tmp_path.glob(".result.*")
    assert contents(tmp_path) == {"result/thesis": "mine", f"{kept.name}/new": "new"}
    assert str(kept) in str(error.value)


# --- faults found beforehand -----------------------------------------------------------------------------


def whats(path: Path, overwrite: bool = False, needed_bytes: int = 0) -> list[str]:
    faults = check_output(path, overwrite, needed_bytes)
    assert all(fault.where == "--output" and fault.fix for fault in faults)
    return [fault.what for fault in faults]


def test_nothing_to_fault(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert whats(tmp_path / "new") == []
    assert whats(tmp_path / "many" / "levels" / "down") == []
    assert whats(tmp_path / "empty") == []
    assert names(tmp_path) == ["empty"], "a check writes nothing"


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("below", ["", "result", "deep/result"])
def test_a_file_in_the_way(tmp_path: Path, overwrite: bool, below: str) -> None:
    (tmp_path / "taken").write_text("x")
    assert whats(tmp_path / "taken" / below, overwrite) == [f"{tmp_path / 'taken'} is a file"]


def test_a_folder_in_use_is_refused_and_overwrite_replaces_our_own_only(tmp_path: Path) -> None:
    ours, foreign = tmp_path / "ours", tmp_path / "foreign"
    earlier_result(ours)
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    assert whats(ours) == [f"{ours} is not empty"]
    assert whats(ours, overwrite=True) == []
    assert whats(foreign) == [f"{foreign} is not empty"]
    (what,) = whats(foreign, overwrite=True)
    assert f"{foreign} holds no {RECORD}" in what


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"kind": "finetune"}', '{"kind": "x", "files": []}'])
def test_a_record_that_is_none_lets_nothing_be_deleted(tmp_path: Path, content: str) -> None:
    earlier_result(tmp_path / "ours")
    (tmp_path / "ours" / RECORD).write_text(content)
    (what,) = whats(tmp_path / "ours", overwrite=True)
    assert RECORD in what and "may not delete" in what


@pytest.mark.parametrize("kind", ["unlearn", "finetune", "merge"])
def test_foreign_files_in_a_result_are_named(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "ours"
    papers = ["README.md", "answers.json", "receipt.json", "receipt.sig", "receipts/001.json"]
    known = ["model.safetensors", RECORD, "report.html", *(papers if kind == "unlearn" else [])]
    for name in known:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / RECORD).write_text(json.dumps({"kind": kind, "files": ["model.safetensors"]}))
    assert whats(folder, overwrite=True) == []
    (folder / "notes").mkdir()
    assert whats(folder, overwrite=True) == [f"{folder} holds notes, which no result of ngdiff has"]
    for name in ("notes/thesis.tex", "receipts.json", "z.safetensors"):
        (folder / name).write_text("x")
    if kind != "unlearn":
        (folder / "README.md").write_text("mine")
    (what,) = whats(folder, overwrite=True)
    assert all(name in what for name in ("notes/thesis.tex", "receipts.json", "z.safetensors"))
    assert ("README.md" in what) == (kind != "unlearn") and "model.safetensors" not in what


def test_a_pipe_for_a_record_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / RECORD)
    (what,) = whats(tmp_path, overwrite=True)
    assert "may not delete" in what


def test_too_small_a_disk(tmp_path: Path) -> None:
    (what,) = whats(tmp_path / "new" / "result", needed_bytes=10**18)
    assert "931322574.6 GiB" in what and str(tmp_path) in what


def test_a_folder_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path and mode == os.W_OK))
    assert whats(tmp_path / "new" / "result") == [f"{tmp_path} cannot be written to"]


def test_all_faults_are_reported_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_text("x")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert len(whats(tmp_path, needed_bytes=10**18)) == 3


# --- JSON ------------------------------------------------------------------------------------------------


def test_json_has_null_for_what_json_cannot_say(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    write_json({"a": [math.nan, 1.5, -math.inf], "b": (math.inf, 0), 3: "ä", "c": {"d": math.nan}}, path)
    assert json.loads(path.read_text("utf-8"), parse_constant=pytest.fail) == {
        "a": [None, 1.5, None],
        "b": [None, 0],
        "3": "ä",
        "c": {"d": None},
    }
    assert path.stat().st_mode & 0o777 == 0o644


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json({"a": 1}, path)
    before = path.read_text()
    with pytest.raises(TypeError):
        write_json({"a": 2, "b": object()}, path)
    assert path.read_text() == before
    assert names(tmp_path) == ["record.json"]
    write_json({"a": 3}, path)
    assert json.loads(path.read_text()) == {"a": 3}
    assert names(tmp_path) == ["record.json"]


# --- weights ---------------------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self, order: str = "ab") -> None:
        super().__init__()
        for name in order:
            self.register_parameter(name, nn.Parameter(torch.arange(4.0) + ord(name)))


def test_the_hash_does_not_depend_on_the_order_of_parameters() -> None:
    assert [name for name, _ in Two("ba").named_parameters()] == ["b", "a"]
    assert weights_hash(Two("ab")) == weights_hash(Two("ba")) == weights_hash(Two("ab"))


def test_the_hash_changes_with_one_bit() -> None:
    model = Two()
    found = {weights_hash(model)}
    for parameter in model.parameters():
        for element in range(4):
            before = parameter.detach().clone()
            bits = parameter.data.view(torch.int32)
            bits[element] ^= 1  # the last of the mantissa
            found.add(weights_hash(model))
            parameter.data.copy_(before)
    assert len(found) == 9
    assert weights_hash(model) in found


def test_the_hash_sees_names_shapes_types_and_signs_of_zero() -> None:
    def model(name: str, values: torch.Tensor) -> nn.Module:
        module = nn.Module()
        module.register_parameter(name, nn.Parameter(values))
        return module

    zeros = torch.zeros(4)
    variants = [
        model("a", zeros),
        model("b", zeros),
        model("a", zeros.reshape(2, 2)),
        model("a", torch.zeros(8, dtype=torch.bfloat16)),
        model("a", -zeros),
        model("a", torch.tensor(0.0)),
    ]
    assert len({weights_hash(variant) for variant in variants}) == len(variants)


def test_the_hash_does_not_depend_on_memory_layout() -> None:
    values = torch.arange(6.0).reshape(2, 3)
    plain, strided = nn.Module(), nn.Module()
    plain.register_parameter("a", nn.Parameter(values))
    strided.register_parameter("a", nn.Parameter(values.T.contiguous().T))
    assert weights_hash(plain) == weights_hash(strided)


def test_a_file_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("fsync"), fsync(file))[1])
    monkeypatch.setattr(Path, "replace", lambda *paths: (done.append("rename"), replace(*paths))[1])
    write_json({"a": 1}, tmp_path / "a.json")
    assert done == ["fsync", "rename", "fsync"]  # the file, its name, the folder


def test_a_full_disk_is_named_by_the_file_that_it_did_not_take(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught, staged_file(tmp_path / "page.html"):
        raise OSError(errno.ENOSPC, "No space left on device")  # as writing to an open file raises it
    assert caught.value.filename == str(tmp_path / "page.html") and list(tmp_path.iterdir()) == []


def test_what_has_appeared_in_a_files_place_is_kept_and_so_is_the_file(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"

    def look(place: Path) -> list[Fault]:
        return [Fault("--output", f"{place} is there already", "")] if place.exists() else []

    def write(place: Path) -> None:
        place.write_text("made")
        place.with_suffix(".texts.json").write_text("beside")

    unless_in_the_way(path, look, write)
    assert path.read_text() == "made"
    path.write_text("mine")
    (tmp_path / "eval-2.texts.json").write_text("mine")
    with pytest.raises(RunError, match=r"is there already, so it was not replaced; .* is in .*eval-3\.json"):
        unless_in_the_way(path, look, write)
    assert path.read_text() == (tmp_path / "eval-2.texts.json").read_text() == "mine"
    assert (tmp_path / "eval-3.json").read_text() == "made"
    assert (tmp_path / "eval-3.texts.json").read_text() == "beside"


def test_what_a_killed_process_left_of_a_file_is_removed(tmp_path: Path) -> None:
    for name in (".a.json.abc123_x", ".a.json.abc", ".b.json.abc123_x", ".a.json.abc123_x.txt"):
        (tmp_path / name).write_text("left")
    os.mkfifo(tmp_path / ".a.json.aaaaaaaa")
    (tmp_path / ".a.json.bbbbbbbb").symlink_to(tmp_path / ".b.json.abc123_x")
    with staged_file(tmp_path / "a.json") as first, staged_file(tmp_path / "a.json") as second:
        assert first.exists() and second.exists()  # what is being written stays
        assert not (tmp_path / ".a.json.abc123_x").exists()
    others = [".a.json.aaaaaaaa", ".a.json.abc", ".a.json.abc123_x.txt", ".a.json.bbbbbbbb"]
    assert names(tmp_path) == [*others, ".b.json.abc123_x", "a.json"]


def test_overwrite_passes_over_a_part_of_a_report_that_a_kill_left(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "record.json").write_text('{"kind": "unlearn", "files": ["model.safetensors"]}')
    (out / "model.safetensors").write_text("")
    (out / ".report.html.abc123_x").write_text("half a pa")
    assert in_the_way(out, overwrite=True) == []
    (out / ".report.html.notes").write_text("mine")
    (fault,) = in_the_way(out, overwrite=True)
    assert ".report.html.notes" in fault.what
