"""a folder -> the right of one process alone to work in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ngdiff.errors import Fault, RequestError
from ngdiff.system.events import log
from ngdiff.system.terminal import console

LOCK_FILE = "lock"


def take(folder: Path, output: Path, name: str = LOCK_FILE) -> tuple[int, str | None]:
    """Make a folder where it is missing, and lock it for this process.

    Args:
        folder: where the lock file lies.
        output: what an error calls it.
        name: of the lock file.

    Returns:
        What to ``os.close`` at the end; and, where the file system has no locks, a note that says so, which
        has been printed.

    Raises:
        RequestError: another process has it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RequestError(unwritable(folder, error)) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        what = f"another process is at work on {output}"
        raise RequestError(Fault("--output", what, "Wait for it, or give another folder")) from None
    except OSError as error:  # such as a network file system without locks
        note = f"the file system of {output} has no locks ({error.strerror or error})"
        note += ", so two runs with the same output are not kept apart: start one at a time"
        log.note(note)
        console.print(f"Note: {note}.", highlight=False, markup=False, soft_wrap=True)
        return lock, note
    return lock, None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder while the block runs; the lock file stays, hidden.

    Raises:
        RequestError: another process is at work in it, or it cannot be written to.
    """
    lock, _ = take(folder, folder, f".{LOCK_FILE}")
    try:
        yield
    finally:
        os.close(lock)


def unwritable(folder: Path, error: OSError) -> Fault:
    """Return the fault of a folder that cannot be written to."""
    what = f"{folder} cannot be written to ({error.strerror or error})"
    return Fault("--output", what, "Choose a folder that you may write to, on a disk with room")
