"""A plan of commands -> each run in a process of its own, spoilt as the plan says, and how each one ended.

    python tests/survival.py plan.json

The plan is a list of attempts; the answer, on standard output, a list of exit codes (minus the signal, where
one ended the process) and of what was printed. All attempts are forked off one process that has imported
everything, so that a run costs no more than its own work.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# what a command imports as it goes
LOADED = ("ngdiff.cli.commands", "ngdiff.unlearn", "ngdiff.finetune", "ngdiff.models.saving", "torch._dynamo")


def signal_at(where: str, call: int, signals: list[int]) -> None:
    """Send this process signals when a function, ``module:name.name``, is called for the ``call``-th time."""
    module, _, path = where.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    whole: Callable[..., Any] = getattr(owner, name)
    calls = iter(range(1, 1_000_000))

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            for signum in signals:
                os.kill(os.getpid(), signum)
        return whole(*args, **kwargs)

    setattr(owner, name, spoilt)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    if how == "cut":
        path.write_bytes(content[:middle])
    elif how == "altered":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.unlink()


def attempt(plan: dict[str, Any], printed: Path) -> int:
    """Fork, run one command, and return how it ended."""
    for path, how in plan.get("damage", {}).items():
        damage(Path(path), how)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    code = 99
    try:
        file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if "where" in plan:
            signal_at(plan["where"], plan["call"], plan["signals"])
        if "largest_file" in plan:
            resource.setrlimit(resource.RLIMIT_FSIZE, (plan["largest_file"], resource.RLIM_INFINITY))
        sys.argv = ["ngdiff", *plan["words"]]
        from ngdiff.cli import main

        try:
            main()
            code = 0
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise AssertionError


def main() -> None:
    for name in LOADED:
        importlib.import_module(name)
    plan = json.loads(Path(sys.argv[1]).read_text())
    printed = Path(sys.argv[1]).with_suffix(".printed")
    answers = [{"code": attempt(one, printed), "printed": printed.read_text()} for one in plan]
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
