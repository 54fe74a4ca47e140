"""Each recipe is a request that is in order, and the commands in it are ones that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from commandline import Cli, make_cli, parse, questions, save_model, write_jsonl
from muse_folder import muse_rows, write_muse
from tofu_folder import make_tofu

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Cli:
    """Run commands in a folder that has everything the recipes name, benchmarks included."""
    folder = tmp_path_factory.mktemp("place")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    for name in ("my-model", "target"):
        save_model(folder / name)
    for name, start, count in (("forget", 0, 6), ("retain", 100, 20), ("never-seen", 200, 6)):
        write_jsonl(folder / f"{name}.jsonl", questions(start, count))
    (folder / "tofu").mkdir()
    for name, start in (("forget10", 0), ("retain90", 100)):
        write_jsonl(folder / "tofu" / f"{name}.json", questions(start, 20))
    make_tofu(folder / "tofu")
    write_muse(folder / "muse" / "news", muse_rows(items=12))
    monkeypatch.setenv("NGDIFF_TOFU_DIR", str(folder / "tofu"))
    monkeypatch.setenv("NGDIFF_MUSE_DIR", str(folder / "muse"))
    return make_cli(capsys)


def test_there_is_one_for_each_way_to_start() -> None:
    assert {path.stem for path in RECIPES} == {"own-data", "lora", "muse", "tofu", "fsdp"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_it_is_in_order(cli: Cli, recipe: Path) -> None:
    words = ["--set", "model=my-model", "--set", "max_length=64", "--set", "precision=fp32"]
    answer = cli("validate", recipe, *words)
    assert answer.code == 0, answer.err
    assert "The request is in order" in answer.err


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_name_that_is_wrong_in_it_would_be_found(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    changed = tmp_path / recipe.name
    changed.write_text(yaml.safe_dump({**settings, "gradient_checkpoints": True}), encoding="utf-8")
    answer = cli("validate", changed, "--set", "model=my-model")
    assert answer.code == 2
    assert "gradient_checkpoints" in answer.err


def test_the_one_of_own_data_runs(cli: Cli) -> None:
    recipe = ROOT / "examples" / "recipes" / "own-data.yaml"
    answer = cli("unlearn", "--config", recipe, "--set", "max_steps=1", "--no-report", "--set", "answers=0")
    assert answer.code in (0, 3), answer.err
    assert Path("unlearned", "record.json").is_file()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_its_commands_parse(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8").replace("\\\n#", " ")
    lines = [re.sub(r"^#\s+(.* -m )?", "", line) for line in text.splitlines() if line.startswith("#   ")]
    commands = [line for line in lines if line.startswith("ngdiff ")]
    assert commands
    for command in commands:
        parse(shlex.split(command))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_files_of_this_project_that_it_names_are_there(recipe: Path) -> None:
    for name in re.findall(r"examples/[\w./-]*\w", recipe.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name
