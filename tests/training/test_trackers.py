"""Trackers get the record's numbers under the record's names."""

from __future__ import annotations

import json
import math
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from commandline import Cli, questions, save_model, write_jsonl
from ngdiff.errors import RequestError
from ngdiff.training.trackers import tracker_names, tracker_settings

NAMES = (
    *("forget_loss", "retain_loss", "forget_norm", "retain_norm", "cosine", "combined_norm", "learning_rate"),
    *("retain_descent", "forget_descent", "changed", "forget_extraction_strength"),
)


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    model = save_model(tmp_path / "target")
    forget = write_jsonl(tmp_path / "forget.jsonl", questions(0, 4))
    retain = write_jsonl(tmp_path / "retain.jsonl", questions(100, 8))
    return [
        *("unlearn", "--model", model, "--forget", forget, "--retain", retain, "--output", tmp_path / "out"),
        *("--set", "max_steps=4", "--batch-size", "2", "--max-length", "128", "--stop-at", "nll=9"),
        *("--set", "check_every=2", "--set", "probe_every=2", "--keep-utility", "0"),
    ]


def expected(folder: Path) -> dict[str, dict[int, float]]:
    """Name -> step -> value, from record.json."""
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    found: dict[str, dict[int, float]] = {}
    for step in record["steps"]:
        entry = {name: step[name] for name in NAMES}
        entry |= dict(zip(("retain_weight", "forget_weight"), step["weights"], strict=True))
        for name, value in entry.items():
            found.setdefault(name, {})[step["step"]] = value
    for probe in record["probes"]:
        found.setdefault("probe_after", {})[probe["step"]] = probe["after"]
    for check in record["checks"]:
        if check["step"] > 0:
            found.setdefault("check_forget_nll", {})[check["step"]] = check["forget"]["nll"]
            found.setdefault("check_utility_probability", {})[check["step"]] = check["utility"]["probability"]
            found.setdefault("check_met", {})[check["step"]] = float(check["met"])
    assert len(found["forget_loss"]) == 4 and found["probe_after"] and found["check_met"]
    return found


def same(mine: dict[str, dict[int, float]], folder: Path) -> None:
    for name, values in expected(folder).items():
        assert set(mine[f"train/{name}"]) == set(values), name
        for step, value in values.items():
            assert mine[f"train/{name}"][step] == pytest.approx(value, rel=1e-5), (name, step)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_the_record_s_figures(cli: Cli, words: list[object], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert cli(*words, "--set", "report_to=tensorboard").code == 3
    (folder,) = (tmp_path / "out-tensorboard").iterdir()
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    mine = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    same(mine, tmp_path / "out")
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"the author" not in content and b"Who is" not in content


@pytest.mark.filterwarnings("ignore")  # their own
def test_trackio_has_the_record_s_figures(
    cli: Cli, words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    import trackio.sqlite_storage as storage
    import trackio.utils

    for module in (trackio.utils, storage):  # read once, when they were imported
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio", raising=False)
    assert cli(*words, "--set", "report_to=trackio").code == 3
    (database,) = (tmp_path / "trackio").glob("*.db")
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("select metrics from metrics").fetchall()
    mine: dict[str, dict[int, float]] = {}
    for (metrics,) in rows:
        logged = json.loads(metrics)
        for name, value in logged.items():
            if "train/loss" in logged:  # not the summary at the end
                mine.setdefault(name, {})[logged["train/global_step"]] = value
    same(mine, tmp_path / "out")


def leveldb_records(content: bytes, header: int = 7, block: int = 32768) -> Iterator[bytes]:
    """Read the records of a wandb file: LevelDB's log format behind a header of seven bytes."""
    place, record = header, b""
    while place + 7 <= len(content):
        if block - place % block < 7:
            place += block - place % block
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        if place + 7 + length > len(content):  # not written to its end yet
            return
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


@pytest.mark.filterwarnings("ignore")  # their own
def test_wandb_offline_has_the_record_s_figures(
    cli: Cli, words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    for name, value in (("MODE", "offline"), ("DIR", str(tmp_path)), ("SILENT", "true"), ("CONSOLE", "off")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert cli(*words, "--set", "report_to=wandb").code == 3
    wandb.finish()
    (path,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    mine: dict[str, dict[int, float]] = {}
    entries: list[Any] = []
    for _ in range(300):  # a process of wandb's own writes the file, and its end last
        entries = [wandb_internal_pb2.Record.FromString(data) for data in leveldb_records(path.read_bytes())]
        if any(entry.WhichOneof("record_type") == "exit" for entry in entries):
            break
        time.sleep(0.2)
    for entry in entries:
        items = {
            item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in entry.history.item
        }
        for key, value in items.items():
            if "train/loss" in items:
                mine.setdefault(key, {})[items["train/global_step"]] = value
    same(mine, tmp_path / "out")


@pytest.mark.parametrize("value", [None, "none", [], "", ["none"]])
def test_no_tracker_no_logging(value: Any) -> None:
    assert tracker_names(value) == ()
    assert tracker_settings({"report_to": value}, Path("out")) == {"report_to": "none"}


def test_names_with_commas_and_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ngdiff.training.trackers._faults", lambda name: [])
    found = tracker_settings({"report_to": "tensorboard, wandb"}, Path("runs/out"))
    assert found == {
        "report_to": ["wandb"],
        "logging_strategy": "steps",
        "logging_steps": 1,
        "run_name": "out",
        "project": "ngdiff",
    }


def test_a_tracker_that_is_missing_is_a_fault_before_the_run(
    cli: Cli, words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ngdiff.training.trackers.importlib.util.find_spec", lambda name: None)
    answer = cli(*words, "--set", "report_to=wandb,tensorboard")
    assert answer.code == 2
    assert answer.faults == [
        ("--set report_to: wandb is not installed.", "Run: pip install wandb."),
        ("--set report_to: tensorboard is not installed.", "Run: pip install tensorboard."),
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["tensorbord", 3, {"a": 1}, [1]])
def test_names_that_are_none(value: Any) -> None:
    with pytest.raises(RequestError, match="--set report_to"):
        tracker_names(value)


def test_a_tracker_does_not_change_the_run(cli: Cli, words: list[object], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    hashes = []
    for name, more in (("a", ()), ("b", ("--set", "report_to=tensorboard"))):
        assert cli(*words, "--output", tmp_path / name, *more).code == 3
        saved = json.loads((tmp_path / name / "record.json").read_text(encoding="utf-8"))
        assert all(math.isfinite(step["forget_loss"]) for step in saved["steps"])
        hashes.append(saved["model"]["sha256_after"])
    assert hashes[0] == hashes[1]
