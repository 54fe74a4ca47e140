"""``ngdiff ask``: what a model answers, and the one before beside it, through the real entry point."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from commandline import Cli, save_model
from ngdiff.data.examples import Example, Message
from ngdiff.errors import printable
from ngdiff.inference.generation import generate_answers
from ngdiff.models.loading import load_model, load_tokenizer, resolve_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("asked")
    return save_model(folder / "target", seed=1), save_model(folder / "unlearned", seed=2)


def said(folder: Path, question: str) -> str:
    """What the model answers, asked without the command."""
    source = resolve_model(str(folder))
    example = Example((Message("user", question), Message("assistant", "-")), None, "qa", "x")
    torch.manual_seed(0)
    answers = generate_answers(load_model(source), load_tokenizer(source), [example], max_new_tokens=8)
    return printable(answers[0])


def test_one_model_answers_and_nothing_else_is_on_standard_output(
    cli: Cli, models: tuple[Path, Path]
) -> None:
    answer = cli("ask", models[1], "Where was Ada born?", "--max-new-tokens", 8)
    assert answer.code == 0
    assert answer.out.strip() == said(models[1], "Where was Ada born?")


def test_both_models_are_asked_the_same(cli: Cli, models: tuple[Path, Path]) -> None:
    target, unlearned = models
    answer = cli(
        *("ask", unlearned, "Where was Ada born?", "Who is Bob?"),
        *("--before", target, "--max-new-tokens", 8),
    )
    expected = []
    for question in ("Where was Ada born?", "Who is Bob?"):
        expected += [
            question,
            f"  before  {said(target, question)}".rstrip(),
            f"  now     {said(unlearned, question)}".rstrip(),
        ]
    assert [line.rstrip() for line in answer.out.splitlines()] == expected
    assert said(target, "Who is Bob?") != said(unlearned, "Who is Bob?")


def test_questions_come_from_standard_input(
    cli: Cli, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Who is Bob?\n\n  \nWhere was Ada born?"))
    answer = cli("ask", models[1], "--max-new-tokens", 8, "--quiet")
    expected = [said(models[1], question) for question in ("Who is Bob?", "Where was Ada born?")]
    assert answer.out.split("\n")[:-1] == expected


def test_nothing_asked_is_a_fault(
    cli: Cli, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n \n"))
    answer = cli("ask", models[1], "--quiet")
    assert answer.code == 2 and answer.out == ""
    ((what, fix),) = answer.faults
    assert what.startswith("QUESTION: is missing") and "one a line" in fix


def test_what_is_wrong_is_said_of_both_models_at_once(cli: Cli, tmp_path: Path) -> None:
    answer = cli("ask", tmp_path / "a", "Who?", "--before", tmp_path / "b")
    assert answer.code == 2
    assert [fault[0].split(":")[0] for fault in answer.faults] == ["--before", "MODEL"]


def test_an_answer_cannot_act_on_the_terminal(
    cli: Cli, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ngdiff.inference.generation.generate_answers", lambda *_, **__: ["\x1b[2Jgone"])
    answer = cli("ask", models[1], "Who?\x07", "--before", models[0])
    assert "\x1b" not in answer.out and "\x07" not in answer.out and "gone" in answer.out
