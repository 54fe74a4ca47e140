"""JSON lines that follow their schema and say what the record says; quiet; streams of every kind."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from commandline import Cli, make_cli, parse, questions, save_model, write_jsonl
from ngdiff.record import StepRecord
from ngdiff.steps.line import Probe
from ngdiff.stopping.rule import Check
from ngdiff.system.events import EVENTS, SCHEMA, EventLog

SCRIPT = Path(sys.executable).with_name("ngdiff")
GUIDE = Path(__file__).parent.parent / "docs" / "guide.md"
KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return make_cli(capsys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows nothing, two data sets and a settings file."""
    place = tmp_path_factory.mktemp("request")
    save_model(place / "target")
    write_jsonl(place / "forget.jsonl", questions(0, 4))
    write_jsonl(place / "retain.jsonl", questions(100, 12))
    lines = [
        *(f"model: {place}/target", f"forget: {place}/forget.jsonl", f"retain: {place}/retain.jsonl"),
        *(f"output: {place}/out", "max_steps: 3", "batch_size: 2", "max_length: 128"),
        *("stop_at: extraction_strength=0", "keep_utility: 0", "check_every: 2"),
    ]
    (place / "request.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place


def follow_schema(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        expected = EVENTS[line["event"]].fields
        assert set(line) == {"event", "time", *expected}, line["event"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"])
        for name, (kind, _) in expected.items():
            types = tuple(t for part in kind.split(" or ") for t in KINDS[part])
            assert isinstance(line[name], types), (line["event"], name, line[name])
            assert bool in types or not isinstance(line[name], bool), (line["event"], name)


def events(out: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in out.splitlines()]  # every line of it is JSON
    follow_schema(lines)
    return lines


# ---- the schema ----


@pytest.mark.parametrize(("event", "record"), [("step", StepRecord), ("probe", Probe), ("check", Check)])
def test_events_have_the_record_s_names(event: str, record: type) -> None:
    assert list(EVENTS[event].fields) == [field.name for field in fields(record)]


def test_the_names_of_schema_1_are_kept() -> None:
    """Whoever renames or removes one of these breaks programs that read logs, and raises SCHEMA."""
    assert SCHEMA == 1
    names = {
        "begin": "schema command version process",
        "job": "title state done total seconds",
        "note": "text",
        "error": "where what fix",
        "end": "exit_code seconds output hub stop next",
        "request": "sets shared most_steps disk_bytes free_bytes seconds_a_step",
        "evaluation": "step seconds figures",
    }
    for event, kept in names.items():
        assert set(kept.split()) <= set(EVENTS[event].fields)
    assert {"step", "probe", "check", *names} <= set(EVENTS)


def test_the_guide_has_every_event_and_field() -> None:
    section = GUIDE.read_text(encoding="utf-8").split("## Logs")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| .+? \| (.+?) \|$", section, flags=re.MULTILINE))
    assert list(rows) == list(EVENTS)
    for event, cell in rows.items():
        assert re.findall(r"`(\w+)`", cell) == list(EVENTS[event].fields), event


# ---- a run ----


def test_a_run_in_json_lines_says_what_its_record_says(cli: Cli, folder: Path) -> None:
    answer = cli(
        "unlearn",
        "--config",
        folder / "request.yaml",
        "--log-format",
        "json",
        "--stop-at",
        "nll=9",
        "--eval-every",
        "3",
        "--eval-items",
        "2",
    )
    found = events(answer.out)
    record = json.loads((folder / "out" / "record.json").read_text(encoding="utf-8"))
    assert answer.err == ""
    assert found[0]["event"] == "begin" and found[0]["command"] == "unlearn"
    assert found[-1]["event"] == "end" and found[-1]["exit_code"] == answer.code == 3
    assert found[-1]["output"] == str(folder / "out") and found[-1]["stop"] == record["stop"]
    for event, entries in (
        ("step", "steps"),
        ("probe", "probes"),
        ("check", "checks"),
        ("evaluation", "evaluations"),
    ):
        mine = [{k: v for k, v in line.items() if k not in ("event", "time")} for line in found]
        mine = [line for line, whole in zip(mine, found, strict=True) if whole["event"] == event]
        assert mine == record[entries] and mine
    assert [line["text"] for line in found if line["event"] == "note"] == record["notes"]
    for words in found[-1]["next"]:
        parse(shlex.split(words))  # what is offered can be typed
    again = next(words for words in found[-1]["next"] if words.startswith("ngdiff unlearn"))
    assert f"--model {folder}/out" in again
    jobs = [(line["title"], line["state"]) for line in found if line["event"] == "job"]
    assert ("Unlearning", "begin") in jobs and ("Unlearning", "end") in jobs


def test_quiet_leaves_the_last_line(cli: Cli, folder: Path) -> None:
    words = ("unlearn", "--config", folder / "request.yaml", "--overwrite", "--max-steps", "1")
    answer = cli(*words, "--quiet", "--output", folder / "quiet")
    assert answer.out == ""
    said = "NOTHING CHANGED (the model did not know this)"
    assert answer.err == f"{said}: the model, record.json and receipt.json are in {folder / 'quiet'}\n"
    both = cli(*words, "--quiet", "--log-format", "json", "--output", folder / "quiet2")
    assert [line["event"] for line in events(both.out)] == ["end"] and both.err == ""


def test_quiet_leaves_errors(cli: Cli, folder: Path) -> None:
    answer = cli(
        "unlearn", "--config", folder / "request.yaml", "--seed", "-1", "-q", "--output", folder / "no"
    )
    assert answer.code == 2 and len(answer.faults) == 1


def test_faults_in_json_lines(cli: Cli, folder: Path) -> None:
    words = ("--config", folder / "request.yaml", "--seed", "-1", "--rule", "nul", "--log-format", "json")
    answer = cli("unlearn", *words, "--output", folder / "never")
    found = events(answer.out)
    assert [line["event"] for line in found] == ["begin", "error", "error", "end"]
    assert {line["where"] for line in found[1:3]} == {"--seed", "--rule"}
    assert found[-1]["exit_code"] == 2 and len(answer.faults) == 2  # and for people, on standard error


def test_an_unknown_format_is_a_fault(cli: Cli, folder: Path) -> None:
    answer = cli("unlearn", "--config", folder / "request.yaml", "--log-format", "xml")
    assert answer.code == 2 and answer.faults == [
        ("--log-format: 'xml' is none of them.", "Give auto, lines or json.")
    ]


def test_one_command_s_mode_is_not_the_next_one_s(cli: Cli, folder: Path) -> None:
    cli("unlearn", "--config", folder / "request.yaml", "--seed", "-1", "--log-format", "json")
    answer = cli("unlearn", "--config", folder / "request.yaml", "--seed", "-1")
    assert answer.out == "" and answer.faults


def test_the_environment_chooses_too(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NGDIFF_LOG_FORMAT", "json")
    assert events(cli("unlearn", "--config", folder / "request.yaml", "--seed", "-1").out)


def test_what_others_print_does_not_get_between_events(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loud(*_: object) -> None:
        print("a library says hello")
        raise SystemExit(0)

    monkeypatch.setattr("ngdiff.cli.merge.run", loud)
    answer = cli("merge", folder / "target", "--output", folder / "m", "--log-format", "json")
    assert [line["event"] for line in events(answer.out)] == ["begin", "end"]
    assert answer.err == "a library says hello\n"


# ---- the log itself ----


class Gone:
    """A stream whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_a_lost_reader_ends_no_run() -> None:
    log = EventLog()
    log.open(Gone(), "unlearn")  # type: ignore[arg-type]
    assert not log.is_open
    log.write("note", text="nobody hears")
    log.close(0)


def test_a_console_without_reader_falls_silent() -> None:
    from ngdiff.system.terminal import KeptConsole

    console = KeptConsole(file=Gone())  # type: ignore[arg-type]
    console.print("nobody hears")
    assert console.quiet


def test_numbers_that_json_lacks_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    log = EventLog()
    log.open(sys.stdout, "unlearn")
    log.write("note", text="x\u2028é", value=float("nan"))
    line = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(line)["value"] is None and line.isascii()


# ---- streams ----


def shell(command: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(command, shell=True, capture_output=True, timeout=180, env=environment)


def test_no_encoding_is_too_poor() -> None:
    code = (
        "from ngdiff.system.terminal import open_streams, always; open_streams(); import sys\n"
        "print('✗ × → é 名'); always.print('✗ → 名 é')"
    )
    poor = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LANG": "C", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", code.encode("ascii", "backslashreplace").decode()],
        capture_output=True,
        env={**os.environ, **poor},
        check=True,
    )
    assert done.stdout.decode() == "x x -> \\xe9 \\u540d\n"
    assert done.stderr.decode() == "x -> \\u540d \\xe9\n"


def test_ls_and_faults_in_the_c_locale_and_with_closed_streams(tmp_path: Path) -> None:
    """A closed stream's number goes to no file, and its absence ends no command."""
    poor = {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "LANG": "C", "LC_ALL": "C"}
    listed = shell(f"'{SCRIPT}' ls methods", **poor)
    assert listed.returncode == 0 and b" x nll x ngdiff" in listed.stdout
    wrong = shell(f"'{SCRIPT}' merge {tmp_path} --output m 2>&-", **poor)
    assert wrong.returncode == 2 and wrong.stderr == b""


def test_closed_streams_are_opened_on_nothing() -> None:
    code = (
        "from ngdiff.system.terminal import open_streams, always; open_streams(); import os, sys\n"
        "always.print('to nobody'); print('to nobody', file=sys.stderr)\n"
        "assert os.open(os.devnull, os.O_RDONLY) > 2; print('alive')"
    )
    done = subprocess.run(["sh", "-c", '"$0" -c "$1" 2>&- <&-', sys.executable, code], capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"alive\n")
