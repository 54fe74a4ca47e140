"""``--keep`` and ``floors``: what they become, and what is wrong with them, before any model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commandline import questions, save_model, write_jsonl
from ngdiff.cli.settings import gather, to_request
from ngdiff.errors import RequestError
from ngdiff.report.page import command
from ngdiff.unlearn import UnlearnRequest, data_hashes, kept_names, make_config, prepare, settings_of


def test_floors_are_names_and_shares(tmp_path: Path) -> None:
    given, faults = gather(None, ["floors.general=0.9", "floors.retain=0"], {"model": "m"})
    assert given["floors"] == {"general": 0.9, "retain": 0.0}
    assert {fault.where for fault in faults} == {"--forget", "--retain", "--output"}
    # an entry is laid over the same setting of the file
    (tmp_path / "run.yaml").write_text("floors: {general: 0.5, world: 0.7}", encoding="utf-8")
    given, _ = gather(tmp_path / "run.yaml", ["floors.general=0.9"], {})
    assert given["floors"] == {"general": 0.9, "world": 0.7}
    given, _ = gather(tmp_path / "run.yaml", ["floors={general: 0.9}"], {})
    assert given["floors"] == {"general": 0.9}


@pytest.mark.parametrize("pair", ["general", "general=", "=0.5", "general=most"])
def test_what_is_no_floor(pair: str) -> None:
    given, faults = gather(
        None, [f"floors.{pair}"], {"model": "m", "forget": "f", "retain": "r", "output": "o"}
    )
    if not faults:
        with pytest.raises(RequestError) as caught:
            make_config(to_request(given))
        faults = list(caught.value.faults)
    (fault,) = faults
    assert fault.where.startswith("--set") and pair.partition("=")[0] in fault.what and fault.fix


def test_kept_sets_are_named_after_their_files() -> None:
    sources = (
        "data/world.jsonl",
        "other/world.csv",
        "tofu:real_authors",
        "org/name:config@split",
        "ngdiff:general",
    )
    assert list(kept_names(sources)) == ["world", "world-2", "real_authors", "config@split", "general"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("kept")
    save_model(made / "model")
    write_jsonl(made / "forget.jsonl", questions(0, 8))
    write_jsonl(made / "retain.jsonl", questions(100, 20))
    write_jsonl(made / "world.jsonl", questions(200, 4))
    write_jsonl(made / "general.jsonl", questions(300, 4))
    return made


def request(folder: Path, **more: object) -> UnlearnRequest:
    given = {
        "model": str(folder / "model"),
        "forget": (str(folder / "forget.jsonl"),),
        "retain": (str(folder / "retain.jsonl"),),
        "output": folder / "out",
        **more,
    }
    return to_request(given)


def faults_of(asked: UnlearnRequest) -> dict[str, str]:
    with pytest.raises(RequestError) as caught:
        prepare(asked)
    return {fault.where: fault.what for fault in caught.value.faults}


def test_a_kept_set_is_read_hashed_and_written_into_the_command(folder: Path) -> None:
    asked = request(folder, keep=str(folder / "world.jsonl"), floors={"world": 0.9})
    ready = prepare(asked)
    assert len(ready.keep["world"]) == 4
    assert set(data_hashes(ready)) == {"forget", "retain", "keep world"}
    settings = settings_of(asked, ready.config)
    assert settings["keep"] == [str(folder / "world.jsonl")] and settings["floors"] == {"world": 0.9}
    words = command({"settings": json.loads(json.dumps(settings))})
    assert f"--keep {folder / 'world.jsonl'}" in words and "floors=" in words


def test_names_that_are_wrong(folder: Path) -> None:
    assert "'wrld'" in faults_of(request(folder, floors={"wrld": 0.9}))["--set floors"]
    assert "'general'" in faults_of(request(folder, keep=str(folder / "general.jsonl")))["--keep"]


def test_sets_that_contradict_each_other(folder: Path) -> None:
    told = write_jsonl(folder / "told.jsonl", [{"question": "Tell me.", "answer": "The author 3 sat."}])
    found = faults_of(request(folder, retain=(str(folder / "retain.jsonl"), str(told))))
    assert "forget.jsonl, line 4 (same answer as" in found["--retain"]
    allowed = request(folder, retain=(str(folder / "retain.jsonl"), str(told)), allow_overlap=True)
    assert len(prepare(allowed).retain) == 21
    shared = faults_of(request(folder, holdout=str(folder / "retain.jsonl")))["--holdout"]
    assert shared.startswith("20 rows are in another set too") and "the retain set (" in shared


def test_repeated_rows_are_noted(folder: Path) -> None:
    twice = write_jsonl(folder / "twice.jsonl", [*questions(0, 8), *questions(2, 1)])
    (note,) = prepare(request(folder, forget=str(twice))).notes
    assert "twice.jsonl, line 3 and " in note and note.startswith("1 row repeats another")
