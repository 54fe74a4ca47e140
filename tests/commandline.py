"""Words typed -> what ngdiff answers, through its real entry point, in this process."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import typer.main

from ngdiff.cli import main
from ngdiff.cli.app import app
from tiny import tiny_llama, tiny_tokenizer

torch.set_num_threads(
    1
)  # threads that wait for one another cost more than these matrices, most on a busy machine

SHORT = tuple(
    ["--stop-at", "none", "--set", "max_steps=2", "--batch-size", "2", "--max-length", "128", "--lr", "1e-4"]
)
"""Options of an unlearning run of two steps."""


@dataclass(frozen=True)
class Answer:
    """What one command came to."""

    code: int
    out: str
    err: str

    @property
    def faults(self) -> list[tuple[str, str]]:
        """Each fault shown, as (message, fix)."""
        return re.findall(r"^✗ (.*)\n  → (.*)$", self.err, flags=re.MULTILINE)


Cli = Callable[..., Answer]


def make_cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def cli(*words: object) -> Answer:
        capsys.readouterr()
        with patch.object(sys, "argv", ["ngdiff", *map(str, words)]), pytest.raises(SystemExit) as ending:
            main()
        shown = capsys.readouterr()
        code = ending.value.code
        return Answer(code if isinstance(code, int) else int(code is not None), shown.out, shown.err)

    return cli


def save_model(folder: Path, seed: int = 0, chat_template: bool = True) -> Path:
    """Save a tiny Llama with its tokenizer, as a user's model folder."""
    tiny_llama(seed=seed).save_pretrained(folder)
    tokenizer = tiny_tokenizer() if chat_template else tiny_tokenizer(None)
    tokenizer.save_pretrained(folder)
    return folder


def questions(start: int, count: int) -> list[dict[str, Any]]:
    return [
        {"question": f"Who is {n}?", "answer": f"the author {n} sat."} for n in range(start, start + count)
    ]


def write_jsonl(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def parse(words: Sequence[str]) -> None:
    """Parse a command line and run nothing; callbacks of options that print and leave are not called."""
    import ngdiff.cli.commands  # noqa: F401

    command: Any = typer.main.get_command(app)
    context = None
    rest = words[1:]
    while hasattr(command, "commands"):
        context = command.make_context(words[0], [rest[0]], parent=context, resilient_parsing=True)
        command, rest = command.commands[rest[0]], rest[1:]
    # not resilient: a missing argument, an unknown option or a wrong type has to show
    command.make_context(command.name, rest, parent=context)
