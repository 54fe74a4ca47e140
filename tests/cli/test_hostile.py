"""Hostile and malformed requests, one row each: exit code 2, a message that helps, and nothing written."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ngdiff.data.encoding
import ngdiff.models.adapters
import ngdiff.unlearn  # what every case waits for, here once
from commandline import Answer, make_cli, questions, save_model, write_jsonl
from hostile_data import DATA
from hostile_evaluations import EVALUATIONS, OTHERS, prepare_evaluations
from hostile_requests import FILES, FLAGS, MODEL_NAMES, MODELS, OUTPUTS, YAML


def listing(folder: Path) -> dict[str, object]:
    """Every entry under a folder, hidden ones, links and pipes too, with its kind and content."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content: object = None
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file() and path.stat().st_size < 2**28:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = (mode, content)
    return found


class Box:
    """A folder with all that a good request needs, which becomes the working directory."""

    def __init__(self, folder: Path, run: Callable[..., Answer]) -> None:
        self.folder, self.run = folder, run

    def refused(self, *words: object) -> str:
        """Run a command that must be refused and leave no trace; return its message."""
        before = listing(self.folder)
        answer = self.run(*words)
        assert answer.code == 2, (answer.code, answer.out, answer.err)
        assert "Traceback" not in answer.err and answer.out == "", answer.err
        assert answer.faults, answer.err
        shown = re.sub(r"\rLoading weights.*$", "", answer.err, flags=re.MULTILINE)  # a bar of transformers
        assert all(c.isprintable() or c == "\n" for c in shown), repr(shown)
        assert listing(self.folder) == before
        return " -> ".join(part for fault in answer.faults for part in fault)

    def unlearn(self, *words: object) -> str:
        """Run ``ngdiff unlearn`` with words in place of, or beside, those of a good request."""
        given = list(map(str, words))
        usual = {
            "--model": "model",
            "--forget": "forget.jsonl",
            "--retain": "retain.jsonl",
            "--output": "out",
        }
        rest = [word for pair in usual.items() if pair[0] not in given for word in pair]
        return self.refused("unlearn", *rest, *given)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("shared") / "model")


@pytest.fixture
def box(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Box]:
    shutil.copytree(shared, tmp_path / "model")
    write_jsonl(tmp_path / "forget.jsonl", questions(0, 4))
    write_jsonl(tmp_path / "retain.jsonl", questions(100, 12))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NGDIFF_TOFU_DIR", raising=False)
    monkeypatch.setattr(ngdiff.data.encoding, "MOST_SECONDS", 0.3)
    monkeypatch.setattr(ngdiff.models.adapters, "MATCH_SECONDS", 0.3)
    monkeypatch.setattr("socket.getaddrinfo", pytest.fail)  # nothing here is to ask the network
    yield Box(tmp_path, make_cli(capsys))


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make sure that a request is refused before any weights are loaded."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", never)


def rows(table: list[tuple[Any, ...]]) -> Any:
    names = [row[0] for row in table]
    assert len(set(names)) == len(names)
    return pytest.mark.parametrize("row", table, ids=names)


def holds(shown: str, words: tuple[str, ...]) -> None:
    missing = [word for word in words if word not in shown]
    assert not missing, f"{missing} not in: {shown[:2000]}"


@pytest.mark.usefixtures("no_weights")
@rows([(f"{kind}, {name}", *rest) for kind, table in DATA.items() for name, *rest in table])
def test_data(box: Box, row: tuple[str, str, Any, tuple[str, ...]]) -> None:
    _, name, content, words = row
    content = content() if callable(content) else content
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.process_time()
    holds(box.unlearn("--forget", name), ("--forget", *words))
    assert time.process_time() - started < 10


@pytest.mark.usefixtures("no_weights")
@rows(FILES)
def test_files_that_are_none(box: Box, row: tuple[str, str, Callable[[Path], None], tuple[str, ...]]) -> None:
    _, name, make, words = row
    make(box.folder / name)
    holds(box.unlearn("--forget", name), ("--forget", *words))


@rows(MODELS)
def test_models(box: Box, row: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    _, spoil, words, *loads = row
    spoil(box.folder / "model")
    if not loads:
        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", pytest.fail)
    holds(box.unlearn(), words)
    assert not (box.folder / "ran").exists()


@pytest.mark.usefixtures("no_weights")
@rows(MODEL_NAMES)
def test_model_names(box: Box, row: tuple[str, str, tuple[str, ...]]) -> None:
    holds(box.unlearn("--model", row[1]), row[2])


@pytest.mark.usefixtures("no_weights")
@rows(YAML)
def test_settings_files(box: Box, row: tuple[str, str, tuple[str, ...]]) -> None:
    Path("run.yaml").write_text(row[1])
    holds(box.unlearn("--config", "run.yaml"), row[2])


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda p: p.symlink_to("/dev/zero")])
def test_settings_files_that_are_none(box: Box, make: Callable[[Path], None]) -> None:
    make(box.folder / "run.yaml")
    holds(box.unlearn("--config", "run.yaml"), ("--config", "run.yaml", "not a file"))


@pytest.mark.usefixtures("no_weights")
@rows(FLAGS)
def test_flags(box: Box, row: tuple[str, list[str], tuple[str, ...]]) -> None:
    holds(box.unlearn(*row[1]), row[2])


@pytest.mark.usefixtures("no_weights")
@rows(OUTPUTS)
def test_outputs(box: Box, row: tuple[str, Callable[[Path], object], list[str], tuple[str, ...]]) -> None:
    _, make, words, says = row
    make(box.folder)
    holds(box.unlearn(*words), says)


@pytest.mark.usefixtures("no_weights")
@rows(OTHERS)
def test_other_commands(
    box: Box, row: tuple[str, Callable[[Path], object], list[str], tuple[str, ...]]
) -> None:
    _, make, words, says = row
    make(box.folder)
    holds(box.refused(*words), says)


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_evaluations(tmp_path_factory.mktemp("evaluations"))


@pytest.mark.usefixtures("no_weights")
@rows(EVALUATIONS)
def test_evaluations(
    box: Box, evaluations: Path, row: tuple[str, Callable[[Path], object], list[str], tuple[str, ...]]
) -> None:
    _, make, words, says = row
    shutil.copytree(evaluations, box.folder, dirs_exist_ok=True)
    make(box.folder)
    holds(box.refused("evaluate", "model", "--output", "eval.json", *words), says)


def test_all_faults_of_everything_at_once(box: Box) -> None:
    Path("f.jsonl").write_text("{\n")
    Path("r.csv").write_text("question,answer\na\n")
    Path("run.yaml").write_text("weight_decay: -1\nseeed: 1\n")
    Path("model/tokenizer.json").write_text("{")
    shown = box.unlearn(
        "--forget",
        "f.jsonl",
        "--retain",
        "r.csv",
        "--config",
        "run.yaml",
        "--output",
        "model/out",
        "--lr",
        "0",
    )
    holds(shown, ("f.jsonl, line 1", "r.csv, row 1", "'seeed'", "tokenizer", "inside the model", "--lr"))


def test_the_table_is_long_enough() -> None:
    tables: list[Any] = [
        FILES,
        FLAGS,
        MODEL_NAMES,
        MODELS,
        OUTPUTS,
        YAML,
        EVALUATIONS,
        OTHERS,
        *DATA.values(),
    ]
    assert sum(map(len, tables)) >= 250


@pytest.mark.parametrize(
    "words",
    [
        ["unlearn", "--model", "model", "--forget", "f.jsonl", "--retain", "retain.jsonl", "--output", "out"],
        ["recompute", "f.jsonl"],
    ],
    ids=lambda words: words[0],
)
def test_in_a_process_of_its_own(box: Box, words: list[str]) -> None:
    os.mkfifo("f.jsonl")
    before = listing(box.folder)
    done = subprocess.run(
        [sys.executable, "-m", "ngdiff", *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and "f.jsonl" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert listing(box.folder) == before
