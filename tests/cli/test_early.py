"""What is wrong with a request is said before torch is imported, in the words of the full check."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from commandline import Answer, Cli, make_cli, questions, save_model, write_jsonl
from ngdiff.models.model_names import name_fault
from ngdiff.settings.fields import setting_names
from ngdiff.training.config import UnlearningConfig

HEAVY = ("torch", "transformers", "sklearn", "scipy", "numpy", "pandas", "peft", "datasets")
IMPORTED = f"""
import sys
from ngdiff.cli import main
try:
    main()
except SystemExit as ending:
    print("CODE", ending.code, "HEAVY", [name for name in {HEAVY!r} if name in sys.modules])
"""


def imported(*words: object) -> str:
    """Run a command in a process of its own; return what it said, its exit code and what it imported."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *map(str, words)], capture_output=True, text=True, timeout=300
    )
    return done.stderr + done.stdout


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return make_cli(capsys)


@pytest.fixture
def good(tmp_path: Path) -> dict[str, object]:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    return {
        "--model": tmp_path / "model",
        "--forget": write_jsonl(tmp_path / "forget.jsonl", questions(0, 4)),
        "--retain": write_jsonl(tmp_path / "retain.jsonl", questions(100, 12)),
        "--output": tmp_path / "out",
    }


def words(given: dict[str, object]) -> list[object]:
    return [word for pair in given.items() for word in pair]


def test_a_wrong_path_imports_nothing_heavy(good: dict[str, object], tmp_path: Path) -> None:
    said = imported("unlearn", *words(good | {"--forget": tmp_path / "forgot.jsonl"}))
    assert "there is no file or folder" in said and "CODE 2 HEAVY []" in said


def test_wrong_names_and_numbers_import_nothing_heavy(good: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    request = tmp_path / "request.yaml"
    lines = [f"{name[2:]}: {str(value)!r}" for name, value in good.items()]
    lines += ["epochz: 3", "seed: -1", "max_length: many", "rule: ngdif", f"keep: [{tmp_path / 'no.csv'}]"]
    request.write_text("\n".join(lines), encoding="utf-8")
    said = imported("validate", request)
    for part in ("'epochz'", "--seed", "'many' is not a whole number", "'ngdif'", "no.csv", "is not empty"):
        assert part in said, part
    assert "CODE 2 HEAVY []" in said


WRONG = {
    "evaluate": (
        "--suite",
        "own",
        "--forget",
        "{f}",
        "--retain",
        "no.csv",
        "--output",
        "e.json",
        "--seed",
        1,
    ),
    "audit": ("--forget", "{f}", "--retain", "{f}", "--output", "a.json", "--audits", "extractn"),
    "finetune": ("--data", "no.csv", "--output", "{f}"),
    "bench own": (
        "--forget",
        "{f}",
        "--retain",
        "no.csv",
        "--output",
        "b",
        "--methods",
        "ngdif",
        "--seeds",
        2,
    ),
    "bench tofu": ("--output", "b", "--methods", "ngdif,npo", "--splits", "forget01"),
    "check": ("--audits", "extractn"),
    "ask": ("Who?", "--before", "somewhere else"),
    "report": ("--output", "r.html"),
    "compare": ("nor this",),
}


@pytest.mark.parametrize("command", WRONG)
def test_other_commands_import_nothing_heavy_either(command: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "f.jsonl", questions(0, 4))
    place = ("--model",) if command.split()[0] in ("finetune", "bench") else ()
    rest = [str(word).replace("{f}", str(tmp_path / "f.jsonl")) for word in WRONG[command]]
    said = imported(*command.split(), *place, "no such model", *rest)
    assert "no such model" in said and "CODE 2" in said, said
    assert "HEAVY []" in said or "HEAVY ['numpy']" in said, said


BENCH = ("--model", "model", "--forget", "f.jsonl", "--retain", "f2.jsonl", "--output", "b")


@pytest.mark.parametrize(
    "called",
    [
        (
            "evaluate",
            "none",
            *("--suite", "own", "--forget", "f.jsonl", "--retain", "no.csv", "--output", "f.jsonl"),
        ),
        ("evaluate", "none", *("--suite", "ow", "--forget", "f.jsonl", "--output", "model")),
        (
            "evaluate",
            "model",
            *("--suite", "own", "--forget", "bad.jsonl", "--output", "e.json", "--retain", "no"),
        ),
        ("evaluate", "none", *("--suite", "own", "--forget", "f.jsonl", "--output", "e.json")),
        (
            "evaluate",
            "none",
            *("--suite", "tofu", "--forget", "forget01", "--output", "f.jsonl", "--batch-size", 0),
        ),
        (
            "audit",
            "none",
            "--forget",
            "f.jsonl",
            "--retain",
            "bad.jsonl",
            "--output",
            "f.jsonl",
            "--target",
            "no",
        ),
        (
            "audit",
            "model",
            "--forget",
            "f.jsonl",
            "--retain",
            "no.csv",
            "--output",
            "a.json",
            "--audits",
            "x,y",
        ),
        ("finetune", "--model", "none", "--data", "bad.jsonl", "--data", "no.csv", "--output", "f.jsonl"),
        ("finetune", "--model", "model", "--data", "f.jsonl", "--output", "model"),
        ("finetune", "--model", "none", "--data", "f.jsonl", "--output", "out", "--lr", -1),
        (
            "bench",
            "own",
            *("--model", "none", "--forget", "f.jsonl", "--retain", "f2.jsonl", "--output", "b"),
        ),
        ("bench", "own", *BENCH, "--methods", "npi", "--seeds", 0),
        ("bench", "own", *BENCH, "--methods", "npi"),
        ("ask", "none", "--before", "nothing"),
    ],
)
def test_the_words_are_those_of_each_full_check(
    called: tuple[object, ...], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")
    write_jsonl(tmp_path / "f.jsonl", questions(0, 4))
    write_jsonl(tmp_path / "f2.jsonl", questions(100, 12))
    write_jsonl(tmp_path / "bad.jsonl", [{"question": "Who?", "answer": None}])
    early = faults_of(cli(*called))
    monkeypatch.setattr("ngdiff.cli.early.refuse_names", lambda *_, **__: None)
    assert early == faults_of(cli(*called))


def test_a_missing_file_of_settings_is_one_fault(tmp_path: Path) -> None:
    said = imported("unlearn", "--config", tmp_path / "none.yaml")
    assert said.count("✗") == 1 and "none.yaml" in said and "CODE 2 HEAVY []" in said


def test_setting_names_are_those_of_the_class() -> None:
    assert setting_names() == {field.name for field in fields(UnlearningConfig) if field.init}


def faults_of(answer: Answer) -> set[tuple[str, str]]:
    assert answer.code == 2, answer.err
    return set(answer.faults)


@pytest.mark.parametrize(
    "wrong",
    [
        {"--model": "nowhere at all"},
        {"--forget": "forgot.jsonl", "--retain": "broken.jsonl"},
        {"--forget": "forget.jsonl[9:9]x]", "--seed": -1, "--lr": -1},
        {"--retain": "shared.jsonl", "--holdout": "none.csv", "--rule": "rul", "--forget-loss": "nl"},
        {"--set": "check_every=no", "--batch-size": 0, "--max-length": 2, "--keep-utility": 3},
        {"--retain": "forget.jsonl", "--set": "trainable='['", "--method": "ngdif"},
        {"--output": "forget.jsonl", "--set": "max_steps=-5"},
    ],
)
def test_the_words_are_those_of_the_full_check(
    wrong: dict[str, object], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")
    rows = questions(0, 4)
    write_jsonl(tmp_path / "forget.jsonl", rows)
    write_jsonl(tmp_path / "retain.jsonl", questions(100, 12))
    write_jsonl(tmp_path / "broken.jsonl", [{"question": "Who?", "answer": None}])
    write_jsonl(tmp_path / "shared.jsonl", [*questions(100, 12), rows[0]])
    given = {"--model": "model", "--forget": "forget.jsonl", "--retain": "retain.jsonl", "--output": "out"}
    called = ["unlearn", *words(given | wrong)]
    early = faults_of(cli(*called))
    monkeypatch.setattr("ngdiff.cli.early.refuse_early", lambda *_: None)
    assert early == faults_of(cli(*called))


def test_a_model_of_a_similar_name_is_suggested(tmp_path: Path) -> None:
    for name in ("target", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "target" / "config.json").touch()
    near = name_fault(str(tmp_path / "tarqet"))
    assert near is not None and near.fix == f"Did you mean {tmp_path / 'target'}?"
    assert "Did you mean smollm2" in str(name_fault("smollm"))
    far = name_fault(str(tmp_path / "note"))  # a folder of that name holds no model
    assert far is not None and "save_pretrained" in far.fix
    assert name_fault("smollm2") is None and name_fault("org/name") is None


def test_settings_are_completed() -> None:
    from ngdiff.cli import completion

    assert [name for name, _ in completion.set_pairs("check_")] == ["check_every="]
    assert "lr=" in dict(completion.set_pairs("l")) and not list(completion.set_pairs("output_dir"))
