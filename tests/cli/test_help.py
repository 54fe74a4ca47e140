"""Help that teaches by example, examples that parse, exit codes that are documented, names that complete."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

import ngdiff.cli.commands  # noqa: F401
from commandline import Cli, parse
from ngdiff.cli import app as exits
from ngdiff.cli import completion
from ngdiff.cli.app import app
from ngdiff.cli.unlearn import NO_SETTINGS
from ngdiff.evaluation.suites import suites
from ngdiff.losses import LOSSES
from ngdiff.methods import METHODS
from ngdiff.settings import FLAGS, SHORT
from ngdiff.steps.weighting import RULES

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide.md"
ROOT_COMMAND = typer.main.get_command(app)


def walk(command: typer.core.TyperCommand, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every command below ``command``, each with its help."""
    yield path, command.help or ""
    for name, below in getattr(command, "commands", {}).items():
        yield from walk(below, (*path, name))


COMMANDS = dict(walk(ROOT_COMMAND, ("ngdiff",)))
EXAMPLES = sorted({each for help_ in COMMANDS.values() for each in re.findall(r"`(ngdiff [^`]+)`", help_)})


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_gives_an_example_of_itself(path: tuple[str, ...]) -> None:
    examples = re.findall(r"`(ngdiff [^`]+)`", COMMANDS[path])
    if path == ("ngdiff", "bench"):  # a group of commands, each with its own
        return
    assert [each for each in examples if each.startswith(" ".join(path))]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_of_the_help_parse(example: str) -> None:
    parse(shlex.split(example.partition(" | ")[0]))


@pytest.mark.parametrize("wrong", ["ngdiff merge", "ngdiff unlearn --modle m", "ngdiff unlearn --lr fast"])
def test_the_parser_of_examples_sees_what_is_wrong(wrong: str) -> None:
    with pytest.raises(Exception, match=r"Missing|No such option|valid"):
        parse(shlex.split(wrong))


@pytest.mark.parametrize("path", [path for path in COMMANDS if len(path) > 1], ids=" ".join)
def test_help_fits_80_columns(cli: Cli, path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    answer = cli(*path[1:], "--help")
    assert answer.code == 0
    assert max(map(len, answer.out.splitlines())) <= 80


MOST_FLAGS = 32


def test_unlearn_has_few_flags_and_each_setting_is_known_by_one_name() -> None:
    unlearn: Any = ROOT_COMMAND.commands["unlearn"]  # type: ignore[attr-defined]
    flags = {option.name: option.opts[0] for option in unlearn.params}
    assert len(flags) <= MOST_FLAGS
    settings = {SHORT.get(name, name): flag for name, flag in FLAGS.items()}
    assert settings == {name: flag for name, flag in flags.items() if name not in NO_SETTINGS}


@pytest.mark.parametrize("name", ["max_steps", "save_steps", "step_size", "sign", "private", "tofu_dir"])
def test_a_setting_without_a_flag_is_answered_with_set(cli: Cli, name: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    answer = cli("unlearn", "--model", "m", flag, "1")
    assert answer.code == 2 and len(answer.faults) == 1
    what, fix = answer.faults[0]
    assert flag in what and f"--set {name}=VALUE" in fix


@pytest.mark.parametrize(
    ("flag", "fix"), [("--lr-start", "step_size=auto"), ("--floor", "--set floors.NAME=")]
)
def test_a_setting_of_an_earlier_version_is_answered_with_what_replaces_it(
    cli: Cli, flag: str, fix: str
) -> None:
    answer = cli("unlearn", flag, "1")
    assert answer.code == 2 and fix in answer.faults[0][1]


def test_options_of_unlearn_stand_in_panels(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    titles = re.findall(r"^╭─ (.+?) ─", cli("unlearn", "--help").out, flags=re.MULTILINE)
    assert titles == ["Options", "Data", "Method", "Stopping", "Resources", "Output", "Logs and trackers"]


# ---- exit codes ----


def test_exit_codes_stand_in_the_guide_as_in_the_table() -> None:
    section = GUIDE.read_text(encoding="utf-8").split("## Exit codes")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| (\d+) \| (.+?) \|$", section, flags=re.MULTILINE))
    assert {int(code): meaning for code, meaning in rows.items()} == exits.EXIT_CODES


def test_every_constant_is_in_the_table() -> None:
    constants = {
        value for name, value in vars(exits).items() if name.startswith("EXIT_") and name != "EXIT_CODES"
    }
    assert constants == set(exits.EXIT_CODES)


def test_help_ends_with_the_exit_codes(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = " ".join(cli("--help").out.split())
    assert all(f"{code} {meaning}" in shown for code, meaning in exits.EXIT_CODES.items())


def test_exit_codes_in_the_source_are_the_table_s() -> None:
    found = set()
    for path in (ROOT / "src" / "ngdiff").rglob("*.py"):
        found |= {
            int(code) for code in re.findall(r"(?:sys\.exit|typer\.Exit)\((\d+)\)", path.read_text("utf-8"))
        }
    assert found <= set(exits.EXIT_CODES)


# ---- completion ----


def names(found: Iterator[tuple[str, str]]) -> list[str]:
    return [name for name, _ in found]


def test_names_complete_from_the_tables() -> None:
    assert names(completion.methods("")) == list(METHODS)
    assert names(completion.rules("")) == list(RULES)
    assert names(completion.suites("")) == list(suites())
    losses = [*names(completion.forget_losses("")), *names(completion.retain_losses(""))]
    assert sorted(losses) == sorted(LOSSES)
    assert "ngdiff,npo" in names(completion.methods("ngdiff,n"))
    assert not names(completion.methods("zz"))


def test_files_complete_beside_named_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokens.jsonl").touch()
    (tmp_path / "texts").mkdir()
    monkeypatch.chdir(tmp_path)
    found = names(completion.sources("to"))
    assert "tofu:forget05" in found and "tokens.jsonl" in found and "texts/" not in found
    assert names(completion.sources(f"{tmp_path}/te")) == [f"{tmp_path}/texts/"]


def test_the_shell_is_answered_through_the_installed_script() -> None:
    words = "ngdiff unlearn --method ngdiff-"
    environment = {
        **os.environ,
        "_NGDIFF_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": "3",
        "_TYPER_COMPLETE_ARGS": words,
    }
    script = Path(sys.executable).with_name("ngdiff")
    done = subprocess.run([script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [name for name in METHODS if name.startswith("ngdiff-")]


def test_completion_installs_itself(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = Path(sys.executable).with_name("ngdiff")
    command = [script, "--install-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    written = "".join(path.read_text("utf-8") for path in tmp_path.rglob("*") if path.is_file())
    assert "_NGDIFF_COMPLETE=complete_bash" in written
