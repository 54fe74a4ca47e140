"""A run on two processes killed, frozen or short of disk: it ends as if nothing had happened, or says why."""

from __future__ import annotations

from signal import SIGSTOP

import pytest

from commandline import questions, save_model, write_jsonl
from test_survive import MISSED, STEP, Story


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("survive")
    save_model(folder / "model")
    write_jsonl(folder / "forget.jsonl", questions(0, 4))
    write_jsonl(folder / "retain.jsonl", questions(100, 12))
    s = Story(folder)
    s.run("whole", "whole", processes=2)
    s.run("no room for a checkpoint", "room", "--no-report", largest_file=200_000, processes=2)
    s.run("frozen", "frozen", where=STEP, call=3, signals=[SIGSTOP], rank=1, processes=2)
    s.tell()
    return s


def test_a_checkpoint_that_finds_no_room_stops_no_process(story: Story) -> None:
    assert story.code("whole") == MISSED
    assert story.code("no room for a checkpoint") == MISSED
    notes = [note for note in story.record("room")["notes"] if "could not be written" in note]
    assert notes[0] == "step 2: the checkpoint could not be written (the disk did not take all of it)"
    assert len(notes) == 4
    files = [(story.folder / out / "model.safetensors").read_bytes() for out in ("room", "whole")]
    assert files[0] == files[1]


def test_a_second_interrupt_ends_the_run_though_another_process_is_frozen(story: Story) -> None:
    assert story.code("frozen") == 130
    assert "Finishing this step" in story.printed("frozen")
    assert story.answers["frozen"]["seconds"] < story.answers["whole"]["seconds"] + 20
