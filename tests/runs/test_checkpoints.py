"""Checkpoints: whole or not at all, known by their hashes, and the newest whole one found."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ngdiff.errors import RequestError
from ngdiff.runs.checkpoints import (
    MANIFEST,
    NotWritten,
    checkpoints,
    damage,
    forget_older,
    good_or_refused,
    last_good,
    on_each,
    staged_checkpoint,
    tidy,
)
from ngdiff.system.disk import disk_reason, is_disk_error, is_no_room


def write(run: Path, step: int, text: str = "weights") -> Path:
    with staged_checkpoint(run, step) as folder:
        (folder / "model").write_text(text)
        (folder / "shards").mkdir()
        (folder / "shards" / "0").write_text("part")
    return run / f"checkpoint-{step}"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_appears_whole_with_its_manifest(tmp_path: Path) -> None:
    with staged_checkpoint(tmp_path, 3) as folder:
        (folder / "model").write_text("weights")
        assert checkpoints(tmp_path) == [] and folder.name == "checkpoint-3"
    (found,) = checkpoints(tmp_path)
    assert names(tmp_path) == ["checkpoint-3"] and damage(found) is None
    manifest = json.loads((found / MANIFEST).read_text())
    # printf weights | sha256sum
    digest = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    assert manifest == {"format": 1, "step": 3, "files": {"model": {"bytes": 7, "sha256": digest}}}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_nothing_and_the_older_one_stays(tmp_path: Path, error: BaseException) -> None:
    older = write(tmp_path, 3, "older")
    with pytest.raises(type(error)), staged_checkpoint(tmp_path, 3) as folder:
        (folder / "model").write_text("half")
        raise error
    assert names(tmp_path) == ["checkpoint-3"] and (older / "model").read_text() == "older"
    assert damage(older) is None


def test_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, 3, "older")
    assert (write(tmp_path, 3, "newer") / "model").read_text() == "newer"
    assert names(tmp_path) == ["checkpoint-3"]


def _flip(folder: Path) -> None:
    (folder / "model").write_text("Weights")


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda f: (f / "model").write_text("wei"), "model has 3 bytes instead of 7"),
    "altered": (_flip, "model is not what was written"),
    "missing": (lambda f: (f / "shards" / "0").unlink(), "shards/0 is missing"),
    "added": (lambda f: (f / "pytorch_model.bin").write_text("x"), "pytorch_model.bin does not belong"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "manifest.json cannot be read"),
    "manifest cut": (lambda f: (f / MANIFEST).write_text('{"files": {'), "manifest.json is damaged"),
    "manifest of another kind": (lambda f: (f / MANIFEST).write_text("[]"), "manifest.json is damaged"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_was_spoilt_is_told(tmp_path: Path, how: str) -> None:
    spoil, expected = SPOILT[how]
    good, bad = write(tmp_path, 2), write(tmp_path, 10)
    spoil(bad)
    assert expected in str(damage(bad))
    found, broken = last_good(tmp_path)
    assert found == good and [(one.folder, one.why) for one in broken] == [(bad, damage(bad))]
    spoil(good)
    with pytest.raises(RequestError, match=r"no checkpoint in .* is intact.*checkpoint-10: .*checkpoint-2: "):
        good_or_refused(tmp_path)


def test_where_there_is_none(tmp_path: Path) -> None:
    assert good_or_refused(tmp_path / "nowhere") == (None, [])


@pytest.mark.parametrize(("keep", "left"), [(2, [9, 10]), (None, [1, 9, 10]), (5, [1, 9, 10])])
def test_older_ones_go(tmp_path: Path, keep: int | None, left: list[int]) -> None:
    for step in (10, 9, 1):
        write(tmp_path, step)
    forget_older(tmp_path, keep)
    assert checkpoints(tmp_path) == [tmp_path / f"checkpoint-{step}" for step in left]


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    write(tmp_path, 2).rename(tmp_path / ".checkpoint-2.old")  # killed between the two renames
    shutil.copytree(write(tmp_path, 4), tmp_path / ".checkpoint-4.old")  # or after the second
    (tmp_path / ".checkpoint-6.partial" / "checkpoint-6").mkdir(parents=True)
    tidy(tmp_path)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    assert all(damage(folder) is None for folder in checkpoints(tmp_path))


def test_errors_of_the_disk_are_told_from_others() -> None:
    from safetensors import SafetensorError

    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    torchs = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 198464 vs 198352")
    own = OSError(errno.EROFS, "Read-only file system")
    assert [is_disk_error(error) for error in (full, torchs, own)] == [True] * 3
    assert disk_reason(full) == "No space left on device" and disk_reason(own) == "Read-only file system"
    others = (RuntimeError("CUDA out of memory"), SafetensorError("invalid header"), ValueError("I/O"))
    assert [is_disk_error(error) for error in others] == [False] * 3
    missing = SafetensorError("Error while serializing: I/O error: No such file or directory (os error 2)")
    quota, gone = (
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        FileNotFoundError(errno.ENOENT, "No such file"),
    )
    assert [is_no_room(error) for error in (full, torchs, quota)] == [True] * 3
    assert [is_no_room(error) for error in (own, missing, gone, *others)] == [False] * 6


def test_a_part_that_fails_says_why_and_whether_room_was_missing() -> None:
    def fail(error: Exception) -> None:
        raise error

    for error, why, no_room in (
        (OSError(errno.ENOSPC, "No space left on device", "x"), "No space left on device", True),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "Permission denied: x", False),
        (KeyError("rows"), "KeyError: 'rows'", False),
    ):
        with pytest.raises(NotWritten) as found:
            on_each(lambda error=error: on_each(lambda: fail(error)))
        assert (found.value.why, found.value.no_room, found.value.__cause__) == (why, no_room, error)
