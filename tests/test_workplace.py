"""The folder beside an output: going on, starting afresh, and the result put in its place."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from ngdiff.errors import RequestError, RunError
from ngdiff.runs.workplace import ASKED_FILE, FINISHED_FILE, Asked, Workplace
from ngdiff.system.lock import alone_in
from ngdiff.system.output import RECORD

ASKED = Asked(
    {"seed": 0, "lr": None, "model": "here", "save_steps": 5}, {"forget": "aa", "retain": "bb"}, "cc"
)


class Crash(Exception):
    pass


def begin(place: Workplace, asked: Asked = ASKED, overwrite: bool = False, checkpoint: bool = True) -> None:
    """Begin a run that breaks after a checkpoint."""
    with pytest.raises(Crash), place.reserved(asked, resume=None, overwrite=overwrite) as going_on:
        assert not going_on
        if checkpoint:
            (place.run / "checkpoint-2").mkdir()
            (place.run / ".best-x").mkdir()
        raise Crash


def goes_on(
    place: Workplace, asked: Asked = ASKED, resume: bool | None = None, overwrite: bool = False
) -> bool:
    return place.goes_on(asked, resume=resume, overwrite=overwrite)


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path / "out")


def test_a_run_that_broke_is_gone_on_with(place: Workplace) -> None:
    begin(place)
    assert goes_on(place) and goes_on(place, resume=True) and not goes_on(place, resume=False)
    moved = replace(ASKED, settings={**ASKED.settings, "model": "there", "save_steps": 7})
    with place.reserved(moved, resume=None, overwrite=False) as going_on:
        assert going_on and (place.run / "checkpoint-2").is_dir()
        assert not (place.run / ".best-x").exists()


def test_a_run_that_broke_before_any_checkpoint_leaves_nothing(place: Workplace) -> None:
    begin(place, checkpoint=False)
    assert list(place.output.parent.iterdir()) == []
    assert not goes_on(place)
    with pytest.raises(RequestError, match="no unfinished run"):
        goes_on(place, resume=True)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (replace(ASKED, settings={"seed": 1, "lr": None}), "seed was 0, now it is 1"),
        (replace(ASKED, settings={"seed": 0, "lr": 0.1}), "lr was not given, now it is 0.1"),
        (
            replace(ASKED, data={"forget": "ab", "retain": "bb"}),
            "the forget set changed (SHA-256 aa…, now ab…)",
        ),
        (
            replace(ASKED, data={**ASKED.data, "holdout": "h"}),
            "the holdout set changed (SHA-256 none, now h…)",
        ),
        (replace(ASKED, model="cd"), "the model changed (SHA-256 cc…, now cd…)"),
    ],
)
def test_another_request_is_refused_unless_the_old_one_may_go(
    place: Workplace, now: Asked, said: str
) -> None:
    begin(place)
    before = sorted(place.folder.rglob("*"))
    for resume, overwrite in ((None, False), (True, False), (True, True)):
        with pytest.raises(RequestError) as error, place.reserved(now, resume=resume, overwrite=overwrite):
            pass
        assert said in str(error.value) and "--overwrite" in str(error.value)
    assert sorted(place.folder.rglob("*")) == before
    begin(place, now, overwrite=True)
    assert place.begun == now and place.may_replace


def test_a_model_not_known_yet_is_not_compared(place: Workplace) -> None:
    begin(place)
    assert goes_on(place, replace(ASKED, model=None))


def test_checkpoints_of_a_damaged_request_are_not_resumed(place: Workplace) -> None:
    begin(place)
    for content in ("", "{", "[]", '{"settings": 1, "data": {}, "model": null}'):
        (place.folder / ASKED_FILE).write_text(content)
        with pytest.raises(RequestError, match=r"is damaged .* so the request of the run there is unknown"):
            goes_on(place)
        assert not goes_on(place, resume=False)


def test_a_folder_without_a_request_is_taken_over(
    place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(place)
    (place.folder / ASKED_FILE).unlink()
    with pytest.raises(RequestError, match="no unfinished run"):
        goes_on(place, resume=True)
    with place.reserved(ASKED, resume=None, overwrite=False) as going_on:
        assert not going_on and place.begun == ASKED
        assert list(place.run.iterdir()) == []
    assert "belong to no request and are deleted" in " ".join(capsys.readouterr().err.split())


def test_a_kill_while_an_earlier_run_is_dropped_leaves_nothing_to_resume(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(place)

    def killed(*_: object, **__: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr("ngdiff.runs.workplace.shutil.rmtree", killed)
        with pytest.raises(Crash), place.reserved(ASKED, resume=False, overwrite=False):
            pass
    assert (place.run / "checkpoint-2").exists() and not goes_on(place)


def test_two_processes_do_not_share_it(place: Workplace) -> None:
    with place.reserved(ASKED, resume=None, overwrite=False):
        with (
            pytest.raises(RequestError, match="another process"),
            Workplace(place.output).reserved(ASKED, resume=None, overwrite=False),
        ):
            pass
        assert (place.folder / ASKED_FILE).exists()


OLD = '{"kind": "finetune", "files": ["old"]}'


def test_a_file_system_without_locks_is_noted(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with place.reserved(ASKED, resume=None, overwrite=False):
        assert place.unguarded is None

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with place.reserved(ASKED, resume=None, overwrite=False), alone_in(place.output.parent):
        assert place.unguarded is not None and "has no locks (No locks available)" in place.unguarded
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("two runs with the same output are not kept apart") == 2


def finished(place: Workplace, overwrite: bool = False, meanwhile: Path | None = None) -> None:
    with place.reserved(ASKED, resume=None, overwrite=overwrite):
        place.result.mkdir()
        (place.result / RECORD).write_text("new")
        if meanwhile is not None:
            meanwhile.mkdir()
            (meanwhile / "thesis").write_text("mine")
        place.finish()


@pytest.mark.parametrize("existed", [False, True])
def test_the_result_takes_its_place(place: Workplace, existed: bool) -> None:
    if existed:
        place.output.mkdir()
        (place.output / "old").write_text("old")
        (place.output / RECORD).write_text(OLD)
    finished(place, overwrite=existed)
    assert [path.name for path in place.output.parent.iterdir()] == ["out"]
    assert [path.name for path in place.output.iterdir()] == [RECORD]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_appeared_during_the_run_is_not_replaced(place: Workplace, overwrite: bool) -> None:
    with pytest.raises(RunError) as error:
        finished(place, overwrite, meanwhile=place.output)
    assert str(place.result) in str(error.value) and "again" in str(error.value)
    for settle in (place.settle, lambda: place.settle(overwrite=True)):  # it is no result of ours
        with pytest.raises(RunError):
            settle()
    assert [path.name for path in place.output.iterdir()] == ["thesis"]
    place.output.rename(place.output.with_name("theirs"))
    assert place.settle() and not place.settle()
    assert [path.name for path in place.output.iterdir()] == [RECORD]
    assert sorted(path.name for path in place.output.parent.iterdir()) == ["out", "theirs"]


def test_a_result_of_ours_that_appeared_goes_with_overwrite_only(place: Workplace) -> None:
    place.output.mkdir()
    (place.output / RECORD).write_text(OLD)
    with pytest.raises(RunError, match="not empty"):
        finished(place)
    assert (place.output / RECORD).read_text() == OLD
    assert place.settle(overwrite=True)
    assert (place.output / RECORD).read_text() == "new"


def test_a_linked_output_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "big" / "o").mkdir(parents=True)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "out").symlink_to(tmp_path / "big" / "o")
    place = Workplace(tmp_path / "small" / "out")
    assert place.folder.parent == tmp_path / "big", "on the disk whose room is checked"
    finished(place)
    assert (tmp_path / "small" / "out").is_symlink()
    assert [path.name for path in (tmp_path / "big").iterdir()] == ["o"]
    assert (tmp_path / "big" / "o" / RECORD).read_text() == "new"


def test_a_kill_between_the_renames_is_made_good(place: Workplace) -> None:
    place.output.mkdir()
    (place.output / RECORD).write_text(OLD)
    begin(place, overwrite=True)
    place.result.mkdir()
    (place.result / RECORD).write_text("new")
    place.output.rename(place.folder / "old")  # killed here, before the run was marked as finished
    with pytest.raises(Crash), place.reserved(ASKED, resume=None, overwrite=False):
        assert (place.output / RECORD).read_text() == OLD and not place.result.exists()
        place.result.mkdir()
        (place.result / RECORD).write_text("new")
        raise Crash
    place.output.rename(place.folder / "old")
    (place.folder / ASKED_FILE).rename(place.folder / FINISHED_FILE)  # or here, after it
    assert place.settle() and not place.settle()
    assert (place.output / RECORD).read_text() == "new"
    assert [path.name for path in place.output.parent.iterdir()] == ["out"]


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = Workplace(tmp_path / "file" / "out")
    with (
        pytest.raises(RequestError, match="cannot write to"),
        place.reserved(ASKED, resume=None, overwrite=False),
    ):
        pass
