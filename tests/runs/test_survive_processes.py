"""A run on two processes killed, frozen or short of disk: it ends as if nothing had happened, or says why."""

from __future__ import annotations

from signal import SIGKILL, SIGSTOP

import pytest
from test_survive import DEFAULT, STEP, Story, assert_same, resumed

from commandline import questions, save_model, write_jsonl


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("survive")
    save_model(folder / "model")
    write_jsonl(folder / "forget.jsonl", questions(0, 4))
    write_jsonl(folder / "retain.jsonl", questions(100, 12))
    s = Story(folder)
    s.run("whole", "whole", *DEFAULT, processes=2)
    killed = {"where": STEP, "signals": [SIGKILL], "processes": 2}
    s.run("killed", "killed", *DEFAULT, call=6, rank=1, **killed)
    s.run("killed again", "killed", *DEFAULT, call=8, **killed)
    s.run("resumed", "killed", *DEFAULT, processes=2)
    s.run("no room for a checkpoint", "room", *DEFAULT, "--no-report", largest_file=200_000, processes=2)
    s.run("frozen", "frozen", where=STEP, call=3, signals=[SIGSTOP], rank=1, processes=2)
    s.tell()
    return s


def test_killed_and_killed_again_after_a_resume_it_ends_as_if_left_alone(story: Story) -> None:
    assert [story.code("killed"), story.code("killed again")] == [-SIGKILL] * 2
    assert story.code("resumed") == 0
    assert_same(story, "killed", "whole")
    assert resumed(story, "killed") == [f"resumed at step {step}" for step in (4, 10)]


def test_a_missed_target_is_no_failure_under_torchrun(story: Story) -> None:
    assert story.code("whole") == 0 and story.record("whole")["stop"]["target_met"] is False
    last = story.answers["whole"]["printed"].splitlines()[-1]
    assert last.startswith("NOT FORGOTTEN (") and ": the model, record.json and receipt.json are in" in last


def test_a_checkpoint_that_finds_no_room_stops_no_process(story: Story) -> None:
    assert story.code("no room for a checkpoint") == 0
    notes = [note for note in story.record("room")["notes"] if "could not be written" in note]
    assert notes[0].startswith("step 2: the checkpoint could not be written (") and len(notes) == 6
    said = story.answers["no room for a checkpoint"]["printed"]
    assert said.count(f"Note: {notes[0]}.") == 2  # at once, and at the end
    files = [(story.folder / out / "model.safetensors").read_bytes() for out in ("room", "whole")]
    assert files[0] == files[1]


def test_a_second_interrupt_ends_the_run_though_another_process_is_frozen(story: Story) -> None:
    assert story.code("frozen") == 130
    assert "Finishing this step" in story.printed("frozen")
    assert "did not end, so the process was ended" in story.printed("frozen")
