"""A run killed, signalled, short of disk or spoilt: it ends as if nothing had happened, or says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM
from typing import Any

import pytest

from commandline import questions, save_model, write_jsonl
from ngdiff.settings import DEFAULT_METHOD

STEP = "ngdiff.training.trainer:UnlearningTrainer.training_step"
DEFAULT = ("--method", DEFAULT_METHOD, "--set", "max_steps=12")
MISSED = 3  # the forget target is out of reach, so that every run goes on to its last step


@dataclass
class Story:
    """Attempts planned, and how they ended."""

    folder: Path
    plan: list[dict[str, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, name: str, output: str, *more: object, **spoilt: Any) -> None:
        files = ("--forget", self.folder / "forget.jsonl", "--retain", self.folder / "retain.jsonl")
        words = ("unlearn", "--model", self.folder / "model", *files, "--output", self.folder / output)
        settings = (
            "--set",
            "save_steps=2",
            "--batch-size",
            2,
            "--method",
            "ngdiff",
            "--set",
            "step_size=auto",
        )
        if not any(str(word).startswith("max_steps=") for word in more):
            settings += ("--set", "max_steps=8")
        target = ("--stop-at", "nll=99", "--keep-utility", 0)
        self.add(name, [*words, *settings, *target, *more], **spoilt)

    def finetune(self, name: str, output: str, *more: object, **spoilt: Any) -> None:
        words = ("finetune", "--model", self.folder / "model", "--data", self.folder / "retain.jsonl")
        settings = ("--output", self.folder / output, "--epochs", 2, "--batch-size", 4, "--save-steps", 2)
        self.add(name, [*words, *settings, *more], **spoilt)

    def add(self, name: str, words: list[object], **spoilt: Any) -> None:
        self.names.append(name)
        self.plan.append({"words": [str(word) for word in words], **spoilt})

    def code(self, name: str) -> int:
        code: int = self.answers[name]["code"]
        return code

    def printed(self, name: str) -> str:
        return " ".join(self.answers[name]["printed"].split())

    def record(self, output: str) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.folder / output / "record.json").read_text())
        return record

    def place(self, output: str, *below: str) -> Path:
        return self.folder.joinpath(f".{output}.unfinished", *below)

    def tell(self) -> None:
        """Carry the plan out."""
        (self.folder / "plan.json").write_text(json.dumps(self.plan))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        environment |= {"XDG_CACHE_HOME": str(self.folder / "cache")}
        script = Path(__file__).parents[1] / "survival.py"
        words = [sys.executable, "-W", "ignore", str(script), str(self.folder / "plan.json")]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=1500)
        assert done.returncode == 0, done.stderr
        answers = json.loads(done.stdout.splitlines()[-1])
        self.answers = dict(zip(self.names, answers, strict=True))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("survive")
    save_model(folder / "model")
    write_jsonl(folder / "forget.jsonl", questions(0, 4))
    write_jsonl(folder / "retain.jsonl", questions(100, 12))
    s = Story(folder)
    s.run("whole", "whole")
    killed = {"signals": [SIGKILL]}
    s.run("in a checkpoint", "killed", where="ngdiff.runs.checkpoints:seal", call=2, **killed)
    s.run("in a step", "killed", where=STEP, call=4, **killed)
    s.run("before the rename", "killed", where="ngdiff.runs.checkpoints:_put", call=1, **killed)
    s.run("in the final save", "killed", where="ngdiff.runs.saving:write_json", call=1, **killed)
    s.run("before the result is in its place", "killed", where="ngdiff.runs.workplace:Workplace.settle",
          call=2, **killed)  # fmt: skip
    s.run("found finished", "killed")

    s.run("terminated", "asked", where=STEP, call=3, signals=[SIGTERM])
    s.run("another seed", "asked", "--seed", 1)
    s.run("another seed, resumed", "asked", "--seed", 1, "--resume", "--overwrite")
    s.run("interrupted", "asked", where=STEP, call=2, signals=[SIGINT])
    s.run("resumed", "asked", "--resume")
    s.run("twice", "twice", where=STEP, call=1, signals=[SIGINT, SIGINT])
    s.run("nothing to resume", "twice", "--resume")

    s.run("leaves two", "cut", where=STEP, call=6, **killed)
    newest = s.place("cut", "run", "checkpoint-4")
    s.run("cut", "cut", damage={str(newest / "model.safetensors"): "cut"})
    s.run("leaves two again", "altered", where=STEP, call=6, **killed)
    both = [s.place("altered", "run", f"checkpoint-{step}", "optimizer.pt") for step in (2, 4)]
    s.run("altered", "altered", damage={str(file): "altered" for file in both})
    s.run("afresh", "altered", "--no-resume")

    s.run("no room for a checkpoint", "room", "--no-report", largest_file=200_000, no_locks=True)
    s.run("no room for the best weights", "full", largest_file=50_000)
    s.run("no room for the model", "full", "--stop-at", "none", "--set", "max_steps=1", largest_file=50_000)

    s.run("default", "default", *DEFAULT)
    s.run("default killed", "default-killed", *DEFAULT, where=STEP, call=6, **killed)
    s.run("default killed again", "default-killed", *DEFAULT, where=STEP, call=8, **killed)
    s.run("default resumed", "default-killed", *DEFAULT)
    cache = str(folder / "cache" / "ngdiff")
    s.run("default without cache", "default-cache", *DEFAULT, where=STEP, call=4, signals=[cache])

    s.finetune("tuned", "tuned", no_locks=True)
    s.finetune("tuning killed", "tuned-again", where="ngdiff.runs.checkpoints:seal", call=2, **killed)
    s.finetune("tuned again", "tuned-again")
    s.tell()
    return s


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """A record without times, memory and where it was resumed."""
    kept = {
        key: value for key, value in record.items() if key not in ("seconds", "peak_memory_gib", "finished")
    }
    if "steps" in kept:
        kept["steps"] = [{k: v for k, v in step.items() if k != "seconds"} for step in kept["steps"]]
        kept["cost"] = {k: v for k, v in kept["cost"].items() if k not in ("seconds", "peak_memory_gib")}
    told = ("resumed at step", "the file system of")
    kept["notes"] = [note for note in kept["notes"] if not note.startswith(told)]
    return kept


def assert_same(story: Story, output: str, whole: str = "whole") -> None:
    left, right = story.folder / output, story.folder / whole
    names = {path.name for path in right.iterdir()} - {"report.html"}  # which shows times
    assert {path.name for path in left.iterdir()} - {"report.html"} == names and "model.safetensors" in names
    # the receipt holds the record's hash, and the card the folder's name and the note of going on
    for name in names - {"record.json", "receipt.json", "README.md"}:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name
    mine, other = comparable(story.record(output)), comparable(story.record(whole))
    for one in (mine, other):
        if isinstance(one.get("settings"), dict):
            one["settings"].pop("output", None)
    assert mine == other
    assert not story.place(output).exists()


def resumed(story: Story, output: str) -> list[str]:
    return [note for note in story.record(output)["notes"] if note.startswith("resumed")]


def test_killed_anywhere_it_ends_as_if_left_alone(story: Story) -> None:
    assert story.code("whole") == MISSED
    kills = ("in a checkpoint", "in a step", "before the rename", "in the final save")
    assert [story.code(name) for name in (*kills, "before the result is in its place")] == [-SIGKILL] * 5
    assert story.code("found finished") == MISSED
    assert_same(story, "killed")
    # checkpoints at 2; 2 and 4; then the third attempt got to 4, and the fourth saved the last, 8
    assert resumed(story, "killed") == [f"resumed at step {step}" for step in (2, 4, 8)]
    last = story.answers["whole"]["printed"].splitlines()[-1]
    assert last.startswith("NOT FORGOTTEN (") and ": the model, record.json and receipt.json are in" in last
    record = story.record("killed")
    assert [step["step"] for step in record["steps"]] == list(range(1, 9))
    assert len(record["request_sha256"]) == 64


def test_the_default_killed_and_killed_again_after_a_resume_ends_as_if_left_alone(story: Story) -> None:
    assert [story.code(f"default killed{again}") for again in ("", " again")] == [-SIGKILL] * 2
    assert [story.code(name) for name in ("default", "default resumed")] == [MISSED] * 2
    assert_same(story, "default-killed", "default")
    # the checkpoint that was resumed from is gone by step 8, and those after it are whole
    assert resumed(story, "default-killed") == [f"resumed at step {step}" for step in (4, 10)]


def test_a_cache_that_is_emptied_during_a_run_costs_nothing(story: Story) -> None:
    assert story.code("default without cache") == MISSED
    assert_same(story, "default-cache", "default")


def test_a_signal_ends_the_run_after_a_checkpoint_and_names_the_command(story: Story) -> None:
    assert story.code("terminated") == 128 + SIGTERM
    said = story.printed("terminated")
    assert "Stopped after step 3." in said and "Resume from step 3 with: ngdiff unlearn --model" in said
    assert said.split("Resume from step 3 with:")[1].split("The unfinished")[0].strip().endswith("--resume")
    assert story.code("interrupted") == 128 + SIGINT
    assert "Stopped after step 5." in story.printed("interrupted")
    assert story.code("resumed") == MISSED
    assert_same(story, "asked")
    assert resumed(story, "asked") == ["resumed at step 3", "resumed at step 5"]


def test_an_unfinished_run_of_another_request_is_no_ground_to_go_on(story: Story) -> None:
    for name in ("another seed", "another seed, resumed"):
        assert story.code(name) == 2
        assert "seed was 0, now it is 1" in story.printed(name) and "--overwrite" in story.printed(name)


def test_a_second_interrupt_ends_at_once(story: Story) -> None:
    assert story.code("twice") == 130
    assert not (story.folder / "twice").exists() and not story.place("twice").exists()
    assert story.code("nothing to resume") == 2
    assert "no unfinished run" in story.printed("nothing to resume")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(story: Story) -> None:
    assert story.code("cut") == MISSED
    notes = story.record("cut")["notes"]
    assert any("checkpoint-4 was damaged" in note and "resumed from checkpoint-2" in note for note in notes)
    files = [(story.folder / out / "model.safetensors").read_bytes() for out in ("cut", "whole")]
    assert files[0] == files[1]
    assert story.record("cut")["steps"][-1]["step"] == 8


def test_no_checkpoint_left_whole_is_an_error_with_a_way_out(story: Story) -> None:
    assert story.code("altered") == 2
    said = story.printed("altered")
    assert "optimizer.pt is not what was written" in said and "--no-resume" in said
    assert story.code("afresh") == MISSED
    assert_same(story, "altered")
    assert resumed(story, "altered") == []


def test_a_checkpoint_that_finds_no_room_is_noted_and_the_run_goes_on(story: Story) -> None:
    assert story.code("no room for a checkpoint") == MISSED
    notes = [note for note in story.record("room")["notes"] if "could not be written" in note]
    assert notes[0] == "step 2: the checkpoint could not be written (the disk did not take all of it)"
    assert len(notes) == 4
    files = [(story.folder / out / "model.safetensors").read_bytes() for out in ("room", "whole")]
    assert files[0] == files[1]


def test_a_file_system_without_locks_is_noted_in_the_record(story: Story) -> None:
    for output in ("room", "tuned"):
        notes = [note for note in story.record(output)["notes"] if "two runs" in note]
        assert len(notes) == 1 and notes[0].endswith("are not kept apart: start one at a time")


def test_a_model_that_finds_no_room_leaves_nothing(story: Story) -> None:
    for name, what in (("best weights", "could not be written"), ("model", "could not be saved")):
        assert story.code(f"no room for the {name}") == 1
        said = story.printed(f"no room for the {name}")
        assert f"{what} (File too large" in said and "Traceback" not in said
    assert not (story.folder / "full").exists() and not story.place("full").exists()


def test_fine_tuning_goes_on_likewise(story: Story) -> None:
    assert [story.code(name) for name in ("tuned", "tuning killed", "tuned again")] == [0, -SIGKILL, 0]
    assert_same(story, "tuned-again", "tuned")
    assert resumed(story, "tuned-again") == ["resumed at step 2"]
