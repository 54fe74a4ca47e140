"""A plan of commands -> each run in a process of its own, spoilt as the plan says, and how each one ended.

    python tests/survival.py plan.json

The plan is a list of attempts; the answer, on standard output, a list of exit codes (minus the signal, where
one ended the process), of what was printed and of seconds. All attempts are forked off one process that has
imported everything, so that a run costs no more than its own work.

``processes`` runs one command on several processes, as torchrun would: the first of them that fails decides
the code, and the others are killed. ``rank`` says whose functions send signals. Where a process stops
(SIGSTOP), as if its machine had frozen, the first one is interrupted twice.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import json
import os
import resource
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# what a command imports as it goes
LOADED = ("ngdiff.cli.commands", "ngdiff.unlearn", "ngdiff.finetune", "ngdiff.runs.saving", "torch._dynamo")

LONGEST, HUNG = 400, 98


def signal_at(where: str, call: int, signals: list[int | str]) -> None:
    """Send this process signals when a function, ``module:name.name``, is called for the ``call``-th time.

    A path among the signals is a folder that somebody removes at that moment.
    """
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
                if isinstance(signum, str):
                    shutil.rmtree(signum)
                else:
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


def no_locks(*_: Any) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def attempt(plan: dict[str, Any], printed: Path) -> int:
    """Fork, run one command, and return how it ended."""
    for path, how in plan.get("damage", {}).items():
        damage(Path(path), how)
    count = plan.get("processes", 1)
    printed.write_text("")
    port = _free_port() if count > 1 else 0
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            if count > 1:
                join(rank, count, port)
            run(plan, printed, rank)
        children.append(child)
    return watch(children)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def join(rank: int, count: int, port: int) -> None:
    """Set what torchrun tells a process."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_RUN_ID": "survival"}


def watch(children: list[int]) -> int:
    """Wait for all; when one fails, or all stand still, kill the others; return how the first one ended."""
    left, until = set(children), time.monotonic() + LONGEST
    code = 0
    while left and code == 0:
        child, status = os.waitpid(-1, os.WUNTRACED | os.WNOHANG)
        if child == 0:
            time.sleep(0.05)
            code = HUNG if time.monotonic() > until else 0
        elif os.WIFSTOPPED(status):
            for _ in range(2):
                time.sleep(1)
                os.kill(children[0], signal.SIGINT)
        else:
            left.discard(child)
            code = os.waitstatus_to_exitcode(status)
            if (
                code > 0 and left
            ):  # one that was killed leaves the others with an error, seen before it or after
                code = _killed(left) or code
    for other in left:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    return code


def _killed(left: set[int]) -> int:
    """Return the code of another process that a signal has ended by now; 0 where none has."""
    for child in sorted(left):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            left.discard(child)
            if os.WIFSIGNALED(status):
                return os.waitstatus_to_exitcode(status)
    return 0


def run(plan: dict[str, Any], printed: Path, rank: int) -> None:
    """Run one command in this process, and end it."""
    code = 99
    try:
        file = os.open(printed, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if "where" in plan and rank == plan.get("rank", 0):
            signal_at(plan["where"], plan["call"], plan["signals"])
        if "largest_file" in plan:
            resource.setrlimit(resource.RLIMIT_FSIZE, (plan["largest_file"], resource.RLIM_INFINITY))
        if "no_locks" in plan:
            fcntl.flock = no_locks
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


def main() -> None:
    for name in LOADED:
        importlib.import_module(name)
    plan = json.loads(Path(sys.argv[1]).read_text())
    printed = Path(sys.argv[1]).with_suffix(".printed")
    answers = []
    for one in plan:
        began = time.monotonic()
        code = attempt(one, printed)
        seconds = time.monotonic() - began
        answers.append({"code": code, "printed": printed.read_text(), "seconds": seconds})
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
