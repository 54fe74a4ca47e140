"""``ngdiff check``: one command for evaluations, audit, report and verdict, from the run's record alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from commandline import Cli, make_cli, questions, save_model, tree, write_jsonl

AUDITS = "extraction"
SHORT = (
    "--stop-at",
    "none",
    "--set",
    "max_steps=2",
    "--lr",
    "1e-4",
    "--max-length",
    "64",
    "--set",
    "answers=0",
)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_cli(capsys)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, a stand-in for the retrained model, and a run that forgot."""
    from typer.testing import CliRunner

    import ngdiff.cli.commands  # noqa: F401
    from ngdiff.cli.app import app

    folder = tmp_path_factory.mktemp("checked")
    for number, name in enumerate(("target", "retrained")):
        save_model(folder / name, seed=number)
    sets = {"forget": questions(0, 8), "retain": questions(100, 12), "unseen": questions(200, 12)}
    for name, rows in sets.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    words = ["unlearn", "--model", folder / "target", "--forget", folder / "forget.jsonl"]
    words += ["--retain", folder / "retain.jsonl", "--output", folder / "out", "--no-report", *SHORT]
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


def checked(cli: Cli, run: Path, *more: object) -> Any:
    return cli("check", run, "--audits", AUDITS, "--no-generate", *more)


def test_everything_is_found_from_the_record_and_the_run_is_left_alone(
    cli: Cli, made: Path, run: Path
) -> None:
    before = tree(run)
    compared = ("--reference", made / "retrained", "--holdout", made / "unseen.jsonl")
    answer = cli("check", run, "--audits", f"{AUDITS},membership", "--no-generate", *compared)
    folder = run.parent / "out.check"
    names = {"eval.json", "target.json", "retrained.json", "audit.json", "report.html"}
    assert names <= {path.name for path in folder.iterdir()} and tree(run) == before
    hashes = json.loads((run / "record.json").read_text())["model"]
    for name, key in (("eval.json", "sha256_after"), ("target.json", "sha256_before")):
        found = json.loads((folder / name).read_text())
        assert found["provenance"]["model"]["sha256"] == hashes[key]
        assert found["provenance"]["reference"]["name"].endswith("retrained.json")
    audit = json.loads((folder / "audit.json").read_text())
    assert set(audit["provenance"]["models"]) == {"audited", "target", "reference"}
    # no target was set, so the run cannot be called forgotten, whatever the audits found
    assert answer.code == 3
    assert "Did it forget? No target was set." in answer.err
    assert answer.err.splitlines()[-1].startswith("NO TARGET") and "Not audited" not in answer.err
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "NO TARGET" in page


def test_what_is_there_is_not_made_again_and_what_is_of_other_weights_is(cli: Cli, run: Path) -> None:
    first = checked(cli, run)
    assert first.err.count("Evaluating ") == 2 and "Auditing " in first.err
    folder = run.parent / "out.check"
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    again = checked(cli, run)
    assert "Evaluating " not in again.err and "Auditing " not in again.err
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")} == times
    other = json.loads((folder / "eval.json").read_text())
    other["provenance"]["model"]["sha256"] = "00" * 32
    (folder / "eval.json").write_text(json.dumps(other))
    (folder / "audit.json").write_text((folder / "audit.json").read_text()[:-40])
    third = checked(cli, run)
    assert third.err.count("Evaluating ") == 1 and "Auditing " in third.err
    assert json.loads((folder / "eval.json").read_text())["provenance"]["model"]["sha256"] != "00" * 32


def test_a_report_finds_what_the_check_left(cli: Cli, run: Path) -> None:
    assert cli("report", run).code == 0
    assert "Not audited" in (run / "report.html").read_text(encoding="utf-8")
    checked(cli, run)
    verified = cli("verify", run)  # the page that was made before is what it was
    assert verified.code == 0 and "not checked" not in "".join(
        line for line in verified.out.splitlines() if "report.html" in line
    )
    assert cli("report", run).code == 0
    assert "Not audited" not in (run / "report.html").read_text(encoding="utf-8")


def test_what_is_wrong_is_said_at_once_and_nothing_is_made(cli: Cli, made: Path, run: Path) -> None:
    record = json.loads((run / "record.json").read_text())
    record["settings"]["forget"] = [str(made / "gone.jsonl")]
    (run / "record.json").write_text(json.dumps(record))
    answer = checked(cli, run, "--reference", made / "nowhere", "--audits", "magic")
    assert answer.code == 2 and not (run.parent / "out.check").exists()
    where = {fault[0].split(":")[0] for fault in answer.faults}
    assert {"--forget", "--audits"} <= where and any("nowhere" in fault[0] for fault in answer.faults)
    for content in ("{}", '{"kind": "unlearn", "format": 1, "settings": {}}'):
        (run / "record.json").write_text(content)
        assert checked(cli, run).code == 2
